"""Brackets of smoothness, gradient size and similarity for trained models: `estimate-smoothness`."""

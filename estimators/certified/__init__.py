"""Certified ranges of smoothness, gradients and cosines: what holds on a whole set, not on a sample of it."""

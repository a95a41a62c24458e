"""Predicted against measured: the statements and certificates beside what the attacks did."""

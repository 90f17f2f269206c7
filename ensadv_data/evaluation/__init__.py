"""Measures of robustness: pure functions from models and images to frozen records."""

"""Attacks as pure functions with keyword-only quantities (Section 3.2 and equation 7 of the paper)."""

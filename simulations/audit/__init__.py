"""Attacks on the privacy of the shipped client: what is measured, by which bounds, in which processes."""

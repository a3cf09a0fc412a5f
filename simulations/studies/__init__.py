"""Comparisons, cross-validation, overlays: many runs, one table."""

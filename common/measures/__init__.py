"""How good an answer is: overlap, surfaces, volumes, ranking, calibration, and how sure the figures are.

Arithmetic alone: one measure a file, on numpy arrays (counts of voxels, `metrics.py`, on tensors). No torch at import
but there; SciPy where it is used. Conventions for empty masks and formulas: docs/evaluation.md.
"""

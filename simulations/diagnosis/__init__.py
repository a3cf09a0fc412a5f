"""Marked regions of two classes told apart: networks, classical features and a rule, out of fold, with intervals."""

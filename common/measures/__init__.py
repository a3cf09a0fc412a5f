"""How good a segmentation is, and the losses that train towards it: arithmetic on tensors."""

"""How good a segmentation is: arithmetic on tensors."""

"""Models to and from others: a MONAI bundle or ONNX of a finished model, and weights of a bundle to start from."""

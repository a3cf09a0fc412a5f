"""What training and prediction share: the network of a run, transforms, inference, checkpoints, schedule."""

"""What changes a training crop at random: where its voxels lie, and how bright they are.

Every draw is from the generator passed in, and every crop is changed by itself: nothing is computed over several, so
that under differential privacy no patient moves another. Imports `common.config`, and torch.
"""

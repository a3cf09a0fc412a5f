"""A coordinator's folder: names, settings, root, keys, checkpoints. Imports nothing else of `server`."""

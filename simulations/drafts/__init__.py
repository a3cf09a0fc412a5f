"""A scenario drafted from a folder of images: what lies there, what follows from it, and the commented file."""

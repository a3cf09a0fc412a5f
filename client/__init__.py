"""What runs at a hospital."""

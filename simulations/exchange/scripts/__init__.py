"""What a MONAI bundle carries as it stands here. Imports torch and MONAI, and nothing of ours: it runs without us."""

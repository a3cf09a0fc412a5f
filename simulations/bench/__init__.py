"""What reading and private steps cost, side by side with other ways."""

"""What reading and private steps cost, side by side with other ways; what many sites cost a coordinator."""

"""What a person at a coordinator types: `wardround-server`. The top floor; nothing imports it."""

"""What a person at a hospital types: `wardround-client`. The top floor; nothing imports it."""

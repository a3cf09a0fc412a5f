"""What a researcher types: `wardround-sim`. The top floor; nothing imports it."""

"""Federations on one machine, for researchers. Imports everything; nothing imports it."""

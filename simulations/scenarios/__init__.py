"""Scenarios in TOML, and how one becomes site homes and public first weights."""

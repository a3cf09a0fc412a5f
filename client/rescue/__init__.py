"""Backup and purge of a hospital's home. Imports `client.home`, `client.rules`, `client.trail`, `common.rescue`."""

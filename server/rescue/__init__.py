"""Backup and purge of a coordinator's home. Imports `server.home`, `server.registry`, `common.rescue`."""

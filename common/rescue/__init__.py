"""Backup, restore and the version of a home, for both sides. Imports `common.console`, `crypto` and `system`.

members.py    what of a home goes into a backup, and what stays out
archive.py    the file: a tar, sealed under a passphrase
backup.py     making one while the home is in use, looking through it, restoring it
restored.py   the mark of a home that came from a backup, until the other side has seen its log
migration.py  the version of a home, and the way from an earlier one
purging.py    what a run left, to be removed at the end of a project
commands.py   what the commands of both sides have in common
"""

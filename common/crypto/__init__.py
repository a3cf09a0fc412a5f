"""Sealing, one way for each kind of thing. Imports `common.errors` and `common.system.files`, and nothing else of ours.

    record_box.py   a record: many of them under one key, each for its place
    stream.py       a payload of any size, in memory or in a file: each under a key of its own, for its name
    passphrase.py   a secret under a passphrase
    keyfile.py      the key itself, plain or under a passphrase
    derivation.py   from one secret a key for each use

Everything is AES-256-GCM; keys come from HKDF-SHA256, those under a passphrase from scrypt.
"""

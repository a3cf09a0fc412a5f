"""The audit log: Merkle tree, entries, receipts, witnesses, and the verifier that needs only cryptography."""

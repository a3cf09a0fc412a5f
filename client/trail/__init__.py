"""What a hospital can prove: its audit log, receipts, the exchange of checkpoints, updates that wait to leave."""

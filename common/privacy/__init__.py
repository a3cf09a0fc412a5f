"""Patient-level differential privacy: engine, noise, accountant, ledger, guarantee, noised scores."""

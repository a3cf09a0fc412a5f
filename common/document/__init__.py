"""The engine of documents: tables, formats, choices, faults in words, TOML that we write."""

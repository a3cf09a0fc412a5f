"""What is kept at a site between looks, sealed: prepared studies, headers, splits, the forgotten. Imports `home`."""

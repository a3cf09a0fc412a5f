"""A site's folder: names, site.toml, key, certificate and what is sealed there. Imports nothing else of `client`."""

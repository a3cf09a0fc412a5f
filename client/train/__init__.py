"""One round at a site: allowed, charged, trained, scored. Imports the cohort (`client.data`), the rules; no network."""

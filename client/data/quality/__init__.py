"""Is a study fit to be used? What is measured in a reader's process, and its small picture. Imports `study`."""

"""Images made from nothing: CT phantoms, hippocampi, retinas. They write what a hospital would have."""

"""The one adapter of Flower: nothing else touches what Flower does not document."""

"""Other simulators that make the rounds of `simulations.bench.training`, each in its own way and processes."""

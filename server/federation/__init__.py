"""A run at the coordinator: rounds, checks, bounds, what is written of them. Its strategies have their own room."""

"""A run at the coordinator. So far the server halves of the strategies."""

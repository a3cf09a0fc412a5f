"""One local round at a site. So far the client halves of the strategies."""

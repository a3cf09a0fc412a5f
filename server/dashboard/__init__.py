"""The coordinator in a browser on its own machine: runs as `server.views` makes them, and what operators do to them."""

"""What runs at a hospital."""

import os

# gRPC reads this when it is loaded, and never again; without it each end of a connection is a line of its own on
# stderr, between those of our log, which say what it means.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

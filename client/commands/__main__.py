"""wardround-client, where its process starts: what gRPC reads when it is loaded is said before anything loads it."""

import os


def main() -> None:
    """Run the command that was typed."""
    # gRPC never reads it again. Without it each end of a connection is a line of its own on stderr, between those of
    # our log, which say what it means.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from client.commands.main import app  # noqa: PLC0415 - loads gRPC

    app()


if __name__ == "__main__":
    main()

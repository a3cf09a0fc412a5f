"""wardround-client with every outgoing request written, as plain bytes, to the file named by WARDROUND_TAP.

The tap sits under all of the agent's calls, where TLS would encrypt them.
"""

import os
import sys
from pathlib import Path

import grpc


class Tap(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in its types alone
    """Writes each request down and passes it on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def intercept_unary_unary(self, continuation, client_call_details, request):
        with self._path.open("ab") as file:
            file.write(client_call_details.method.encode() + b"\n" + request.SerializeToString() + b"\n")
        return continuation(client_call_details, request)


def main() -> None:
    plain, tap = grpc.secure_channel, Tap(Path(os.environ["WARDROUND_TAP"]))
    grpc.secure_channel = lambda *arguments: grpc.intercept_channel(plain(*arguments), tap)
    from client.commands.main import app  # noqa: PLC0415 - after the tap is in

    sys.argv[0] = "wardround-client"
    app()


if __name__ == "__main__":
    main()

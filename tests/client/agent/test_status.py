"""What a site's status says when its coordinator cannot be reached, by the reason."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from client.agent.status import EXPIRED, Status, read_status
from client.home.identity import Identity


class Unreachable(grpc.RpcError):
    """As the channel raises it."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("days", "state"), [(-1, EXPIRED), (0, "connecting"), (30, "connecting")])
def test_stale_certificate_is_said_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, state: str
) -> None:
    """A site that was shut down for months: its connection fails like one to a coordinator that is away."""
    identity = cast(Identity, SimpleNamespace(site="north", gateway="127.0.0.1:1", days_left=days))
    status = Status(tmp_path, identity)
    with caplog.at_level(logging.WARNING):
        status.away(Unreachable())
    assert read_status(tmp_path)["state"] == state
    assert read_status(tmp_path)["certificate-days-left"] == days
    assert ("our certificate has expired. Ask for an invitation and join again" in caplog.text) == (days < 0)

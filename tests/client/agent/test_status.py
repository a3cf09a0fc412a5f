"""What a site's status says when its coordinator cannot be reached, by the reason."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from client.agent.status import EXPIRED, Status, last_sign_of_life, only_one, read_status
from client.home.identity import Identity
from common.system.life import SIGN_OF_LIFE_S


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


def test_agent_that_lives_is_known_to_live_though_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has written stays as it is for days; of one that is killed then, it is known until when it lived."""
    identity = cast(Identity, SimpleNamespace(site="north", gateway="127.0.0.1:1", days_left=30))
    now = [1000.0]
    monkeypatch.setattr("client.agent.status.time.monotonic", lambda: now[0])
    with only_one(tmp_path):
        status = Status(tmp_path, identity)
        for path in (tmp_path / "status.json", tmp_path / "agent.lock"):
            os.utime(path, (5.0, 5.0))
        status.update()
        assert last_sign_of_life(tmp_path) == 5.0
        now[0] += SIGN_OF_LIFE_S
        status.update()
        assert last_sign_of_life(tmp_path) > 1e9
        assert (tmp_path / "status.json").stat().st_mtime == 5.0  # or every page would be made anew

"""What a journal says after a power failure took some of what was not flushed to the disk."""

import json
from pathlib import Path

import pytest

from common.config.rundocument import issue
from common.errors import ConfigError
from common.learning.checkpoint import pack, unpack
from common.wire.messages import TrainRequest
from server.federation.events import Event, read_events
from server.federation.rounds import federate
from tests.server.fakes import FakeGrid, FakeSite, a_run, trains

NAMES = [f"site-{number}" for number in range(6)]


def sites() -> dict[str, FakeSite]:
    def moved(request: TrainRequest) -> bytes:
        return pack({name: one + 1e-3 for name, one in unpack(request.parts["weights"]).items()})

    return {name: trains(moved) for name in NAMES}


def stops_after(event: Event) -> None:
    if (event["event"], event.get("round"), event.get("site")) == ("train", 2, NAMES[-1]):
        raise KeyboardInterrupt


@pytest.mark.parametrize("lost", [slice(None, 1), slice(1, 3), slice(2, None), slice(None)])
def test_a_run_goes_on_where_any_of_the_lines_after_the_last_flush_are_zeros(lost: slice, tmp_path: Path) -> None:
    """Pages of a file reach the disk in any order, and those that do not are read as zeros."""
    document = issue(a_run(rounds=3, quorum=6))
    whole = federate(FakeGrid(sites()), document, tmp_path / "whole", wake=lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        federate(FakeGrid(sites()), document, tmp_path / "cut", wake=lambda _: None, observe=stops_after)
    path = tmp_path / "cut" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    (flushed,) = [n for n, one in enumerate(lines, 1) if json.loads(one)["event"] == "round"]
    ends = [flushed, *(n for n, one in enumerate(lines, 1) if json.loads(one).get("site") == "overall")]
    tail = lines[max(ends) : -1]  # the last one says what stopped the run
    assert len(tail) == 6
    tail[lost] = [b"\0" * len(one) for one in tail[lost]]
    path.write_bytes(b"".join([*lines[: max(ends)], *tail]))
    assert len(read_events(path)) <= max(ends) + 6
    resumed = federate(FakeGrid(sites()), document, tmp_path / "cut", wake=lambda _: None)
    assert (resumed.model_sha256, resumed.sites_by_round) == (whole.model_sha256, whole.sites_by_round)


def test_a_line_that_was_flushed_and_is_none_any_more_is_refused(tmp_path: Path) -> None:
    federate(FakeGrid(sites()), issue(a_run(rounds=2, quorum=6)), tmp_path, wake=lambda _: None)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number, one in enumerate(lines[:-1], start=1):
        path.write_bytes(b"".join([*lines[: number - 1], b"\0" * (len(one) - 1) + b"\n", *lines[number:]]))
        with pytest.raises(ConfigError, match=f"line {number} is not JSON"):
            read_events(path)
    path.write_bytes(b"".join(lines)[:-9])
    assert len(read_events(path)) == len(lines) - 1

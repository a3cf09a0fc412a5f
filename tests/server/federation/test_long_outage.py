"""A site whose line is cut for some rounds: the others go on and say so; it comes back, and late work is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from common.learning.checkpoint import load_model
from common.learning.network import build_model
from common.wire.messages import Request, TrainReply, TrainRequest
from server.views.sentences import missing_of
from tests.server.fakes import FakeGrid, Said, a_run, reply_message
from tests.server.federation.test_rounds import moves, of_kind, run_it, shift

AWAY = (2, 3)  # rounds; in the next one it is back


@pytest.mark.parametrize("how", ["answers its old message", "answers the new one with its old work"])
def test_the_quorum_goes_on_names_who_is_away_and_takes_them_in_again(tmp_path: Path, how: str) -> None:
    run = a_run(5, quorum=1, federation={"round-timeout-s": 0.05, "weighting": "equal"})
    grid = FakeGrid({"a": moves(1), "b": moves(2)})

    def b(request: Request) -> Said:
        if request.round in AWAY and isinstance(request, TrainRequest):
            return None
        if isinstance(request, TrainRequest) and request.round == AWAY[-1] + 1:
            old = TrainReply(request.run_hash, AWAY[0], {"weights": request.parts["weights"]}, 10)
            if how == "answers the new one with its old work":
                return old
            message = grid.create_message(RecordDict(), "train", 101, "1")
            message.metadata.__dict__["_message_id"] = f"from-round-{AWAY[0]}"
            stale = reply_message(old, message)
            assert stale is not None
            grid.stale.append(stale)
        return moves(2)(request)

    grid.sites["b"] = b
    summary = run_it(grid, run, tmp_path)
    assert summary.status == "completed"
    events: list[dict[str, Any]] = of_kind(tmp_path, "round")
    rounds = {event["round"]: event for event in events}
    back = [4, 5] if how == "answers its old message" else [5]
    assert [number for number, event in rounds.items() if "b" in event["sites"]] == [1, *back]
    assert all("a" in event["sites"] for event in rounds.values())
    for number in AWAY:
        assert rounds[number]["missing"] == ["b"]
        (said,) = missing_of(rounds[number])
        assert said.startswith("b ")
    refused = {number: event["refused"] for number, event in rounds.items() if event["refused"]}
    assert refused == ({} if back == [4, 5] else {4: {"b": "bad-request"}})
    # The model has what entered and nothing else: b's move in the rounds of `back` and the first, a's in all.
    _, model, _ = load_model(tmp_path)
    for name, start in build_model(run).state_dict().items():
        of_a, of_b = shift(1, name, start).double(), shift(2, name, start).double()
        together = 1 + len(back)
        expected = start.double() + together * (of_a + of_b) / 2 + (5 - together) * of_a
        torch.testing.assert_close(model[name].double(), expected, rtol=1e-5, atol=1e-5)

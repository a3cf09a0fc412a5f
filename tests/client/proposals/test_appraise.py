"""Finding out what a proposal would mean keeps the worker from approved runs for half of the time at most."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.home.offer import Offer
from client.proposals import appraise
from client.proposals.appraise import Proposals
from client.rules import approvals
from client.worker.protocol import PipeError
from common.config.rundocument import RunDocument
from common.errors import ErrorCode
from common.identity.operators import Signer
from tests.client.proposals.test_consequences import OFFER, a_run
from tests.documents import carried


@pytest.mark.parametrize("code", [ErrorCode.DEADLINE, ErrorCode.WORKER_FAILED])
def test_a_proposal_that_takes_the_worker_too_long_leaves_it_free_for_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: ErrorCode
) -> None:
    """A thousand filters of a large study, in a run that nobody has approved."""
    (tmp_path / "site.toml").write_text('name = "north"\n')
    run_hash = approvals.record(tmp_path, carried(a_run()), is_open=True, signers=("maria",)).run_hash
    now, asked = [0.0], []

    def offer(_: RunDocument) -> Offer:
        asked.append(now[0])
        now[0] += 3600.0
        if len(asked) < 3:
            raise PipeError("the worker was too slow", code)
        return OFFER

    monkeypatch.setattr(appraise, "time", SimpleNamespace(monotonic=lambda: now[0]), raising=False)
    monkeypatch.setattr("client.proposals.signers.of", lambda *_: (Signer("maria", "ab" * 32),))
    trail: Any = None
    proposals = Proposals(tmp_path, trail, offer)
    while approvals.load(tmp_path, run_hash).appraisal is None:
        proposals.appraise()
        now[0] += 60.0
    assert asked == pytest.approx([0.0, 7200.0, 14400.0], abs=120.0)
    appraisal = approvals.load(tmp_path, run_hash).appraisal
    assert appraisal is not None
    assert appraisal.offer == OFFER

"""The audit log says with which update statistics of the training patients left, and the page shows it."""

from pathlib import Path

import pytest

from client.home.identity import load_identity
from client.site import open_site
from client.trail.audit_trail import AuditTrail, open_log
from client.views.trail import trail
from common.wire.messages import TrainReply, TrainRequest
from tests.client.views.recorded import hospital

RUN = "ab" * 32


@pytest.mark.parametrize("metrics", [{}, {"counted-patients": 40.0, "class-share-lesion": 0.62}])
def test_an_update_with_statistics_leaves_an_entry_and_another_none(tmp_path: Path, metrics: dict[str, float]) -> None:
    home = hospital(tmp_path)
    pen = AuditTrail(home, load_identity(home), open_site(home).key)
    reply = TrainReply(RUN, 3, {"weights": b"w"}, 40, {"steps": 4.0, **metrics})
    pen.leaves(TrainRequest(RUN, 3, {"weights": b"w"}), reply, "cd" * 32)
    with open_log(home).transaction() as log:
        entries = log.about("statistics", RUN, 3)
    assert [dict(entry.fields) for entry in entries] == [{"run": RUN, "round": 3, "patients": 40}] * bool(metrics)
    told = [one.detail for one in trail(home, 10).left if one.what == "statistics of the training patients"]
    assert told == ["of about 40 patients, not noised"] * bool(metrics)

"""A run's curves as TensorBoard's own reader finds them, beside the journal that they are of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from server.federation.events import JOURNAL_NAME, OVERALL, Event, Journal, open_journal, read_events
from server.home.folder import Home
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from tests.server.commands.calls import fails, succeeds
from tests.server.dashboard import recorded
from tests.server.dashboard.recorded import begin, document, play_round

accumulators = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="the extra tensorboard is not installed"
)
RUN = document("lesions")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Home, Registry, Journal]:
    home, registry = recorded.coordinator(tmp_path / "home")
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(home.path))
    journal = begin(home, registry, RUN)
    for number in (1, 2, 3):
        play_round(journal, RUN, number, missing="st-john" if number == 3 else "")
    return home, registry, journal


def read(folder: Path, site: str, tag: str) -> list[tuple[int, float, float]]:
    """Step, value and time of a curve."""
    found = accumulators.EventAccumulator(str(folder / site), size_guidance={accumulators.SCALARS: 0})
    found.Reload()
    assert tag in found.Tags()["scalars"], found.Tags()
    return [(one.step, one.value, one.wall_time) for one in found.Scalars(tag)]


def told(events: Sequence[Event], kind: str, site: str, key: str) -> list[tuple[int, float]]:
    """As the journal has it, in the precision of TensorBoard's files."""
    return [
        (event["round"], float(np.float32(event[key])))
        for event in events
        if event["event"] == kind and event.get("site") == site and key in event
    ]


def test_every_number_of_the_journal_is_a_point_of_its_site(
    made: tuple[Home, Registry, Journal], tmp_path: Path
) -> None:
    home, _, journal = made
    out = tmp_path / "curves"
    assert str(out) in succeeds("export", "lesions", "--tensorboard", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["overall", "st-anna", "st-john"]
    for site, kind, key, tag in (
        ("st-anna", "train", "train-loss", "train/train-loss"),
        ("st-john", "train", "train-loss", "train/train-loss"),
        ("st-anna", "train", "epsilon", "train/epsilon"),
        ("st-john", "evaluate", "dice-lesion", "validation/dice-lesion"),
        (OVERALL, "evaluate", "dice", "validation/dice"),
    ):
        points = read(out, site, tag)
        expected = told(journal.events, kind, site, key)
        assert len(expected) == (2 if site == "st-john" else 3)
        assert [(step, value) for step, value, _ in points] == expected
    times = {event["round"]: event["time"] for event in journal.events if event.get("site") == OVERALL}
    assert [at for _, _, at in read(out, "st-anna", "train/train-loss")] == [times[n] for n in (1, 2, 3)]
    assert [value for _, value, _ in read(out, OVERALL, "round/missing")] == [0, 0, 1]
    entry = [one for one in open_log(home).entries() if one.kind == "export"][-1]
    assert entry.fields["what"] == "report"


def test_settings_are_there_for_the_tab_hparams(made: tuple[Home, Registry, Journal], tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2  # noqa: PLC0415 - the extra

    succeeds("export", "lesions", "--tensorboard", str(tmp_path / "curves"))
    found = accumulators.EventAccumulator(str(tmp_path / "curves" / OVERALL))
    found.Reload()
    data = found.summary_metadata["_hparams_/session_start_info"].plugin_data
    settings = plugin_data_pb2.HParamsPluginData.FromString(data.content).session_start_info.hparams
    assert settings["federation.rounds"].number_value == 8
    assert settings["name"].string_value == "lesions"
    assert settings["privacy.target-epsilon"].number_value == 8.0
    assert settings["training.patch-size"].string_value == "[32, 32]"


def test_folder_that_holds_something_is_refused(made: tuple[Home, Registry, Journal], tmp_path: Path) -> None:
    out = tmp_path / "curves"
    succeeds("export", "lesions", "--tensorboard", str(out))
    before = sorted(out.rglob("*"))
    assert "is not empty" in fails("export", "lesions", "--tensorboard", str(out))
    assert sorted(out.rglob("*")) == before


def test_curves_grow_while_a_run_is_watched_and_rounds_done_again_replace_those_before(
    made: tuple[Home, Registry, Journal], tmp_path: Path
) -> None:
    from server.monitoring.tensorboard import curves_in  # noqa: PLC0415 - beside the extra

    home, registry, journal = made
    results, out = home.run_folder(RUN), tmp_path / "curves"
    proposal = registry.proposal(RUN.hash)
    with curves_in(out, results) as write:
        write(proposal, read_events(results / JOURNAL_NAME))
        assert [step for step, _, _ in read(out, "st-anna", "validation/dice")] == [1, 2, 3]
        write(proposal, read_events(results / JOURNAL_NAME))  # nothing new
        # Killed after round 3, whose checkpoint was not written yet; st-anna gets another loss now.
        resumed = open_journal(results, last_round=2)
        about = {"round": 3, "site": "st-anna", "patients": 40, "train-loss": 0.125, "seconds": 1.0}
        about |= {"epsilon": 0.5, "delta": 1e-5}
        resumed.record("train", about)
        ended = {"round": 3, "sites": ["st-anna"], "refused": {}, "refused-by-coordinator": [], "missing": []}
        resumed.record("round", ended | {"seconds": 1.0, "bytes-down": 1, "bytes-up": 1})
        write(proposal, read_events(results / JOURNAL_NAME))
    points = read(out, "st-anna", "train/train-loss")
    assert [(step, value) for step, value, _ in points][:2] == told(journal.events, "train", "st-anna", "train-loss")[
        :2
    ]
    assert [(step, value) for step, value, _ in points][2:] == [(3, 0.125)]


def test_watch_writes_curves_of_a_run_to_its_end(made: tuple[Home, Registry, Journal], tmp_path: Path) -> None:
    _, registry, journal = made
    registry.close(RUN.hash, "failed", "no quorum")
    assert "is failed" in fails("watch", "lesions", "--tensorboard", str(tmp_path / "curves"))
    points = read(tmp_path / "curves", "st-anna", "train/train-loss")
    assert [(step, value) for step, value, _ in points] == told(journal.events, "train", "st-anna", "train-loss")

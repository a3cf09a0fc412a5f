"""The certificate of a patient who was forgotten counts what lies here between the updates of open runs."""

from pathlib import Path

from client.home.folder import RESIDUALS_NAME, STRATEGIES_NAME
from client.trail.certificate import certificate


def test_runs_that_keep_something_between_updates_are_counted_once(tmp_path: Path) -> None:
    """By their strategy, or by what rounding took from their updates, or by both."""

    def kept() -> int:
        return int(certificate(tmp_path, "ab", {}, (), site=None)["still-here-of-open-runs"]["kept-by-strategies"])

    assert kept() == 0
    for folder, run in ((STRATEGIES_NAME, "a" * 64), (RESIDUALS_NAME, "a" * 64), (RESIDUALS_NAME, "b" * 64)):
        (tmp_path / folder / run).mkdir(parents=True)
    assert kept() == 2

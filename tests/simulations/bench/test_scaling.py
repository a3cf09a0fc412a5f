"""The figures of `bench scaling` are those of runs as a person makes them."""

from pathlib import Path

from server.federation.events import read_events, read_summary
from simulations.bench import scaling


def test_each_number_of_sites_is_a_run_and_some_of_them_are_asked(tmp_path: Path) -> None:
    (figure,) = scaling.measure(tmp_path, [(6, 3)], rounds=2, backend="in-process")
    summary = read_summary(tmp_path / "6" / "out")
    assert summary is not None
    assert (summary["status"], summary["rounds"]) == ("completed", 2)
    assert [one["not-asked"] for one in summary["sites-by-round"]] == [3, 3]
    made = [one for one in read_events(tmp_path / "6" / "out" / "metrics.jsonl") if one["event"] == "round"]
    assert figure.seconds == tuple(round(one["seconds"], 3) for one in made)
    assert (figure.sites, figure.asked, figure.round_s) == (6, 3, figure.seconds[1])
    assert figure.memory > 2**27  # torch alone
    assert figure.opening_s > 0
    assert figure.scoring_s > 0

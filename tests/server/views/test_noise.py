"""Scores that hospitals have noised: wherever they are shown it is said what their ± means, and what not."""

import html
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.web.pages import Visit
from server.commands.main import app
from server.coordinator import supervisor
from server.dashboard.pages import Keyboard, dashboard_of
from server.monitoring.prometheus import families
from server.registry import operators
from server.registry.registry import Registry
from tests.server.coordinators import new_home
from tests.server.dashboard.recorded import begin, document
from tests.server.evidence.federation import PRIVATE, Federation, founded, trained
from tests.server.fakes import a_run

SAID = "beyond its ±"
IN_SHORT = "± is of noise that hospitals added"  # in one line, where several runs are listed


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> list[Federation]:
    made = founded(tmp_path_factory.mktemp("private"))
    return [trained(*made, a_run(rounds=rounds, quorum=2, **PRIVATE)) for rounds in (1, 2)]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> list[Federation]:
    made = founded(tmp_path_factory.mktemp("exact"))
    return [trained(*made, a_run(rounds=rounds, quorum=2)) for rounds in (1, 2)]


def typed(made: list[Federation], line: str) -> str:
    """What a command says, A and B being the runs."""
    names = {"A": made[0].document.hash[:8], "B": made[1].document.hash[:8]}
    words = [*(names.get(one, one) for one in line.split()), "--home", str(made[0].home.path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("words", ["watch A", "report A", "runs compare A B"])
def test_command_says_once_what_the_noise_of_its_scores_means(
    words: str, private: list[Federation], exact: list[Federation]
) -> None:
    assert typed(private, words).count(SAID) == 1
    assert SAID not in typed(exact, words)


def test_list_of_runs_says_in_a_line_where_a_score_that_it_shows_has_noise(
    private: list[Federation], exact: list[Federation]
) -> None:
    (line,) = [one for one in typed(private, "runs").splitlines() if IN_SHORT in one]
    assert len(line.partition(" --home ")[0]) < 120
    assert "a score may lie below 0 or above 1" in line
    assert IN_SHORT not in typed(exact, "runs")
    assert SAID not in typed(private, "runs")


def test_comparison_of_noised_scores_with_exact_ones_says_it_too(tmp_path: Path) -> None:
    made = founded(tmp_path)
    runs = [trained(*made, a_run(rounds=1, quorum=2, **tables)) for tables in (PRIVATE, {})]
    assert typed(runs, "runs compare A B").count(SAID) == 1


@pytest.mark.parametrize(("path", "said"), [("/runs", IN_SHORT), ("/runs/{run}", SAID)])
def test_page_of_the_dashboard_says_it(
    path: str, said: str, private: list[Federation], exact: list[Federation]
) -> None:
    for made, there in ((private[0], True), (exact[0], False)):
        dashboard = dashboard_of(made.home, made.registry, Keyboard(operators.FIRST, None, None))
        page = dashboard.pages[path](Visit("/base", "secret", {"run": made.document.hash}))
        assert (said in html.unescape(str(page.body))) is there


@pytest.mark.parametrize("name", ["card", "change", "annex-iv"])
def test_document_about_a_run_says_it(
    name: str, private: list[Federation], exact: list[Federation], tmp_path: Path
) -> None:
    for made, there in ((private, True), (exact, False)):
        out = tmp_path / str(there)
        typed(made, f"report A --evidence {out}")
        assert (SAID in (out / f"{name}.html").read_text(encoding="utf-8")) is there
        assert any(SAID in str(part) for part in json.loads((out / f"{name}.json").read_text())["parts"]) is there


def test_monitoring_has_the_noise_beside_the_score(private: list[Federation], exact: list[Federation]) -> None:
    for made, there in ((private[0], True), (exact[0], False)):
        found = {one.name: one.samples for one in families(made.home, made.registry)}
        noises, scores = found["wardround_run_score_noise"], found["wardround_run_score"]
        noised = {json.dumps(labels, sort_keys=True) for labels, deviation in noises if deviation > 0}
        assert noised == ({json.dumps(labels, sort_keys=True) for labels, _ in scores} if there else set())


def test_run_in_mlflow_is_described_by_it(
    private: list[Federation], exact: list[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = pytest.importorskip(
        "mlflow.utils.mlflow_tags", reason="the extra mlflow is not installed"
    ).MLFLOW_RUN_NOTE
    tags: list[dict[str, str]] = []

    def log_run(*_: object, **about: dict[str, str]) -> str:
        tags.append(about["tags"])
        return "run"

    monkeypatch.setattr("server.monitoring.mlflow.log_run", log_run)
    for made in (private, exact):
        typed(made, "export A --mlflow sqlite:///runs.sqlite")
    assert SAID in tags[0][described]
    assert described not in tags[1]


def test_run_that_goes_on_is_shown_with_its_noise_and_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home(tmp_path / "wardround-server")
    registry, run = Registry(home.registry), document("lesions")
    journal = begin(home, registry, run)
    about = {"round": 1, "phase": "validation", "site": "overall", "mean-of-patients": None, "refused": {}}
    journal.record(
        "evaluate", about | {"missing": [], "seconds": 1.0, "bytes-down": 0, "dice": 0.2, "score-noise": 0.1}
    )
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
    monkeypatch.setattr("server.views.watch.time.sleep", lambda _: registry.close(run.hash, "failed", "no quorum"))
    shown = CliRunner().invoke(app, ["status", "--home", str(home.path)]).output
    assert "dice 0.200 ± 0.100" in " ".join(shown.split())
    assert IN_SHORT in shown
    lines = CliRunner().invoke(app, ["watch", run.hash[:8], "--home", str(home.path)]).stderr.splitlines()
    told = next(number for number, line in enumerate(lines) if "dice 0.200 ± 0.100" in line)
    assert SAID in lines[told + 1]

"""Commands as they are typed: what they print, or the one error that they end with."""

import json
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import issue
from common.privacy.guarantee import guarantee
from server.commands.main import app
from server.federation.events import summarise, summary_as_dict
from server.home.folder import Home
from tests.server.coordinators import RUN, RUN_TOML

HASH = sha256_of(RUN)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def succeeds(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*words: str) -> str:
    result = invoke(*words)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    return result.stderr


def add_result(home: Home, status: str = "completed") -> Path:
    folder = home.run_folder(issue(RUN))
    folder.mkdir(parents=True, exist_ok=True)
    dice = {"dice": 0.75}
    scores = {"test": {"round": 2, "sites": {"a": dice}, "mean-of-sites": dice, "mean-of-patients": None}}
    private = parse(RunConfig, f"{RUN_TOML}[privacy]\ntarget-epsilon = 4.0\n")
    stated = guarantee(private, epsilon=1.5, delta=0.001, steps=3).as_dict()
    about = {"unit": "patient", "target-epsilon": 4.0, "sites": {"a": stated}}
    told = summary_as_dict(summarise(issue(RUN), [], status="completed"))
    told |= {"status": status, "scores": scores, "guarantee": about}
    (folder / "summary.json").write_text(json.dumps(told))
    (folder / "metrics.jsonl").touch()
    for name in ("model.safetensors", "model.json"):
        (folder / f"{name}.sealed").write_bytes(home.sealer_of(HASH).seal(name.encode(), name))
    return folder

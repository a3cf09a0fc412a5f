"""Folders that earlier versions left are opened by this one: nothing that was approved, spent or signed is lost.

tests/formats/README.md tells how they were made. Each test works on a copy.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW
from typer.testing import CliRunner

import client.commands.main
import server.commands.main
from client.rules import approvals
from client.site import open_site
from common.audit import verify
from common.config.rundocument import RunDocument, from_file
from common.learning.checkpoint import load_model
from common.learning.network import build_model, weights_of
from common.models import faster
from server.federation.rounds import federate
from server.home.folder import open_home
from server.registry.audit_trail import open_log
from server.registry.registry import Registry
from simulations.backends.in_process import InProcessGrid

SITES = ("north", "south")
RUNS = {"plain": "failed", "refused": "failed", "private": "completed"}
HERE = Path(__file__).parent
POLICY = "require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n"


@pytest.fixture(params=[path for path in sorted(HERE.iterdir()) if path.name.isdecimal()], ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version left, with the modes that git does not keep."""
    folder = tmp_path / "kept"
    shutil.copytree(request.param, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def hashes(kept: Path) -> dict[str, str]:
    """Of what was issued, by the run's name: told by the files alone."""
    issued = [*(kept / "coordinator" / "runs").glob("*/run.json")]
    return {json.loads(path.read_bytes())["name"]: hashlib.sha256(path.read_bytes()).hexdigest() for path in issued}


def printed(app: object, *arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, [*arguments, "--json"], env=dict(os.environ))  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    rows: list[dict[str, object]] = json.loads(result.stdout)
    return rows


def test_document_keeps_the_hash_that_it_was_approved_under(kept: Path) -> None:
    for name, issued in hashes(kept).items():
        assert from_file(kept / f"{name}.toml").hash == issued


def test_coordinator_knows_its_runs_by_their_hashes(kept: Path) -> None:
    rows = printed(server.commands.main.app, "runs", "--home", str(kept / "coordinator"))
    assert {row["run"]: row["state"] for row in rows} == RUNS
    assert {row["run"]: row["hash"] for row in rows} == hashes(kept)


@pytest.mark.parametrize("site", SITES)
def test_hospital_knows_what_it_answered(kept: Path, site: str) -> None:
    rows = printed(client.commands.main.app, "runs", "--home", str(kept / site))
    assert {row["run"]: row["hash"] for row in rows} == hashes(kept)
    assert {row["run"]: row["answer"] for row in rows} == {
        name: "denied" if name == "refused" else "approved" for name in RUNS
    }
    assert all(one.signers == ("admin",) for one in approvals.load_all(kept / site))


@pytest.mark.parametrize("site", SITES)
def test_hospital_knows_what_was_spent(kept: Path, site: str) -> None:
    """As the run's summary says, which the version of then wrote."""
    summary = json.loads(next((kept / "coordinator" / "runs").glob("private-*/summary.json")).read_bytes())
    guarantee = summary["guarantee"]["sites"][site]
    rows = printed(client.commands.main.app, "ledger", "--home", str(kept / site))
    (trained,) = [row for row in rows if row["run"] == hashes(kept)["private"] and "/" not in str(row["cohort"])]
    assert trained["epsilon"] == pytest.approx(guarantee["epsilon"], rel=1e-5)  # six digits travel
    assert trained["delta"] == guarantee["delta"]


def test_logs_of_all_sides_fit_each_other(kept: Path) -> None:
    home = open_home(kept / "coordinator")
    keys = {"coordinator": (open_log(home).public_key,)}
    for site in Registry(home.registry).sites():
        assert site.receipt_key is not None
        keys[f"site/{site.name}"] = (site.receipt_key,)
    verdict = verify.verify([kept / name / "audit.sqlite" for name in ("coordinator", *SITES)], keys, [])
    assert verdict.findings == ()
    assert sorted(len(one.receipts) for one in verdict.histories) == [2, 3, 5]


@pytest.mark.parametrize("kernels", ["then", "now"])
def test_run_that_failed_half_way_goes_on_to_the_model_of_an_unbroken_run(
    kept: Path, tmp_path: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "then":
        monkeypatch.setattr("common.models.faster._FASTER", {nn.PReLU: faster._FASTER[nn.PReLU]})
        monkeypatch.setattr("torch.optim.AdamW", _unfused)
    home = open_home(kept / "coordinator")
    proposal = Registry(home.registry).proposal("plain")
    folder = home.run_folder(proposal.document)
    (kept / "south" / "policy.toml").write_text(POLICY)  # as the hospital would, to let it go on
    before = json.loads((folder / "summary.json").read_bytes())
    sites = [open_site(kept / site) for site in SITES]
    resumed = federate(
        InProcessGrid(sites, proposal.document), proposal.document, folder, sealer=home.sealer_of(proposal.run_hash)
    )
    assert (before["rounds"], resumed.rounds, resumed.run_hash) == (1, 2, proposal.run_hash)

    fresh = [_fresh(kept, site, tmp_path / "fresh") for site in SITES]
    run = from_file(kept / "plain.toml")
    unbroken = federate(InProcessGrid([open_site(one) for one in fresh], run), run, tmp_path / "unbroken")
    _, ours, _ = load_model(folder, home.sealer_of(proposal.run_hash))
    _, theirs, _ = load_model(tmp_path / "unbroken")
    if kernels == "then":
        # What a convolution adds, the norm behind it takes off: its gradient is rounding, which AdamW makes steps of.
        idle = {name for name in ours if name.replace("conv.bias", "adn.N.weight") in ours.keys() - {name}}
        assert idle == {"model.0.conv.bias", "model.1.submodule.conv.bias"}
        most = 2 * run.config.federation.rounds * run.config.training.local_steps * run.config.training.learning_rate
        assert all(float((ours[name] - theirs[name]).abs().max()) < most for name in idle)
        kept_of = [{name: value for name, value in one.items() if name not in idle} for one in (ours, theirs)]
        torch.testing.assert_close(*kept_of, rtol=1e-4, atol=1e-6)
        image = torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
        outputs = [_output(run, weights, image) for weights in (ours, theirs)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    else:  # the first round was trained by kernels that round in another way; lost, it would be half of the way
        start = weights_of(build_model(run.config))
        assert _distance(ours, theirs) < 0.1 * _distance(theirs, start)
    if _first_round(folder) == _first_round(tmp_path / "unbroken"):  # a processor that rounds as the one of then did
        assert resumed.model_sha256 == unbroken.model_sha256


def _fresh(kept: Path, site: str, folder: Path) -> Path:
    """The same hospital before any run: its key and its pictures."""
    shutil.copytree(kept / f"{site}-pictures", folder / f"{site}-pictures")
    (folder / site).mkdir()
    for name in ("site.toml", "site.key"):
        shutil.copy(kept / site / name, folder / site)
    (folder / site / "policy.toml").write_text(POLICY)
    return folder / site


def _unfused(weights: Any, rate: float, *, weight_decay: float, fused: bool) -> torch.optim.Optimizer:
    assert fused
    return AdamW(weights, rate, weight_decay=weight_decay)


def _output(run: RunDocument, weights: Mapping[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    model = build_model(run.config).eval()
    model.load_state_dict(dict(weights))
    with torch.no_grad():
        output: torch.Tensor = model(image)
    return output


def _distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[name] - other[name]).double().square().sum()) for name in other))


def _first_round(folder: Path) -> object:
    """SHA-256 of the model of round 1."""
    events = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return next(event["model-sha256"] for event in events if event["event"] == "round")

"""Networks are compared on the same patients, and one that cannot be the run's is refused before any is trained."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest

from client.site import Site
from common.config import validate
from common.errors import ConfigError
from common.models import Network
from common.models.segnet import SegNet
from common.models.unet import UNet
from simulations.scenarios.homes import make_site
from simulations.scenarios.scenario import CompareConfig
from simulations.studies import compare as comparison
from simulations.studies import networks as study
from simulations.studies.networks import networks, summary_rows
from tests.simulations.studies.longform import assert_is_latex, assert_long_tables, sheet
from tests.simulations.tiny import interrupted, tiny_run, tiny_site

RUN = tiny_run()
PRIVACY = tiny_run(privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}).privacy


def a_network(kind: type[Network], **settings: object) -> Network:
    values: Mapping[str, object] = {"channels": [4, 8], "dropout": 0.0, **settings}
    return validate(kind, values)


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [make_site(tmp_path / "sites", tiny_site(tmp_path / name, name, 6)) for name in ("north", "south")]


def test_table_holds_what_each_comparison_found(sites: list[Site], tmp_path: Path) -> None:
    candidates = [a_network(UNet, **{"residual-units": 0}), a_network(SegNet)]
    out = tmp_path / "out"
    rows = networks(RUN, candidates, sites, out, seeds=[1], config=CompareConfig(privacy=PRIVACY))
    assert [row.network for row in rows] == ["unet", "segnet"]
    for row, folder in zip(rows, ("01-unet", "02-segnet"), strict=True):
        kept = json.loads((out / folder / "compare.json").read_text())["results"]
        dice = {one["column"]: statistics.fmean(s["dice"] for s in one["scores"].values()) for one in kept}
        assert dice == pytest.approx(
            {"pooled": row.pooled, "federated": row.federated, "federated, epsilon 8": row.private}, abs=1e-12
        )
        assert row.epsilon is not None
        assert 0 < row.epsilon <= 8
    # 3 x 3 convolutions with instance norm and one PReLU each: down to 4, bottom of 8, and up to the two outputs.
    assert rows[0].weights == (1 * 9 + 1) * 4 + 8 + 1 + (4 * 9 + 1) * 8 + 16 + 1 + 12 * 9 * 2 + 2
    columns, cells = summary_rows(rows, RUN.task)
    assert columns[:4] == ["network", "weights", "Dice, pooled", "federated"]
    assert [line[0] for line in cells] == ["unet", "segnet"]
    assert json.loads((out / "networks.json").read_text())[1]["network"] == "segnet"
    scores = {
        (f"{folder}, {one['column']}", one["seed"], site): values
        for folder in ("01-unet", "02-segnet")
        for one in json.loads((out / folder / "compare.json").read_text())["results"]
        for site, values in one["scores"].items()
    }
    assert_long_tables(out, scores)
    assert_is_latex((out / "networks.tex").read_text(), 8)
    (pair,) = sheet(out / "paired.csv")
    assert (pair["first"], pair["second"]) == ("02-segnet, federated", "01-unet, federated")
    assert int(pair["patients"]) == len({one["patient"] for one in sheet(out / "patients.csv")})


def test_a_network_that_does_not_fit_is_refused_before_any_is_trained(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = interrupted(monkeypatch, comparison, at=1)
    candidates = [a_network(UNet), a_network(SegNet, channels=[4, 8, 8, 8, 8])]
    with pytest.raises(ConfigError, match=r"segnet.*multiples of 32.*such as \[32, 32\]"):
        networks(RUN, candidates, sites, tmp_path / "out", seeds=[0], config=CompareConfig())
    assert not begun


def test_an_interrupted_comparison_goes_on(sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = [a_network(UNet), a_network(SegNet)]
    with monkeypatch.context() as patch:
        interrupted(patch, comparison, at=4)  # the second model of the second network
        with pytest.raises(KeyboardInterrupt):
            networks(RUN, candidates, sites, tmp_path / "out", seeds=[0], config=CompareConfig())
    begun = interrupted(monkeypatch, comparison, at=99)
    rows = networks(RUN, candidates, sites, tmp_path / "out", seeds=[0], config=CompareConfig())
    assert begun == ["federated-0"]
    assert len(rows) == 2
    assert study.as_data(rows)[0]["private"] is None

"""--json is data, for every command that has it: numbers, lists, truth values, moments, and never text for one of them.

Commands that train are run elsewhere, and held to the same forms there (tests/json_forms.py).
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import client.commands.main
import server.commands.main
import simulations.commands.main
from client.agent.status import Status
from client.home.gains import Compared, note
from client.home.offer import Offer
from client.rules import approvals
from client.rules.approvals import Appraisal
from client.site import open_site
from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_toml
from common.identity.operators import Signer
from common.wire.messages import Refusal
from server.registry.registry import Registry
from tests.client.coordinator import Authority
from tests.client.data.studies import ct_slices, save
from tests.documents import carried
from tests.json_forms import FORMS, conforms
from tests.server.coordinators import RUN, RUN_TOML, asked, enrol, new_home
from tests.test_docs import APPS, _commands

PROPOSED = """
name = "lesions"
data = { modality = "photo", channels = 3, classes = ["vessel"] }
training = { patch-size = [32, 32] }
federation = { rounds = 3 }
privacy = { target-epsilon = 4.0 }
"""
PROGRAMS = {
    "wardround-client": client.commands.main.app,
    "wardround-server": server.commands.main.app,
    "wardround-sim": simulations.commands.main.app,
}


def printed(command: str, *options: object, code: int = 0) -> object:
    """What a command prints with --json, held to its form."""
    program, *words = command.split()
    done = CliRunner().invoke(PROGRAMS[program], [*words, *map(str, options), "--json"])
    assert done.exit_code == code, done.output
    value = json.loads(done.stdout)
    conforms(command, value)
    return value


def test_every_command_with_json_has_a_form() -> None:
    with_json = {
        f"{program} {words}"
        for program in APPS
        for words, command in _commands(program).items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert with_json == set(FORMS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hospital with pictures, a proposed run, a charge, and a status as an agent writes it."""
    monkeypatch.setattr("client.commands.diagnosis.REACH_S", 0.1)
    home = tmp_path / "site"
    identity = Authority().admit(home, "north", "127.0.0.1:9")
    monkeypatch.setenv("WARDROUND_HOME", str(home))
    for kind in ("images", "labels"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        image = generator.integers(0, 255, (33, 35, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "pictures" / "images" / f"{number}.png")
        mask = np.zeros((33, 35), np.uint8)
        mask[5:20, 7:9] = 255
        Image.fromarray(mask).save(tmp_path / "pictures" / "labels" / f"{number}.png")
    added = ["data", "add", str(tmp_path / "pictures"), "--label-map", "255=vessel"]
    assert CliRunner().invoke(client.commands.main.app, added).exit_code == 0
    run = parse(RunConfig, PROPOSED)
    run_hash = approvals.record(home, carried(run), is_open=True, keys=[Signer("maria", "ab" * 32)]).run_hash
    offer = Offer(12, 10, "cohort", 14, {}, {"weights": {"w": (10, 100)}}, training=9)
    approvals.note_appraisal(home, run_hash, Appraisal(offer, None))
    open_site(home).ledger.charge(
        "cohort", run_hash, 1, "a",
        noise_multiplier=2.0, sampling_rate=0.25, steps=20, delta=1e-3, lifetime_epsilon=10.0, rounds=3,
    )  # fmt: skip
    status = Status(home, identity)
    status.connected(4711, 0.0)
    status.worked(Refusal(run_hash, 2, "disk-full"), "train", 0.5)  # type: ignore[arg-type]  # as it was read
    return home


def test_a_hospitals_answers_are_data(site: Path, tmp_path: Path) -> None:
    status = printed("wardround-client status", code=1)
    assert isinstance(status, dict)
    assert status["last-error"]["run"] == sha256_of(parse(RunConfig, PROPOSED))
    assert str(status["since"]).endswith("+00:00")
    printed("wardround-client runs")
    note(site, open_site(site).key, status["last-error"]["run"], Compared(
        round=1, phase="validation", score="dice", shared=0.75, local=0.5,
    ))  # fmt: skip
    shown = printed("wardround-client show", "lesions")
    assert isinstance(shown, dict)
    assert [(one["global"], one["own"], one["gain"]) for one in shown["gains"]] == [(0.75, 0.5, 0.25)]
    printed("wardround-client policy check")
    printed("wardround-client policy check", "lesions")
    printed("wardround-client ledger")
    printed("wardround-client data list")
    printed("wardround-client audit verify")
    checked = printed("wardround-client data check")
    assert isinstance(checked, dict)
    assert [one["size"] for one in checked["images"]] == [[[33, 33], [35, 35]]]
    assert {one["class"]: one["share"] for one in checked["classes"]}["vessel"] == pytest.approx(15 * 2 / (33 * 35))


def test_a_check_for_a_run_and_an_export_are_data(site: Path, tmp_path: Path) -> None:
    checked = printed("wardround-client data check", "--run", "lesions", code=1)
    assert isinstance(checked, dict)
    assert checked["policy"]["allowed"] is False
    save(tmp_path / "ct", ct_slices(np.random.default_rng(0).integers(0, 3000, (2, 20, 20))))
    printed("wardround-client data preview", "--run", "lesions", "--out", tmp_path / "preview", "--studies", 1)
    printed("wardround-client data export", tmp_path / "ct", "--out", tmp_path / "out")


def test_a_hospitals_doctor_is_data(site: Path) -> None:
    printed("wardround-client doctor", code=1)


def test_a_coordinators_answers_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = new_home(tmp_path / "home")
    monkeypatch.setenv("WARDROUND_SERVER_HOME", str(home.path))
    registry = Registry(home.registry)
    enrol(home, registry, "north")
    call = CliRunner().invoke(server.commands.main.app, ["invite", "south"])
    assert call.exit_code == 0, call.output
    token = json.loads(home.invitation("south").read_text())["token"]
    registry.redeem("south", token, *asked("south"))
    registry.propose(from_toml(RUN_TOML), [])
    printed("wardround-server requests")
    sites = printed("wardround-server sites")
    assert isinstance(sites, list)
    assert [(one["site"], one["connected"]) for one in sites] == [("north", False), ("south", False)]
    printed("wardround-server operator list")
    printed("wardround-server audit verify")
    printed("wardround-server status", code=1)
    printed("wardround-server doctor", code=1)
    runs = printed("wardround-server runs")
    assert isinstance(runs, list)
    assert (runs[0]["hash"], runs[0]["approved"]) == (sha256_of(RUN), [])


def test_scenarios_are_data() -> None:
    printed("wardround-sim scenarios")
    for what in ("networks", "tasks", "strategies", "steps", "partitions", "faults", "backends"):
        printed("wardround-sim list", what)

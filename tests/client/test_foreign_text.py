"""What a coordinator, an operator, a file or a header writes is never obeyed by a hospital's terminal or pages.

One test a command; each is given all of tests/foreign.py at once, by the way on which it would really come.
"""

import dataclasses
import json
import logging
import re
import types
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from client.agent.status import only_one
from client.commands.main import _log_to, app
from client.home import enrolment
from client.home.identity import Identity
from client.home.offer import Offer
from client.rules import approvals
from client.rules.approvals import Appraisal
from client.site import open_site
from common.config import RunConfig, canonical, sha256_of, validate
from common.errors import EnrolmentError, ErrorCode, UpdateError
from common.identity import certificates, operators
from common.identity.invitation import Invitation
from common.identity.operators import Signer
from common.learning.checkpoint import Manifest, pack, save_model, sha256
from tests.client.coordinator import Authority
from tests.client.data.studies import ct_slices, save, segmentation
from tests.documents import carried
from tests.foreign import ALL, FOREIGN, MARK, QUOTED, Page, assert_plain, hidden

PUBLIC = ALL[:500]
RUN = validate(
    RunConfig,
    {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion"]},
        "training": {"patch-size": [16, 16]},
        "preprocessing": {"spacing-mm": [2.0, 2.0]},
        "federation": {"rounds": 3},
        "privacy": {"target-epsilon": 4.0},
        "initial": {"sha256": "ab" * 32, "public": PUBLIC},
    },
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Authority().admit(tmp_path / "site", "north", "127.0.0.1:9")
    return tmp_path / "site"


@pytest.fixture
def images(home: Path, tmp_path: Path) -> Path:
    """CT with a segment whose label is hostile, in a folder and files of hostile names; offered to runs."""
    folder = tmp_path / "[b]" / ALL.replace("/", "")[:120]
    slices = ct_slices(np.random.default_rng(0).integers(0, 3000, (3, 24, 31)))
    mask = np.zeros((3, 24, 31), bool)
    mask[1, 6:14, 9:20] = True
    save(folder, slices)
    save(folder, [segmentation(slices, {f"{MARK}\u202e[b]\n": mask})], "seg\x1b[2J\u202e{}.dcm")
    shown = succeed(home, "data", "add", str(folder.parent))
    assert "1 study of 1 patient" in shown
    return folder


def call(home: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"WARDROUND_HOME": str(home)})


def succeed(home: Path, *arguments: object) -> str:
    result = call(home, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def propose(home: Path, signers: tuple[str, ...] = ("maria",)) -> str:
    keys = [Signer(name, 64 * f"{number}") for number, name in enumerate(signers)]
    run_hash = approvals.record(home, carried(RUN), is_open=True, keys=keys).run_hash
    approvals.note_appraisal(
        home, run_hash, Appraisal(Offer(12, 10, "cohort", 14, {}, {"weights": {ALL: (10, 100)}}, training=9), None)
    )
    return run_hash


def test_a_proposal_cannot_forge_the_screen_on_which_it_is_approved(home: Path) -> None:
    propose(home, signers=(ALL,))
    output = succeed(home, "approve", "lesions", "--tensors", "--yes")
    assert_plain(output)
    rows = re.findall(r"^│ (\S[^│]*?) +│ (.*?) *│$", output, re.MULTILINE)
    assert [value for name, value in rows if name == "policy"] == ["allows"]
    # What differs from the run approved last is shown as well.
    other = RUN.model_copy(update={"name": "other", "initial": None})
    run_hash = approvals.record(home, carried(other), is_open=True, keys=[Signer(ALL, 64 * "0")]).run_hash
    assert_plain(succeed(home, "approve", run_hash, "--yes"))


def test_runs_show_a_refusal_that_repeats_foreign_text_as_text(home: Path) -> None:
    run_hash = propose(home)
    approvals.note_appraisal(home, run_hash, Appraisal(None, f"refused: {ALL}"))
    assert_plain(succeed(home, "runs"))
    assert json.loads(call(home, "runs", "--json").stdout)[0]["policy"] == f"refused: {ALL}"


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_status_shows_what_a_coordinator_made_the_agent_say(home: Path, text: str) -> None:
    values = {"state": "connected", "audit": text, "last-error": {"run": text, "code": text}, text: "x"}
    (home / "status.json").write_text(json.dumps(values))
    with only_one(home):
        result = call(home, "status")
        assert json.loads(call(home, "status", "--json").stdout)["audit"] == text
    assert result.exit_code == 0, result.exception
    assert_plain(result.output)


def test_doctor_shows_an_address_from_an_invitation_as_text(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.commands.diagnosis.REACH_S", 0.1)
    (home / "policy.toml").write_text(f"{QUOTED} = 1\n")
    result = call(home, "doctor")
    assert result.exit_code == 1
    assert_plain(result.output)


def test_an_invitation_is_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_home: Path, opened: Invitation, **_: object) -> Identity:
        raise EnrolmentError(f"{opened.gateway} is away")

    monkeypatch.setattr(enrolment, "join", refused)
    fields = {field.name: "x" for field in dataclasses.fields(Invitation)}
    monkeypatch.setattr(Invitation, "from_text", lambda _: types.SimpleNamespace(**fields | {"gateway": ALL}))
    (tmp_path / "invitation").write_text("x")
    result = call(tmp_path / "site", "join", tmp_path / "invitation")
    assert result.exit_code == 1
    assert_plain(result.output)


@pytest.mark.parametrize("command", [("policy", "check"), ("data", "check", "--run")])
def test_a_run_document_with_hostile_keys_is_refused_in_visible_signs(
    home: Path, images: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    document = tmp_path / "run.toml"
    document.write_text(f"name = {QUOTED}\n{QUOTED} = {QUOTED}\n")
    result = call(home, *command, document)
    assert result.exit_code == 1
    assert_plain(result.output)


def test_data_commands_show_paths_and_labels_as_text(home: Path, images: Path) -> None:
    assert "[b]" in succeed(home, "data", "list")
    assert_plain(succeed(home, "data", "check", "--names", "--paths"))
    page = (home / "check" / "report.html").read_text()
    assert hidden(page) == []
    assert "script" not in Page(page).names


def test_data_check_for_a_proposed_run_and_its_page_show_text(home: Path, images: Path) -> None:
    propose(home)
    result = call(home, "data", "check", "--run", "lesions", "--paths")
    assert "- no patient is usable for it" in result.stdout
    assert_plain(result.output)
    assert hidden((home / "check" / "report.html").read_text()) == []


def test_an_audit_log_of_another_side_is_shown_as_text(home: Path, tmp_path: Path) -> None:
    other = tmp_path / (ALL.replace("/", "")[:100])
    for content in (
        b"neither",
        b'{"key":' + json.dumps(ALL).encode() + b"}\n",
        b'{"key":"x"}\n{"kind":"' + ALL.encode(),
    ):
        other.write_bytes(content)
        result = call(home, "audit", "verify", other)
        assert result.exit_code == 1, result.output
        assert_plain(result.output)


def test_an_operators_name_is_a_name(home: Path) -> None:
    key = Ed25519PrivateKey.generate()
    authority = Authority()
    named = operators.certificate(
        key.public_key(), "maria (signature checked), [b]", "operator", authority.root, authority.root_key
    )
    with pytest.raises(EnrolmentError, match="no name"):
        operators.check_certificate(certificates.to_pem(named), certificates.to_pem(authority.root))


def test_ledger_shows_an_unknown_run_as_text(home: Path) -> None:
    result = call(home, "ledger", "--release", ALL)
    assert result.exit_code == 1
    assert_plain(result.output)
    open_site(home)


def test_a_model_and_studies_from_elsewhere_are_shown_as_text(tmp_path: Path) -> None:
    weights = pack({})
    manifest = Manifest(canonical(RUN), sha256_of(RUN), 1, (ALL,), sha256(weights))
    save_model(tmp_path / "model", weights, manifest)
    values = json.loads((tmp_path / "model" / "model.json").read_text())
    for changes in ({"format": ALL}, {"run": json.dumps({ALL: ALL})}):
        (tmp_path / "model" / "model.json").write_text(json.dumps(values | changes))
        result = call(tmp_path, "predict", tmp_path / "model", tmp_path, "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert_plain(result.output)


def test_predicted_files_and_what_failed_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.predict import prediction  # noqa: PLC0415 - torch
    from client.predict.prediction import Failure, Prediction, StudyResult  # noqa: PLC0415

    def foreign(_model: Path, _study: Path, out: Path, **_: object) -> Prediction:
        done = StudyResult(1, (out / ALL,), 2, {ALL: 3}, prediction.Seconds(0.1, 0.1, 0.1), (ALL,))
        return Prediction((done,), (Failure(2, ErrorCode.UNREADABLE, ALL),), 0.1)

    monkeypatch.setattr(prediction, "predict_study", foreign)
    assert_plain(call(tmp_path, "predict", "model", "study", "--out", tmp_path / "out").output)


def test_the_agents_log_is_lines_of_visible_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        _log_to(tmp_path / "logs" / "agent.log")
        logging.getLogger("client.agent.loop").warning("refused: %s", UpdateError(ALL))
    finally:
        root.handlers[:], root.level = handlers, level
    for text in ((tmp_path / "logs" / "agent.log").read_text(), capsys.readouterr().err):
        assert_plain(text)
        assert text.count("\n") == 1

"""Every value in the documents stands where they say, as this test reads it there; nothing else in them is a number."""

import hashlib
import html
import json
import re
import sqlite3
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.config import RunConfig
from common.wire.messages import EvaluateReply, TrainReply
from server.commands.main import app
from server.evidence.folder import DOCUMENTS
from tests.common.audit.federation import lines_of
from tests.server.evidence.federation import PATIENTS, PRIVATE, Federation, document_of, founded, lines, trained
from tests.server.fakes import a_run

# Names of laws, standards, algorithms and files in our own sentences, which hold digits and are no values.
REFERENCES = re.compile(
    r"Articles? \d+(\(\d\))?(\([a-z]\))*( and (\([a-z]\)|\d+(\(\d\))?))?"
    r"|Points? \d( (to|and) \d)?|^\d: |\(EU\) 2024/1689"
    r"|45 CFR \d+\.\d+|164\.\d+( and 164\.\d+)?|ISO/IEC 27001:2022|A\.\d+\.\d+( to A\.\d+\.\d+)?"
    r"|^\([a-e]\)\(\d\)(\([iv]+\))?|AES-256|Ed25519|SHA-2(56)?|audit/\d+",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return trained(*founded(tmp_path_factory.mktemp("private")))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return trained(*founded(tmp_path_factory.mktemp("plain")), a_run(rounds=2, quorum=2))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return trained(*founded(tmp_path_factory.mktemp("failed")), a_run(rounds=2, quorum=2), quorum_fails=True)


def documents(made: Federation, out: Path) -> dict[str, dict[str, Any]]:
    """As the command writes them: name -> document."""
    words = ["report", made.document.hash, "--evidence", str(out), "--home", str(made.home.path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json") if path.name.count(".") == 1}


class Records:
    """The coordinator's files, read by nothing of ours but the JSON library and SQLite."""

    def __init__(self, made: Federation, now: int) -> None:
        self.audit = [json.loads(line) for line in lines_of(made.home.path / "audit.sqlite")]
        self.journal = lines(made.results / "metrics.jsonl")
        self.summary = json.loads((made.results / "summary.json").read_text())
        self.others = {
            "run": self.summary["settings"],
            "summary": self.summary,
            "registry": {"state": self.state(made)},
            "server": self.server(made.home.path / "server.toml"),
            "home": {"root": False, "key": False},  # made without passphrases
            "program": {name: metadata.version(name) for name in ("wardround", "torch", "monai", "flwr")},
        }
        self.now = now
        kinds = {TrainReply: "train", EvaluateReply: "evaluate"}
        self.headers = {
            (kinds[type(reply)], reply.round, getattr(reply, "phase", None), site): size
            for site, reply, size in made.sent
        }

    @staticmethod
    def state(made: Federation) -> str:
        with closing(sqlite3.connect(made.home.path / "registry.sqlite")) as database:
            query = "SELECT state FROM proposals WHERE run_hash = ?"
            return str(database.execute(query, (made.document.hash,)).fetchone()[0])

    @staticmethod
    def server(path: Path) -> dict[str, Any]:
        import tomllib  # noqa: PLC0415

        return {"private-network": True, **tomllib.loads(path.read_text())}

    def at(self, source: str) -> Any:
        where, *keys = source.split("/")
        if where == "clock":
            return self.now
        if where == "audit":
            found: Any = self.audit[int(keys.pop(0))]
        elif where == "journal":
            found = self.journal[int(keys.pop(0)) - 1]
        else:
            found = self.others[where]
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def value(self, fact: dict[str, Any]) -> Any:
        found = [self.at(source) for source in fact["sources"]]
        match fact["how"]:
            case "is":
                (one,) = found
                return (
                    ", ".join(map(str, sorted(one) if isinstance(one, dict) else one))
                    if isinstance(one, list | dict)
                    else one
                )
            case "sum":
                return sum(found)
            case "count":
                assert len(set(fact["sources"])) == len(found)
                assert None not in found
                return len(found)
            case "header":
                line = self.at(fact["sources"][0])
                return self.headers[line["event"], line["round"], line.get("phase"), line["site"]]
            case "keys":
                about = {"event", "time", "round", "phase", "site"}
                return ", ".join(sorted(set(found[0]) - about))
            case "all":
                return ", ".join(sorted(set(map(str, found))))
        raise AssertionError(fact)


def facts_in(document: dict[str, Any]) -> list[dict[str, Any]]:
    cells = [cell for _, cell in document["about"]]
    cells += [cell for part in document["parts"] for row in part["rows"] for cell in row]
    return [cell for cell in cells if isinstance(cell, dict) and "value" in cell]


@pytest.mark.parametrize("kind", ["made", "plain", "failed"])
def test_every_value_stands_where_the_document_says(kind: str, request: Any, tmp_path: Path) -> None:
    made: Federation = request.getfixturevalue(kind)
    found = documents(made, tmp_path / "out")
    records = Records(made, found["index"]["made"])
    checked = 0
    for name, document in found.items():
        if name == "index":
            continue
        for fact in facts_in(document):
            assert fact["value"] == records.value(fact), (name, fact)
            checked += 1
    assert checked > 150
    assert len(found) == len(DOCUMENTS) + 1


@pytest.mark.parametrize("kind", ["made", "plain", "failed"])
def test_no_number_is_written_by_hand(kind: str, request: Any, tmp_path: Path) -> None:
    documents(request.getfixturevalue(kind), tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("*.html")):
        body = path.read_text(encoding="utf-8").partition("<body>")[2]
        text = re.sub(r"<data [^>]*>[^<]*</data>", "", body)
        text = html.unescape(re.sub(r"<[^>]+>", "\n", text))
        text = "\n".join(line.strip() for line in text.splitlines())
        left = REFERENCES.sub("", text)
        assert re.findall(r".*\d.*", left) == [], path.name


def test_page_and_data_say_the_same(made: Federation, tmp_path: Path) -> None:
    found = documents(made, tmp_path / "out")
    for name, document in found.items():
        if name == "index":
            continue
        page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
        shown = re.findall(r'<data title="([^"]*)">', page)[1:]  # the first is the number of blanks
        prefix = {"is": ""}
        assert shown == [
            prefix.get(fact["how"], f"{fact['how']} of ") + (", ".join(fact["sources"]) or "nothing")
            for fact in facts_in(document)
        ]
        blanks = page.count("<mark>to be completed by ")
        assert blanks == document["blanks"]
        assert f'<data title="count of the blanks below">{blanks}</data>' in page


def test_page_rounds_nothing(made: Federation, tmp_path: Path) -> None:
    found = documents(made, tmp_path / "out")
    for name, document in found.items():
        if name == "index":
            continue
        page = (tmp_path / "out" / f"{name}.html").read_text(encoding="utf-8")
        shown = [html.unescape(text) for text in re.findall(r"<data [^>]*>([^<]*)</data>", page)[1:]]
        for text, fact in zip(shown, facts_in(document), strict=True):
            if isinstance(fact["value"], float) and not fact["sources"][0].endswith("/time"):
                assert float(text) == fact["value"], (name, fact)


def test_what_each_hospital_spent_is_what_its_own_ledger_and_log_say(made: Federation, tmp_path: Path) -> None:
    stated = documents(made, tmp_path / "out")["privacy"]["parts"][0]["rows"]
    assert len(stated) == len(PATIENTS)
    for row in stated:
        site, epsilon, delta, _, steps, _, last, receipts, charged = (cell["value"] for cell in row)
        rows = made.ledger(site).entries()
        assert {one.round for one in rows} == {1, 2, 3}
        assert steps == sum(one.steps for one in rows)
        assert delta == rows[0].delta == 1 / (10 * PATIENTS[site])
        assert epsilon == pytest.approx(made.spent(site), rel=1e-9)
        with closing(sqlite3.connect(made.folder / f"{site}.sqlite")) as database:
            log = [json.loads(text) for (text,) in database.execute("SELECT entry FROM entries")]
        spent = [entry for entry in log if entry["kind"] == "spend"]
        assert (last, receipts, charged) == (3, len(spent), spent[-1]["epsilon"])


def test_register_names_each_update_with_the_bytes_that_the_hospital_signed(made: Federation, tmp_path: Path) -> None:
    rows = documents(made, tmp_path / "out")["outgoing"]["parts"][0]["rows"]
    told = {
        (round_["value"], site["value"]): (size["value"], fields["value"], patients["value"])
        for round_, site, _, fields, patients, size, *_ in rows[:-1]
    }
    signed = {}
    for site in PATIENTS:
        for entry in (json.loads(line) for line in lines_of(made.folder / f"{site}.sqlite")):
            if entry["kind"] == "round":
                signed[entry["receipt"]["round"], site] = (
                    entry["receipt"]["size"],
                    "delta, epsilon, patients, steps",
                    0,  # none is told: the run is private
                )
    assert told == signed
    assert rows[-1][5]["value"] == sum(size for size, *_ in signed.values())


def test_run_without_privacy_states_no_epsilon_and_names_the_risk(plain: Federation, tmp_path: Path) -> None:
    found = documents(plain, tmp_path / "out")
    assert found["privacy"]["parts"][0]["title"] == "No differential privacy"
    assert "epsilon" not in json.dumps([part["rows"] for part in found["privacy"]["parts"]]).replace("privacy", "")
    risks = [row[0] for row in found["impact"]["parts"][1]["rows"]]
    assert any(risk.startswith("Updates and the model may tell") for risk in risks)
    assert not any(risk.startswith("What epsilon allows") for risk in risks)


def test_risks_follow_the_settings(made: Federation, plain: Federation, tmp_path: Path) -> None:
    private = [row[0] for row in documents(made, tmp_path / "a")["impact"]["parts"][1]["rows"]]
    assert any(risk.startswith("What epsilon allows") for risk in private)
    assert not any(risk.startswith("Updates and the model may tell") for risk in private)
    assert not any(risk.startswith("Exact scores") for risk in private)
    assert any(risk.startswith("Who copies the coordinator's folder") for risk in private)
    assert any(risk.startswith("With so few hospitals") for risk in private)
    assert any(risk.startswith("One operator alone") for risk in private)


def test_no_document_claims_what_no_program_can(made: Federation, failed: Federation, tmp_path: Path) -> None:
    for kind, run in (("made", made), ("failed", failed)):
        documents(run, tmp_path / kind)
        for path in (tmp_path / kind).iterdir():
            assert "complian" not in path.read_text(encoding="utf-8").lower(), path.name


def test_blanks_are_named_for_somebody_and_counted(made: Federation, tmp_path: Path) -> None:
    found = documents(made, tmp_path / "out")
    index = found.pop("index")
    for document in found.values():
        blanks = [
            c for part in document["parts"] for row in part["rows"] for c in row if isinstance(c, dict) and "blank" in c
        ]
        assert document["blanks"] == len(blanks)
        assert all(one["by"] and one["blank"] for one in blanks)
    assert index["blanks"] == sum(document["blanks"] for document in found.values())


def test_index_names_each_file_by_its_hash_and_the_log_names_the_index(made: Federation, tmp_path: Path) -> None:
    index = documents(made, tmp_path / "out")["index"]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    own = files.pop("index.json")
    assert files == index["sha256"]
    assert index["run"] == made.document.hash
    last = json.loads(lines_of(made.home.path / "audit.sqlite")[-1])
    assert (last["kind"], last["what"], last["hash"]) == ("export", "report", own)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "out").iterdir())


def test_components_are_those_installed_and_fit_the_schema(made: Federation, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx", reason="the extra 'evidence' is not installed")
    pytest.importorskip("jsonschema", reason="the development tools are not installed")
    documents(made, tmp_path / "out")
    text = (tmp_path / "out" / "sbom.cdx.json").read_text()
    found = {one["name"]: one["version"] for one in json.loads(text)["components"]}
    for name in ("torch", "flwr", "cryptography", "pydantic"):
        assert found[name] == metadata.version(name)
    assert json.loads(text)["metadata"]["component"]["name"] == "wardround"
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_folder_that_holds_something_is_left_as_it_is(made: Federation, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    words = ["report", made.document.hash, "--evidence", str(tmp_path / "out"), "--home", str(made.home.path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "new or empty folder" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_text_of_a_run_document_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    """The only free text in a run: why its first weights are public."""
    home, registry, members = founded(tmp_path)
    evil = "<script>alert(1)</script> of images & others\u202e"
    from common.learning.checkpoint import pack, sha256  # noqa: PLC0415
    from common.learning.network import build_model  # noqa: PLC0415

    weights = pack(build_model(a_run()).state_dict())
    run: RunConfig = a_run(rounds=1, quorum=2, **PRIVATE, initial={"sha256": sha256(weights), "public": evil})
    results = home.run_folder(document_of(run))
    results.mkdir(parents=True)
    (results / "initial.safetensors").write_bytes(weights)
    made = trained(home, registry, members, run)
    documents(made, tmp_path / "out")
    page = (tmp_path / "out" / "privacy.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page

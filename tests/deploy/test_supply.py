"""Licences against their policy, what the audit lets pass, torch by its hash, and the project's own files."""

import json
import re
import tomllib
from email.message import Message
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deploy import bootstrap
from deploy.supply import audit, licences
from deploy.wheelhouse import EXTRAS, NAME, needed
from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    return licences.listed()


def test_every_package_that_is_locked_has_a_licence_that_is_allowed(listed: dict[str, str]) -> None:
    assert len(listed) > 150
    assert licences.complaints(listed, licences.policy(), needed(NAME, EXTRAS)) == []


def test_page_lists_them_as_they_are(listed: dict[str, str]) -> None:
    assert (ROOT / "docs" / "project" / "licences.md").read_text(encoding="utf-8") == licences.page(listed)


RULES = licences.Policy(frozenset({"MIT", "BSD", "Apache-2.0"}), {"quiet": "MIT"}, {"oracle": "GPL-3.0-or-later"})


@pytest.mark.parametrize(
    ("package", "licence", "shipped", "said"),
    [
        ("fine", "MIT", {"fine"}, None),
        ("fine", "Apache-2.0 OR GPL-3.0-or-later", {"fine"}, None),
        ("both", "MIT AND GPL-3.0-or-later", {"both"}, "both is under MIT AND GPL-3.0-or-later, which is not allowed"),
        ("new", "AGPL-3.0-only", {"new"}, "new is under AGPL-3.0-only, which is not allowed"),
        ("mute", "", {"mute"}, "mute does not say its licence"),
        ("oracle", "GPL-3.0-or-later", set(), None),
        ("oracle", "GPL-3.0-or-later", {"oracle"}, "oracle is shipped, and allowed for checks alone"),
        ("oracle", "AGPL-3.0-only", set(), "oracle is under AGPL-3.0-only"),
    ],
)
def test_a_licence_that_is_not_allowed_or_not_known_is_complained_of(
    package: str, licence: str, shipped: set[str], said: str | None
) -> None:
    known = {"quiet": "MIT", "oracle": "GPL-3.0-or-later"} | {package: licence}
    found = licences.complaints(known, RULES, shipped)
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_a_policy_of_packages_that_have_gone_is_complained_of() -> None:
    assert [one.split()[0] for one in licences.complaints({}, RULES, ())] == ["oracle", "quiet"]


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT OR Apache-2.0"), ("Classifier", "License :: Other")], "MIT OR Apache-2.0"),
        ([("License", "Apache 2.0")], "Apache-2.0"),
        (
            [
                ("License", "Copyright 2018 Somebody, all rights"),
                ("Classifier", "License :: OSI Approved :: MIT License"),
            ],
            "MIT",
        ),
        ([("License", "Do as you like")], ""),
        ([("Classifier", "License :: OSI Approved :: GNU Affero General Public License v3")], ""),
    ],
)
def test_a_licence_is_read_where_a_package_states_it(fields: list[tuple[str, str]], licence: str) -> None:
    message = Message()
    for name, value in fields:
        message[name] = value
    assert licences.stated_by(message) == licence  # type: ignore[arg-type]  # what importlib.metadata makes is one


def test_nothing_that_is_shipped_is_for_checks_alone() -> None:
    assert not needed(NAME, EXTRAS) & set(licences.policy().for_checks)


FINDING: dict[str, Any] = {"filename": "deploy/x/one.py", "test_id": "B603", "line_range": [2, 3]}


@pytest.mark.parametrize(
    ("source", "ignores", "known"),
    [
        ("a\nrun(\n  x)  # noqa: S603 - ours\n", {}, True),
        ("a\nrun(  # noqa: PLC0415, S603\n  x)\n", {}, True),
        ("a  # noqa: S603\nrun(\n  x)\n", {}, False),
        ("a\nrun(\n  x)  # noqa: S607\n", {}, False),
        ("a\nrun(\n  x)\n", {"deploy/*.py": ["T20", "S603"]}, True),
        ("a\nrun(\n  x)\n", {"tests/**": ["S603"], "deploy/*.py": ["S606"]}, False),
    ],
)
def test_a_finding_is_known_where_the_lint_was_answered(
    source: str, ignores: dict[str, list[str]], known: bool
) -> None:
    assert audit.answered(FINDING, source, ignores) is known


def test_a_finding_without_a_reason_and_a_reason_without_a_finding_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(audit, "JUSTIFIED", tmp_path / "justified.toml")
    reasons = [("a.py", "B1"), ("b.py", "B2")]
    text = "".join(f'[[code]]\nfile = "{file}"\ntest = "{test}"\nwhy = "so"\n' for file, test in reasons)
    (tmp_path / "justified.toml").write_text(text)
    found = [audit.Finding("a.py", "B1", "3: known"), audit.Finding("a.py", "B9", "4: new")]
    new, stale = audit.left(found, "code")
    assert new == "a.py:4: new (B9)"
    assert stale.startswith("b.py has no B2 any more")


def test_every_justification_says_why_of_a_file_that_is_there() -> None:
    written = tomllib.loads(audit.JUSTIFIED.read_text(encoding="utf-8"))
    for one in [*written["code"], *written["secret"]]:
        assert (ROOT / one["file"]).is_file(), one
        assert len(one["why"].split()) > 1, one


def test_an_index_without_advisories_is_no_clean_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it calls an old release clean that is known not to be."""
    asked: list[list[str]] = []

    def answer(pins: list[str]) -> CompletedProcess[str]:
        asked.append(list(pins))
        return CompletedProcess([], served and pins == [audit.CONTROL], "", "")

    monkeypatch.setattr(audit, "_pip_audit", answer)
    served = False
    assert audit.advisories()[0].startswith("Not checked")
    assert asked == [[audit.CONTROL]]
    served = True
    assert audit.advisories() == []
    versions = {re.split("==", pin)[0] for pin in asked[-1]}
    assert {"torch", "cryptography", "flwr"} <= versions
    assert all(" ;" in pin or re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in asked[-1])


@pytest.mark.parametrize("locked", [True, False])
def test_torch_is_held_to_its_lock(locked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = re.findall(r"--hash=sha256:(\w{64})", bootstrap.TORCH_LOCK.read_text(encoding="utf-8"))[0]
    digest = known if locked else "ab" * 32
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> None:
        calls.append(arguments)
        if arguments[0] == "install":
            told = {"metadata": {"name": "torch"}, "download_info": {"archive_info": {"hashes": {"sha256": digest}}}}
            Path(arguments[2]).write_text(json.dumps({"install": [{"metadata": {"name": "sympy"}}, told]}))

    monkeypatch.setattr(bootstrap, "_pip", pip)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    said: list[str] = []
    monkeypatch.setattr(bootstrap, "_say", said.append)
    bootstrap._install_torch("torch==2.13.0")
    assert ("does not name" in said[0]) is not locked
    monkeypatch.setenv("WARDROUND_LOCKED_TORCH", "1")
    if locked:
        bootstrap._install_torch("torch==2.13.0")
    else:
        with pytest.raises(bootstrap.SetupError, match=f"SHA-256 {digest}"):
            bootstrap._install_torch("torch==2.13.0")
    assert any(call[0] == "uninstall" for call in calls) is not locked


def test_lock_of_torch_is_of_the_version_that_is_asked_for() -> None:
    first, *hashes = (ROOT / "torch.lock").read_text(encoding="utf-8").splitlines()
    assert first == f"{bootstrap._torch_requirement()} \\"
    assert len(hashes) > 5
    assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", line) for line in hashes)


def test_citation_and_project_name_one_version_and_licence() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


def test_forms_for_issues_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = SimpleNamespace(**yaml.safe_load(path.read_text(encoding="utf-8")))
        if path.stem == "config":
            continue
        assert form.name
        assert form.description
        ids = [part["id"] for part in form.body if part["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 1
        assert {part["type"] for part in form.body} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_hooks_before_a_commit_are_the_tools_of_the_checks() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repo["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in repo["hooks"]}
    assert tools == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert all(hook["language"] == "system" for hook in repo["hooks"])

"""Weaknesses of our code (bandit) and of what it stands on (pip-audit); secrets in the checkout (detect-secrets).

    python -m deploy.supply.audit [code] [secrets] [advisories]

What is known and stays has its reason beside it: `noqa: S...` in the code, the lint's own exceptions in pyproject.toml,
or an entry in justified.toml. Advisories come from the package index; where it has none to tell, every package looks
clean. So a release with known weaknesses is asked about first: where that one is called clean, nothing was checked.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.settings import transient_settings

from common.system.environment import for_child
from deploy.wheelhouse import ROOT, TORCH, locked

JUSTIFIED = Path(__file__).with_name("justified.toml")
FOLDERS = ("client", "common", "deploy", "server", "simulations")
# That `subprocess` is imported says nothing; each call of it is judged by B602 to B607.
SKIPPED = ("B404",)
# Kinds of secrets by their form. Those that look for words or for randomness find every hash of this checkout.
LEFT_OUT = ("KeywordDetector", "Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector")
NOT_TEXT = (".png", ".jpg", ".svg", ".dcm", ".gz", ".lock")
PIP_AUDIT = "pip-audit==2.10.1"
CONTROL = "jinja2==2.4.1"  # of 2010, with advisories of many years


@dataclass(frozen=True)
class Finding:
    """What a tool reports: where, and its name for it."""

    file: str
    kind: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Report; 0 only where there is nothing to report, and all was checked."""
    parts: dict[str, Callable[[], list[str]]] = {"code": code, "secrets": secrets, "advisories": advisories}
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.audit", description="Known weaknesses, and secrets.")
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="only these (default: all)")
    chosen = parser.parse_args(arguments).parts or list(parts)
    failed = 0
    for name in chosen:
        told = parts[name]()
        print(f"== {name}: {'nothing to report' if not told else ''}".rstrip(), *told, sep="\n", flush=True)
        failed += bool(told)
    return 1 if failed else 0


def code() -> list[str]:
    """What bandit reports of our code, and nobody has answered."""
    command = [
        sys.executable,
        "-m",
        "bandit",
        "--quiet",
        "--recursive",
        "--format",
        "json",
        "--skip",
        ",".join(SKIPPED),
    ]
    done = subprocess.run([*command, *FOLDERS], cwd=ROOT, env=for_child(), capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        return [f"bandit did not run: {done.stderr.strip()[-500:]}"]
    report = json.loads(done.stdout)
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    found = [
        Finding(one["filename"], one["test_id"], f"{one['line_number']}: {one['issue_text']}")
        for one in report["results"]
        if not answered(one, (ROOT / one["filename"]).read_text(encoding="utf-8"), lint["per-file-ignores"])
    ]
    return [*(f"{one['filename']} was not read: {one['reason']}" for one in report["errors"]), *left(found, "code")]


def answered(finding: Mapping[str, Any], source: str, ignores: Mapping[str, Sequence[str]]) -> bool:
    """Whether the lint knows it: bandit's B311 is ruff's S311.

    Args:
        finding: of bandit's report.
        source: of its file.
        ignores: `per-file-ignores` of the lint.
    """
    rule = f"S{str(finding['test_id'])[1:]}"
    if any(fnmatch(str(finding["filename"]), pattern) and rule in rules for pattern, rules in ignores.items()):
        return True
    lines = source.splitlines()[min(finding["line_range"]) - 1 : max(finding["line_range"])]
    return any(re.search(rf"# noqa: [^#]*\b{rule}\b", line) for line in lines)


def secrets() -> list[str]:
    """What looks like a secret in files that are, or would be, in git."""
    listing = [shutil.which("git") or "git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, env=for_child(), capture_output=True, text=True, check=False)
    names = [name for name in done.stdout.splitlines() if not name.endswith(NOT_TEXT) and (ROOT / name).is_file()]
    if not names:
        return ["There is no git checkout here."]
    known: list[type[object]] = list(get_mapping_from_secret_type_to_class().values())
    kinds = {kind.__name__ for kind in known} - set(LEFT_OUT)
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(kinds)]}):
        scanned = SecretsCollection(root=str(ROOT))
        for name in names:
            scanned.scan_file(name)
    return left([Finding(name, one.type, f"{one.line_number}") for name, one in scanned], "secret")


def left(found: Iterable[Finding], part: str) -> list[str]:
    """Findings without a reason in justified.toml, and reasons without a finding."""
    name = "test" if part == "code" else "kind"
    reasons = {(one["file"], one[name]) for one in tomllib.loads(JUSTIFIED.read_text(encoding="utf-8"))[part]}
    there = list(found)
    said = [f"{one.file}:{one.text} ({one.kind})" for one in there if (one.file, one.kind) not in reasons]
    stale = sorted(reasons - {(one.file, one.kind) for one in there})
    return said + [f"{file} has no {kind} any more: take it out of {JUSTIFIED.name}." for file, kind in stale]


def advisories() -> list[str]:
    """Known weaknesses of the versions that are locked, torch among them."""
    lock = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    pins = [entry.partition(" \\")[0] for entries in lock.values() for entry in entries]
    pins.append(f"{TORCH}=={metadata.version(TORCH).partition('+')[0]}")
    if _pip_audit([CONTROL]).returncode == 0:
        return [
            f"Not checked: {CONTROL} was called clean, so no advisories came from the package index. Ask where they do."
        ]
    done = _pip_audit(pins)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()


def _pip_audit(pins: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """In an environment of its own, which goes with it."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "requirements.txt"
        asked.write_text("\n".join(pins) + "\n", encoding="utf-8")
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "tool", "run", "--quiet", "--from", PIP_AUDIT, "pip-audit", "--disable-pip", "--no-deps"]
        command += ["--progress-spinner", "off", "--requirement", str(asked)]
        return subprocess.run(command, env=for_child(), capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())

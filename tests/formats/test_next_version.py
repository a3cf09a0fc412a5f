"""The next version of the product, with one more key in run.toml: what this one issued stays what it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.patience import PATIENCE_S

KEPT = ROOT / "tests" / "formats" / "1"
# Run by the next version: hashes by run name, of what it receives, of what a hospital has stored, of what it issues.
SCRIPT = """
import json, sys
from pathlib import Path
from client.rules import approvals
from common.config import RunConfig
from common.config.rundocument import from_bundle, from_file, from_text
kept = Path(sys.argv[1])
assert "pause-steps" in {one.alias for one in RunConfig.model_fields["training"].annotation.model_fields.values()}
bundles = map(Path.read_bytes, (kept / "north" / "proposals").glob("*/bundle.fab"))
print(json.dumps({
    "received": {one.name: one.hash for one in map(from_bundle, bundles)},
    "stored": {one.run.name: one.run_hash for one in approvals.load_all(kept / "north")},
    "issued": {one.name: one.hash for one in map(from_file, kept.glob("*.toml"))},
}))
"""


def next_version(folder: Path, field: str) -> dict[str, dict[str, str]]:
    """What a version says that has this field in [training]."""
    for package in ("client", "common"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    key = ("training.py", "    local_steps: Count = 20\n", f"    local_steps: Count = 20\n    {field}\n")
    latest = ("run.py", "LATEST: ClassVar[int] = 2", "LATEST: ClassVar[int] = 99")
    for name, here, there in (key, latest):
        source = folder / "common" / "config" / name
        text = source.read_text(encoding="utf-8")
        assert text.count(here) == 1
        source.write_text(text.replace(here, there), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(KEPT)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, str]] = json.loads(done.stdout)
    return told


@pytest.fixture
def issued() -> dict[str, str]:
    """Hashes by run name, as the folders of the hospital's proposals are called."""
    folders = (KEPT / "north" / "proposals").iterdir()
    return {json.loads((one / "run.json").read_bytes())["name"]: one.name for one in folders}


def test_a_new_key_changes_no_earlier_run(tmp_path: Path, issued: dict[str, str]) -> None:
    told = next_version(tmp_path, "pause_steps: Annotated[int, Since(99)] = 0")
    assert told == {"received": issued, "stored": issued, "issued": issued}


def test_even_a_key_that_says_no_format_makes_no_coordinator_hostile(tmp_path: Path, issued: dict[str, str]) -> None:
    """What was received keeps its hash. What is issued anew does not, which is how the mistake shows."""
    told = next_version(tmp_path, "pause_steps: int = 0")
    assert told["received"] == told["stored"] == issued
    assert told["issued"].keys() == issued.keys()
    assert not set(told["issued"].values()) & set(issued.values())

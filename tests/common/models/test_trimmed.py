"""What MONAI brings along as it is imported, in a process of its own."""

import subprocess
import sys
from pathlib import Path

from common.models.trimmed import UNUSED
from tests import ROOT

LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
import monai
print(*sorted(set(sys.argv[2:]) & set(sys.modules)))
"""
# Found by whoever imports it, though MONAI did not find it.
ELSEWHERE = """
import common.models
from monai.networks.nets.unet import UNet
import scipy.signal, skimage.morphology
print(scipy.signal.hilbert([0.0, 1.0]).shape, skimage.morphology.disk(1).sum())
"""


def output_of(program: str, *arguments: str) -> str:
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_what_only_monai_looks_for_is_not_imported_with_it() -> None:
    assert output_of(LOADED, "client.train.training", *UNUSED) == ""


def test_who_wants_it_afterwards_finds_it() -> None:
    assert output_of(ELSEWHERE) == "(2,) 5"


def test_nothing_of_ours_comes_to_monai_before_it_is_trimmed() -> None:
    """Whoever imports MONAI names a module that has imported the networks or `common.learning` before."""
    first = [
        path
        for path in (*Path(ROOT, "client").rglob("*.py"), *Path(ROOT, "server").rglob("*.py"))
        if "from monai" in path.read_text(encoding="utf-8")
    ]
    assert first, "none is looked at"
    for path in first:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert output_of(LOADED, name, *UNUSED) == ""

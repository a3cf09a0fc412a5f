"""A worker uses again what it frees, in large pages."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.system.environment import PACKAGES, for_child
from simulations.backends.nursery import Nursery
from tests.patience import eventually

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_USES = """
import ctypes, resource
import torch
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():  # tensors that glibc asks the kernel for, whatever was freed, unless it is told otherwise
    return sum(float(one.sum()) for one in [torch.ones(1 << 24) for _ in range(2)])
def of_a_step():
    before = faults()
    step()
    return faults() - before
print(min(of_a_step() for _ in range(6)))  # a busy machine may take a page away meanwhile
"""


def page_faults_of_a_step(before: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", _USES.format(before=before)],
        env=for_child(PYTHONPATH=str(PACKAGES), OMP_NUM_THREADS="1"), check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="faults are counted as Linux does")
@pytest.mark.parametrize(
    "before",
    [
        "from simulations.backends.memory import keep_and_enlarge; keep_and_enlarge()",
        "from simulations.backends.ray import SiteActor; SiteActor(30)",
    ],
)
def test_a_step_takes_no_page_from_the_kernel_that_the_one_before_has_freed(before: str) -> None:
    assert (kept := page_faults_of_a_step(before)) < 100, kept  # of 32,768 pages
    assert page_faults_of_a_step("") > 10_000


@pytest.mark.skipif(not LARGE_PAGES.is_dir(), reason="the kernel has no large pages to give")
def test_a_worker_of_the_nursery_has_large_pages() -> None:
    nursery = Nursery()
    pid, asked = nursery.start()
    with asked:
        found = eventually(lambda: marked_bytes(pid), "large pages")
    nursery.close()
    assert found >= 1 << 29


def marked_bytes(pid: int) -> int:
    """Of a process's memory, that for which it wants large pages."""
    marked = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, said = line.partition(":")
        if name == "Size":
            size = 1024 * int(said.split()[0])
        elif name == "VmFlags" and "hg" in said.split():
            marked += size
    return marked

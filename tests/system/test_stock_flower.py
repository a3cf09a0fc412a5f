"""The two apps under stock Flower: SuperLink, SuperNode and `flwr run`, with nothing of Wardround in between.

So nobody is locked in: what a hospital trains with is an ordinary Flower app.
"""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from common.config.rundocument import from_toml
from simulations.generators.anatomy import SCANNERS
from simulations.generators.phantoms import write_hospital
from tests.patience import PATIENCE_S, eventually
from tests.system.test_deployment import free_ports, listens

pytestmark = pytest.mark.system

BIN = Path(sys.executable).parent
RUN_TOML = """
name = "stock"
model = { channels = [8, 16] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 2, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = 1, quorum = 1, join-timeout-s = 300, round-timeout-s = 300 }
"""


class Flower:
    """Starts Flower's own commands in a folder and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("WARDROUND_", "FLWR_"))},
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0].replace('/', '-')}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / name), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    (tmp_path / "flower").mkdir()
    started = Flower(tmp_path)
    yield started
    started.end()


def test_both_apps_run_under_stock_flower(flower: Flower) -> None:
    folder = flower.folder
    write_hospital(folder / "pacs", scanner=SCANNERS["a"], patients=5, seed=5, slices=4, rows=64)
    (folder / "site").mkdir()
    (folder / "site" / "site.toml").write_text(f'name = "north"\nthreads = 1\n[[data]]\npath = "{folder / "pacs"}"\n')
    (folder / "site" / "policy.toml").write_text("require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n")
    with zipfile.ZipFile(BytesIO(from_toml(RUN_TOML).bundle)) as bundle:
        for name in ("pyproject.toml", "run.toml"):
            (folder / "app" / name).parent.mkdir(exist_ok=True)
            (folder / "app" / name).write_bytes(bundle.read(name))
    superlink, runtime = free_ports(2)
    (folder / "flower" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{superlink}"\ninsecure = true\n'
    )

    flower.start("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(superlink))
    eventually(lambda: listens(superlink), flower.logs)
    flower.start(
        "flower-supernode",
        *("--insecure", "--superlink", f"127.0.0.1:{superlink}", "--port", str(runtime)),
        *("--node-config", f'home="{folder / "site"}"'),
    )
    submitted = flower.start("flwr", "run", "app")
    eventually(lambda: submitted.poll() is not None, flower.logs)
    assert submitted.returncode == 0, flower.logs()

    def finished() -> bool:
        found = list(folder.rglob("wardround-runs/stock-*/summary.json"))
        return bool(found) and json.loads(found[0].read_text())["status"] != "running"

    eventually(finished, flower.logs)
    (path,) = folder.rglob("wardround-runs/stock-*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["status"] == "completed", flower.logs()
    assert (path.parent / "model.safetensors").stat().st_size > 1000

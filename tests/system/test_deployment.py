"""A federation of real processes on this machine: commands as typed, real certificates, generated DICOM.

One coordinator and two hospitals go from nothing to a finished run; each test then claims one thing about what
happened. The oracle of the model is the same run simulated in this process.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import psutil
import pydicom
import pytest
import torch
from monai.bundle.config_parser import ConfigParser
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from client.site import open_site
from common.config import RunConfig, parse
from common.config.rundocument import issue
from common.learning.checkpoint import sha256
from common.learning.network import load_model
from server.federation.rounds import federate
from server.home.folder import open_home
from simulations.backends.in_process import InProcessGrid
from simulations.generators.anatomy import SCANNERS
from simulations.generators.phantoms import write_hospital
from tests import ROOT
from tests.common.audit.federation import lines_of, tamper
from tests.patience import PATIENCE_S, eventually
from tests.server.search import found, pieces, private_keys
from tests.system import monitoring
from tests.system.relay import Capture, tapped, tls_records

pytestmark = pytest.mark.system

SITES = {"north": "a", "south": "b"}  # site -> scanner
RUN_TOML = """
format = 2
name = "tiny"
seed = 3
deterministic = true
model = { channels = [8, 16] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 3, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = 2, quorum = 2, join-timeout-s = 300, round-timeout-s = 300, cross-site = true }
"""
POLICY = "require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n"
PATIENTS = 5
# Told for those who write boards and alerts of their own.
UNSHOWN = {
    *("wardround_sites", "wardround_audit_entries", "wardround_run_answers"),
    *("wardround_data_sources", "wardround_data_check_timestamp_seconds"),
}


@dataclass(frozen=True)
class Deployment:
    """What was left when everything had been stopped."""

    folder: Path
    summary: dict[str, Any]
    phrases: dict[str, tuple[str, str]]  # site -> what the hospital and the coordinator showed
    idle: dict[str, float]  # site -> share of a core while nothing happened
    statuses: dict[str, dict[str, Any]]  # before the stop
    left: list[str]  # processes that outlived the stop
    exit_codes: dict[str, int]
    scraped: dict[str, str]  # by Prometheus' way, from the coordinator and a hospital, before the stop
    wire: tuple[Capture, ...]  # all that passed between the hospitals and the coordinator

    def home(self, site: str) -> Path:
        return self.folder / site

    @property
    def audit(self) -> Path:
        """The coordinator's log."""
        return self.folder / "coordinator" / "audit.sqlite"

    def tap(self, site: str) -> bytes:
        return (self.folder / f"{site}.tap").read_bytes()


class Stage:
    """Starts commands, and ends what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def spawn(self, module: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def keep(self, name: str, process: subprocess.Popen[str]) -> None:
        self.processes[name] = process

    def server(self, *arguments: str) -> subprocess.Popen[str]:
        return self.spawn("server.commands.main", *arguments, WARDROUND_SERVER_HOME=str(self.folder / "coordinator"))

    def client(self, site: str, *arguments: str) -> subprocess.Popen[str]:
        variables = {"WARDROUND_HOME": str(self.folder / site), "WARDROUND_TAP": str(self.folder / f"{site}.tap")}
        return self.spawn("tests.system.tapped_client", *arguments, **variables)

    def end(self) -> dict[str, int]:
        """SIGTERM to all that is kept, the hospitals first."""
        codes = {}
        for name, process in reversed(self.processes.items()):
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = -signal.SIGKILL
        return codes


def done(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    return output


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status_of(folder: Path, site: str) -> dict[str, Any]:
    path = folder / site / "status.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return values


def offers(home: Path) -> list[Path]:
    return list((home / "proposals").glob("*/offer.json"))


def share_of_a_core(pid: int, seconds: float) -> float:
    """CPU time of a process and its children over wall time."""

    def spent() -> float:
        process = psutil.Process(pid)
        return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))

    before, started = spent(), time.monotonic()
    time.sleep(seconds)
    return (spent() - before) / (time.monotonic() - started)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("federation")
    for site, scanner in SITES.items():
        write_hospital(folder / f"{site}-pacs", scanner=SCANNERS[scanner], patients=PATIENTS, seed=5, slices=4, rows=64)
    (folder / "run.toml").write_text(RUN_TOML)
    stage = Stage(folder)
    ports = free_ports(3)
    try:
        with tapped(ports[0]) as gateway, tapped(ports[1]) as enrolment:
            yield from run_everything(stage, ports, (gateway, enrolment))
    finally:
        stage.end()


def run_everything(stage: Stage, free: list[int], wire: tuple[Capture, Capture]) -> Iterator[Deployment]:
    folder = stage.folder
    gateway, enrolment, superlink = free
    ports = ("--gateway-port", gateway, "--enrolment-port", enrolment, "--superlink-port", superlink)
    done(stage.server("init", *map(str, ports)))
    stage.keep("coordinator", stage.server("start"))
    for invitation in [stage.server("invite", site, "--out", str(folder)) for site in SITES]:
        done(invitation)
    for site in SITES:
        # The hospitals reach both ports through the tap, as if it were the network's.
        invitation = json.loads((folder / f"{site}.json").read_text())
        invitation |= {"gateway": f"127.0.0.1:{wire[0].port}", "enrolment": f"127.0.0.1:{wire[1].port}"}
        (folder / f"{site}.json").write_text(json.dumps(invitation))
    eventually(lambda: listens(enrolment) and listens(gateway), "coordinator listening")

    joins = {site: stage.client(site, "join", f"{site}.json", "--timeout", str(PATIENCE_S)) for site in SITES}
    waiting: dict[str, str] = {}

    def all_wait() -> bool:
        rows = json.loads(done(stage.server("requests", "--json")))
        waiting.update({row["site"]: row["phrase"] for row in rows})
        return set(waiting) == set(SITES)

    eventually(all_wait, "both requests")
    for approval in [stage.server("approve", site) for site in SITES]:
        done(approval)
    phrases = {site: (done(join).partition("Phrase: ")[2].split()[0], waiting[site]) for site, join in joins.items()}

    for addition in [stage.client(site, "data", "add", f"{site}-pacs") for site in SITES]:
        done(addition)
    for site in SITES:
        home = folder / site
        (home / "policy.toml").write_text(POLICY)
        (home / "site.toml").write_text("threads = 1\n" + (home / "site.toml").read_text())
        stage.keep(site, stage.client(site, "start"))

    run = stage.server("run", "run.toml", "--watch")
    for site in SITES:
        eventually(partial(offers, folder / site), f"offer of {site}")
    for approval in [stage.client(site, "approve", "tiny", "--yes") for site in SITES]:
        done(approval)
    done(run)
    made = partial((folder / "coordinator").glob, "models/tiny-*/manifest.json")
    eventually(lambda: list(made()), "the folder of the finished run")

    statuses = {site: status_of(folder, site) for site in SITES}
    metrics = {
        "coordinator": stage.server("metrics", "--port", "0", "--json"),
        "site": stage.client("north", "metrics", "--port", "0", "--json"),
    }
    for side, process in metrics.items():
        stage.keep(f"{side}-metrics", process)
    scraped = {side: monitoring.scrape(process) for side, process in metrics.items()}
    idle = {site: share_of_a_core(stage.processes[site].pid, 5.0) for site in SITES}
    started = [process.pid for process in stage.processes.values()]
    family = [one for pid in started for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    exit_codes = stage.end()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    (summary,) = (folder / "coordinator" / "runs").glob("tiny-*/summary.json")
    left = [" ".join(one.cmdline()) for one in alive]
    yield Deployment(folder, json.loads(summary.read_text()), phrases, idle, statuses, left, exit_codes, scraped, wire)


def test_run_is_completed_with_both_hospitals_in_each_round(deployment: Deployment) -> None:
    assert deployment.summary["status"] == "completed"
    events = (deployment.folder / "coordinator" / "runs").glob("tiny-*/metrics.jsonl")
    rounds = [
        event
        for path in events
        for event in map(json.loads, path.read_text().splitlines())
        if event["event"] == "round"
    ]
    assert [sorted(event["sites"]) for event in rounds] == [sorted(SITES)] * 2


def test_both_sides_showed_the_same_phrase(deployment: Deployment) -> None:
    for here, there in deployment.phrases.values():
        assert here == there
    assert len({here for here, _ in deployment.phrases.values()}) == len(SITES)


def test_model_has_the_hash_of_the_simulated_run(deployment: Deployment, tmp_path: Path) -> None:
    run = parse(RunConfig, RUN_TOML)
    federate(InProcessGrid([open_site(deployment.home(site)) for site in SITES], issue(run)), issue(run), tmp_path)
    deployed = exported(deployment, tmp_path / "exported")
    assert sha256(deployed.read_bytes()) == sha256((tmp_path / "model.safetensors").read_bytes())


def test_each_hospital_sees_what_it_gains_over_training_alone(deployment: Deployment, tmp_path: Path) -> None:
    """The local score is that of a run of the hospital alone; both sides show the same numbers."""
    stage = Stage(deployment.folder)
    report = {row["site"]: row for row in as_data(done(stage.server("report", "tiny", "--json")))}
    run = parse(RunConfig, RUN_TOML)
    alone = issue(run.model_copy(update={"federation": run.federation.model_copy(update={"quorum": 1})}))
    for site in SITES:
        summary = federate(InProcessGrid([open_site(deployment.home(site))], alone), alone, tmp_path / site)
        row = report[site]
        for phase in ("validation", "test"):
            assert row[f"{phase}-local"] == pytest.approx(summary.scores[phase]["sites"][site]["dice"], rel=1e-5)
            assert row[f"{phase}-gain"] == row[phase] - row[f"{phase}-local"]
        shown = as_data(done(stage.client(site, "show", "tiny", "--json")))["gains"]
        assert [(one["round"], one["phase"]) for one in shown] == [(1, "validation"), (2, "validation"), (2, "test")]
        last = shown[1]
        for here, there in (
            ("global-before", "validation-previous"),
            ("global", "validation"),
            ("own", "validation-local"),
        ):
            assert last[here] == pytest.approx(row[there], rel=1e-5)
        assert not list((deployment.home(site) / "state" / "local").iterdir())
    page = next((deployment.folder / "coordinator" / "runs").glob("tiny-*/report.html")).read_text()
    assert "What each hospital gains: dice on its test patients" in page


def test_coordinator_keeps_no_model_and_no_key_in_the_clear(deployment: Deployment, tmp_path: Path) -> None:
    home = open_home(deployment.folder / "coordinator")
    weights = exported(deployment, tmp_path).read_bytes()
    assert found(home.path, pieces(weights) | private_keys(home)) == []
    (folder,) = (home.path / "runs").glob("tiny-*")
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = {"model.safetensors.sealed", "model.json.sealed"}
    assert kept >= names | {f"checkpoint/round-00002/{name}" for name in names}


def as_data(output: str) -> Any:
    """The JSON in what a command printed; what it noted stands before or after it."""
    found, _ = json.JSONDecoder().raw_decode(output[min(output.index(one) for one in "[{" if one in output) :])
    return found


def exported(deployment: Deployment, out: Path) -> Path:
    """The model, written by the coordinator to where it is asked for."""
    done(Stage(deployment.folder).server("export", "tiny", "--out", str(out)))
    return out / "model.safetensors"


def test_no_message_of_a_hospital_holds_anything_of_its_images(deployment: Deployment) -> None:
    for site in SITES:
        tap = deployment.tap(site)
        assert b"PushObject" in tap
        assert site.encode() in tap  # its own name, in the certificate request
        files = sorted((deployment.folder / f"{site}-pacs").rglob("*.dcm"))
        secrets = {b"PHANTOM", b"DICM", str(deployment.folder).encode(), open_site(deployment.home(site)).key}
        for file in files:
            study = pydicom.dcmread(file)
            texts = {file.name, str(study.PatientID), str(study.PatientName), str(study.PatientBirthDate)}
            texts |= {str(study.StudyInstanceUID), str(study.SeriesInstanceUID), str(study.SOPInstanceUID)}
            secrets |= {form for text in texts if len(text) > 5 for form in encodings(text)}
            pixels = study.PixelData
            secrets.add(pixels[len(pixels) // 2 : len(pixels) // 2 + 24])
        assert len(files) > PATIENTS
        assert not [secret for secret in secrets if len(set(secret)) > 3 and secret in tap]


def test_wire_carries_tls_and_nothing_else(deployment: Deployment) -> None:
    for capture in deployment.wire:
        streams = [bytes(stream) for stream in capture.streams if stream]
        assert len(streams) >= 2 * len(SITES)
        for stream in streams:
            kinds = tls_records(stream)
            assert kinds[0] == 22, "a connection must begin with a handshake"
            assert 23 in kinds, "nothing was sent on this connection"
        for plain in (b"PHANTOM", b"safetensors", b"run-hash", b"lesion", b"flwr.proto", b"wardround.v1"):
            assert plain not in capture
    gateway, _ = deployment.wire
    uploads = sum(len(stream) for stream in gateway.streams[::2])
    weights = next((deployment.folder / "coordinator" / "runs").glob("tiny-*/model.safetensors.sealed")).stat().st_size
    assert uploads > weights * len(SITES) * 2, "the tap must have seen every update"


def test_everything_ends_on_sigterm(deployment: Deployment) -> None:
    started = ("coordinator", *SITES, "coordinator-metrics", "site-metrics")
    assert deployment.exit_codes == dict.fromkeys(started, 0)
    assert deployment.left == []
    for site in SITES:
        assert status_of(deployment.folder, site)["state"] == "stopped"


def test_hospitals_said_what_they_did(deployment: Deployment) -> None:
    for site in SITES:
        status = deployment.statuses[site]
        assert status["state"] == "connected"
        assert status["last-error"] is None
        assert (status["last-round"]["round"], status["last-round"]["kind"]) == (2, "evaluate")
        assert status["certificate-days-left"] in (89, 90)
        logs = deployment.home(site) / "logs"
        assert "round 2: train done" in (logs / "agent.log").read_text()
        assert "ready" in (logs / "worker.log").read_text()


def verified(deployment: Deployment, *logs: Path) -> tuple[int, str]:
    """`audit verify` at the coordinator, of its own log and these."""
    stage = Stage(deployment.folder)
    process = stage.server("audit", "verify", *map(str, logs))
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def entries_of(log: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines_of(log)]
    return [entry for entry in found if entry["kind"] == kind]


@pytest.mark.parametrize("side", ["coordinator", "site"])
def test_every_measure_of_boards_and_alerts_is_told_with_the_labels_that_they_ask_for(
    deployment: Deployment, side: str
) -> None:
    found = {one.name: one for one in text_string_to_metric_families(deployment.scraped[side])}
    # The text says a counter's name without its ending.
    families = {f"{name}_total" if one.type == "counter" else name: one for name, one in found.items()}
    of_both, own = (monitoring.rules()[name] for name in ("wardround", f"wardround-{side}"))
    asked = [*monitoring.board_expressions(side), *(rule["expr"] for rule in (*of_both, *own))]
    wanted = [one for expression in asked for one in monitoring.selectors(expression)]
    assert {name for name, _ in wanted} - monitoring.BUILT_IN <= families.keys()
    for name, labels in wanted:
        samples = families[name].samples if name in families else []
        assert not samples or labels.keys() <= samples[0].labels.keys(), name
    # All that is told is of use to somebody.
    assert {name for name in families if name not in {name for name, _ in wanted}} <= {"wardround_build_info"} | UNSHOWN


def test_scrape_tells_of_the_run_that_was_done(deployment: Deployment) -> None:
    text = deployment.scraped["coordinator"]
    run = f"tiny-{deployment.summary['run-hash'][:8]}"
    for line in (
        "wardround_coordinator_running 1.0",
        'wardround_process_up{process="gateway"} 1.0',
        'wardround_site_connected{site="north"} 1.0',
        f'wardround_run_state{{run="{run}",state="completed"}} 1.0',
        f'wardround_run_round{{run="{run}"}} 2.0',
    ):
        assert line in text.splitlines(), text
    assert 'wardround_agent_state{state="connected"} 1.0' in deployment.scraped["site"].splitlines()
    assert "wardround_worker_running 1.0" in deployment.scraped["site"].splitlines()


def test_logs_of_all_sides_fit_together(deployment: Deployment) -> None:
    code, output = verified(deployment, *(deployment.home(site) / "audit.sqlite" for site in SITES))
    assert (code, "All is well." in output) == (0, True), output
    assert "warning" not in output
    process = Stage(deployment.folder).client("north", "audit", "verify", str(deployment.audit))
    assert "All is well." in done(process)


def test_every_round_has_a_receipt_on_both_sides_and_its_update_is_in_the_model(deployment: Deployment) -> None:
    there = [entry["receipt"] for entry in entries_of(deployment.audit, "round")]
    for site in SITES:
        log = deployment.home(site) / "audit.sqlite"
        here = [entry["receipt"] for entry in entries_of(log, "round")]
        assert [receipt["round"] for receipt in here] == [1, 2]
        assert here == [receipt for receipt in there if receipt["site"] == site]
        assert len(entries_of(log, "countersigned")) == 2
        assert [entry["kind"] for entry in map(json.loads, lines_of(log))].count("evaluated") == 3
    entered = {(entry["site"], entry["round"], entry["update"]) for entry in entries_of(deployment.audit, "entered")}
    assert entered == {(receipt["site"], receipt["round"], receipt["update"]) for receipt in there}
    models = [entry["model"] for entry in entries_of(deployment.audit, "aggregated")]
    assert models[-1] == deployment.summary["model-sha256"]


def test_finished_run_left_its_folder_with_every_receipt(deployment: Deployment) -> None:
    """Made by the coordinator that ran, not by a command afterwards."""
    (folder,) = (deployment.folder / "coordinator" / "models").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model-sha256"] == deployment.summary["model-sha256"]
    for name, about in manifest["files"].items():
        assert sha256((folder / name).read_bytes()) == about["sha256"], name
    kept = [json.loads(line)["receipt"] for line in (folder / "receipts.jsonl").read_text().splitlines()]
    assert kept == [entry["receipt"] for entry in entries_of(deployment.audit, "round")]
    assert {(one["site"], one["round"]) for one in kept} == {(site, number) for site in SITES for number in (1, 2)}


def test_finished_run_left_a_bundle_and_onnx_that_say_what_its_model_says(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Read by MONAI and by ONNX Runtime, with nothing of ours between."""
    weights = exported(deployment, tmp_path)
    network = load_model(parse(RunConfig, RUN_TOML), load_file(weights)).eval()
    images = torch.randn(3, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
        parser = ConfigParser()
        parser.read_config(tmp_path / "bundle" / "configs" / "inference.json")
        parser["bundle_root"], parser["device"] = str(tmp_path / "bundle"), "cpu"
        bundled = parser.get_parsed_content("network")(images)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (onnx,) = session.run(None, {"image": images.numpy()})
    torch.testing.assert_close(bundled, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=1e-4, atol=1e-4)


def test_logs_tell_the_story_from_enrolment_to_the_end(deployment: Deployment) -> None:
    def kinds(log: Path) -> set[str]:
        return {entry["kind"] for entry in map(json.loads, lines_of(log))}

    assert kinds(deployment.audit) >= {"operator-added", "enrolled", "proposed", "approved", "checkpoint-received"}
    assert kinds(deployment.audit) >= {"started", "closed", "aggregated", "arrived", "stopped"}
    for site in SITES:
        assert kinds(deployment.home(site) / "audit.sqlite") >= {
            "enrolled", "started", "policy-changed", "approved", "data-added", "checkpoint-received", "stopped",
        }  # fmt: skip


def test_a_byte_flipped_or_an_entry_dropped_is_named(deployment: Deployment, tmp_path: Path) -> None:
    whole = deployment.home("north") / "audit.sqlite"
    number = next(n for n, line in enumerate(lines_of(whole)) if b'"kind":"round"' in line)
    for statement, named in (
        (
            "UPDATE entries SET entry = replace(entry, '\"round\":1', '\"round\":3') WHERE seq = ?",
            f"entry {number} is not",
        ),
        ("DELETE FROM entries WHERE seq = ?", f"entries {number} to {number} are missing"),
    ):
        copy = tmp_path / "audit.sqlite"
        copy.write_bytes(whole.read_bytes())
        tamper(copy, (statement, number))
        code, output = verified(deployment, copy)
        assert code == 1
        assert named in output, output


def test_idle_hospital_uses_hardly_any_processor(deployment: Deployment) -> None:
    for site, share in deployment.idle.items():
        assert share < 0.03, f"{site} uses {share:.1%} of a core while idle"


def encodings(text: str) -> set[bytes]:
    plain = text.encode()
    return {plain, text.encode("utf-16-le"), base64.b64encode(plain), plain.hex().encode()}

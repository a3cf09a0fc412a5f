"""What a deployed federation costs beyond training: seconds a round by model size, and CPU when nothing happens.

A coordinator and three hospitals, as in the demo, train one step a round on tiny images, so that what is left is the
way of the model: SuperLink, gateway, TLS, agent, pipe, gate, checks, average, checkpoint. The figure of a round is the
time between its first request and its checkpoint, less the slowest site's training. The first round is left out: it
reads the images.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from deploy.demo import fresh_folder
from deploy.federation import Hospital, enrol, federate, start_agents, start_coordinator
from deploy.processes import ROOT, Processes, StepError, StoppedError

SITES = ("bench-a", "bench-b", "bench-c")
# Widths of the network's levels: 2 MB and 30 MB of weights.
MODELS = {"2 MB": (25, 50, 100, 200), "30 MB": (97, 194, 388, 776)}
ROUNDS = 8
# The last run's ServerApp takes some seconds to leave.
SETTLE_S, IDLE_S = 15.0, 30.0

POLICY = "require-privacy = false\nmin-patients = 1\nmin-held-out = 1\nmax-evaluations-per-day = 10000\n"
RUN = """
name = "{name}"
[model]
channels = {channels}
[data]
modality = "CT"
classes = ["lesion"]
[training]
local-steps = 1
batch-size = 1
patch-size = [16, 16]
[federation]
rounds = {rounds}
quorum = 3
evaluate-every = {rounds}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 only if everything ran."""
    parser = argparse.ArgumentParser(prog="python -m deploy.bench", description="Measure what a deployment costs.")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", help="folder [default: ./out/bench]")
    parser.add_argument("--write-images", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    if options.write_images:
        _write_images(out)
        return 0
    try:
        fresh_folder(out)
        with Processes(out / "logs") as processes:
            _measure(processes, out)
    except StoppedError as error:
        print(f"\nbench: stopped by {error}", file=sys.stderr)
        return 130
    except (StepError, OSError) as error:
        print(f"\nbench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(processes: Processes, out: Path) -> None:
    images = out / "images"
    processes.run("images", sys.executable, __file__, "--write-images", "--out", images)
    hospitals = [Hospital(site, out / site, images) for site in SITES]
    coordinator = start_coordinator(processes, out / "coordinator")
    enrol(processes, coordinator, hospitals)
    for hospital in hospitals:
        (hospital.home / "policy.toml").write_text(POLICY, encoding="utf-8")
    start_agents(processes, hospitals)

    rounds = Table(title="Seconds a round beyond training, three sites", title_justify="left")
    for heading in ("model", "rounds", "median", "lowest", "highest"):
        rounds.add_column(heading, justify="right")
    for size, channels in MODELS.items():
        name = f"bench-{size.replace(' ', '').lower()}"
        document = out / f"{name}.toml"
        document.write_text(RUN.format(name=name, channels=list(channels), rounds=ROUNDS), encoding="utf-8")
        folder = federate(processes, coordinator, hospitals, document, name, visible=False)
        beyond = _beyond_training(folder)
        figures = (statistics.median(beyond), min(beyond), max(beyond))
        rounds.add_row(size, str(len(beyond)), *(f"{figure:.2f}" for figure in figures))

    idle = Table(title=f"CPU of {IDLE_S:g} idle seconds, in percent of one core", title_justify="left")
    idle.add_column("party")
    idle.add_column("percent", justify="right")
    processes.rest(SETTLE_S)
    trees = {name: processes.tree(name) for name in ("coordinator", *SITES)}
    before = {name: _cpu_seconds(tree) for name, tree in trees.items()}
    processes.rest(IDLE_S)
    for name, tree in trees.items():
        idle.add_row(name, f"{100 * (_cpu_seconds(tree) - before[name]) / IDLE_S:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(rounds)
    console.print(idle)


def _write_images(folder: Path) -> None:
    from simulations.generators import phantoms  # noqa: PLC0415 - heavy, and only this child needs it

    phantoms.write_hospital(folder, scanner=phantoms.SCANNERS["a"], patients=5, slices=2, rows=64, seed=0)


def _beyond_training(folder: Path) -> list[float]:
    """By round, from the second on."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained: dict[int, float] = {}
    for event in events:
        if event["event"] == "train":
            trained[event["round"]] = max(trained.get(event["round"], 0.0), event["seconds"])
    return [
        event["seconds"] - trained[event["round"]]
        for event in events
        if event["event"] == "round" and event["round"] > 1
    ]


def _cpu_seconds(tree: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in tree:
        if process.is_running():
            times = process.cpu_times()
            total += times.user + times.system
    return total


if __name__ == "__main__":
    sys.exit(main())

"""One way of training, in a process of its own: `python -m simulations.bench.training_ways WAY FOLDER`.

Makes a round for each line on stdin, and says so on stdout when it has; after the last it waits for the end of stdin
and writes its model to FOLDER/WAY.model.
"""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

BARE, BARE_PROCESSES = "bare loop", "bare loop, 2 processes"
BACKENDS = IN_PROCESS, PROCESSES, RAY = "in-process", "processes", "ray"
WAYS = (BARE, BARE_PROCESSES, IN_PROCESS, PROCESSES)
SITES = "sites"  # folder of the homes
AT_ONCE = 2  # processes that train at the same time


def main(way: str, folder: Path) -> None:
    """Train, a round for each line."""
    torch.set_num_threads(1)
    (_ours if way in BACKENDS else _bare)(way, folder)


def model_of(folder: Path, way: str) -> Path:
    """Where a way leaves its model."""
    return folder / f"{way}.model"


def _bare(way: str, folder: Path) -> None:
    from common.learning.network import build_model  # noqa: PLC0415 - the other ways load more
    from simulations.bench import bare_loop  # noqa: PLC0415

    run = bare_loop.run_of(folder)
    opened = bare_loop.in_one_process(folder) if way == BARE else bare_loop.in_processes(folder, AT_ONCE)
    with opened as one_round:
        state = dict(build_model(run).state_dict())
        for number in range(1, run.federation.rounds + 1):
            _wait(number - 1, run.federation.rounds)
            state = one_round(state, number)
            _say()
        _wait(run.federation.rounds, run.federation.rounds)
        safetensors.torch.save_file(state, model_of(folder, way))


def _ours(way: str, folder: Path) -> None:
    from client.site import open_site  # noqa: PLC0415 - the bare loop loads none of it
    from common.config.rundocument import issue  # noqa: PLC0415
    from common.learning.checkpoint import WEIGHTS_NAME  # noqa: PLC0415
    from common.system.files import write_atomically  # noqa: PLC0415
    from server.federation.rounds import federate  # noqa: PLC0415
    from simulations.backends import Resources, started  # noqa: PLC0415
    from simulations.bench.bare_loop import run_of  # noqa: PLC0415

    document = issue(run_of(folder))
    out = folder / f"{way}.out"

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            _say()
            _wait(event["round"], document.config.federation.rounds)

    with started(way, AT_ONCE, Resources(AT_ONCE, 1)) as backend:
        sites = [open_site(home) for home in sorted((folder / SITES).iterdir())]
        _wait(0, document.config.federation.rounds)
        with backend(sites, document) as grid:
            federate(grid, document, out, observe=observe, test=False)
        write_atomically(model_of(folder, way), (out / WEIGHTS_NAME).read_bytes())


def _wait(done: int, rounds: int) -> None:
    """For the next line, after so many rounds; after the last for the end."""
    if not sys.stdin.readline() and done < rounds:
        raise SystemExit("nobody waits for the rounds that are left")


def _say() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

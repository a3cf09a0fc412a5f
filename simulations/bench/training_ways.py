"""One way of training, in a process of its own: `python -m simulations.bench.training_ways WAY FOLDER`.

Makes a round for each line on stdin, and says so on stdout when it has; after the last it waits for the end of stdin
and writes its model to FOLDER/WAY.model, that of the first round to FOLDER/WAY.first. `Turns` does that for it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from simulations.bench import bare_loop

BARE, BARE_PROCESSES = "bare loop", "bare loop, 2 processes"
BACKENDS = IN_PROCESS, PROCESSES, RAY = "in-process", "processes", "ray"
WAYS = (BARE, BARE_PROCESSES, IN_PROCESS, PROCESSES)
SITES = "sites"  # folder of the homes
AT_ONCE = 2  # processes that train at the same time


class Turns:
    """Waits for the lines, and says when a round is done.

    It has descriptors of its own: what else is printed goes to stderr, and a process that a library forks, whose stdin
    that closes, may take turns too.
    """

    def __init__(self, way: str, folder: Path, reading: int | None = None, writing: int | None = None) -> None:
        """Take stdin and stdout, or what another process has taken: its `descriptors`."""
        self.run = bare_loop.run_of(folder)
        last = self.run.federation.rounds
        self._wanted = ((1, first_model_of(folder, way)), (last, model_of(folder, way)))
        self.descriptors = {
            "reading": os.dup(sys.stdin.fileno()) if reading is None else reading,
            "writing": os.dup(sys.stdout.fileno()) if writing is None else writing,
        }
        if writing is None:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def after(self, number: int) -> None:
        """Say that a round is done, and wait until the next one is wanted, after the last for the end.

        Args:
            number: of the round; 0: before the first.
        """
        if number:
            os.write(self.descriptors["writing"], b"\n")
        if not os.read(self.descriptors["reading"], 1) and number < self.run.federation.rounds:
            raise SystemExit("nobody waits for the rounds that are left")

    def keep(self, number: int, weights: Mapping[str, Tensor]) -> None:
        """Write the model after a round: the first's, by which ways can be told apart, and the last's."""
        for wanted, path in self._wanted:
            if number == wanted:
                safetensors.torch.save_file({name: one.detach().contiguous() for name, one in weights.items()}, path)


def main(way: str, folder: Path) -> None:
    """Train, a round for each line."""
    torch.set_num_threads(1)
    (_ours if way in BACKENDS else _bare)(way, folder)


def model_of(folder: Path, way: str) -> Path:
    """Where a way leaves its model."""
    return folder / f"{way}.model"


def first_model_of(folder: Path, way: str) -> Path:
    """Where it leaves that of the first round; our backends do not."""
    return folder / f"{way}.first"


def _bare(way: str, folder: Path) -> None:
    from common.learning.network import build_model  # noqa: PLC0415 - the other ways load more

    turns = Turns(way, folder)
    opened = bare_loop.in_one_process(folder) if way == BARE else bare_loop.in_processes(folder, AT_ONCE)
    with opened as one_round:
        state = dict(build_model(turns.run).state_dict())
        turns.after(0)
        for number in range(1, turns.run.federation.rounds + 1):
            state = one_round(state, number)
            turns.after(number)
            turns.keep(number, state)


def _ours(way: str, folder: Path) -> None:
    from client.site import open_site  # noqa: PLC0415 - the bare loop loads none of it
    from common.config.rundocument import issue  # noqa: PLC0415
    from common.learning.checkpoint import load_model  # noqa: PLC0415
    from server.federation.rounds import federate  # noqa: PLC0415
    from simulations.backends import Resources, started  # noqa: PLC0415

    turns = Turns(way, folder)
    document, out = issue(turns.run), folder / f"{way}.out"

    def observe(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            turns.after(event["round"])

    with started(way, AT_ONCE, Resources(AT_ONCE, 1)) as backend:
        sites = [open_site(home) for home in sorted((folder / SITES).iterdir())]
        turns.after(0)
        with backend(sites, document) as grid:
            federate(grid, document, out, observe=observe, test=False)
        turns.keep(turns.run.federation.rounds, load_model(out)[1])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

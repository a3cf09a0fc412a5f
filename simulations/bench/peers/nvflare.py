"""NVFlare's simulator: its FedAvg, and an executor at each client, which has a process of its own.

As a way of `simulations.bench.training_ways`. With fewer processes than
clients it starts a new one for each client in each round, which loads torch anew; so there are as many. Its intervals
for tasks are those that it comes with.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

from common.learning.network import build_model
from common.system.files import write_atomically
from simulations.bench import bare_loop
from simulations.bench.training_ways import Turns

_MODULE = "simulations.bench.peers.nvflare"


def main(way: str, folder: Path) -> None:
    """Train, a round for each line."""
    turns = Turns(way, folder)
    names = [client.name for client in bare_loop.clients_of(folder)]
    job, rounds = folder / "nvflare.job", turns.run.federation.rounds
    place = {"way": way, "folder": str(folder.absolute())}
    of_server = {"num_clients": len(names), "num_rounds": rounds, "persistor_id": "", **place}
    about = {"name": job.name, "deploy_map": {"app": ["@ALL"]}, "resource_spec": {}, "min_clients": len(names)}
    said = {
        "meta.json": about,
        "app/config/config_fed_server.json": {
            "format_version": 2,
            "workflows": [{"id": "rounds", "path": f"{_MODULE}.Rounds", "args": {**of_server, **turns.descriptors}}],
            "components": [],
        },
        "app/config/config_fed_client.json": {
            "format_version": 2,
            "executors": [{"tasks": ["train"], "executor": {"path": f"{_MODULE}.Trainer", "args": place}}],
            "components": [],
        },
    }
    for name, content in said.items():
        write_atomically(job / name, json.dumps(content).encode())
    workspace = folder.absolute() / "nvflare"
    write_atomically(workspace / "local" / "resources.json", json.dumps({"class_allow_list": [_MODULE]}).encode())
    simulator = SimulatorRunner(
        str(job.absolute()), str(workspace), clients=",".join(names), threads=len(names),
        log_config="ERROR",
    )  # fmt: skip
    if simulator.run():
        raise SystemExit("the simulator has failed")


class Rounds(FedAvg):  # type: ignore[misc]  # NVFlare is not there when the types are checked
    """Its FedAvg, which takes turns. It lives in a process that has been forked from ours."""

    def __init__(self, way: str, folder: str, reading: int, writing: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._turns = Turns(way, Path(folder), reading, writing)

    def load_model(self) -> FLModel:
        """The first weights."""
        state = build_model(self._turns.run).state_dict()
        self._turns.after(0)
        return FLModel(params={name: tensor.numpy() for name, tensor in state.items()})

    def save_model(self, model: FLModel) -> None:
        """After each round, in place of its file."""
        self._turns.after(self.current_round + 1)
        self._turns.keep(self.current_round + 1, _tensors(model.params))


class Trainer(Executor):  # type: ignore[misc]
    """What trains a client, with one thread."""

    def __init__(self, way: str, folder: str) -> None:  # noqa: ARG002 - what `Rounds` is given, too
        super().__init__()
        self._folder = Path(folder)
        self._client: bare_loop.Client | None = None

    def execute(self, _task: str, shareable: Any, context: Any, _abort: Any) -> Any:
        """The client's weights after a round."""
        torch.set_num_threads(1)
        if self._client is None:
            self._client = bare_loop.client_of(self._folder / f"{context.get_identity_name()}.safetensors")
        sent = FLModelUtils.from_shareable(shareable)
        run, number = bare_loop.run_of(self._folder), sent.current_round + 1
        state = bare_loop.trained(run, self._client, _tensors(sent.params), number)
        params = {name: tensor.numpy() for name, tensor in state.items()}
        about = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: self._client.weight}
        return FLModelUtils.to_shareable(FLModel(params=params, params_type="FULL", meta=about))


def _tensors(arrays: Mapping[str, Any]) -> bare_loop.State:
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


__all__ = ["Rounds", "Trainer", "main"]

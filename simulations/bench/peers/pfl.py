"""pfl-research's simulation: its FedAvg and its backend, in two processes that add up their updates by gloo.

As a way of `simulations.bench.training_ways`. Each process has the clients
whose turn it is, one model, and the images of its clients.
"""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from common.system.environment import for_child
from simulations.bench.training_ways import AT_ONCE, Turns

_RANK, _ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


def main(way: str, folder: Path) -> None:
    """Train, a round for each line; in the first process, which starts the others."""
    if _RANK in os.environ:
        _train(folder, None)
        return
    turns = Turns(way, folder)
    os.environ[_ADDRESSES] = ",".join(f"127.0.0.1:{_free_port()}" for _ in range(AT_ONCE))
    others = [subprocess.Popen(sys.orig_argv, env=for_child(**{_RANK: str(one)})) for one in range(1, AT_ONCE)]  # noqa: S603
    os.environ[_RANK] = "0"
    _train(folder, turns)
    if any(one.wait() for one in others):
        raise SystemExit("a process has failed; what it said stands above")


def _train(folder: Path, turns: Turns | None) -> None:
    import numpy as np  # noqa: PLC0415 - pfl joins the processes when it is imported, as the variables say
    import torch  # noqa: PLC0415
    from pfl.aggregate.simulate import SimulatedBackend  # noqa: PLC0415
    from pfl.aggregate.weighting import WeightByDatapoints  # noqa: PLC0415
    from pfl.algorithm.base import NNAlgorithmParams  # noqa: PLC0415
    from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: PLC0415
    from pfl.callback.base import TrainingProcessCallback  # noqa: PLC0415
    from pfl.data.dataset import Dataset  # noqa: PLC0415
    from pfl.data.federated_dataset import FederatedDataset  # noqa: PLC0415
    from pfl.hyperparam import NNTrainHyperParams  # noqa: PLC0415
    from pfl.metrics import Metrics, Weighted  # noqa: PLC0415
    from pfl.model.pytorch import PyTorchModel  # noqa: PLC0415

    from common.learning.network import build_model  # noqa: PLC0415
    from simulations.bench import bare_loop  # noqa: PLC0415

    torch.set_num_threads(1)
    run = bare_loop.run_of(folder)
    clients = {client.name: client for client in bare_loop.clients_of(folder)}

    def wait(number: int) -> None:
        if turns is not None:
            turns.after(number)
        torch.distributed.barrier()  # or the other processes would begin the next round when they have ended one

    class Averaging(FederatedAveraging):  # type: ignore[misc]  # pfl is not there when the types are checked
        """Its FedAvg, with the steps that the other ways make."""

        def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
            number = central_context.current_central_iteration + 1
            bare_loop.train(run, clients[user_dataset.user_id], model.pytorch_model, number)
            return model.get_model_difference(initial_model_state), Metrics()

    class AfterRound(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, *_: Any, central_iteration: int) -> Any:
            wait(central_iteration + 1)
            if turns is not None:
                turns.keep(central_iteration + 1, network.state_dict())
            return False, Metrics()

    network: Any = build_model(run)
    # It wants both, and asks for scores before the first round.
    network.loss, network.metrics = None, lambda patients, **_: {"patients": Weighted(0, len(patients))}
    model = PyTorchModel(network, torch.optim.AdamW, torch.optim.SGD(network.parameters(), 1.0))
    wait(0)
    Averaging().run(
        NNAlgorithmParams(run.federation.rounds, run.federation.rounds + 1, len(clients), None),
        SimulatedBackend(
            FederatedDataset(
                lambda name: Dataset([np.zeros(clients[name].weight)], user_id=name),
                itertools.cycle(sorted(clients)).__next__,
            ),
            None,
            [WeightByDatapoints()],
        ),
        model,
        NNTrainHyperParams(
            local_num_epochs=None,
            local_learning_rate=run.training.learning_rate,
            local_batch_size=run.training.batch_size,
            local_num_steps=run.training.local_steps,
        ),
        callbacks=[AfterRound()],
        send_metrics_to_platform=False,
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


__all__ = ["main"]

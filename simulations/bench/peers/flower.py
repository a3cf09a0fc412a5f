"""Flower's own simulation: its FedAvg, its ClientApps on its actors of a Ray cluster of this machine.

As a way of `simulations.bench.training_ways`. An actor reads a client's
images once and keeps them, though any actor may be given any client.
"""

import tempfile
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from common.learning.network import build_model
from simulations.bench import bare_loop
from simulations.bench.training_ways import AT_ONCE, Turns


def main(way: str, folder: Path) -> None:
    """Train, a round for each line."""
    turns = Turns(way, folder)
    # Not in the folder: the path of a socket has 103 bytes at most, and Ray has its sockets there.
    with tempfile.TemporaryDirectory(prefix="wardround-", dir="/tmp", ignore_cleanup_errors=True) as ray:
        run_simulation(
            _server_app(turns),
            client_app_of(folder),
            num_supernodes=turns.run.federation.quorum,
            backend_config={
                "init_args": {"num_cpus": AT_ONCE, "num_gpus": 0, "include_dashboard": False, "_temp_dir": ray},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )


def _server_app(turns: Turns) -> ServerApp:
    app = ServerApp()

    @app.main()
    def rounds(grid: Grid, _context: Context) -> None:
        def after(number: int, arrays: ArrayRecord) -> None:
            turns.after(number)
            turns.keep(number, arrays.to_torch_state_dict())

        quorum = turns.run.federation.quorum
        strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=quorum, min_available_nodes=quorum)
        first = ArrayRecord(dict(build_model(turns.run).state_dict()))
        strategy.start(grid, first, turns.run.federation.rounds, evaluate_fn=after)

    return app


def client_app_of(folder: Path) -> ClientApp:
    """What trains a client on an actor, with one thread."""
    app = ClientApp()
    place = str(folder)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        client = _client(place, int(context.node_config["partition-id"]))
        state = message.content.array_records["arrays"].to_torch_state_dict()
        number = int(str(message.content.config_records["config"]["server-round"]))
        trained = bare_loop.trained(bare_loop.run_of(Path(place)), client, state, number)
        about = MetricRecord({"num-examples": client.weight})
        return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": about}), reply_to=message)

    return app


@cache
def _client(folder: str, number: int) -> bare_loop.Client:
    return bare_loop.clients_of(Path(folder))[number]


__all__ = ["client_app_of", "main"]

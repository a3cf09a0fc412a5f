"""Federated averaging as one writes it without a framework: a loop over the clients, in one process or in several.

What it must have in common with ours is the network, its first weights, the batches with their augmentation and the
learning rates: these are taken from there. The rest is plain torch. In several processes each has its clients for good,
and is sent the weights and sends the sum of its updates as safetensors, by a pipe.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import safetensors.torch
import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.config.rundocument import from_text
from common.learning.inference import precision
from common.learning.network import build_model
from common.learning.schedule import learning_rate
from common.learning.transforms import Stack, sample_crops

State: TypeAlias = dict[str, Tensor]
RUN_NAME, CLIENT_NAMES = "run.json", "*.safetensors"


@dataclass(frozen=True)
class Client:
    """A site's name, what its average counts, and the cases of each patient."""

    name: str
    weight: int
    patients: Sequence[Sequence[Stack]]


def write_client(folder: Path, name: str, weight: int, patients: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
    """Write what a client trains on; patients: of each the images and labels of its cases."""
    tensors = {
        f"{patient}/{case}/{kind}": tensor.contiguous()
        for patient, cases in enumerate(patients)
        for case, pair in enumerate(cases)
        for kind, tensor in zip(("images", "labels"), pair, strict=True)
    }
    safetensors.torch.save_file(tensors, folder / f"{name}.safetensors", {"weight": str(weight)})


def clients_of(folder: Path) -> list[Client]:
    """All of them, by name."""
    return [client_of(path) for path in _paths(folder)]


def run_of(folder: Path) -> RunConfig:
    """What is trained, and how."""
    return from_text((folder / RUN_NAME).read_text(encoding="utf-8")).config


def client_of(path: Path) -> Client:
    """What `write_client` wrote."""
    with safetensors.safe_open(path, "pt") as file:
        weight = int(file.metadata()["weight"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    patients: dict[int, dict[int, Stack]] = {}
    for key, images in tensors.items():
        patient, case, kind = key.split("/")
        if kind == "images":
            stack = Stack.of(images, tensors[f"{patient}/{case}/labels"])
            patients.setdefault(int(patient), {})[int(case)] = stack
    ordered = [[cases[case] for case in sorted(cases)] for _, cases in sorted(patients.items())]
    return Client(path.stem, weight, ordered)


def trained(run: RunConfig, client: Client, state: State, number: int) -> State:
    """The client's weights after a round, from 1, that began with these."""
    model = build_model(run)
    model.load_state_dict(state)
    train(run, client, model, number)
    return dict(model.state_dict())


def train(run: RunConfig, client: Client, model: nn.Module, number: int) -> None:
    """Make a client's steps of a round, from 1, in place."""
    optimizer = torch.optim.AdamW(
        model.parameters(), run.training.learning_rate, weight_decay=run.training.weight_decay, fused=True
    )
    digest = hashlib.sha256(f"{run.seed}|{client.name}|{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    model.train()
    for step in range(run.training.local_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run, (number - 1) * run.training.local_steps + step)
        images, labels = sample_crops(_drawn(client, run.training.batch_size, generator), run.training, generator)
        with precision(run, "cpu", training=True):  # the same arithmetic, or the ways cannot be compared
            outputs = model(images)
        loss = run.task.loss(outputs, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()


@contextmanager
def in_one_process(folder: Path) -> Iterator[Callable[[State, int], State]]:
    """A round: from the weights and the round's number to the new weights."""
    run, clients = run_of(folder), clients_of(folder)
    total = sum(client.weight for client in clients)
    yield lambda state, number: _divided(_updates(run, clients, state, number), total)


@contextmanager
def in_processes(folder: Path, count: int) -> Iterator[Callable[[State, int], State]]:
    """The same in so many processes, each with every so many-th client."""
    paths = _paths(folder)
    context = get_context("spawn")
    pipes, processes = [], []
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, folder, paths[number::count]), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    total = sum(int(pipe.recv_bytes()) for pipe in pipes)

    def one_round(state: State, number: int) -> State:
        packed = safetensors.torch.save(state)
        for pipe in pipes:
            pipe.send_bytes(str(number).encode())
            pipe.send_bytes(packed)
        sums = [safetensors.torch.load(pipe.recv_bytes()) for pipe in pipes]
        return _divided(_added(sums), total)

    yield one_round
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join()


def _serve(pipe: Connection, folder: Path, paths: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    run, clients = run_of(folder), [client_of(path) for path in paths]
    pipe.send_bytes(str(sum(client.weight for client in clients)).encode())
    try:
        while True:
            number, packed = int(pipe.recv_bytes()), pipe.recv_bytes()
            updates = _updates(run, clients, safetensors.torch.load(packed), number)
            pipe.send_bytes(safetensors.torch.save(_added([updates])))
    except EOFError:
        return


def _updates(run: RunConfig, clients: Sequence[Client], state: State, number: int) -> State:
    """The sum of the clients' weights after the round, each times what it counts; float64."""
    return _added(
        [
            {key: client.weight * tensor.double() for key, tensor in trained(run, client, state, number).items()}
            for client in clients
        ]
    )


def _drawn(client: Client, count: int, generator: torch.Generator) -> list[Stack]:
    stacks = []
    for _ in range(count):
        cases = client.patients[_integer(len(client.patients), generator)]
        stacks.append(cases[_integer(len(cases), generator)])
    return stacks


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(CLIENT_NAMES))


def _added(states: Sequence[Mapping[str, Tensor]]) -> State:
    return {key: torch.stack([state[key] for state in states]).sum(0) for key in states[0]}


def _divided(state: State, total: int) -> State:
    return {key: (tensor / total).float() for key, tensor in state.items()}


def _integer(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


__all__ = [
    "RUN_NAME",
    "Client",
    "State",
    "client_of",
    "clients_of",
    "in_one_process",
    "in_processes",
    "run_of",
    "train",
    "trained",
    "write_client",
]

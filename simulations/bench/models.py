"""A run, its model, updates of it as sites send them, and messages: for the benches of aggregation and of the wire."""

import time
from collections.abc import Mapping, Sequence

import torch
from flwr.app import DEFAULT_TTL, Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from torch import Tensor

from common.config import RunConfig, validate
from common.learning.network import build_model, weights_of

CHANNELS = (97, 194, 388, 776)  # 30 MB of weights
SMALL = (4, 8)  # 20 kB

State = Mapping[str, Tensor]
_MOVED = 1e-4  # of each weight, the standard deviation


def run_of(channels: Sequence[int], sites: int = 2) -> RunConfig:
    """A run of the standard network with levels of these widths."""
    return validate(
        RunConfig,
        {
            "name": "bench",
            "model": {"channels": list(channels)},
            "data": {"modality": "photo", "classes": ["lesion"]},
            "training": {"patch-size": [64, 64]},
            "federation": {"rounds": 1, "quorum": sites},
        },
    )


def model_of(run: RunConfig) -> State:
    """The weights that a run begins with."""
    return {name: one.detach().clone() for name, one in weights_of(build_model(run)).items()}


def moved(model: State, seed: int) -> State:
    """As a round's training leaves it: each weight a little elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    return {name: one + _MOVED * torch.randn(one.shape, generator=generator) for name, one in model.items()}


def size_of(model: State) -> int:
    """Bytes."""
    return sum(one.numel() * one.element_size() for one in model.values())


def message_of(content: RecordDict, site: int = 1) -> Message:
    """A message to the coordinator."""
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=site, dst_node_id=0, reply_to_message_id="", group_id="1",
        created_at=time.time(), ttl=DEFAULT_TTL, message_type=MessageType.TRAIN,
    )  # fmt: skip
    return make_message(metadata, content)


__all__ = ["CHANNELS", "SMALL", "State", "message_of", "model_of", "moved", "run_of", "size_of"]

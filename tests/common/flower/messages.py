"""A message as a ServerApp sends it."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message


def message(size: int = 3) -> Message:
    """With a small model and a head."""
    array = Array(dtype="uint8", shape=(size,), stype="safetensors", data=np.arange(size, dtype=np.uint8).tobytes())
    content = RecordDict({"model": ArrayRecord({"safetensors": array}), "head": ConfigRecord({"round": 1})})
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=7,
        reply_to_message_id="",
        group_id="1",
        created_at=time.time(),
        ttl=60.0,
        message_type="train",
    )
    return make_message(metadata, content)

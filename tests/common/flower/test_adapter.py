import hashlib
import importlib.metadata
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node

from common.errors import ConfigError, UpdateError
from common.flower import adapter


def message(size: int = 3) -> Message:
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


def test_the_installed_flower_is_the_one_this_module_was_written_for():
    assert importlib.metadata.version("flwr") == adapter.VERSION
    adapter.check_version()


def test_another_flower_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.42.0")
    with pytest.raises(ConfigError, match=r"1\.42\.0 is installed, 1\.41\.0 is needed"):
        adapter.check_version()


def test_importing_it_does_not_load_torch():
    modules = "common.flower.adapter, common.wire.channels, common.identity.certificates"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_message_survives_packing():
    sent = message()
    head, tree, objects = adapter.pack_message(sent)
    assert not head.content.ByteSize()
    received = adapter.unpack_message(head, tree, objects)
    assert received.content["head"] == sent.content["head"]
    assert received.content["model"]["safetensors"].data == b"\x00\x01\x02"
    assert received.metadata.message_id == sent.metadata.message_id == tree.object_id
    assert (received.metadata.dst_node_id, received.metadata.group_id) == (7, "1")


def test_reply_answers_the_message_that_was_unpacked():
    head, tree, objects = adapter.pack_message(message())
    reply = Message(RecordDict(), reply_to=adapter.unpack_message(head, tree, objects))
    assert adapter.pack_message(reply)[0].metadata.reply_to_message_id == tree.object_id


def test_objects_are_named_by_the_sha256_of_their_bytes_children_first():
    _, tree, objects = adapter.pack_message(message())
    assert {hashlib.sha256(content).hexdigest() for content in objects.values()} == set(objects)
    assert set(adapter.object_ids(tree)) == set(objects)
    assert adapter.object_ids(tree)[-1] == tree.object_id


@pytest.mark.parametrize("index", range(5))
def test_altered_object_is_refused(index):
    head, tree, objects = adapter.pack_message(message())
    altered = adapter.object_ids(tree)[index]
    objects[altered] = objects[altered][:-1] + bytes([objects[altered][-1] ^ 1])
    with pytest.raises(UpdateError, match="altered"):
        adapter.unpack_message(head, tree, objects)


def test_missing_object_is_refused():
    head, tree, objects = adapter.pack_message(message())
    del objects[adapter.object_ids(tree)[0]]
    with pytest.raises(UpdateError, match="missing"):
        adapter.unpack_message(head, tree, objects)


def test_tree_of_another_message_is_refused():
    head, _, _ = adapter.pack_message(message())
    _, tree, objects = adapter.pack_message(message(5))
    with pytest.raises(UpdateError, match="do not belong together"):
        adapter.unpack_message(head, tree, objects)


def test_objects_that_hash_right_but_are_no_message_are_refused():
    head, tree, _ = adapter.pack_message(message())
    content = b"Exploit  0\x00"
    tree.ClearField("children")
    tree.object_id = head.metadata.message_id = hashlib.sha256(content).hexdigest()
    with pytest.raises(UpdateError, match="cannot be decoded"):
        adapter.unpack_message(head, tree, {tree.object_id: content})


def test_superlink_stays_on_loopback_and_silent(tmp_path):
    command = adapter.superlink_command(9445, tmp_path / "superlink.sock")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    environment = adapter.superlink_environment(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)


def test_record_is_deflated_and_hashed_once_when_a_message_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    records = {name: ConfigRecord({"bytes": name.encode() * 1000}) for name in ("head", "weights/0", "more/0")}
    sent = make_message(message().metadata, RecordDict(records))
    deflate, deflated = ConfigRecord.deflate, []

    def noted(record: ConfigRecord) -> bytes:
        deflated.append(record)
        return deflate(record)

    monkeypatch.setattr(ConfigRecord, "deflate", noted)
    head, tree, objects = adapter.pack_message(sent)
    assert len(deflated) == len(records)
    assert all(hashlib.sha256(content).hexdigest() == object_id for object_id, content in objects.items())
    assert adapter.unpack_message(head, tree, objects).content == RecordDict(records)


@pytest.mark.parametrize("altered", [False, True])
def test_reply_that_changed_at_the_superlink_is_not_taken(altered: bool) -> None:
    """What the gateway looked at has lain in a database since: the ServerApp looks at the hashes as well."""
    reply = message()
    head, tree, objects = adapter.pack_message(reply)
    if altered:
        one = adapter.object_ids(tree)[0]
        objects[one] = objects[one][:-1] + bytes([objects[one][-1] ^ 1])
    confirmed: list[str] = []
    superlink = SimpleNamespace(
        PullMessages=lambda _: SimpleNamespace(messages_list=[head], message_object_trees=[tree]),
        PullObject=lambda request: PullObjectResponse(
            object_found=True, object_available=True, object_content=objects[request.object_id]
        ),
        ConfirmMessageReceived=lambda request: confirmed.append(request.message_object_id),
    )
    inbox = adapter.Inbox(SimpleNamespace(node=Node(node_id=1), _runtime_client=superlink))  # type: ignore[arg-type]
    question = head.metadata.reply_to_message_id
    found, lost = inbox.look([question])
    assert confirmed == [head.metadata.message_id]
    assert not lost
    assert list(found) == [question]
    assert (found[question] is None) is altered


def test_objects_that_were_hashed_before_are_not_hashed_again_and_others_are() -> None:
    head, tree, objects = adapter.pack_message(message())
    (large,) = [one for one, content in objects.items() if content.startswith(b"ArrayChunk")]
    objects[large] = objects[large][:-1] + b"x"
    with pytest.raises(UpdateError, match="altered"):
        adapter.unpack_message(head, tree, objects)
    assert adapter.unpack_message(head, tree, objects, hashed=True).has_content()
    del objects[large]
    with pytest.raises(UpdateError, match="missing"):
        adapter.unpack_message(head, tree, objects, hashed=True)

import hashlib

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.message.recorddict import RecordType

from common.errors import UpdateError
from common.flower.packing import object_ids, pack_message, unpack_message
from common.wire.bytes_record import BytesRecord
from tests.common.flower.messages import message


def test_message_survives_packing():
    sent = message()
    head, tree, objects = pack_message(sent)
    assert not head.content.ByteSize()
    received = unpack_message(head, tree, objects)
    assert received.content["head"] == sent.content["head"]
    assert received.content.array_records["model"]["safetensors"].data == b"\x00\x01\x02"
    assert received.metadata.message_id == sent.metadata.message_id == tree.object_id
    assert (received.metadata.dst_node_id, received.metadata.group_id) == (7, "1")


def test_reply_answers_the_message_that_was_unpacked():
    head, tree, objects = pack_message(message())
    reply = Message(RecordDict(), reply_to=unpack_message(head, tree, objects))
    assert pack_message(reply)[0].metadata.reply_to_message_id == tree.object_id


def test_objects_are_named_by_the_sha256_of_their_bytes_children_first():
    _, tree, objects = pack_message(message())
    assert {hashlib.sha256(content).hexdigest() for content in objects.values()} == set(objects)
    assert set(object_ids(tree)) == set(objects)
    assert object_ids(tree)[-1] == tree.object_id


@pytest.mark.parametrize("index", range(5))
def test_altered_object_is_refused(index):
    head, tree, objects = pack_message(message())
    altered = object_ids(tree)[index]
    objects[altered] = objects[altered][:-1] + bytes([objects[altered][-1] ^ 1])
    with pytest.raises(UpdateError, match="altered"):
        unpack_message(head, tree, objects)


def test_missing_object_is_refused():
    head, tree, objects = pack_message(message())
    del objects[object_ids(tree)[0]]
    with pytest.raises(UpdateError, match="missing"):
        unpack_message(head, tree, objects)


def test_tree_of_another_message_is_refused():
    head, _, _ = pack_message(message())
    _, tree, objects = pack_message(message(5))
    with pytest.raises(UpdateError, match="do not belong together"):
        unpack_message(head, tree, objects)


def test_objects_that_hash_right_but_are_no_message_are_refused():
    head, tree, _ = pack_message(message())
    content = b"Exploit  0\x00"
    tree.ClearField("children")
    tree.object_id = head.metadata.message_id = hashlib.sha256(content).hexdigest()
    with pytest.raises(UpdateError, match="cannot be decoded"):
        unpack_message(head, tree, {tree.object_id: content})


def test_record_is_deflated_and_hashed_once_when_a_message_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    records: dict[str, RecordType] = {
        name: BytesRecord("bytes", name.encode() * 1000) for name in ("head", "weights/0", "more/0")
    }
    sent = make_message(message().metadata, RecordDict(records))
    deflate, deflated = BytesRecord.deflate, []

    def noted(record: BytesRecord) -> bytes:
        deflated.append(record)
        return deflate(record)

    def never(record: ConfigRecord) -> bytes:
        raise AssertionError("Flower's own way copies a model six times")

    monkeypatch.setattr(BytesRecord, "deflate", noted)
    monkeypatch.setattr(ConfigRecord, "deflate", never)
    monkeypatch.setattr(ConfigRecord, "inflate", never)
    head, tree, objects = pack_message(sent)
    assert len(deflated) == len(records)
    assert all(hashlib.sha256(content).hexdigest() == object_id for object_id, content in objects.items())
    assert unpack_message(head, tree, objects).content == RecordDict(records)


def test_objects_that_were_hashed_before_are_not_hashed_again_and_others_are() -> None:
    head, tree, objects = pack_message(message())
    (large,) = [one for one, content in objects.items() if content.startswith(b"ArrayChunk")]
    objects[large] = objects[large][:-1] + b"x"
    with pytest.raises(UpdateError, match="altered"):
        unpack_message(head, tree, objects)
    assert unpack_message(head, tree, objects, hashed=True).has_content()
    del objects[large]
    with pytest.raises(UpdateError, match="missing"):
        unpack_message(head, tree, objects, hashed=True)

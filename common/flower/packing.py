"""A message as Flower moves it: a small head plus a tree of objects, named by the SHA-256 of their deflated bytes.

`pack_message` and `unpack_message` translate between that and `flwr.app.Message`.
"""

import hashlib
import itertools
from collections.abc import Mapping

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.errors import ErrorCode, UpdateError
from common.wire.bytes_record import read


def object_ids(tree: ObjectTree) -> list[str]:
    """Ids of all objects of a message, children before parents, each once."""
    return list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))


def has_more_objects(tree: ObjectTree, most: int) -> bool:
    """Whether a message has more than so many objects, each as often as it is named; found out without listing all."""
    return next(itertools.islice(iterate_object_tree(tree), most, None), None) is not None


def unpack_message(
    message: MessageProto, tree: ObjectTree, objects: Mapping[str, bytes], *, hashed: bool = False
) -> Message:
    """Rebuild a message from its head and its objects.

    Args:
        message: the head, without content.
        tree: its object tree; the root is the message itself.
        objects: the bytes of every id in `object_ids(tree)`.
        hashed: whoever received the objects has found that they hash to their ids.

    Raises:
        UpdateError: an object is missing, does not hash to its id, or is malformed.
    """
    if tree.object_id != message.metadata.message_id:
        raise UpdateError("the message and its object tree do not belong together", ErrorCode.BAD_REQUEST)
    contents: dict[str, bytes] = {}
    inflated: dict[str, InflatableObject] = {}
    for object_id in object_ids(tree):
        content = objects.get(object_id, b"")
        if not content or not (hashed or hashlib.sha256(content).hexdigest() == object_id):
            raise UpdateError("an object of the message is missing or was altered on the way", ErrorCode.BAD_REQUEST)
        if (record := read(content)) is not None:
            inflated[object_id] = record
        else:
            contents[object_id] = content
    try:
        whole = inflate_object_from_contents(tree.object_id, contents, objects=inflated)
    except Exception as error:  # Flower raises KeyError, ValueError, TypeError, DecodeError, ...
        raise UpdateError("the message cannot be decoded", ErrorCode.BAD_REQUEST) from error
    if not isinstance(whole, Message):
        raise UpdateError("the object tree does not hold a message", ErrorCode.BAD_REQUEST)
    # Flower leaves the id out of the hashed bytes and sets it in this way itself.
    whole.metadata.__dict__["_message_id"] = tree.object_id
    return whole


def pack_message(message: Message) -> tuple[MessageProto, ObjectTree, dict[str, bytes]]:
    """Split a message into its head (without content), its object tree and the bytes of its objects by id."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        tree = get_object_tree(message)
        objects = {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}
    return message_to_proto(remove_content_from_message(message)), tree, objects


def question_of(head: MessageProto) -> Message:
    """A message by its head alone, to answer what is not taken in."""
    message = message_from_proto(head)
    message.metadata.__dict__["_message_id"] = head.metadata.message_id
    return message


def reply_to(question: Message, content: RecordDict) -> Message:
    """A reply that tells no time but the question's; Flower would write when the work ended, to the microsecond."""
    reply = Message(content, reply_to=question)
    reply.metadata.created_at, reply.metadata.ttl = question.metadata.created_at, question.metadata.ttl
    return reply


__all__ = ["has_more_objects", "object_ids", "pack_message", "question_of", "reply_to", "unpack_message"]

from types import SimpleNamespace

import pytest
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node

from common.flower.inbox import Inbox
from common.flower.packing import object_ids, pack_message
from tests.common.flower.messages import message


@pytest.mark.parametrize("altered", [False, True])
def test_reply_that_changed_at_the_superlink_is_not_taken(altered: bool) -> None:
    """What the gateway looked at has lain in a database since: the ServerApp looks at the hashes as well."""
    reply = message()
    head, tree, objects = pack_message(reply)
    if altered:
        one = object_ids(tree)[0]
        objects[one] = objects[one][:-1] + bytes([objects[one][-1] ^ 1])
    confirmed: list[str] = []
    superlink = SimpleNamespace(
        PullMessages=lambda _: SimpleNamespace(messages_list=[head], message_object_trees=[tree]),
        PullObject=lambda request: PullObjectResponse(
            object_found=True, object_available=True, object_content=objects[request.object_id]
        ),
        ConfirmMessageReceived=lambda request: confirmed.append(request.message_object_id),
    )
    inbox = Inbox(SimpleNamespace(node=Node(node_id=1), _runtime_client=superlink))  # type: ignore[arg-type]
    question = head.metadata.reply_to_message_id
    found, lost = inbox.look([question])
    assert confirmed == [head.metadata.message_id]
    assert not lost
    assert list(found) == [question]
    assert (found[question] is None) is altered

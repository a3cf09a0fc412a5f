"""The short way through a SuperLink answers as Flower's own way does, and no caller gets further by it."""

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2, runtime_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.main import create_app
from flwr.supernode.fleet_http_client import FleetHttpClient
from google.protobuf.message import Message

from common.flower import calls
from common.flower.short_way import _FLEET, _RUNTIME, short_way
from common.identity import certificates

FLEET: dict[str, Any] = {
    "push-messages": lambda node: fleet_pb2.PushMessagesRequest(node=node),
    "pull-messages": lambda node: fleet_pb2.PullMessagesRequest(node=node),
    "push-object": lambda node: message_pb2.PushObjectRequest(node=node, object_id="a" * 64, run_id=5),
    "pull-object": lambda node: message_pb2.PullObjectRequest(node=node, object_id="a" * 64, run_id=5),
    "confirm-message-received": lambda node: message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=5),
    "send-node-heartbeat": lambda node: heartbeat_pb2.SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
    "get-run": lambda node: run_pb2.GetRunRequest(node=node, run_id=5),
}
RUNTIME: dict[str, Message] = {
    "push-messages": runtime_pb2.PushAppMessagesRequest(),
    "pull-messages": runtime_pb2.PullAppMessagesRequest(),
    "push-object": message_pb2.PushObjectRequest(object_id="a" * 64),
    "pull-object": message_pb2.PullObjectRequest(object_id="a" * 64),
    "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest(),
}
Answer = tuple[int, bytes, str]


class SuperLink:
    """One application, reached by both ways."""

    def __init__(self) -> None:
        self.long: list[str] = []  # paths of the requests that went the long way
        app = create_app()

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            self.long.append(scope["path"])
            await app(scope, receive, send)

        noted.state = app.state  # type: ignore[attr-defined]
        self._ways = (TestClient(app), TestClient(short_way(noted)))
        self.keys = [certificates.new_key(), certificates.new_key()]
        self.nodes = [Node(node_id=self._register(key)) for key in self.keys]

    def _register(self, key: Any) -> int:
        client = self._client(key, self._ways[0])
        request = fleet_pb2.RegisterNodeFleetRequest(public_key=calls.public_key_pem(key))
        return int(client.RegisterNode(request).node_id)

    @staticmethod
    def _client(key: Any, way: httpx.Client) -> FleetHttpClient:
        client = calls.fleet_client(80, key)
        client._client = way
        return client

    def by_both(self, path: str, content: bytes, key: Any = None, **headers: str) -> Answer:
        """The answer, which is the same by both ways."""
        answers = []
        for way in self._ways:
            about = {"content-type": PROTOBUF_MEDIA_TYPE, **headers}
            request = way.build_request("POST", f"/v1/{path}", content=content, headers=about)
            if key is not None:
                request.headers.update(self._signed(key))
            response = way.send(request)
            answers.append((response.status_code, response.content, response.headers["content-type"]))
        assert answers[0] == answers[1]
        return answers[0]

    def _signed(self, key: Any) -> dict[str, str]:
        seen: dict[str, str] = {}

        class Eye(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                seen.update(request.headers)
                return httpx.Response(200)

        with httpx.Client(transport=Eye()) as client:
            self._client(key, client).PullMessages(fleet_pb2.PullMessagesRequest())
        return {name: value for name, value in seen.items() if name.startswith("flwr")}


@pytest.fixture(scope="module")
def superlink() -> SuperLink:
    return SuperLink()


def test_every_request_that_goes_the_short_way_is_held_against_the_long_one() -> None:
    assert (set(FLEET), set(RUNTIME)) == (set(_FLEET), set(_RUNTIME))


@pytest.mark.parametrize("name", FLEET)
def test_a_node_that_signs_gets_the_same_answer(superlink: SuperLink, name: str) -> None:
    superlink.long.clear()
    status, _, _ = superlink.by_both(
        f"fleet/{name}", FLEET[name](superlink.nodes[0]).SerializeToString(), superlink.keys[0]
    )
    assert superlink.long == []
    assert status not in (401, 404, 415)
    if name in ("pull-messages", "send-node-heartbeat"):
        assert status == 200


@pytest.mark.parametrize("name", FLEET)
def test_nobody_speaks_for_a_node_without_its_key(superlink: SuperLink, name: str) -> None:
    content = FLEET[name](superlink.nodes[0]).SerializeToString()
    assert superlink.by_both(f"fleet/{name}", content)[0] == 401
    assert superlink.by_both(f"fleet/{name}", content, superlink.keys[1])[0] == 401
    assert superlink.by_both(f"fleet/{name}", content, certificates.new_key())[0] == 401


@pytest.mark.parametrize("name", RUNTIME)
def test_nobody_speaks_for_a_run_without_its_token(superlink: SuperLink, name: str) -> None:
    content = RUNTIME[name].SerializeToString()
    assert superlink.by_both(f"runtime/{name}", content)[0] in (401, 403)
    wrong = superlink.by_both(f"runtime/{name}", content, **{TASK_TOKEN_HEADER: "guessed"})
    assert wrong[0] in (401, 403)


def test_what_cannot_be_read_is_refused_alike(superlink: SuperLink) -> None:
    assert superlink.by_both("fleet/pull-messages", b"\xff\xff", superlink.keys[0])[0] == 400
    assert superlink.by_both("fleet/pull-messages", b"", superlink.keys[0], **{"content-type": "text/plain"})[0] == 415


def test_all_else_goes_the_long_way(superlink: SuperLink) -> None:
    superlink.long.clear()
    superlink.by_both("fleet/deactivate-node", fleet_pb2.DeactivateNodeRequest().SerializeToString())
    superlink.by_both("fleet/none", b"")
    superlink.by_both("runtime/get-nodes", b"")
    assert superlink.long == ["/v1/fleet/deactivate-node", "/v1/fleet/none", "/v1/runtime/get-nodes"]

"""The requests that carry messages, led past the layers of Flower's HTTP server to Flower's own handlers.

A SuperLink's web application has ten layers of middleware, each of which starts a task for each request. A site costs
some fifteen requests a round, so at a hundred sites they were most of what a round costs. Here such a request takes the
same steps without them: it is parsed, its caller is authenticated by the same functions (a node's signature, a task's
token), the same handler answers, and errors are translated alike. All other requests, and those that are not of the
expected form, go the long way. tests/common/flower/test_short_way.py holds both ways against each other.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from fastapi import Request
from fastapi.responses import Response
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.dependencies.version import VersionDependency
from flwr.supercore.error import ApiErrorCode, FlowerError, http_error_translator
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from google.protobuf.message import DecodeError, Message
from starlette.concurrency import run_in_threadpool

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# A request that moves no more than this is answered at once: to hand it to a thread would cost more than to answer it.
SMALL_BYTES = 64 * 1024

_FLEET: dict[str, Callable[[Any, Any], Message]] = {
    "push-messages": fleet_handlers.push_messages,
    "pull-messages": lambda request, state: fleet_handlers.pull_messages(request, state, state.object_store),
    "push-object": fleet_handlers.push_object,
    "pull-object": fleet_handlers.pull_object,
    "confirm-message-received": lambda request, state: fleet_handlers.confirm_message_received(
        request, state, state.object_store
    ),
    "send-node-heartbeat": fleet_handlers.send_node_heartbeat,
    "get-run": fleet_handlers.get_run,
}
_RUNTIME: dict[str, Callable[[Any, Any, Any], Message]] = {
    "push-messages": runtime_handlers.push_messages,
    "pull-messages": runtime_handlers.pull_messages,
    "push-object": runtime_handlers.push_object,
    "pull-object": runtime_handlers.pull_object,
    "confirm-message-received": runtime_handlers.confirm_message_received,
}
_checked = VersionDependency(component_name="SuperLink", connection_name="Caller <-> SuperLink Runtime API")


def short_way(app: Any) -> App:
    """The application, with the short way in front of it.

    Args:
        app: Flower's FastAPI application.
    """
    # Settings of Flower's that the long way would obey, and nobody has set.
    plain = hasattr(app, "state") and app.state.fleet_event_log_plugin is None

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        answer = _answer(scope) if plain else None
        if answer is None:
            await app(scope, receive, send)
            return
        request: Request = Request({**scope, "app": app, "state": {}}, receive)

        async def handle(request: Request) -> Response:
            body = await request.body()
            call = (answer, request, scope["path"], body)
            if len(body) <= SMALL_BYTES:
                return _respond(*call)
            return await run_in_threadpool(_respond, *call)

        await (await http_error_translator(request, handle))(scope, receive, send)

    return serve


def _answer(scope: Scope) -> Callable[[Request, Any], Message] | None:
    """What answers a request; None: not here."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    if dict(scope["headers"]).get(b"content-type") != PROTOBUF_MEDIA_TYPE.encode():
        return None
    part, _, name = str(scope["path"]).removeprefix("/v1/").partition("/")
    if part == "fleet" and name in _FLEET:
        return lambda request, message: _fleet(_FLEET[name], request, message)
    if part == "runtime" and name in _RUNTIME:
        return lambda request, message: _runtime(_RUNTIME[name], request, message)
    return None


def _respond(answer: Callable[[Request, Any], Message], request: Request, path: str, body: bytes) -> Response:
    message = PROTOBUF_REQUEST_TYPES["POST", path]()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise FlowerError(ApiErrorCode.INVALID_PROTOBUF_PAYLOAD, f"Invalid protobuf payload: {error!r}") from error
    return Response(answer(request, message).SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)


def _fleet(handler: Callable[[Any, Any], Message], request: Request, message: Any) -> Message:
    request.state.protobuf_request = message
    authenticate_node(request)
    return handler(message, request.app.state.linkstate_factory.state())


def _runtime(handler: Callable[[Any, Any, Any], Message], request: Request, message: Any) -> Message:
    _checked(request)
    state = request.app.state.runtime_state_factory.state()
    return handler(message, state, authenticate_task(request, request.headers.get(TASK_TOKEN_HEADER), state))


__all__ = ["short_way"]

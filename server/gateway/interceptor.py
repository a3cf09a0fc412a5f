"""What every call passes before its method sees it: the caller's limits, and the size and shape of the request.

A request is taken in only after its caller was let in, so a caller whose requests never arrive holds its own few
places and no more. A place is kept until the answer has left, so one who never reads answers has no more of them in
memory than places. On the wire a call with one request and a stream of one request look the same; here every method is
served as the latter, because gRPC's Python server otherwise waits for the request in a worker thread before anyone is
asked. Answers: RESOURCE_EXHAUSTED beyond a limit, with the time after which it is worth trying again unless the request
is too large for ever (common/wire/pushback.py); INVALID_ARGUMENT for what cannot be read, UNIMPLEMENTED for what is not
served, or for a version that this one does not work with (common/wire/versions.py); CANCELLED when the call's time is
over.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

from common.console.logs import Trouble
from common.errors import AuditError
from common.identity import certificates
from common.wire import pushback, versions
from server.gateway.limits import (
    BYTES_PER_HOUR,
    CALLS_AT_ONCE,
    DENIALS,
    DENIALS_PER_S,
    NOTE_EVERY_S,
    Limits,
    Notes,
    Rule,
    rule_of,
    unwritten,
)
from server.gateway.refusals import Refused
from server.registry.store import StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Call:
    """One call on its way."""

    method: str
    caller: str
    rule: Rule
    context: grpc.ServicerContext
    end: float  # time.monotonic()


class _Place:
    """A caller's place, given back once its method has ended and so has the call on the wire, in whichever order.

    The answer of a caller who does not read it lies in memory; the method of one who has gone may be at work still.
    """

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back, self._lock, self._held_by = give_back, threading.Lock(), 2

    def let_go(self) -> None:
        """One of the two has ended."""
        with self._lock:
            self._held_by -= 1
            is_free = self._held_by == 0
        if is_free:
            self._give_back()


class Interceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in its types alone
    """See the module."""

    def __init__(
        self,
        identify: Callable[[grpc.ServicerContext], str],
        at_once: int = CALLS_AT_ONCE,
        *,
        bytes_per_hour: int = BYTES_PER_HOUR,
        record: Callable[[str, Refused], None] | None = None,
    ) -> None:
        """Make an interceptor for a door.

        Args:
            identify: who calls.
            at_once: calls a caller may make at once.
            bytes_per_hour: that may pass between a caller and this door, in each direction.
            record: told of each refusal, for the audit log.
        """
        self._identify, self._record = identify, record
        self._limits = Limits(time.monotonic, at_once, bytes_per_hour)
        self._reached = Notes(1 / NOTE_EVERY_S, 1, time.monotonic)
        self._denied = Notes(DENIALS_PER_S, DENIALS, time.monotonic)
        self._trouble = Trouble(_log)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._running: dict[int, _Call] = {}

    def intercept_service(self, continuation: Callable[[Any], Any], details: grpc.HandlerCallDetails) -> Any:
        """Put ourselves between the server and a method; called for each call, before a thread is used."""
        answer = partial(self._answer, details.method, continuation(details))
        return grpc.stream_unary_rpc_method_handler(answer)

    def end_overdue(self) -> None:
        """Cancel the calls whose time is over; to be called every second or so."""
        self._trouble.settle()
        now = time.monotonic()
        with self._lock:
            overdue = [(number, call) for number, call in self._running.items() if call.end < now]
            for number, _ in overdue:
                del self._running[number]
        for _, call in overdue:
            self._note(call, f"more than {call.rule.seconds:g} s for a call", "deadline", limit=True)
            call.context.cancel()  # type: ignore[no-untyped-call]  # so in grpc

    def _answer(self, method: str, handler: Any, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        rule = rule_of(method)
        call = _Call(method[:100], self._identify(context), rule, context, time.monotonic() + rule.seconds)
        reached = self._limits.enter(call.caller, rule)
        if reached is not None:
            pushback.tell(context, reached.wait_s)
            self._refuse(call, reached.why)
        number, place = next(self._numbers), _Place(partial(self._limits.leave, call.caller))
        with self._lock:
            self._running[number] = call
        if not context.add_callback(place.let_go):
            place.let_go()  # it has ended already
        try:
            if why := versions.check_caller(context, call.caller):
                self._note(call, why, "permission-denied")
                context.abort(grpc.StatusCode.UNIMPLEMENTED, why)
            if handler is None or handler.unary_unary is None:
                self._note(call, "a method that is not served", "permission-denied")
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")
            request = self._request(call, requests, handler.request_deserializer)
            # Serialised here and not by gRPC, so that its bytes can be counted.
            reply: bytes = handler.response_serializer(self._handled(call, handler, request))
            self._limits.moved(call.caller, sent=len(reply))
            return reply
        finally:
            with self._lock:
                self._running.pop(number, None)
            place.let_go()

    def _handled(self, call: _Call, handler: Any, request: Any) -> Any:
        try:
            return handler.unary_unary(request, call.context)
        except (StoreError, AuditError) as error:
            # Nobody can be authorised, or nothing recorded: for as long as another program holds the file, say.
            self._trouble.say(str(error))
            call.context.abort(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot use its registry or audit log now")

    def _request(self, call: _Call, requests: Iterator[bytes], parse: Callable[[bytes], Any]) -> Any:
        try:
            data = next(requests, None)
        except grpc.RpcError:
            data = None
        if data is None:
            # The caller has gone, or gRPC has refused what is larger than the server takes at all.
            self._refuse(call, "a request that is too large, or never came")
        self._limits.moved(call.caller, received=len(data))
        if len(data) > call.rule.max_bytes:
            self._refuse(call, f"a request of more than {call.rule.max_bytes} bytes")
        try:
            return parse(data)
        except DecodeError:
            self._note(call, "a malformed request", "invalid-argument")
            call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be read")

    def _refuse(self, call: _Call, why: str) -> NoReturn:
        self._note(call, why, "resource-exhausted", limit=True)
        call.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a limit is reached: {why}")
        raise AssertionError("abort raises")

    def _note(self, call: _Call, why: str, status: Refused, *, limit: bool = False) -> None:
        if self._record is not None:
            self._record(call.caller, status)
        silent = self._reached.write(f"{call.caller}: {why}") if limit else self._denied.write(call.caller)
        if silent is not None:
            _log.warning("refused: %s at %s: %s%s", call.caller, call.method, why, unwritten(silent))


def site_of(context: grpc.ServicerContext) -> str:
    """Whose certificate it is; the root has signed that name."""
    certificates = context.auth_context().get("x509_pem_cert")
    return f"site {_common_name(cast(list[bytes], certificates)[0])}" if certificates else "nobody"


def address_of(context: grpc.ServicerContext) -> str:
    """Where the call comes from, without the port."""
    return str(context.peer()).rpartition(":")[0]


@lru_cache(1024)
def _common_name(certificate_pem: bytes) -> str:
    return certificates.common_name(certificates.load_certificate(certificate_pem))

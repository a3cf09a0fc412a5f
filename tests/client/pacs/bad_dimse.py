"""A PACS over DIMSE that does as a test says, on loopback: pynetdicom's server, with answers that are made up."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context, evt

from tests.client.pacs import objects

FIND, GET, ECHO = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.1.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
Level = Callable[[Dataset], Iterator[Dataset]]


def finds(
    studies: Sequence[Dataset] | None = None,
    series: Sequence[Dataset] | None = None,
    instances: Sequence[Dataset] | None = None,
) -> Callable[[evt.Event], Iterator[tuple[int, Dataset | None]]]:
    """A handler that answers each level of a C-FIND."""
    listed = {
        "STUDY": [objects.study_answer()] if studies is None else studies,
        "SERIES": [objects.series_answer()] if series is None else series,
        "IMAGE": [objects.instance_answer(number) for number in range(objects.COUNT)]
        if instances is None
        else instances,
    }

    def answer(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for one in listed[event.identifier.QueryRetrieveLevel]:
            yield 0xFF00, one

    return answer


def gets(sent: Sequence[Dataset], count: int | None = None) -> Callable[[evt.Event], Iterator[Any]]:
    """A handler that sends objects on a C-GET."""

    def answer(_event: evt.Event) -> Iterator[Any]:
        yield len(sent) if count is None else count
        for one in sent:
            yield 0xFF00, one

    return answer


def moves(port: int | None, sent: Sequence[Dataset], count: int | None = None) -> Callable[[evt.Event], Iterator[Any]]:
    """A handler that on a C-MOVE sends objects to a port of this machine; None: it does not know where."""

    def answer(event: evt.Event) -> Iterator[Any]:
        if port is None:
            yield None, None
            return
        known = "StudyInstanceUID" in event.identifier and event.identifier.StudyInstanceUID == objects.STUDY
        wanted = sent if known else []
        contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
        yield "127.0.0.1", port, {"contexts": contexts, "bind_address": ("127.0.0.1", 0)}
        yield len(wanted) if count is None else count
        for one in wanted:
            yield 0xFF00, one

    return answer


@contextmanager
def bad_pacs(
    find: Callable[..., Any] | None = None,
    get: Callable[..., Any] | None = None,
    move: Callable[..., Any] | None = None,
    *,
    offered: Sequence[str] = (ECHO, FIND, GET),
    stores: Sequence[str] = (CTImageStorage,),
    handlers: Sequence[tuple[Any, Callable[..., Any]]] = (),
) -> Iterator[int]:
    """Its port, while the body runs."""
    entity = AE(ae_title="HOSPITAL")
    for one in offered:
        entity.add_supported_context(one)
    for one in stores:
        entity.add_supported_context(one, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
    every: list[Any] = [(evt.EVT_C_FIND, find or finds()), (evt.EVT_C_GET, get or gets([]))]
    every += [(evt.EVT_C_MOVE, move or moves(None, [])), *handlers]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=every)
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def raw_server(speak: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that is no PACS: says what a test wants to each who connects."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def accept() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                speak(connection)
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()

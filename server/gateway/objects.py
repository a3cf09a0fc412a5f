"""What the SuperLink sent the gateway, by content id, for all sites that are sent the same, while one owes an answer.

The SuperLink has it for as long: an object that is asked for again can be downloaded again.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future

from common.wire.messages import Request

CACHE_BYTES = 1024**3


class Objects:
    """Objects by content id, the least recently used leave first. One download however many ask at once."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._lock = threading.Lock()
        self._futures: OrderedDict[str, Future[bytes]] = OrderedDict()
        self._request: tuple[str, Request] | None = None

    def get(self, object_id: str, download: Callable[[], bytes]) -> bytes:
        """The object's bytes; `download` is called by the first who asks, and its error is raised by all."""
        with self._lock:
            future = self._futures.get(object_id)
            first = future is None
            if future is None:
                future = self._futures[object_id] = Future()
            self._futures.move_to_end(object_id)
        if first:
            self._fill(object_id, future, download)
        return future.result()

    def request(self, content_id: str, make: Callable[[], Request]) -> Request:
        """What a message's content asks for: made once, and so hashed once, for all sites that were sent it."""
        kept = self._request
        if kept is None or kept[0] != content_id:
            kept = self._request = content_id, make()
        return kept[1]

    def keep_only(self, wanted: Collection[str]) -> None:
        """Forget all that has arrived but these objects: even the smallest costs 2 kB here."""
        with self._lock:
            if self._request is not None and not all(one in wanted for one in self._request[0].split(",")):
                self._request = None
            for object_id, future in list(self._futures.items()):
                if future.done() and object_id not in wanted:
                    self._size -= len(future.result())
                    del self._futures[object_id]

    def _fill(self, object_id: str, future: Future[bytes], download: Callable[[], bytes]) -> None:
        try:
            content = download()
        except Exception as error:  # noqa: BLE001 - handed on to everyone who asked
            with self._lock:
                del self._futures[object_id]
            future.set_exception(error)
            return
        future.set_result(content)
        with self._lock:
            self._size += len(content)
            for old, done in list(self._futures.items()):
                if self._size <= self._limit:
                    break
                if done.done() and old != object_id:
                    self._size -= len(done.result())
                    del self._futures[old]

"""What the gateway has of messages: downloaded once, and forgotten when it is too much."""

import threading
from concurrent.futures import Future

import pytest

from server.gateway.objects import Objects


def test_objects_are_downloaded_once_however_many_ask(monkeypatch):
    objects, calls, got = Objects(), [], []
    waiting = threading.Semaphore(0)

    class Expected(Future[bytes]):
        def result(self, timeout: float | None = None) -> bytes:
            waiting.release()
            return super().result(timeout)

    monkeypatch.setattr("server.gateway.objects.Future", Expected)

    def download() -> bytes:
        calls.append(1)
        assert all(waiting.acquire(timeout=60.0) for _ in range(3))  # the others have asked too
        return b"content"

    threads = [threading.Thread(target=lambda: got.append(objects.get("id", download))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), got) == (1, [b"content"] * 4)


def test_the_least_recently_used_object_leaves_first():
    objects = Objects(limit_bytes=20)
    for name in ("one", "two"):
        objects.get(name, lambda: b"0123456789")
    objects.get("one", _never)
    objects.get("three", lambda: b"0123456789")
    objects.get("one", _never)
    objects.get("three", _never)
    with pytest.raises(AssertionError):
        objects.get("two", _never)


def test_a_failed_download_is_tried_again():
    objects = Objects()
    with pytest.raises(AssertionError):
        objects.get("id", _never)
    assert objects.get("id", lambda: b"now") == b"now"


def _never() -> bytes:
    raise AssertionError("must come from the cache")

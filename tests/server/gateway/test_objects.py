"""What the gateway has of messages: downloaded once, and forgotten when it is too much."""

import threading
from concurrent.futures import Future

import pytest

from common.wire.messages import TrainRequest
from server.gateway.objects import Objects
from tests.patience import PATIENCE_S


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
        assert all(waiting.acquire(timeout=PATIENCE_S) for _ in range(3))  # the others have asked too
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


def test_what_nobody_wants_any_more_is_forgotten_and_makes_room() -> None:
    objects = Objects(limit_bytes=20)
    for name in ("one", "two"):
        objects.get(name, lambda: b"0123456789")
    asked, again = (TrainRequest("0" * 64, number, {}) for number in (1, 2))
    assert objects.request("one,two", lambda: asked) is asked
    objects.keep_only({"one", "two", "three"})
    assert objects.request("one,two", lambda: again) is asked
    objects.keep_only({"two"})
    objects.get("three", lambda: b"0123456789")
    for name in ("two", "three"):
        objects.get(name, _never)
    with pytest.raises(AssertionError):
        objects.get("one", _never)
    assert objects.request("one,two", lambda: again) is again


def test_a_download_under_way_is_not_forgotten() -> None:
    objects, began, go_on = Objects(), threading.Event(), threading.Event()

    def download() -> bytes:
        began.set()
        assert go_on.wait(PATIENCE_S)
        return b"content"

    thread = threading.Thread(target=objects.get, args=("id", download))
    thread.start()
    assert began.wait(PATIENCE_S)
    objects.keep_only(())
    go_on.set()
    thread.join()
    assert objects.get("id", _never) == b"content"


def test_a_failed_download_is_tried_again():
    objects = Objects()
    with pytest.raises(AssertionError):
        objects.get("id", _never)
    assert objects.get("id", lambda: b"now") == b"now"


def _never() -> bytes:
    raise AssertionError("must come from the cache")

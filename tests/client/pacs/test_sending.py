"""A result is in the PACS when the PACS lists it: not when it took it, and not when it was away."""

import json
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import evt

from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError
from client.pacs.sending import NOT_SENT, SENT, send, unsent
from client.pacs.settings import Dimse
from tests.client.pacs.bad_dimse import bad_pacs, finds
from tests.client.pacs.objects import encoded, instance_answer, object_of

pytestmark = pytest.mark.system


def result(folder: Path) -> Path:
    folder.mkdir()
    (folder / "segmentation.dcm").write_bytes(encoded(object_of(0)))
    return folder


def sent_to(port: int, folder: Path, **more: Any) -> tuple[int, int]:
    """How many objects were sent, and how many rows written."""
    rows: list[int] = []
    peer = Dimse(**{"name": "main", "host": "127.0.0.1", "port": port, "called": "HOSPITAL", "timeout": 60, **more})
    with Caller(folder, peer) as caller:
        return send(caller, "main", folder, lambda: rows.append(1)), len(rows)


def takes(status: int) -> list[tuple[Any, Any]]:
    return [(evt.EVT_C_STORE, lambda _event: status)]


def test_what_is_taken_and_listed_has_arrived(tmp_path: Path) -> None:
    folder = result(tmp_path / "a")
    with bad_pacs(finds(instances=[instance_answer(0)]), handlers=takes(0)) as port:
        assert sent_to(port, folder) == (1, 1)
    assert json.loads((folder / SENT).read_bytes())["objects"] == 1
    assert unsent([folder]) == []
    (tmp_path / "empty").mkdir()
    assert sent_to(1, tmp_path / "empty") == (0, 0)


def test_what_is_taken_and_not_listed_has_not(tmp_path: Path) -> None:
    folder = result(tmp_path / "a")
    with (
        bad_pacs(finds(instances=[instance_answer(1)]), handlers=takes(0)) as port,
        pytest.raises(AwayError, match="does not list 1 of them"),
    ):
        sent_to(port, folder)
    assert unsent([folder]) == [folder]


@pytest.mark.parametrize(
    ("status", "kind", "said", "noted"),
    [(0xA700, AwayError, "no room", False), (0xC123, PacsError, "C-STORE status C123", True)],
)
def test_a_refusal_for_good_is_noted_and_another_is_tried_again(
    tmp_path: Path, status: int, kind: type[PacsError], said: str, *, noted: bool
) -> None:
    folder = result(tmp_path / "a")
    with bad_pacs(handlers=takes(status)) as port, pytest.raises(kind, match=said):
        sent_to(port, folder)
    assert (folder / NOT_SENT).exists() is noted
    assert unsent([folder]) == ([] if noted else [folder])


def test_a_pacs_that_takes_no_such_object_says_so(tmp_path: Path) -> None:
    folder = result(tmp_path / "a")
    with bad_pacs(stores=()) as port, pytest.raises(PacsError, match="to store where results are sent"):
        sent_to(port, folder)
    assert (folder / NOT_SENT).exists()

"""A body of several parts is read the same however it is cut, and what has no end is cut off."""

import numpy as np
import pytest

from client.pacs.arrivals.parts import MOST_AROUND, MOST_HEADERS, BodyError, Parts, boundary_of
from tests.client.pacs.arrivals.bodies import BOUNDARY, KIND, body, part

END = b"--" + BOUNDARY + b"--"
# What looks like a boundary, or like a part of one, in the content of a part.
CONTENTS = [
    b"",
    b"\r\n",
    b"\r\n\r\n",
    b"\r\n--" + BOUNDARY[:-1],
    b"a\r\n--" + BOUNDARY + b"0\r\nb",
    b"\r--" + BOUNDARY + b"\n",
    np.random.default_rng(3).bytes(3000),
]


def read(content: bytes, step: int, most: int = 5000, most_parts: int = 9) -> list[bytes]:
    parts, found = Parts(BOUNDARY, most, most_parts), list[bytes]()
    for at in range(0, len(content), step):
        found += parts.feed(content[at : at + step])
    parts.finish()
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1 << 16])
def test_parts_are_the_same_however_they_come(step: int) -> None:
    assert read(body(CONTENTS), step) == CONTENTS
    assert read(b"not for us\r\n" + body(CONTENTS[:2]) + b"nor this", step) == CONTENTS[:2]
    padded = body([b"x"]).replace(b"--" + BOUNDARY + b"\r\n", b"--" + BOUNDARY + b" \t\r\n")
    assert read(padded, step) == [b"x"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "before its last boundary"),
        (b"no boundary at all", 400, "before its last boundary"),
        (part(b"x"), 400, "before its last boundary"),
        (END, 400, "no part"),
        (part(b"x", b"application/json") + END, 415, "is no application/dicom"),
        (b"--" + BOUNDARY + b"\r\n\r\nx\r\n" + END, 415, "is no application/dicom"),
        (part(b"x", b"application/dicom", b"Content-Transfer-Encoding: base64") + END, 415, "packed"),
        (b"--" + BOUNDARY + b"\r\nno end of headers\r\n" + END, 400, "no end of its headers"),
        (b"--" + BOUNDARY + b"\r\nX: " + bytes(MOST_HEADERS), 400, "no end of its headers"),
        (bytes(MOST_AROUND + 9), 400, "before or after"),
        (body([b"x"]) + bytes(MOST_AROUND + 9), 400, "before or after"),
        (part(bytes(5001)) + END, 413, "longer than 5000"),
        (part(bytes(50_000)), 413, "longer than 5000"),
        (body([b"x"] * 10), 413, "more than 9 parts"),
    ],
)
@pytest.mark.parametrize("step", [97, 1 << 20])
def test_what_is_no_such_body_is_refused(content: bytes, status: int, said: str, step: int) -> None:
    with pytest.raises(BodyError, match=said) as refused:
        read(content, step)
    assert refused.value.status == status


def test_no_more_is_held_than_a_part() -> None:
    parts = Parts(BOUNDARY, 5000, 9)
    held = []
    for piece in [part(bytes(5000))] * 9:
        list(parts.feed(piece))
        held.append(parts.held)
    assert max(held) < 5000 + 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("", 415),
        ("application/dicom", 415),
        (KIND.replace("related", "form-data"), 415),
        (KIND.replace("application/dicom", "application/dicom+json"), 415),
        ("multipart/related; boundary=x", 415),
        ('multipart/related; type="application/dicom"', 400),
        ('multipart/related; type="application/dicom"; boundary=""', 400),
        (f'multipart/related; type="application/dicom"; boundary="{"x" * 129}"', 400),
        ('multipart/related; type="application/dicom"; boundary="x\\"y"', 400),
        ('multipart/related; type="application/dicom"; boundary="\xe4"', 400),
    ],
)
def test_a_request_says_what_it_brings_and_where_it_is_cut(kind: str, status: int) -> None:
    with pytest.raises(BodyError) as refused:
        boundary_of(kind)
    assert refused.value.status == status


@pytest.mark.parametrize("kind", [KIND, KIND.replace('"', ""), KIND.upper().replace(BOUNDARY.decode().upper(), "x")])
def test_a_boundary_is_found_as_senders_write_it(kind: str) -> None:
    assert boundary_of(kind) in (BOUNDARY, b"x")

"""Weights are written as the safetensors library writes them, and read as it reads them; what it refuses is refused."""

import json
import math
import re
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack, unpack
from common.learning.tensor_bytes import bytes_of, views_of

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
STATE: dict[str, Tensor] = {
    **{f"of {dtype}": torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    "none": torch.empty(3, 0, 2),
    "one": torch.tensor(math.nan),
    "ä": torch.randn(5, generator=torch.Generator().manual_seed(0)),
}


def written(header: object, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def an(entry: str = "w", **about: object) -> dict[str, object]:
    return {entry: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **about}}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_written_is_the_librarys_to_the_byte(dtype: torch.dtype) -> None:
    """One type at a time, with shapes, strides and names of all kinds; then all types together."""
    one = (torch.arange(24) % 7).reshape(2, 3, 4).to(dtype)
    state = {
        "b": one, "a": one[:, ::2].clone(), "none": one[:0], "single": one[0, 0, 0].clone(), "turned": one.mT,
        'quote " \\ \n\t\x01\x7f': one[0].clone(), "\u00e4 \U0001f600": one[1].clone(), "": one[0, 1:2].clone(),
    }  # fmt: skip
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    assert bytes_of(state) == safetensors.torch.save(plain)
    assert bytes_of(dict(reversed(state.items()))) == bytes_of(state)
    assert bytes_of({**state, "other": torch.ones(3, dtype=torch.complex64)}) == safetensors.torch.save(
        {**plain, "other": torch.ones(3, dtype=torch.complex64)}
    )
    assert bytes_of({}) == safetensors.torch.save({})


def test_a_gradient_or_a_shared_tensor_is_written_as_any_other() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    assert bytes_of({"a": weights, "b": weights}) == safetensors.torch.save({"a": torch.ones(3), "b": torch.ones(3)})


def test_every_type_and_shape_is_read_as_the_library_reads_it() -> None:
    data = pack(STATE)
    found, expected = views_of(data), unpack(data)
    assert list(found) == list(expected) == sorted(STATE)
    for name, one in expected.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
        assert torch.equal(found[name].nan_to_num(7), one.nan_to_num(7))


def test_nothing_is_copied_and_nobody_is_warned() -> None:
    data = pack({"w": torch.arange(1000.0), "v": torch.zeros(3)})
    torch.set_warn_always(True)  # it warns once in a process otherwise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = views_of(data)
    finally:
        torch.set_warn_always(False)
    start = np.frombuffer(data, np.uint8).ctypes.data
    assert found["v"].data_ptr() == start + len(data) - 4012
    assert found["w"].data_ptr() == start + len(data) - 4000


def test_a_tensor_at_an_odd_place_is_read_all_the_same() -> None:
    text = json.dumps(an()).encode()
    for shift in range(4):
        padded = text + b" " * (-len(text) % 8 + shift)
        data = len(padded).to_bytes(8, "little") + padded + torch.arange(4.0).numpy().tobytes()
        found = views_of(data)["w"]
        assert found.tolist() == safetensors.torch.load(data)["w"].tolist() == [0, 1, 2, 3]
        assert found.data_ptr() % found.element_size() == 0  # as kernels may take for granted


def test_what_is_said_of_the_file_is_no_tensor() -> None:
    data = safetensors.torch.save({"w": torch.ones(2)}, metadata={"format": "pt"})
    assert views_of(data).keys() == {"w"}


BAD = {
    "empty": b"",
    "short": b"\x10\0\0",
    "no-header": bytes(8),
    "long-header": (1 << 62).to_bytes(8, "little") + b"{}",
    "cut-header": written(an())[:20],
    "not-json": written(b"{'w': 1}"),
    "not-utf-8": written(b'{"\xff": 1}'),
    "a-list": written([1, 2]),
    "no-table": written({"w": 5}),
    "nested": written(b"[" * 5000),
    "no-dtype": written({"w": {"shape": [4], "data_offsets": [0, 16]}}),
    "unknown-dtype": written(an(dtype="F31")),
    "float-shape": written(an(shape=[4.0])),
    "true-shape": written(an(shape=[True, 4])),
    "negative-shape": written(an(shape=[-2, -2])),
    "text-shape": written(an(shape="4")),
    "no-shape": written(an(shape=None)),
    "too-small-shape": written(an(shape=[3])),
    "overflowing-shape": written(an(shape=[1 << 62, 4])),
    "overflowing-to-nothing": written(an(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0]), b""),
    "one-offset": written(an(data_offsets=[16])),
    "backwards": written(an(data_offsets=[16, 0])),
    "a-gap": written(an(data_offsets=[4, 20]), bytes(20)),
    "cut-off": written(an(), bytes(12)),
    "more-bytes": written(an(), bytes(20)),
    "overlapping": written({**an(), **an("v")}),
    "a-gap-between": written({**an(), **an("v", data_offsets=[20, 36])}, bytes(36)),
    "other-end": written(an(data_offsets=[0, 32]), bytes(32)),
    "text-offsets": written(an(data_offsets=["0", "16"])),
    "minus-nothing": written(json.dumps(an()).replace("[0,", "[-0,").encode()),
    "true-offset": written(an(data_offsets=[False, 16])),
    "a-thing-said-twice": written(json.dumps(an()).replace('"shape": [4]', '"shape": [2], "shape": [4]').encode()),
    "no-number": written(an(more=math.nan)),
    "half-a-character": written(b'{"\\ud800": %s}' % json.dumps(an()["w"]).encode()),
    "deep": written(json.dumps(an(more=0)).replace(": 0}", f": {'[' * 200}{']' * 200}}}").encode()),
    "file-of-a-number": written({"__metadata__": 5}, b""),
    "file-of-a-list": written({"__metadata__": []}, b""),
    "file-of-no": written({"__metadata__": False}, b""),
    "file-of-text": written({"__metadata__": "pt"}, b""),
    "file-with-a-number": written({"__metadata__": {"format": 1}}, b""),
    "file-with-a-map": written({"__metadata__": {"format": {"of": "pt"}}}, b""),
    "file-with-half-a-character": written(b'{"__metadata__": {"format": "\\ud800"}}', b""),
}
# What the library reads, and no network of ours has.
TOO_MUCH = {
    "a-name-twice": written(b'{"w": %s, "w": %s}' % ((json.dumps(an()["w"]).encode(),) * 2)),
    "more-said": written(an(more=1)),
    "other-type": written(an(dtype="U32")),
    "many-dimensions": written(an(shape=[4] + 16 * [1])),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_safetensors_is_refused(case: str) -> None:
    with pytest.raises(UpdateError) as caught:
        views_of(BAD[case])
    assert caught.value.code is ErrorCode.WRONG_TENSORS
    with pytest.raises(UpdateError):
        unpack(BAD[case])


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_no_network_has_is_refused(case: str) -> None:
    with pytest.raises(UpdateError):
        views_of(TOO_MUCH[case])
    assert unpack(TOO_MUCH[case]).keys() == {"w"}


def assert_no_more_than_the_library_reads(raw: bytes) -> None:
    """And what it reads, bit for bit."""
    try:
        found = views_of(raw)
    except UpdateError:
        return
    theirs = unpack(raw)
    assert list(found) == list(theirs)
    for name, one in theirs.items():
        assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
        assert found[name].view(-1).view(torch.uint8).equal(one.view(-1).view(torch.uint8))


TOKENS = (
    *('"a"', '"b"', '""', '"__metadata__"', '"\\ud800"', '"\\u0000"', '"dtype"', '"shape"', '"data_offsets"', '"more"'),
    *('"F32"', '"I64"', '"BOOL"', '"U16"', '"F8_E5M2"', '"F4"', "0", "1", "3", "-0", "-1", "1.0", "1e0", "NaN", "01"),
    *("true", "null", str(1 << 63), str(1 << 64), "9" * 5000, "[]", "{}", "[[0]]", '{"a": "1"}', "[" * 150, "\ufeff"),
    *"[]{}:, \n\x00",
)


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_other_headers_are_never_read_as_what_the_library_refuses(data: st.DataObject) -> None:
    """Pieces of a header are taken out, doubled, and put in the place of others."""
    whole = pack({"a": torch.ones(3), "b": torch.ones(2, 1, dtype=torch.bool), "c": torch.zeros(0, 2).half()})
    size = int.from_bytes(whole[:8], "little")
    pieces = re.findall(r'"[^"]*"|[0-9]+|.', whole[8 : 8 + size].decode().rstrip())
    if data.draw(st.booleans()):
        pieces[-1:-1] = [",", '"__metadata__"', ":", "{", '"format"', ":", '"pt"', "}"]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(pieces) - 1))
        stop = data.draw(st.sampled_from([start, start + 1, start + 1, start + 1, start + 4]))
        pieces[start:stop] = data.draw(st.sampled_from([[one] for one in TOKENS] + [pieces[start : start + 19] * 2]))
    assert_no_more_than_the_library_reads(written("".join(pieces).encode(), whole[8 + size :]))


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_never_read_as_what_the_library_refuses(data: st.DataObject) -> None:
    raw = bytearray(pack({"a": torch.ones(3), "b": torch.arange(4), "c": torch.zeros(0)}))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw), len(raw) - 1, 8, 9]))]
    assert_no_more_than_the_library_reads(bytes(raw))

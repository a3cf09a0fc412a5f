"""Moves in fewer bits: as torch, the safetensors library and arithmetic by hand have them; and nothing else is read."""

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from common.errors import ErrorCode, UpdateError
from common.learning.tensor_bytes import bytes_of
from common.wire.encoding import BLOCK, LARGEST_ERROR, Encoding, check_encoded, decode, encode, part_size, values_size

ENCODINGS: tuple[Encoding, ...] = ("bfloat16", "int8")
Moves = dict[str, NDArray[np.float32]]
# Odd sizes: more than a block and less, a scalar, nothing.
SIZES = {"b.weight": (5, 3, 7, 11), "a.bias": (7,), "scale": (), "c": (BLOCK,), "none": (0, 4)}


def drawn(seed: int = 0, deviation: float = 1e-3) -> Moves:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(0, deviation, size), np.float32) for name, size in SIZES.items()}


def a_value(*values: float) -> Moves:
    return {"w": np.array(values, np.float32)}


def test_int8_is_what_a_hand_works_out() -> None:
    """Scale 2 / 127; 1 is 63.5 steps and a tie that goes to the even 64, -0.5 is 31.75 steps below zero."""
    part = encode(a_value(2.0, 1.0, -0.5, 0.0, -2.0), "int8")
    read = safetensors.torch.load(part)
    assert read["scales"].tolist() == [np.float32(2.0) / np.float32(127)]
    assert read["values"].tolist() == [127, 64, -32, 0, -127]
    scale = np.float32(2.0) / np.float32(127)
    expected = [np.float32(step) * scale for step in (127, 64, -32, 0, -127)]
    assert decode(part, {"w": (5,)}, "int8")["w"].tolist() == expected


def test_bfloat16_is_what_torch_makes_of_it() -> None:
    moves = drawn() | {"ties": np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1e-40, -0.0, 3e38], np.float32)}
    shapes = {name: one.shape for name, one in moves.items()}
    part = encode(moves, "bfloat16")
    theirs = torch.cat([torch.from_numpy(moves[name]).reshape(-1).to(torch.bfloat16) for name in sorted(moves)])
    assert torch.equal(safetensors.torch.load(part)["values"].view(torch.int16), theirs.view(torch.int16))
    for name, one in decode(part, shapes, "bfloat16").items():
        assert torch.equal(torch.from_numpy(one), torch.from_numpy(moves[name]).to(torch.bfloat16).float())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_safetensors_library_writes_the_same_bytes(encoding: Encoding) -> None:
    part = encode(drawn(), encoding)
    assert safetensors.torch.save(safetensors.torch.load(part)) == part


@pytest.mark.parametrize("encoding", [*ENCODINGS, "float32"])
def test_size_of_a_part_is_known_from_its_tensors_shapes(encoding: Any) -> None:
    moves = drawn()
    state = {name: torch.from_numpy(one) for name, one in moves.items()}
    part = bytes_of(state) if encoding == "float32" else encode(moves, encoding)
    assert part_size({name: one.shape for name, one in moves.items()}, encoding) == len(part)


@pytest.mark.parametrize(("encoding", "share"), [("bfloat16", 0.51), ("int8", 0.26)])
def test_an_update_is_half_and_a_quarter_of_its_bytes(encoding: Encoding, share: float) -> None:
    """Of a small network, of which heads and scales of short tensors are a larger share."""
    moves = {"one.weight": (8, 1, 3, 3), "one.bias": (8,), "two.weight": (64, 32, 3, 3), "two.bias": (64,)}
    values = {name: np.ones(size, np.float32) for name, size in moves.items()}
    plain = bytes_of({name: torch.from_numpy(one) for name, one in values.items()})
    part = encode(values, encoding)
    assert len(part) <= share * len(plain)
    assert len(part) - values_size(moves, encoding) == 8 + int.from_bytes(part[:8], "little")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_rounding_takes_is_no_more_than_is_said(encoding: Encoding) -> None:
    """The worst of int8 is half a step everywhere but in one place; and in each block by itself."""
    worst = np.full(BLOCK, 0.5 / 127, np.float32) * np.float32(0.999)
    worst[3] = 1.0
    hard = {"w": worst, "v": np.full(9, 1 + 2**-8, np.float32)}
    for moves in (*(drawn(seed, 10.0**-seed) for seed in range(6)), hard):
        shapes = {name: one.shape for name, one in moves.items()}
        sent = decode(encode(moves, encoding), shapes, encoding)
        for name, one in moves.items():
            off, length = np.linalg.norm((one - sent[name]).ravel()), np.linalg.norm(sent[name].ravel())
            assert off <= LARGEST_ERROR[encoding] * length * 1.0001
    flat = decode(encode(hard, encoding), {name: one.shape for name, one in hard.items()}, encoding)
    found = max(np.linalg.norm(one - flat[name]) / np.linalg.norm(flat[name]) for name, one in hard.items())
    assert found > 0.99 * LARGEST_ERROR[encoding]


def test_a_large_value_in_one_block_or_tensor_takes_nothing_from_another() -> None:
    values = np.full(2 * BLOCK, 1e-4, np.float32)
    values[0] = 1.0
    sent = decode(encode({"w": values, "x": np.array([1e-4], np.float32)}, "int8"), {"w": (512,), "x": (1,)}, "int8")
    assert sent["w"][1] == 0
    np.testing.assert_allclose([sent["w"][BLOCK], sent["x"][0]], 1e-4, rtol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equal_moves_give_equal_bytes_whatever_their_order_and_strides(encoding: Encoding) -> None:
    moves = drawn()
    turned = {name: np.asfortranarray(moves[name]) for name in sorted(moves, reverse=True)}
    assert encode(turned, encoding) == encode(moves, encoding)


def test_moves_too_small_for_a_normal_scale_are_zero_and_raise_no_warning() -> None:
    for tiny in (0.0, -0.0, 1e-45, 1e-37):
        with np.errstate(all="raise", under="ignore"):
            assert decode(encode(a_value(tiny, -tiny), "int8"), {"w": (2,)}, "int8")["w"].tolist() == [0.0, 0.0]
    kept = decode(encode(a_value(2e-36), "int8"), {"w": (1,)}, "int8")["w"]
    np.testing.assert_allclose(kept, 2e-36, rtol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4028235e38])
def test_what_is_not_finite_or_would_not_be_when_it_is_read_is_not_encoded(encoding: Encoding, value: float) -> None:
    with pytest.raises(UpdateError) as caught:
        encode(a_value(0.0, value), encoding)
    assert caught.value.code is ErrorCode.NOT_FINITE


SHAPES = {"bias": (3,), "weight": (2, 300)}  # four blocks


def honest(encoding: Encoding) -> bytes:
    rng = np.random.default_rng(1)
    return encode({name: rng.normal(0, 1, size).astype(np.float32) for name, size in SHAPES.items()}, encoding)


def with_scale(value: float) -> bytes:
    part = honest("int8")
    start = 8 + int.from_bytes(part[:8], "little")
    return part[: start + 4] + struct.pack("<f", value) + part[start + 8 :]


def minus_zero() -> bytes:
    """The scale of the first tensor, none of which moves."""
    part = encode({"bias": np.zeros(3, np.float32), "weight": np.ones((2, 300), np.float32)}, "int8")
    start = 8 + int.from_bytes(part[:8], "little")
    return part[:start] + struct.pack("<f", -0.0) + part[start + 4 :]


def with_head(encoding: Encoding, change: Callable[[dict[str, dict[str, object]]], object]) -> bytes:
    part = honest(encoding)
    length = int.from_bytes(part[:8], "little")
    head = json.loads(part[8 : 8 + length])
    change(head)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + part[8 + length :]


def hostile() -> dict[str, tuple[Encoding, bytes]]:
    """Updates that no honest site makes."""
    found: dict[str, tuple[Encoding, bytes]] = {}
    for encoding in ENCODINGS:
        part = honest(encoding)
        other: Encoding = "int8" if encoding == "bfloat16" else "bfloat16"
        found |= {
            f"{encoding}: {name}": (encoding, wrong)
            for name, wrong in {
                "empty": b"",
                "garbage": b"\x80\x04 pickle?",
                "only a length": part[:8],
                "a length beyond everything": b"\xff" * 8 + part[8:],
                "cut off": part[:-1],
                "one byte more": part + b"x",
                "the other encoding": honest(other),
                "weights as float32": bytes_of({name: torch.zeros(size) for name, size in SHAPES.items()}),
                "metadata": with_head(encoding, lambda head: head.update(__metadata__={"note": "MUELLER^ANNA"})),
                "another shape": with_head(encoding, lambda head: head["values"].update(shape=[1, 603])),
                "another type": with_head(encoding, lambda head: head["values"].update(dtype="U8")),
                "spaces": with_head(encoding, lambda head: head["values"].update(shape=[603.0])),
                "one value fewer": encode({"bias": np.ones(3, np.float32)}, encoding),
                "no values": encode({"bias": np.ones(0, np.float32)}, encoding),
            }.items()
        }
    found |= {
        f"int8: {name}": ("int8", wrong)
        for name, wrong in {
            "no scales": with_head("int8", lambda head: head.pop("scales")),
            "scale NaN": with_scale(float("nan")),
            "scale infinite": with_scale(float("inf")),
            "scale that overflows": with_scale(3e38),
            "scale negative": with_scale(-1.0),
            "scale -0": with_scale(-0.0),
            "scale -0 of a block of zeros": minus_zero(),
            "scale below the normal ones": with_scale(1e-40),
            "scale 0 and values": with_scale(0.0),
            "value -128": honest("int8")[:-1] + b"\x80",
        }.items()
    }
    values = honest("bfloat16")
    found |= {
        "bfloat16: NaN": ("bfloat16", values[:-2] + b"\xc0\x7f"),
        "bfloat16: infinite": ("bfloat16", values[:-2] + b"\x80\xff"),
    }
    return found


HOSTILE = hostile()
NOT_FINITE = {
    "int8: scale NaN", "int8: scale infinite", "int8: scale that overflows", "bfloat16: NaN", "bfloat16: infinite"
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_honest_site_sends_is_refused_by_name(name: str) -> None:
    encoding, part = HOSTILE[name]
    for look in (check_encoded, decode):
        for seen in (part, memoryview(part)):
            with pytest.raises(UpdateError) as caught:
                look(seen, SHAPES, encoding)
            assert caught.value.code is (ErrorCode.NOT_FINITE if name in NOT_FINITE else ErrorCode.WRONG_TENSORS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_one_byte_that_is_changed_is_read_as_numbers_or_refused(encoding: Encoding) -> None:
    """Never another failure; a changed head is always refused."""
    part = honest(encoding)
    head = 8 + int.from_bytes(part[:8], "little")
    rng = np.random.default_rng(0)
    for place in (*range(head), *rng.integers(head, len(part), 300).tolist()):
        changed = bytearray(part)
        changed[place] ^= 1 << int(rng.integers(8))
        try:
            read = decode(bytes(changed), SHAPES, encoding)
        except UpdateError:
            continue
        assert place >= head
        assert all(np.isfinite(one).all() for one in read.values())

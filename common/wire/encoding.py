"""The model's part of an update in fewer bits: how far each weight moved from the model that the site was sent.

    bfloat16   each move rounded to the nearest bfloat16
    int8       each move as a whole number from -127 to 127, times the scale of its block, which is the block's largest
               move over 127; a block is 256 values of a tensor, one after another, and a tensor's last one may be less

Ties go to the even one, so that equal moves give equal bytes. The part is safetensors of two tensors at most: `values`,
of all the model's weights in the order of their tensors' names, and with int8 `scales` (float32), of all blocks. What
stands in its head follows from the model's shapes alone, and is held to that to the byte: so it has room for nothing
else. numpy only, as a hospital's exit gate and its coordinator both look at it.

A scale that is no normal number is 0, and so are its block's values. Float32 multiplies and adds the same everywhere:
what a coordinator reads is what the site took for read.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import ErrorCode, UpdateError
from common.wire.frames import Buffer

Encoding: TypeAlias = Literal["bfloat16", "int8"]
Shapes: TypeAlias = Mapping[str, Sequence[int]]
Values: TypeAlias = NDArray[np.float32]

BLOCK = 256  # values that share a scale
# The most that rounding takes from moves or adds to them, as a share of the length (L2) of what is sent: of bfloat16
# half a last place; of int8 half a step in each value of a block, of which one is 127 steps.
LARGEST_ERROR: Mapping[Encoding, float] = {"bfloat16": 2.0**-8, "int8": math.sqrt(BLOCK) / (2 * 127)}

_STEPS = 127
_SMALLEST = np.finfo(np.float32).tiny  # that is normal
_SCALE_BYTES = _FLOAT32_BYTES = 4
_ALIGNED = 8  # bytes, of a head
_EXPONENT = np.uint16(0x7F80)  # of bfloat16: all ones are infinite or NaN
_HALF, _DROPPED = np.uint32(0x7FFF), 16  # bits of a float32 that a bfloat16 has not


def encode(moves: Mapping[str, Values], encoding: Encoding) -> bytes:
    """Moves as they travel.

    Args:
        moves: by tensor.
        encoding: how.

    Raises:
        UpdateError: NOT_FINITE, a move is not finite, or would not be where it is read.
    """
    shapes = {name: one.shape for name, one in moves.items()}
    count, blocks = _counts(shapes)
    values = np.empty(count, np.int8 if encoding == "int8" else np.uint16)
    scales = np.empty(blocks, np.float32)
    for name, at, blocks_at in _places(shapes):
        one = np.ascontiguousarray(moves[name], np.float32).reshape(-1)
        if encoding == "int8":
            values[at], scales[blocks_at] = _whole(one)
        else:
            values[at] = _shortened(one)
    body = (scales, values) if encoding == "int8" else (values,)
    part = b"".join((_head(shapes, encoding), *(one.astype(one.dtype.newbyteorder("<")).tobytes() for one in body)))
    check_encoded(part, shapes, encoding)
    return part


def decode(part: Buffer, shapes: Shapes, encoding: Encoding) -> dict[str, Values]:
    """Moves by tensor, float32.

    Args:
        part: as received.
        shapes: of the model's tensors.
        encoding: how they travel.

    Raises:
        UpdateError: as `check_encoded`.
    """
    values, scales = _opened(part, shapes, encoding)
    moves = {}
    for name, at, blocks_at in _places(shapes):
        one = values[at]
        if encoding == "int8":
            found = one.astype(np.float32)
            found *= _each(scales[blocks_at], len(one))
        else:
            found = (one.astype(np.uint32) << _DROPPED).view(np.float32)
        moves[name] = found.reshape(tuple(shapes[name]))
    return moves


def weights_of(part: Buffer, start: Mapping[str, Values], encoding: Encoding) -> dict[str, Values]:
    """The weights that a coordinator reads, float32: each that was sent, and how far it moved, rounded once more.

    Both sides call this one, so that a site knows what rounding took.

    Args:
        part: as received.
        start: the model that the site was sent; stays as it is.
        encoding: how the moves travel.

    Raises:
        UpdateError: as `check_encoded`. What is read may be infinite where its part is not.
    """
    moves = decode(part, {name: one.shape for name, one in start.items()}, encoding)
    with np.errstate(over="ignore"):
        return {name: np.add(start[name], one, out=one) for name, one in moves.items()}


def check_encoded(part: Buffer, shapes: Shapes, encoding: Encoding) -> None:
    """Look at a part before it leaves.

    Args:
        part: of an update.
        shapes: of the model's tensors.
        encoding: how they travel.

    Raises:
        UpdateError: WRONG_TENSORS, it is not of these tensors to the byte, or is what `encode` does not make;
            NOT_FINITE, a value or a scale is not finite.
    """
    _opened(part, shapes, encoding)


def values_size(shapes: Shapes, encoding: Encoding) -> int:
    """Bytes of a part without its head."""
    count, blocks = _counts(shapes)
    return count + _SCALE_BYTES * blocks if encoding == "int8" else 2 * count


def part_size(shapes: Shapes, encoding: Encoding | Literal["float32"]) -> int:
    """Bytes of a part with its head, in which the tensors' names and shapes stand: what a receipt counts."""
    if encoding != "float32":
        return len(_head(shapes, encoding)) + values_size(shapes, encoding)
    said, end = {}, 0
    for name in sorted(shapes):
        begin, end = end, end + _FLOAT32_BYTES * math.prod(shapes[name])
        said[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begin, end]}
    return len(_headed(said)) + end


def _opened(part: Buffer, shapes: Shapes, encoding: Encoding) -> tuple[NDArray[np.generic], Values]:
    """The values, int8 or the bits of bfloat16, and the scales: views of the part, once it is looked at."""
    head, (count, blocks) = _head(shapes, encoding), _counts(shapes)
    scales_size = _SCALE_BYTES * blocks if encoding == "int8" else 0
    size = len(head) + values_size(shapes, encoding)
    if len(part) != size or bytes(part[: len(head)]) != head:
        raise UpdateError(
            f"the update is not the run's model as {encoding}: expected {size} bytes under the one head that goes with "
            f"its tensors, got {len(part)}. Encode it as the run says (federation.update-precision)."
        )
    kind = "i1" if encoding == "int8" else "<u2"
    values = np.frombuffer(part, kind, count, len(head) + scales_size)
    scales = np.frombuffer(part, "<f4", scales_size // _SCALE_BYTES, len(head))
    if encoding == "bfloat16":
        if bool(((values & _EXPONENT) == _EXPONENT).any()):
            raise _not_finite()
        return values, scales
    with np.errstate(over="ignore", invalid="ignore"):
        if not bool(np.isfinite(scales * np.float32(_STEPS)).all()):
            raise _not_finite()
    if bool((np.signbit(scales) | ((scales != 0) & (scales < _SMALLEST))).any()):
        raise UpdateError("a scale of the update is negative or no normal number. Send none but 0 and normal ones.")
    if bool((values == -_STEPS - 1).any()):
        raise UpdateError(f"a value of the update is below -{_STEPS}, where the steps of int8 end")
    for _, at, blocks_at in _places(shapes) if bool((scales == 0).any()) else ():
        if bool((values[at].astype(bool) & (_each(scales[blocks_at], at.stop - at.start) == 0)).any()):
            raise UpdateError("a block of the update has values and a scale of 0. Send zeros there.")
    return values, scales


def _whole(moves: Values) -> tuple[NDArray[np.int8], Values]:
    """Steps and scales of one tensor's moves (n)."""
    if not len(moves):
        return np.empty(0, np.int8), np.empty(0, np.float32)
    largest = np.maximum.reduceat(np.abs(moves), np.arange(0, len(moves), BLOCK))
    if not bool(np.isfinite(largest).all()):  # a maximum is NaN where one of its values is
        raise _not_finite()
    scales = np.divide(largest, np.float32(_STEPS), dtype=np.float32)
    scales[scales < _SMALLEST] = 0
    each = _each(scales, len(moves))
    steps = np.divide(moves, each, out=np.zeros_like(moves), where=each > 0)
    return np.rint(steps, out=steps).clip(-_STEPS, _STEPS).astype(np.int8), scales


def _shortened(moves: Values) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each, as its bits: half a last place is added, and the rest dropped."""
    if not bool(np.isfinite(moves).all()):
        raise _not_finite()
    bits = moves.view(np.uint32)
    return ((bits + _HALF + ((bits >> _DROPPED) & 1)) >> _DROPPED).astype(np.uint16)


def _each(scales: Values, count: int) -> Values:
    """The scale of each of a tensor's values."""
    return np.repeat(scales, BLOCK)[:count]


def _places(shapes: Shapes) -> Iterator[tuple[str, slice, slice]]:
    """Of each tensor: where its values are, and where its blocks."""
    values = blocks = 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        count = -(-size // BLOCK)
        yield name, slice(values, values + size), slice(blocks, blocks + count)
        values, blocks = values + size, blocks + count


def _counts(shapes: Shapes) -> tuple[int, int]:
    """Values and blocks of a model."""
    sizes = [math.prod(one) for one in shapes.values()]
    return sum(sizes), sum(-(-size // BLOCK) for size in sizes)


def _head(shapes: Shapes, encoding: Encoding) -> bytes:
    """As the safetensors library writes it: the length of the text (8 bytes, little-endian), and the text."""
    count, blocks = _counts(shapes)
    end = _SCALE_BYTES * blocks
    if encoding == "int8":
        said = {"scales": _said("F32", blocks, 0, end), "values": _said("I8", count, end, end + count)}
    else:
        said = {"values": _said("BF16", count, 0, 2 * count)}
    return _headed(said)


def _headed(said: Mapping[str, object]) -> bytes:
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(_ALIGNED, "little") + text


def _said(dtype: str, count: int, begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}


def _not_finite() -> UpdateError:
    return UpdateError("the update holds NaN or infinite values. Lower the learning rate.", ErrorCode.NOT_FINITE)


__all__ = [
    "BLOCK",
    "LARGEST_ERROR",
    "Encoding",
    "Shapes",
    "check_encoded",
    "decode",
    "encode",
    "part_size",
    "values_size",
    "weights_of",
]

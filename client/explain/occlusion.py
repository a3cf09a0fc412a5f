"""Occlusion: how much the explained number falls when a box of the image is replaced by the image's mean.

Boxes of one size go over the image by half their edge; a voxel's value is the mean over the boxes that cover it (Zeiler
and Fergus, ECCV 2014). The mean is each channel's own. Positive: the box speaks for the class. The boxes are as small
as the passes allow, and only the windows that a box touches are computed anew.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from client.explain.method import Answer, Method, Subject
from client.explain.windows import Sample, samples, scores

_FINEST = 32  # steps along an axis, at the most
_COARSEST = 2
_BATCH_VOXELS = 2**19

Box = tuple[slice, ...]


def explain(subject: Subject) -> Answer:
    """A map for each class."""
    maps, passes, edges = [], 0, set()
    for sample in samples(subject):
        boxes = fitting(sample, subject.passes // len(subject.samples))
        found, ran = _map(subject, sample, boxes)
        maps.append(found)
        passes += ran
        edges.add(tuple(part.stop - part.start for part in boxes[0]))
        subject.step()
    whole = torch.stack(maps)
    settings = {"box-voxels": [list(edge) for edge in sorted(edges)], "replaced-by": "mean of each channel"}
    return Answer({name: whole[:, k] for k, name in enumerate(subject.classes)}, passes=passes, settings=settings)


def fitting(sample: Sample, passes: int) -> list[Box]:
    """The finest boxes, in the sample's own voxels, that need no more passes; the coarsest, where none does."""
    for steps in range(_FINEST, _COARSEST, -1):
        boxes = list(_boxes(sample.size, steps))
        if sum(len(_touched(sample, box)) for box in boxes) <= passes:
            return boxes
    return list(_boxes(sample.size, _COARSEST))


def _boxes(size: Sequence[int], steps: int) -> Iterator[Box]:
    """Boxes of two steps an edge, one a step, which cover every voxel."""
    strides = [math.ceil(edge / steps) for edge in size]
    starts = [range(0, max(1, edge - stride), stride) for edge, stride in zip(size, strides, strict=True)]
    for corner in product(*starts):
        yield tuple(
            slice(start, min(start + 2 * stride, edge))
            for start, stride, edge in zip(corner, strides, size, strict=True)
        )


def _touched(sample: Sample, box: Box) -> list[int]:
    """The windows that a box reaches into."""
    inside = _in_padded(sample, box)
    return [
        number
        for number, window in enumerate(sample.windows)
        if all(a.start < b.stop and b.start < a.stop for a, b in zip(inside, window.place, strict=True))
    ]


def _in_padded(sample: Sample, box: Box) -> Box:
    return tuple(slice(part.start + low, part.stop + low) for part, low in zip(box, sample.lows, strict=True))


@torch.no_grad()
def _map(subject: Subject, sample: Sample, boxes: Sequence[Box]) -> tuple[Tensor, int]:
    """(K, *sp), and the passes that it took."""
    mean = sample.cropped(sample.image).flatten(1).mean(1)
    before = torch.stack([_scores(subject, sample, number, [])[0] for number in range(len(sample.windows))])
    falls = before.new_zeros((len(boxes), len(subject.classes)))
    passes = len(sample.windows)
    for number, window in enumerate(sample.windows):
        touching = [index for index, box in enumerate(boxes) if number in _touched(sample, box)]
        at_once = max(1, _BATCH_VOXELS // window.share.numel())
        for first in range(0, len(touching), at_once):
            batch = touching[first : first + at_once]
            after = _scores(subject, sample, number, [(_in_padded(sample, boxes[index]), mean) for index in batch])
            falls[batch] += before[number] - after
        passes += len(touching)
    total = falls.new_zeros((len(subject.classes), *sample.size))
    count = falls.new_zeros(sample.size)
    for box, fall in zip(boxes, falls, strict=True):
        total[(slice(None), *box)] += fall.view(-1, *[1] * len(sample.size))
        count[box] += 1
    return (total / count).cpu(), passes


def _scores(subject: Subject, sample: Sample, number: int, hidden: Sequence[tuple[Box, Tensor]]) -> Tensor:
    """(N, K) of a window with each of the boxes hidden; of the window as it is, without boxes."""
    window = sample.windows[number]
    images = []
    for box, value in hidden:
        image = sample.image.clone()
        image[(slice(None), *box)] = value.view(-1, *[1] * len(box))
        images.append(window.of(image))
    stack = torch.stack(images or [window.of(sample.image)])
    return scores(subject, subject.networks[0], window, stack)


METHOD = Method(
    name="occlusion",
    source="Zeiler and Fergus, ECCV 2014",
    means="positive: hiding it lowers the class's log-odds; negative: hiding it raises them",
    caveats=(
        "Occlusion shows the network images that it was not trained on: a grey box is no absence of a finding.",
        "What is told twice in the image may look unimportant, for either part may be hidden.",
    ),
    explain=explain,
    signed=True,
)

__all__ = ["METHOD", "explain", "fitting"]

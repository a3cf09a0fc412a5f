"""From an image to what the task says of it, whatever its size.

Convention: images are (C, *spatial) as preprocessed for the run. An image is zero-padded
evenly to at least the training patch and to multiples of the network's stride, and cropped back. What is then no larger
than `WHOLE` patches goes through the network at once; anything larger in overlapping patches with Gaussian weights
(MONAI's sliding window, after Isensee et al., Nature Methods 2021). Normalisation sees the statistics it was trained on
only near the training size: on retinas of 17 patches the whole image scored 0.018 Dice below the window, of 4 patches
0.011.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig

WHOLE = 2  # patches
_BATCH_VOXELS = 2**20  # per forward pass: bounds memory, and fills the vector units with small slices
OVERLAP = 0.25
WINDOWS = 4  # patches per forward pass of the sliding window


def predict_stack(model: nn.Module, images: Tensor, run: RunConfig, device: torch.device | str) -> Tensor:
    """Answer each item of a stack on its own, several at a time.

    Args:
        model: The run's network with its weights; left in evaluation mode on `device`.
        images: (S, C, *spatial) float32.
        run: The run the model comes from.
        device: Where to compute.

    Returns:
        (S, ...) what the run's task says of each, on the CPU; of a segmentation labels (S, *spatial) int64.
    """
    return torch.cat([run.task.answer(part).cpu() for part in outputs_of_parts(model, images, run, device)])


def outputs_of_parts(model: nn.Module, images: Tensor, run: RunConfig, device: torch.device | str) -> Iterator[Tensor]:
    """`outputs` of a stack, as many items at a time as a pass takes."""
    for part in torch.split(images, max(1, _BATCH_VOXELS // math.prod(images.shape[2:]))):
        yield outputs(model, part, run, device)


def precision(run: RunConfig, device: torch.device | str, *, training: bool = False) -> torch.autocast:
    """Arithmetic of the forward pass: bfloat16 where the processor has it, else, and when deterministic, float32.

    Weights, gradients, loss and optimiser stay float32. On an AVX512-BF16 CPU a training step takes 0.6-0.8 and
    prediction 0.4-0.7 of the time, with the loss equal to three decimals.

    Volumes are trained in float32 on a CPU: there torch 2.13's bfloat16 gradient of a 3 x 3 x 3 convolution's weights
    reads memory that it never wrote where the image is 2 voxels deep, and with it what other patients left behind.
    """
    kind = torch.device(device).type
    native = torch.cuda.is_bf16_supported() if kind == "cuda" else _cpu_has_bf16()
    unsafe = training and kind == "cpu" and run.model.dims == 3
    return torch.autocast(kind, torch.bfloat16, enabled=native and not run.deterministic and not unsafe)


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, run: RunConfig, device: torch.device | str) -> Tensor:
    """What the network puts out for each item of a stack, before its task makes an answer of it.

    Args:
        model: The run's network with its weights; left in evaluation mode on `device`.
        images: (S, C, *spatial) float32; padded to what the network takes, or in windows where larger.
        run: The run the model comes from.
        device: Where to compute.

    Returns:
        (S, K, *spatial) float32 on `device`, K outputs; of a network that answers an image as a whole (S, K), the mean
        over the windows where there are several.
    """
    model.to(device).eval()
    patch, spatial = run.training.patch_size, images.shape[2:]
    around = margins(spatial, run)
    padded = functional.pad(images.to(device), [side for pair in reversed(around) for side in pair])
    with precision(run, device):
        if math.prod(padded.shape[2:]) <= WHOLE * math.prod(patch):
            logits: Tensor = model(padded)
        elif run.model.DENSE:
            logits = _sliding_window(padded, patch, model)
        else:
            logits = _mean_of_windows(padded, patch, model)
    if not run.model.DENSE:
        return logits.float()
    for axis, ((low, _), size) in enumerate(zip(around, spatial, strict=True), start=2):
        logits = logits.narrow(axis, low, size)
    return logits.float()


def margins(spatial: Sequence[int], run: RunConfig) -> list[tuple[int, int]]:
    """Voxels of zero before and behind an image on each axis: to the training patch, and to the network's stride."""
    stride = run.model.stride
    lacking = [
        max(edge, math.ceil(size / stride) * stride) - size
        for edge, size in zip(run.training.patch_size, spatial, strict=True)
    ]
    return [(lack // 2, lack - lack // 2) for lack in lacking]


def _sliding_window(images: Tensor, patch: Sequence[int], model: nn.Module) -> Tensor:
    logits = sliding_window_inference(images, patch, WINDOWS, model, overlap=OVERLAP, mode="gaussian")
    assert isinstance(logits, Tensor)  # noqa: S101  # only a network with several outputs gives something else
    return logits


def _mean_of_windows(images: Tensor, patch: Sequence[int], model: nn.Module) -> Tensor:
    """(S, K) over `even_places`."""
    places = even_places(images.shape[2:], patch)
    total: Tensor | None = None
    for begin in range(0, len(places), WINDOWS):
        some = places[begin : begin + WINDOWS]
        windows = torch.cat([_window(images, place, patch) for place in some])
        summed = model(windows).float().unflatten(0, (len(some), len(images))).sum(0)
        total = summed if total is None else total + summed
    assert total is not None  # noqa: S101 - an image has a window at least
    return total / len(places)


def even_places(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, ...]]:
    """First voxels of windows of a patch, evenly spread over an image, that overlap by `OVERLAP` at least."""
    starts = []
    for size, edge in zip(shape, patch, strict=True):
        count = 1 + math.ceil((size - edge) / max(1, edge * (1 - OVERLAP)))
        starts.append([round(place * (size - edge) / max(1, count - 1)) for place in range(count)])
    return list(product(*starts))


def _window(images: Tensor, place: Sequence[int], patch: Sequence[int]) -> Tensor:
    for axis, (start, edge) in enumerate(zip(place, patch, strict=True), start=2):
        images = images.narrow(axis, start, edge)
    return images


def _cpu_has_bf16() -> bool:
    # Without the instructions bfloat16 is emulated, and slower than float32.
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


__all__ = [
    "OVERLAP",
    "WHOLE",
    "WINDOWS",
    "even_places",
    "margins",
    "outputs",
    "outputs_of_parts",
    "precision",
    "predict_stack",
]

"""Integrated gradients: what each voxel adds to the explained number on the way from a blurred image to this one.

The sum over a map is the number for the image less that for the blurred one (Sundararajan et al., ICML 2017); the share
of it that the numerical rule misses is told. The image is blurred, and not of one grey: a network that normalises each
sample sees the same image whatever its contrast, so that on the way from grey all would happen at the first step.
Blurred by a Gaussian of an eighth of each edge, the finding is gone and the contrast is not (Sturmfels et al., Distill
2020). The zeros around the image stay, and the channels of a voxel are added.
"""

import torch
from torch import Tensor

from client.explain.attribution import integrated_gradients
from client.explain.method import Answer, Method, Subject
from client.explain.windows import Sample, Window, samples, scores

STEPS = 32
_BLUR = 1 / 8
_BATCH_VOXELS = 2**19


def explain(subject: Subject) -> Answer:
    """A map for each class. numbers: NAME-remainder, the largest share of the difference that the rule missed.

    Raises:
        ConfigError: captum is not installed.
    """
    maps, remainders, passes = [], [], 0
    for sample in samples(subject):
        found, remainder = _map(subject, sample)
        maps.append(found)
        remainders.append(remainder)
        passes += (STEPS + 2) * len(sample.windows) * len(subject.classes)
        subject.step()
    whole, worst = torch.stack(maps), torch.stack(remainders).amax(0)
    return Answer(
        {name: whole[:, k] for k, name in enumerate(subject.classes)},
        {f"{name}-remainder": float(worst[k]) for k, name in enumerate(subject.classes)},
        passes,
        {"steps": STEPS, "baseline": "blurred by an eighth of each edge"},
    )


def _map(subject: Subject, sample: Sample) -> tuple[Tensor, Tensor]:
    """(K, *sp), and for each class the share of the difference that is missing."""
    network = subject.networks[0]
    baseline = sample.image.clone()
    sample.cropped(baseline)[:] = _blurred(sample.cropped(sample.image))
    parts, missing = [], sample.image.new_zeros(len(subject.classes))
    differences = torch.zeros_like(missing)
    for window in sample.windows:
        image, start = window.of(sample.image)[None], window.of(baseline)[None]
        found = []
        for k in range(len(subject.classes)):

            def score(images: Tensor, k: int = k, window: Window = window) -> Tensor:
                return scores(subject, network, window, images)[:, k]

            at_once = max(1, _BATCH_VOXELS // window.share.numel())
            attribution = integrated_gradients(score, image, start, steps=STEPS, at_once=at_once)[0].sum(0)
            with torch.no_grad():
                difference = (score(image) - score(start))[0]
            differences[k] += difference
            missing[k] += difference - attribution.sum()
            found.append(attribution)
        parts.append(torch.stack(found))
    return sample.added(parts).cpu(), (missing.abs() / differences.abs().clamp_min(1e-6)).cpu()


def _blurred(image: Tensor) -> Tensor:
    """(C, *sp), each channel by itself."""
    from scipy.ndimage import gaussian_filter  # noqa: PLC0415 - heavy

    widths = [0.0, *(edge * _BLUR for edge in image.shape[1:])]
    return torch.from_numpy(gaussian_filter(image.cpu().numpy(), widths, mode="nearest")).to(image.device)


METHOD = Method(
    name="integrated-gradients",
    source="Sundararajan et al., ICML 2017, by captum",
    means="positive: that the voxel is as it is, and not blurred, speaks for the class; negative: against it",
    caveats=(
        "Integrated gradients compare with the blurred image: what blurring leaves as it is counts nothing.",
        "They are noisy voxel by voxel: look at regions.",
    ),
    explain=explain,
    signed=True,
)

__all__ = ["METHOD", "STEPS", "explain"]

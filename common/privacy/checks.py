"""What no private step may meet: layers, losses and buffers through which one patient reaches another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError

_ROUNDING = 1e-3  # of a loss


def check_model(model: nn.Module) -> None:
    """Refuse layers whose output or state for one patient depends on others.

    Raises:
        PrivacyError: names the layer and what to use instead.
    """
    for name, module in model.named_modules():
        # By name, so that variants outside torch are seen too; frozen and affine-free ones carry statistics as well.
        batch_norm = any("batchnorm" in kind.__name__.lower() for kind in type(module).__mro__)
        if batch_norm or getattr(module, "track_running_stats", False):
            raise PrivacyError(
                f"layer {name or 'model'!r} is a {type(module).__name__} that keeps statistics over patients, which "
                "voids differential privacy. Use GroupNorm, or InstanceNorm without running statistics: [model] norm = "
                '"group" or "instance".',
                ErrorCode.UNSUPPORTED,
            )


def check_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> None:
    """Refuse a loss that is not the mean of its samples' losses.

    Args:
        loss: (logits (N, K, *spatial), labels (N, ...)) -> scalar.
        logits: (2, K, *spatial) of two random samples that differ.
        labels: (2, ...) likewise.

    Raises:
        PrivacyError: says what to use instead.
    """
    with torch.no_grad():
        both = loss(logits, labels)
        apart = torch.stack([loss(logits[one : one + 1], labels[one : one + 1]) for one in range(2)])
    if both.ndim or bool((both - apart.mean()).abs() > _ROUNDING * apart.abs().max()):
        raise PrivacyError(
            "the loss of two crops is not the mean of their losses: it sums over the batch or couples its samples, so "
            "a patient's crops cannot be averaged. Use the mean over the samples of a loss of each, such as "
            "common.losses.terms.dice_ce; of MONAI's losses batch=False and reduction='mean'.",
            ErrorCode.UNSUPPORTED,
        )


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose buffers change meanwhile, and restore them then.

    Raises:
        PrivacyError: names the buffer.
    """
    before = [(name, buffer, buffer.clone()) for name, buffer in model.named_buffers()]
    yield
    changed = [name for name, now, then in before if not torch.equal(now, then)]
    if changed:
        for _, now, then in before:
            now.copy_(then)
        raise PrivacyError(
            f"buffer {changed[0]!r} changed during the forward pass: it carries patients' data past clipping and "
            "noise. Use layers without running statistics.",
            ErrorCode.UNSUPPORTED,
        )


__all__ = ["check_loss", "check_model", "unchanged_buffers"]

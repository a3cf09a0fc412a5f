"""The gradient of each patient's loss, computed in one of three ways that agree up to rounding.

Convention: a patient is (crops (N, C, *spatial), labels (N, ...)) with a seed; their loss is the mean over their crops,
computed from their own logits alone, so that no loss can couple two patients. All crops of a patient give one gradient
in one pass; it is never taken crop by crop. A gradient that is not finite is handed on as it is: what becomes of it is
for the step to say, since raising would tell that there was such a patient.

- one at a time: plain autograd, a patient after the other, each from a random state of their own. Works for every
  network, and is the only way for one that draws random numbers (dropout).
- book-keeping: all patients in one forward and one backward pass; see `common.privacy.bookkeeping`.
- vectorised: `vmap` over `grad` of the whole network (https://docs.pytorch.org/docs/stable/func.html).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.privacy import bookkeeping
from common.privacy.patient import Loss, Patient


class Strategy(StrEnum):
    """How patients' gradients are computed."""

    ONE_AT_A_TIME = "one at a time"
    BOOK_KEEPING = "book-keeping"
    VECTORISED = "vectorised"


@dataclass(frozen=True, eq=False)
class Gradients:
    """Of P patients, before clipping."""

    losses: Tensor  # (P)
    of: Mapping[nn.Parameter, Tensor]  # (P, *shape)


def patient_gradients(
    model: nn.Module, loss: Loss, patients: Sequence[Patient], strategy: Strategy, *, max_crops: int | None = None
) -> Gradients:
    """Differentiate each patient's loss with respect to every trainable parameter.

    Args:
        model: its weights, and the gradients stored beside them, are left alone.
        loss: (logits (N, K, *spatial), labels (N, ...)) -> scalar, the mean over a patient's crops.
        patients: at least one; all of one shape, except for ONE_AT_A_TIME.
        strategy: how.
        max_crops: a patient with more goes through the network in pieces, and one at a time. None: no bound.

    Raises:
        PrivacyError: a parameter is unused, or the strategy does not cover the network.
    """
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if max_crops and any(len(patient.crops) > max_crops for patient in patients):
        strategy = Strategy.ONE_AT_A_TIME  # the only one that can take a patient in pieces
    match strategy:
        case Strategy.ONE_AT_A_TIME:
            losses, found = _one_at_a_time(model, loss, patients, list(names), max_crops)
        case Strategy.BOOK_KEEPING:
            losses, found = bookkeeping.gradients(model, loss, patients)
        case Strategy.VECTORISED:
            losses, found = _vectorised(model, loss, patients, names)
    return Gradients(losses, {parameter: _checked(found.get(parameter), name) for parameter, name in names.items()})


def _one_at_a_time(
    model: nn.Module, loss: Loss, patients: Sequence[Patient], parameters: Sequence[nn.Parameter], max_crops: int | None
) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    losses: list[Tensor] = []
    columns: dict[nn.Parameter, list[Tensor]] = {}
    for crops, labels, seed in patients:
        torch.manual_seed(secrets.randbits(63) if seed is None else seed)
        size = max_crops or len(crops)
        pieces = [
            _one(model, loss, *piece, parameters)
            for piece in zip(torch.split(crops, size), torch.split(labels, size), strict=True)
        ]
        # Means of pieces, weighed so that they add up to the mean over all crops.
        shares = [len(piece) / len(crops) for piece in torch.split(crops, size)]
        losses.append(_weighted([value for value, _ in pieces], shares))
        for parameter, *parts in zip(parameters, *(row for _, row in pieces), strict=True):
            if None not in parts:
                columns.setdefault(parameter, []).append(_weighted(parts, shares))
    return torch.stack(losses), {
        # One patient, the usual case, is not copied.
        parameter: column[0].unsqueeze(0) if len(column) == 1 else torch.stack(column)
        for parameter, column in columns.items()
    }


def _one(
    model: nn.Module, loss: Loss, crops: Tensor, labels: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    value = loss(model(crops), labels)
    return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True)


def _weighted(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part * share for part, share in zip(parts, shares, strict=True)]).sum(0)


def _vectorised(
    model: nn.Module, loss: Loss, patients: Sequence[Patient], names: Mapping[nn.Parameter, str]
) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    owned = [parameter for module in model.modules() for parameter in module.parameters(recurse=False)]
    for parameter, name in names.items():
        if sum(parameter is one for one in owned) > 1:
            raise PrivacyError(
                f"vectorised gradients cannot be used: two layers share {name!r}. Use the strategy 'one at a time'.",
                ErrorCode.UNSUPPORTED,
            )

    def of_one(weights: dict[str, Tensor], crops: Tensor, labels: Tensor) -> Tensor:
        # With its default of tying weights, torch 2.13 leaves its own tensors behind in a model that holds one layer
        # under two names (DynUNet).
        return loss(torch.func.functional_call(model, weights, (crops,), tie_weights=False), labels)

    weights = {name: parameter.detach() for parameter, name in names.items()}
    crops = torch.stack([patient.crops for patient in patients])
    labels = torch.stack([patient.labels for patient in patients])
    differentiated = torch.func.vmap(torch.func.grad_and_value(of_one), in_dims=(None, 0, 0), randomness="different")
    found, losses = differentiated(weights, crops, labels)
    return losses, {parameter: found[name] for parameter, name in names.items()}


def _checked(gradient: Tensor | None, name: str) -> Tensor:
    if gradient is None:
        raise PrivacyError(
            f"unused parameter {name!r}: the loss does not depend on it, so its gradient cannot be bounded. Remove it "
            "from the model, or set requires_grad to False.",
            ErrorCode.UNSUPPORTED,
        )
    return gradient


__all__ = ["Gradients", "Strategy", "patient_gradients"]

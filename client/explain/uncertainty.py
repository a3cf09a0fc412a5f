"""Uncertainty: how far several answers to one image differ, by dropout or by an ensemble of models.

dropout: the network answers several times with its dropout at work, as in training (Gal and Ghahramani, ICML 2016).
ensemble: several models answer once each, such as those of several rounds or runs (Lakshminarayanan et al., NeurIPS
2017). Of each class and voxel p is the mean of its probabilities. The entropy is that of "this class or not" in bits,

    -p log2 p - (1 - p) log2(1 - p),    from 0 (certain) to 1 (p = 1/2),

and the deviation is the standard deviation of the probabilities over the answers: the part of the uncertainty that
comes from the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.explain.method import Answer, Method, Subject
from client.explain.windows import Sample, answer, samples
from common.errors import ConfigError

DRAWS = 20
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def by_dropout(subject: Subject) -> Answer:
    """Entropy and deviation of each class over `DRAWS` answers.

    Raises:
        ConfigError: the network has no dropout.
    """
    network = subject.networks[0]
    if not _working(network):
        raise ConfigError(
            "the network has no dropout, so its answers do not differ. Train with [model] dropout, or take "
            "uncertainty-ensemble with --member."
        )
    with dropping(network, subject.seed):
        return _spread(subject, [network] * DRAWS, {"draws": DRAWS})


def by_ensemble(subject: Subject) -> Answer:
    """Entropy and deviation of each class over the members.

    Raises:
        ConfigError: there is one model only.
    """
    if len(subject.networks) < 2:
        raise ConfigError("an ensemble is of two models or more. Give the others with --member MODEL, once each.")
    return _spread(subject, subject.networks, {"members": len(subject.networks)})


@contextmanager
def dropping(network: nn.Module, seed: int) -> Iterator[None]:
    """Dropout at work, drawn from a seed; all else of the network stays in evaluation mode."""
    layers = _working(network)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            for layer in layers:
                layer.train()
            yield
        finally:
            for layer in layers:
                layer.eval()


def entropy(probability: Tensor) -> Tensor:
    """Of "this class or not", in bits."""
    both = torch.stack([probability, 1 - probability])
    return -torch.xlogy(both, both).sum(0) / torch.log(torch.tensor(2.0))


def _working(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _DROPOUTS) and module.p > 0]


@torch.no_grad()
def _spread(subject: Subject, networks: Sequence[nn.Module], settings: dict[str, object]) -> Answer:
    found, passes = [], 0
    for sample in samples(subject):
        answers = torch.stack([_probabilities(subject, sample, network) for network in networks])
        found.append(torch.stack([entropy(answers.mean(0)), answers.std(0, correction=0)]).cpu())
        passes += len(networks) * len(sample.windows)
        subject.step()
    whole = torch.stack(found)  # (S, 2, K, *sp), or (S, 2, K) of an answer for the image as a whole
    named = {
        f"{name}-{what}": whole[:, kind, k]
        for k, name in enumerate(subject.classes)
        for kind, what in enumerate(("entropy", "deviation"))
    }
    if whole.ndim == 3:
        return Answer({}, {name: float(values.mean()) for name, values in named.items()}, passes, settings)
    return Answer(named, passes=passes, settings=settings)


def _probabilities(subject: Subject, sample: Sample, network: nn.Module) -> Tensor:
    """(K, *sp) of the classes asked for; the windows' logits are blended first, as in prediction."""
    logits = answer(network, sample, subject.run)
    return subject.run.task.log_odds(logits[None])[0, subject.indices].sigmoid()


_MEANS = "high: the answers differ, or are near one half"
_CAVEATS = (
    "A model that is wrong can be certain: low uncertainty is no evidence that the answer is right.",
    "The probabilities are the model's own, and nobody has calibrated them for this image.",
)
DROPOUT = Method("uncertainty-dropout", "Gal and Ghahramani, ICML 2016", _MEANS, _CAVEATS, by_dropout)
ENSEMBLE = Method(
    "uncertainty-ensemble",
    "Lakshminarayanan et al., NeurIPS 2017",
    _MEANS,
    (*_CAVEATS, "Models of one run started from the same weights and saw the same patients: they agree too much."),
    by_ensemble,
    ensemble=True,
)

__all__ = ["DRAWS", "DROPOUT", "ENSEMBLE", "by_dropout", "by_ensemble", "dropping", "entropy"]

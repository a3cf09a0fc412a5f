"""Mixup against torch's cross entropy of mixed labels; refused where it has no meaning or couples patients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from common.config import RunConfig, validate
from common.errors import ConfigError
from common.learning.augment import mixup
from common.learning.augment.mixup import mixed_loss
from common.tasks.classification import Classification
from tests.simulations.tiny import tiny_run_of_format


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Seen(nn.Module):
    """Remembers what it was shown."""

    def forward(self, crops: Tensor) -> Tensor:
        self.crops = crops
        return torch.cat([crops, crops**2, -crops], 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_the_cross_entropy_of_the_mixed_label(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = torch.rand(6, 1, 4, 4, generator=generator(seed))
    numbers = torch.tensor([0, 1, 2, 0, 1, 2])
    labels = numbers.view(-1, 1, 1).expand(-1, 4, 4)
    network = _Seen()
    monkeypatch.setattr(mixup, "_share", lambda *_: 0.3)
    found = mixed_loss(network, Classification().loss, (crops, labels), 0.2, generator(seed))
    order = torch.randperm(6, generator=generator(seed))
    mixed = 0.3 * crops + 0.7 * crops[order]
    torch.testing.assert_close(network.crops, mixed)
    one_hot = functional.one_hot(numbers, 3).float()
    logits = torch.cat([mixed, mixed**2, -mixed], 1).flatten(2).mean(2)
    torch.testing.assert_close(found, functional.cross_entropy(logits, 0.3 * one_hot + 0.7 * one_hot[order]))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    stream = generator()
    shares = torch.tensor([mixup._share(alpha, stream) for _ in range(4000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_the_generator_alone_decides() -> None:
    crops, labels = torch.rand(4, 1, 4, 4, generator=generator()), torch.ones(4, 4, 4, dtype=torch.int64)
    seen = [
        float(mixed_loss(_Seen(), Classification().loss, (crops, labels), 0.5, generator(seed))) for seed in (1, 1, 2)
    ]
    assert seen[0] == seen[1] != seen[2]


MIXED = {"patch-size": [16, 16], "augmentation": {"mixup": 0.2}}


def test_segmentation_and_private_runs_refuse_it() -> None:
    with pytest.raises(ConfigError, match="is for classification"):
        tiny_run_of_format(2, training=MIXED)
    with pytest.raises(ConfigError, match="each gradient is one patient's"):
        tiny_run_of_format(
            2, training=MIXED, task={"kind": "classification"}, privacy={"target-epsilon": 8.0, "sampling-rate": 0.5}
        )
    assert validate(RunConfig, tiny_run_of_format(2, training=MIXED, task={"kind": "classification"}).model_dump())

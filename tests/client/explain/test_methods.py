"""Each method against numbers that are known otherwise: by hand for a linear network, else by captum and SciPy."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from captum.attr import LayerGradCam
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from client.explain import METHODS, attention, grad_cam, integrated_gradients, occlusion, uncertainty
from client.explain.method import Subject
from client.explain.windows import explained_numbers
from common.errors import ConfigError
from common.learning.inference import outputs
from common.models import NETWORK_CHOICE
from tests.client.explain.subjects import SLOPE, linear_network, linear_subject, log_odds, subject_of

SMALL: dict[str, dict[str, object]] = {"plain-unet": {"filters": 4, "levels": 3}, "dynunet": {"channels": [4, 8, 16]}}
SMALL |= {"cnn": {"channels": [4, 8]}, "resnet": {"filters": 4, "depth": 10}}
SMALL |= {"segresnet": {"channels": [4, 8]}, "wnet": {"channels": [4, 8, 16]}}


def small(name: str) -> dict[str, object]:
    dropout = {} if name == "resnet" else {"dropout": 0.25}
    return {"architecture": name} | dropout | SMALL.get(name, {"channels": [4, 8, 16]})


def expected_regions(subject: Subject) -> list[torch.Tensor]:
    return [region[0] for region in subject.regions]


@pytest.mark.parametrize("size", [(20, 24), (61, 45)], ids=["at once", "in windows"])
def test_the_number_that_is_explained_is_the_mean_of_the_log_odds_that_prediction_gives_the_region(
    size: tuple[int, int],
) -> None:
    subject = linear_subject((2, *size))
    by_prediction = outputs(linear_network(), subject.samples, subject.run, "cpu")
    odds = by_prediction[:, 1] - by_prediction[:, 0]
    wanted = [float(one[region].mean()) for one, region in zip(odds, expected_regions(subject), strict=True)]
    assert explained_numbers(subject)[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_where_the_model_found_nothing_the_whole_image_is_explained() -> None:
    subject = linear_subject((1, 20, 24))
    nothing = replace(subject, regions=torch.zeros_like(subject.regions))
    assert float(explained_numbers(nothing)) == pytest.approx(float(log_odds(subject).mean()), abs=1e-5)


@pytest.mark.parametrize("size", [(19, 24), (61, 45), (9, 17, 12)], ids=["at once", "in windows", "3D"])
def test_occlusion_of_a_linear_network_is_what_the_box_holds_beyond_the_mean(size: tuple[int, ...]) -> None:
    subject = linear_subject((1, *size), patch=16 if len(size) == 2 else 8, passes=400)
    answer = occlusion.explain(subject)
    image, region = subject.samples[0, 0].numpy(), subject.regions[0, 0].numpy()
    gain = np.where(region, SLOPE * (image - image.mean()) / region.sum(), 0.0)
    edges = answer.settings["box-voxels"][0]  # type: ignore[index]
    total, count = np.zeros(size), np.zeros(size)
    steps = [edge // 2 for edge in edges]
    counts = [max(1, -(-(edge - step) // step)) for edge, step in zip(size, steps, strict=True)]
    for corner in np.ndindex(*counts):
        box = tuple(slice(at * step, (at + 2) * step) for at, step in zip(corner, steps, strict=True))
        total[box] += gain[box].sum()
        count[box] += 1
    assert count.min() >= 1
    np.testing.assert_allclose(answer.maps["lesion"][0].numpy(), total / count, atol=1e-4)


def test_occlusion_keeps_to_its_passes() -> None:
    subject = subject_of(small("unet"), (40, 56), passes=64)
    answer = occlusion.explain(subject)
    assert answer.passes <= 64 + 40  # and once each window as it is
    finer = occlusion.explain(linear_subject((1, 40, 56), passes=900))
    assert answer.settings["box-voxels"] > finer.settings["box-voxels"]  # type: ignore[operator]


@pytest.mark.parametrize("size", [(19, 24), (61, 45)], ids=["at once", "in windows"])
def test_integrated_gradients_of_a_linear_network_are_its_slope_times_the_way(size: tuple[int, int]) -> None:
    subject = linear_subject((1, *size))
    answer = integrated_gradients.explain(subject)
    image, region = subject.samples[0, 0].numpy(), subject.regions[0, 0].numpy()
    blurred = gaussian_filter(image, [edge / 8 for edge in size], mode="nearest")
    wanted = np.where(region, SLOPE * (image - blurred) / region.sum(), 0.0)
    np.testing.assert_allclose(answer.maps["lesion"][0].numpy(), wanted, atol=1e-5)
    assert answer.numbers["lesion-remainder"] < 1e-3


def test_without_captum_integrated_gradients_say_what_to_install_and_the_others_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    subject = subject_of(small("attention-unet"), (20, 24), passes=20)
    with pytest.raises(ConfigError, match=r"pip install 'wardround\[explain\]'"):
        integrated_gradients.explain(subject)
    for method in METHODS:
        if method.name not in ("integrated-gradients", "uncertainty-ensemble"):
            assert method.explain(subject).maps


@pytest.mark.parametrize("name", NETWORK_CHOICE.by_name)
@pytest.mark.parametrize("size", [(15, 12), (37, 41), (9, 11, 13)], ids=["small", "in windows", "3D"])
def test_every_network_has_a_grad_cam_on_the_grid_of_its_image(name: str, size: tuple[int, ...]) -> None:
    dense = subject_of(small(name), size).run.task.DRAWS
    for layer in grad_cam.LAYERS if dense else grad_cam.LAYERS[:1]:
        subject = subject_of(small(name), size, layer=layer)
        (values,) = grad_cam.explain(subject).maps["lesion"]
        assert values.shape == size
        assert values.isfinite().all()
        assert values.min() >= 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.networks[0].modules())


KINDS = {
    "one class": ({"kind": "classification"}, ("a",)),
    "several": ({"kind": "classification"}, ("a", "b", "c")),
    "multi-label": ({"kind": "classification", "multi-label": True}, ("a", "b")),
    "regions": ({"kind": "classification", "of": "region"}, ("a", "b")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["cnn", "unet"])
def test_what_is_explained_of_a_classifier_are_the_log_odds_of_its_probabilities(name: str, kind: str) -> None:
    """In windows too, where these average the logits: equal unless a softmax has three outputs or more."""
    task, names = KINDS[kind]
    for size in ((17, 13), (61, 45)):
        subject = subject_of(small(name), size, task=task, names=names)
        logits = subject.run.task.answer(outputs(subject.networks[0], subject.samples, subject.run, "cpu"))
        chances = subject.run.task.chances(logits)[:, -len(names) :]  # type: ignore[attr-defined]
        wanted = (chances / (1 - chances)).log()
        torch.testing.assert_close(explained_numbers(subject), wanted, atol=2e-3 if kind == "several" else 1e-4, rtol=0)


def test_a_classifier_is_explained_by_every_method_that_needs_no_gates() -> None:
    subject = subject_of(small("cnn"), (41, 30), passes=60)
    fall = occlusion.explain(subject).maps["lesion"]
    assert fall.shape == (1, 41, 30)
    assert integrated_gradients.explain(subject).numbers["lesion-remainder"] < 0.1
    spread = uncertainty.by_dropout(subject)
    assert not spread.maps
    assert 0 <= spread.numbers["lesion-entropy"] <= 1
    with pytest.raises(ConfigError, match="--layer deepest"):
        grad_cam.explain(replace(subject, layer="last"))


def test_grad_cam_is_captums_of_the_deepest_layer() -> None:
    subject = subject_of(small("plain-unet"), (16, 24))
    network, region = subject.networks[0], subject.regions[0, 0]

    def score(images: torch.Tensor) -> torch.Tensor:
        logits = network(images)
        margin: torch.Tensor = logits[:, 1] - logits[:, 0]
        return margin[:, region].mean(1)

    by_captum = LayerGradCam(score, network.down[-1]).attribute(subject.samples, relu_attributions=True)  # type: ignore[index]
    wanted = functional.interpolate(by_captum, (16, 24), mode="bilinear")[0, 0].detach()
    assert wanted.max() > 0
    torch.testing.assert_close(grad_cam.explain(subject).maps["lesion"][0], wanted)


def test_before_a_head_of_one_voxel_grad_cam_is_the_positive_logit_without_its_bias() -> None:
    """Which is why `last` is not the default."""
    subject = subject_of(small("plain-unet"), (16, 24), layer="last")
    network = subject.networks[0]
    with torch.no_grad():
        logits, bias = network(subject.samples)[0], network.head.bias  # type: ignore[union-attr]
    margin = (logits[1] - bias[1]) - (logits[0] - bias[0])  # type: ignore[index]
    share = subject.regions.float().mean() / subject.regions.sum()
    torch.testing.assert_close(grad_cam.explain(subject).maps["lesion"][0], (margin * share).relu())


def test_attention_is_what_the_gates_put_out() -> None:
    subject = subject_of(small("attention-unet"), (16, 32))
    seen: list[torch.Tensor] = []
    network = subject.networks[0]
    gates = [module for name, module in network.named_modules() if name.endswith("attention.psi")]
    hooks = [gate.register_forward_hook(lambda _m, _i, output: seen.append(output)) for gate in gates]
    with torch.no_grad():
        network(subject.samples)
    for hook in hooks:
        hook.remove()
    maps = attention.explain(subject).maps
    assert list(maps) == ["gate-1", "gate-2"]
    finest = max(seen, key=lambda one: one.numel())
    torch.testing.assert_close(maps["gate-1"][0], finest[0, 0])
    assert all(values.min() >= 0 and values.max() <= 1 for values in maps.values())


def test_network_without_gates_has_no_attention() -> None:
    with pytest.raises(ConfigError, match="no attention gates"):
        attention.explain(subject_of(small("unet"), (16, 24)))


def test_network_without_dropout_has_no_uncertainty_by_dropout() -> None:
    with pytest.raises(ConfigError, match="no dropout"):
        uncertainty.by_dropout(subject_of({"architecture": "unet", "channels": [4, 8]}, (16, 24)))


def test_dropout_is_drawn_from_the_seed_and_the_network_stays_as_it_was() -> None:
    subject = subject_of(small("unet"), (16, 24), seed=5)
    state = torch.get_rng_state()
    first, again = uncertainty.by_dropout(subject), uncertainty.by_dropout(subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in subject.networks[0].modules())
    other = uncertainty.by_dropout(subject_of(small("unet"), (16, 24), seed=6))
    for name, values in first.maps.items():
        assert torch.equal(values, again.maps[name])
        assert not torch.equal(values, other.maps[name])
    assert first.maps["lesion-deviation"].max() > 0


def test_ensemble_has_the_entropy_and_deviation_of_its_members() -> None:
    subject = linear_subject((1, 20, 24))
    other = linear_network()
    with torch.no_grad():
        other.bias[1] += 2.0  # type: ignore[index, operator]
    pair = replace(subject, networks=[subject.networks[0], other])
    maps = uncertainty.by_ensemble(pair).maps
    one, two = (1 / (1 + np.exp(-(log_odds(subject)[0].numpy() + more))) for more in (0.0, 2.0))
    mean = (one + two) / 2
    wanted = scipy.stats.entropy(np.stack([mean, 1 - mean]), base=2, axis=0)
    np.testing.assert_allclose(maps["lesion-entropy"][0].numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(maps["lesion-deviation"][0].numpy(), np.abs(one - two) / 2, atol=1e-5)
    with pytest.raises(ConfigError, match="--member"):
        uncertainty.by_ensemble(subject)

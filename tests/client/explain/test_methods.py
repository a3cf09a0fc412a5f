"""Each method against numbers that are known otherwise: by hand for a linear network, else by captum and SciPy."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from captum.attr import LayerGradCam
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from client.explain import (
    METHODS,
    attention,
    attribution,
    grad_cam,
    integrated_gradients,
    occlusion,
    uncertainty,
    windows,
)
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


def test_what_is_explained_of_some_classes_are_their_own_log_odds() -> None:
    """By hand from what prediction puts out: the logit less the log of the sum of the others' exponents."""
    subject = subject_of(small("plain-unet"), (20, 24), names=("a", "b", "c"))
    regions = torch.zeros(1, 2, 20, 24, dtype=torch.bool)
    regions[0, 0, 3:9, 4:20], regions[0, 1, 10:15] = True, True
    subject = replace(subject, regions=regions, classes=("c", "a"))
    logits = outputs(subject.networks[0], subject.samples, subject.run, "cpu")[0]
    for place, number in enumerate((3, 1)):
        others = torch.cat([logits[:number], logits[number + 1 :]]).logsumexp(0)
        wanted = float((logits[number] - others)[regions[0, place]].mean())
        assert float(explained_numbers(subject)[0, place]) == pytest.approx(wanted, abs=1e-5)
    every = replace(subject, regions=torch.zeros(1, 3, 20, 24, dtype=torch.bool), classes=("a", "b", "c"))
    some, all_ = (uncertainty.by_dropout(one).maps for one in (subject, every))
    assert {name.partition("-")[0] for name in some} == {"a", "c"}
    for name, values in some.items():
        torch.testing.assert_close(values, all_[name])


@pytest.mark.parametrize("size", [(15, 12), (9, 11, 13)], ids=["2D", "3D"])
@pytest.mark.parametrize("name", [name for name in NETWORK_CHOICE.by_name if name != "resnet"])
def test_every_network_with_dropout_has_uncertainty_by_it(name: str, size: tuple[int, ...]) -> None:
    answer = uncertainty.by_dropout(subject_of(small(name), size))
    found = answer.maps.get("lesion-deviation")
    deviation = answer.numbers["lesion-deviation"] if found is None else float(found.max())
    assert deviation > 0


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
    of_two = occlusion.explain(linear_subject((2, 40, 56), passes=200))
    assert of_two.passes <= 200 + 2 * 40
    finer = occlusion.explain(linear_subject((1, 40, 56), passes=900))
    assert answer.settings["box-voxels"] > finer.settings["box-voxels"]  # type: ignore[operator]


def test_occlusion_computes_anew_only_the_windows_that_a_box_touches() -> None:
    subject = linear_subject((1, 61, 45), passes=400)
    (sample,) = windows.samples(subject)
    pairs = 0
    for box in occlusion.fitting(sample, 400):
        hidden = np.zeros((61, 45), bool)
        hidden[box] = True
        around = [
            (low, edge - low - size)
            for low, edge, size in zip(sample.lows, sample.image.shape[1:], sample.size, strict=True)
        ]
        pairs += sum(bool(np.pad(hidden, around)[window.place].any()) for window in sample.windows)
    assert occlusion.explain(subject).passes == pairs + len(sample.windows)


@pytest.mark.parametrize("size", [(19, 24), (61, 45)], ids=["at once", "in windows"])
def test_integrated_gradients_of_a_linear_network_are_its_slope_times_the_way(size: tuple[int, int]) -> None:
    subject = linear_subject((1, *size))
    answer = integrated_gradients.explain(subject)
    image, region = subject.samples[0, 0].numpy(), subject.regions[0, 0].numpy()
    blurred = gaussian_filter(image, [edge / 8 for edge in size], mode="nearest")
    wanted = np.where(region, SLOPE * (image - blurred) / region.sum(), 0.0)
    np.testing.assert_allclose(answer.maps["lesion"][0].numpy(), wanted, atol=1e-5)
    assert answer.numbers["lesion-remainder"] < 1e-3


@pytest.mark.parametrize("size", [(19, 24), (61, 45)], ids=["at once", "in windows"])
def test_channels_are_hidden_and_blurred_each_by_itself_and_added(size: tuple[int, int]) -> None:
    """Of a network that is linear in three channels: each adds by its own slope what it has beyond its own mean."""
    slopes = torch.tensor([3.0, -2.0, 0.5])
    network = torch.nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[1, :, 0, 0] = slopes
    samples = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4)) + torch.arange(3.0).view(1, 3, 1, 1)
    subject = replace(linear_subject((1, *size), passes=400), networks=[network.eval()], samples=samples)
    image, region = samples[0].double().numpy(), subject.regions[0, 0].numpy()
    by_channel = slopes.numpy()[:, None, None] / region.sum() * region
    blurred = np.stack([gaussian_filter(one, [edge / 8 for edge in size], mode="nearest") for one in image])
    found = integrated_gradients.explain(subject).maps["lesion"][0].numpy()
    np.testing.assert_allclose(found, (by_channel * (image - blurred)).sum(0), atol=1e-4)
    gain = (by_channel * (image - image.mean((1, 2), keepdims=True))).sum(0)
    answer = occlusion.explain(subject)
    box = answer.settings["box-voxels"][0]  # type: ignore[index]
    corner = gain[: box[0], : box[1]].sum()  # the first voxels lie in the first box alone
    np.testing.assert_allclose(answer.maps["lesion"][0].numpy()[0, 0], corner, atol=1e-4)


def test_integrated_gradients_of_each_class_add_up_to_what_its_number_gains() -> None:
    subject = subject_of({"architecture": "unet", "channels": [4, 8]}, (20, 24), names=("a", "b", "c"))
    regions = subject.regions.clone()
    regions[0, 1, 10:18, 3:20], regions[0, 2, 2:9, 12:22] = True, True
    subject = replace(subject, regions=regions, classes=("c", "a"))
    subject = replace(subject, regions=regions[:, [2, 0]])
    blurred = gaussian_filter(subject.samples[0, 0].numpy(), [20 / 8, 24 / 8], mode="nearest")
    start = replace(subject, samples=torch.from_numpy(blurred)[None, None])
    gained = explained_numbers(subject)[0] - explained_numbers(start)[0]
    apart = abs(float(gained[0] - gained[1]))
    assert apart > 1e-3
    maps = integrated_gradients.explain(subject).maps
    assert list(maps) == ["c", "a"]
    for name, expected in zip(maps, gained.tolist(), strict=True):
        assert float(maps[name].sum()) == pytest.approx(expected, abs=0.2 * apart)


def test_the_remainder_is_the_largest_share_that_the_rule_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that gives a tenth too much for one sample, and four tenths too much for the other."""
    exact, too_much = attribution.integrated_gradients, iter([1.4, 1.1])

    def off(*given: Any, **options: Any) -> torch.Tensor:
        return exact(*given, **options) * next(too_much)

    monkeypatch.setattr(integrated_gradients, "integrated_gradients", off)
    told = integrated_gradients.explain(linear_subject((2, 20, 24))).numbers["lesion-remainder"]
    assert told == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("name", ["grad-cam", "occlusion", "integrated-gradients", "attention", "uncertainty-dropout"])
def test_passes_are_the_images_that_went_through_the_network(name: str) -> None:
    (method,) = [one for one in METHODS if one.name == name]
    subject = subject_of(small("attention-unet"), (30, 20), passes=60, names=("lesion", "organ"))
    subject = replace(subject, samples=subject.samples.repeat(2, 1, 1, 1), regions=subject.regions.repeat(2, 1, 1, 1))
    network, seen = subject.networks[0], []
    hook = network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    answer = method.explain(subject)
    hook.remove()
    assert answer.passes == sum(seen)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


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
        chances = subject.run.task.chances(logits)[:, -len(names) :]
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


def test_grad_cam_in_windows_weighs_by_the_mean_over_the_grids_of_all() -> None:
    """Of a linear network the features are its logits, and a logit's derivative, added over all windows, is 1 or -1."""
    subject = linear_subject((1, 61, 45))
    count = 5 * 4  # windows of 16, 12 apart, of 62 x 46 voxels, padded: 46 / 12 and 30 / 12, rounded up, and 1
    wanted = log_odds(subject)[0].relu() / (count * 16 * 16)
    torch.testing.assert_close(grad_cam.explain(subject).maps["lesion"][0], wanted, atol=1e-7, rtol=1e-4)


def test_the_deepest_features_have_a_place_and_a_derivative() -> None:
    fine, coarse, point, fixed = (torch.rand(1, 4, edge, edge) for edge in (8, 2, 1, 2))
    for values in (fine, coarse, point):
        values.requires_grad_()
    again = torch.rand(1, 6, 2, 2).requires_grad_()
    seen = [fine, coarse, torch.rand(1, 4).requires_grad_(), again, fixed, point, fine]
    assert grad_cam.chosen(seen, "deepest", 2) is again
    with pytest.raises(ConfigError, match="no features with a place"):
        grad_cam.chosen([point, fixed], "deepest", 2)


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
    coarse = min(seen, key=lambda one: one.numel())
    torch.testing.assert_close(maps["gate-2"][0], functional.interpolate(coarse, (16, 32), mode="bilinear")[0, 0])
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

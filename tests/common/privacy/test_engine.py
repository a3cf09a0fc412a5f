"""The private step against plain tensor arithmetic on gradients taken one patient at a time."""

import copy
import random

import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from common.errors import ErrorCode, PrivacyError
from common.losses.terms import dice_ce
from common.privacy import autotune, engine
from common.privacy.autotune import Plan, choose, crops_together
from common.privacy.engine import check_model, private_optimizer, private_step, sample_patients
from common.privacy.gradients import Strategy
from common.privacy.noise import deviation, grid_step
from common.privacy.patient import Loss, Patient
from tests.common.networks import gradient_of, ours

CLIP = 0.7


def network(dims: int = 2) -> nn.Sequential:
    conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(conv(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.PReLU(), conv(4, 2, 1))


def patient(crops: int, seed: int, dims: int = 2, scale: float = 1.0) -> Patient:
    generator = torch.Generator().manual_seed(seed)
    edges = (7, 5, 6)[:dims]
    images = scale * torch.randn(crops, 1, *edges, generator=generator)
    return Patient(images, torch.randint(0, 2, (crops, *edges), generator=generator))


def wrapped(model: nn.Module, *, noise: float = 1.0, expected: float = 2.5, lr: float = 1.0) -> DPOptimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return private_optimizer(model, optimizer, noise_multiplier=noise, clipping_norm=CLIP, expected_patients=expected)


def noiseless(model: nn.Module, **settings: float) -> DPOptimizer:
    optimizer = wrapped(model, **settings)
    optimizer.noise_multiplier = 0.0
    return optimizer


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).clone()


def clipped_gradient(model: nn.Module, one: Patient, loss: Loss) -> Tensor:
    """A patient's gradient by plain autograd, one crop at a time, on a copy."""
    model = copy.deepcopy(model)
    total = torch.zeros_like(flat(model))
    for crop, label in zip(one.crops, one.labels, strict=True):
        model.zero_grad()
        loss(model(crop[None]), label[None]).backward()
        total += torch.cat([gradient_of(parameter).reshape(-1) for parameter in model.parameters()])
    mean = total / len(one.crops)
    return mean * min(1.0, CLIP / float(mean.norm()))


@pytest.mark.parametrize("plan", [None, *(Plan(strategy, 4) for strategy in Strategy)], ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_step_is_the_sum_of_clipped_patient_gradients_over_the_expected_number(dims, plan):
    model, loss = network(dims), nn.CrossEntropyLoss()
    patients = [patient(crops, seed, dims, scale) for crops, seed, scale in [(1, 1, 1), (5, 2, 30), (3, 3, 0.1)]]
    clipped = [clipped_gradient(model, one, loss) for one in patients]
    assert min(gradient.norm() for gradient in clipped) < CLIP - 0.01  # one is left as it is
    assert max(gradient.norm() for gradient in clipped) == pytest.approx(CLIP)  # one is clipped
    before = flat(model)
    private_step(model, noiseless(model, expected=2.5), patients, loss, plan=plan)
    torch.testing.assert_close(before - flat(model), sum(clipped) / 2.5, rtol=1e-4, atol=1e-7)


def test_one_patient_moves_the_sum_by_at_most_the_clipping_norm():
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return 1000 * nn.functional.cross_entropy(logits, labels)

    without, with_ = network(), network()
    private_step(without, noiseless(without, expected=1), [patient(2, 1)], loss)
    private_step(with_, noiseless(with_, expected=1), [patient(2, 1), patient(9, 2, scale=1000)], loss)
    assert float((flat(with_) - flat(without)).norm()) <= CLIP * (1 + 1e-5)


def test_clipping_holds_where_single_precision_finds_a_large_gradient_too_short(monkeypatch):
    """Ten million values that lie alike: adding their squares in single precision loses 0.8 %."""
    count, seen = 10_000_000, []

    def noted(sums, **_):
        seen.extend(sums)
        return [torch.zeros_like(one) for one in sums]

    monkeypatch.setattr(engine, "noised", noted)
    model = nn.Linear(count, 1, bias=False)
    alone = Plan(Strategy.ONE_AT_A_TIME, 1)
    for value in (0.95e-3, 1.06e-3, 1.12e-3):
        one = Patient(torch.full((1, count), value), torch.zeros(1))
        private_step(model, noiseless(model), [one], lambda logits, _: 1000 * logits.mean(), plan=alone)
    rounding = grid_step(CLIP, 0.0) / 2 * count**0.5
    assert len(seen) == 3
    assert all(CLIP / 2 < float(one.norm()) <= CLIP * (1 + 2**-12) + rounding for one in seen)


def test_many_crops_of_a_patient_weigh_as_much_as_one():
    crops, labels, _ = patient(1, 1)
    once, often = network(), network()
    private_step(once, noiseless(once), [Patient(crops, labels)], nn.CrossEntropyLoss())
    private_step(
        often, noiseless(often), [Patient(crops.repeat(6, 1, 1, 1), labels.repeat(6, 1, 1))], nn.CrossEntropyLoss()
    )
    torch.testing.assert_close(flat(once), flat(often))


def test_loss_is_the_mean_over_patients():
    model, loss, patients = network(), nn.CrossEntropyLoss(), [patient(1, 1), patient(4, 2)]
    expected = sum(loss(model(crops), labels).item() for crops, labels, _ in patients) / 2
    assert private_step(model, wrapped(model), patients, loss) == pytest.approx(expected)


@pytest.mark.parametrize("patients", [0, 1, 4])
def test_noise_has_its_deviation_whatever_the_number_of_patients(patients):
    model = nn.Linear(1000, 200, bias=False)
    optimizer = wrapped(model, noise=3.0, expected=2.0)
    before = flat(model)
    private_step(model, optimizer, [patient_of_zeros()] * patients, lambda logits, _: (0 * logits).mean())
    noise = (flat(model) - before) / (3.0 * CLIP / 2.0)
    # 200,000 draws: six standard errors of mean, deviation and fourth moment.
    assert float(noise.mean()) == pytest.approx(0, abs=0.0135)
    assert float(noise.std()) == pytest.approx(1, abs=0.0095)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.13)
    assert float(noise.abs().max()) > 3.5


def patient_of_zeros() -> Patient:
    return Patient(torch.zeros(1, 1000), torch.zeros(1))


def test_empty_batch_is_a_step_with_noise():
    model = network()
    before = flat(model)
    assert private_step(model, wrapped(model), [], nn.CrossEntropyLoss()) is None
    assert (flat(model) != before).all()


def test_every_step_draws_new_noise():
    model = nn.Linear(50, 50)
    optimizer = wrapped(model)
    points = [flat(model)]
    for _ in range(2):
        private_step(model, optimizer, [], nn.CrossEntropyLoss())
        points.append(flat(model))
    assert not torch.equal(points[1] - points[0], points[2] - points[1])


def test_no_seed_reaches_noise_or_sampling():
    steps, samples = [], []
    for _ in range(2):
        torch.manual_seed(0)
        random.seed(0)
        model = nn.Linear(50, 50)
        before = flat(model)
        private_step(model, wrapped(model), [], nn.CrossEntropyLoss())
        steps.append(flat(model) - before)
        samples.append(sample_patients(200, 0.5))
    assert not torch.equal(*steps)
    assert samples[0] != samples[1]


def test_noise_is_drawn_from_the_keystream_and_lies_on_its_grid():
    model = nn.Linear(60, 50).double()
    before = flat(model)
    private_step(model, wrapped(model, noise=3.0, expected=2.0), [], nn.CrossEntropyLoss())
    steps = (before - flat(model)) * 2.0 / grid_step(CLIP, 3.0)
    assert float((steps - steps.round()).abs().max()) < 1e-3  # of the parameters' own rounding
    assert float(steps.std()) == pytest.approx(deviation(CLIP, 3.0, len(steps)) / grid_step(CLIP, 3.0), rel=0.08)


def test_a_refused_step_leaves_nothing_for_the_next():
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer, before = noiseless(model), flat(model)

    def stream():
        yield patient(2, 1)
        raise PrivacyError("refused in the middle", ErrorCode.UNSUPPORTED)

    with pytest.raises(PrivacyError, match="in the middle"):
        private_step(model, optimizer, stream(), loss)
    assert torch.equal(flat(model), before)
    expected = clipped_gradient(model, patient(3, 2), loss) / 2.5
    private_step(model, optimizer, [patient(3, 2)], loss)
    torch.testing.assert_close(before - flat(model), expected, rtol=1e-4, atol=1e-7)


class _Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: no relation to torch's BatchNorm but the name."""


_Frozen.__name__ = "FrozenBatchNorm2d"


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm3d(4, track_running_stats=False),
        nn.BatchNorm2d(4).eval().requires_grad_(False),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm2d(),
        nn.InstanceNorm2d(4, track_running_stats=True),
        _Frozen(),
    ],
)
def test_statistics_over_patients_are_refused(layer):
    with pytest.raises(PrivacyError, match="GroupNorm") as caught:
        check_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(layer)))
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_statistics_per_patient_are_allowed():
    check_model(nn.Sequential(nn.InstanceNorm3d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)))


def test_an_unused_parameter_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Identity())
    model[1].forgotten = nn.Parameter(torch.zeros(3))
    with pytest.raises(PrivacyError, match=r"unused parameter '1\.forgotten'"):
        private_step(model, wrapped(model), [patient(1, 1)], nn.CrossEntropyLoss())


class _Counting(nn.Module):
    """Keeps a statistic of what it sees, outside the gradient."""

    seen: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        self.seen += image.mean()
        return image


def test_a_buffer_that_remembers_patients_is_refused():
    model = nn.Sequential(_Counting(), nn.Conv2d(1, 2, 1))
    before = flat(model)
    with pytest.raises(PrivacyError, match=r"buffer '0\.seen'"):
        private_step(model, wrapped(model), [patient(1, 1)], nn.CrossEntropyLoss())
    assert torch.equal(flat(model), before)


def test_an_optimiser_of_part_of_the_model_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=1)
    with pytest.raises(PrivacyError, match=r"model\.parameters"):
        private_optimizer(model, optimizer, noise_multiplier=1, clipping_norm=1, expected_patients=1)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["noise_multiplier", "clipping_norm", "expected_patients"])
def test_settings_without_meaning_are_refused(name, value):
    settings = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "expected_patients": 1.0, name: value}
    model = nn.Linear(2, 2)
    with pytest.raises(PrivacyError, match="must be > 0"):
        private_optimizer(model, torch.optim.SGD(model.parameters(), lr=1), **settings)


def test_poisson_sampling_takes_each_patient_at_the_rate_on_their_own():
    draws = torch.zeros(2000, 20)
    for draw in draws:
        draw[sample_patients(20, 0.3)] = 1
    assert draws.mean(0).sub(0.3).abs().max() < 0.05  # five standard errors
    assert float(draws.sum(1).var()) == pytest.approx(20 * 0.3 * 0.7, rel=0.2)
    assert sample_patients(5, 1.0) == [0, 1, 2, 3, 4]
    assert sample_patients(0, 0.5) == []


@pytest.mark.parametrize("strategy", Strategy)
def test_a_large_batch_is_taken_a_few_crops_at_a_time(strategy):
    model, loss = network(), nn.CrossEntropyLoss()
    patients = [patient(2, seed) for seed in range(9)]
    expected = sum(clipped_gradient(model, one, loss) for one in patients) / 2.5
    before, taken, most = flat(model), [], []

    def stream():
        for one in patients:
            taken.append(one)
            yield one

    model.register_forward_pre_hook(lambda _, inputs: most.append((len(inputs[0]), len(taken))))
    private_step(model, noiseless(model), stream(), loss, plan=Plan(strategy, 5))
    torch.testing.assert_close(before - flat(model), expected, rtol=1e-4, atol=1e-6)
    assert max(crops for crops, _ in most) <= 5
    assert most[0][1] <= 3  # the others are not even read


def test_patients_of_different_shapes_share_a_step():
    model, loss = network(), nn.CrossEntropyLoss()
    wide = Patient(torch.randn(2, 1, 9, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 9, 4).long())
    patients = [patient(1, 1), patient(1, 2), wide, patient(2, 3)]
    expected = sum(clipped_gradient(model, one, loss) for one in patients) / 2.5
    before = flat(model)
    private_step(model, noiseless(model), patients, loss, plan=Plan(Strategy.BOOK_KEEPING, 8))
    torch.testing.assert_close(before - flat(model), expected, rtol=1e-4, atol=1e-6)


def coupled(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice over the batch: the loss of one sample hangs on the others."""
    inside = logits.softmax(1)[:, 1]
    return 1 - 2 * (inside * labels).sum() / (inside.sum() + labels.sum() + 1e-5)


@pytest.mark.parametrize("loss", [coupled, nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")])
def test_a_loss_that_is_not_a_mean_over_samples_is_refused_before_any_patient(loss):
    model = network()
    before, seen = flat(model), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    crops, labels, _ = patient(2, 99)
    with pytest.raises((PrivacyError, RuntimeError), match=r"mean|scalar"):
        private_step(model, wrapped(model), [Patient(crops, labels)], loss)
    assert torch.equal(flat(model), before)
    assert not any(torch.equal(crop, image) for images in seen for image in images for crop in crops)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), None], ids=["a buffer that changes", "an unused parameter"])
def test_what_only_a_trial_shows_is_refused_before_any_patient(layer):
    model = nn.Sequential(layer or nn.Identity(), nn.Conv2d(1, 2, 1))
    if layer is None:
        model[1].forgotten = nn.Parameter(torch.zeros(3))
    seen, one = [], patient(1, 99)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PrivacyError, match=r"unused|buffer"):
        choose(model, nn.CrossEntropyLoss(), one, 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(torch.equal(one.crops, image) for image in seen)


def test_the_choice_is_measured_once_and_leaves_no_trace(monkeypatch, caplog):
    model, one = ours(2, "instance"), Patient(torch.zeros(2, 1, 16, 16), torch.zeros(2, 16, 16).long())
    before, random_state = flat(model), torch.random.get_rng_state()
    with caplog.at_level("INFO"):
        plan = choose(model, dice_ce, one, 3.0)
    assert f"go by {plan.strategy}" in caplog.text
    assert torch.equal(flat(model), before)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    monkeypatch.setattr(autotune, "_probe", None)
    assert choose(ours(2, "instance"), dice_ce, one, 3.0) == plan  # the next round's model is another object
    with pytest.raises(TypeError):
        choose(ours(2, "group"), dice_ce, one, 3.0)


class _Gain(nn.Module):
    """Holds a weight as no layer does that book-keeping knows."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.gain


def test_the_fastest_strategy_is_chosen(monkeypatch):
    one = Patient(torch.zeros(1, 1, 16, 16), torch.zeros(1, 16, 16).long())
    covered, uncovered = network(), nn.Sequential(network(), _Gain())
    cases = [(covered, Strategy.ONE_AT_A_TIME), (covered, Strategy.BOOK_KEEPING), (uncovered, Strategy.VECTORISED)]
    for model, fastest in cases:
        monkeypatch.setattr(autotune, "_remembered", {})
        monkeypatch.setattr(autotune, "_seconds", lambda *work, best=fastest: 1.0 if work[-1] is best else 100.0)
        assert choose(model, nn.CrossEntropyLoss(), one, 4).strategy is fastest


def test_deterministic_runs_do_not_choose_by_time(monkeypatch):
    monkeypatch.setattr(autotune, "_remembered", {})
    monkeypatch.setattr(autotune, "_seconds", None)
    one = Patient(torch.zeros(1, 1, 7, 5), torch.zeros(1, 7, 5).long())
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(network(), nn.CrossEntropyLoss(), one, 4).strategy is Strategy.ONE_AT_A_TIME
    finally:
        torch.use_deterministic_algorithms(False)


class _Mixing(nn.Module):
    """Couples the samples of a batch, without a state and without a telling name."""

    def forward(self, images: Tensor) -> Tensor:
        return images - images.mean(0)


def test_layers_that_mix_the_batch_leave_one_patient_at_a_time(monkeypatch, caplog):
    monkeypatch.setattr(autotune, "_remembered", {})
    model = nn.Sequential(nn.Conv2d(1, 2, 1), _Mixing(), nn.Conv2d(2, 2, 1))
    one = Patient(torch.zeros(2, 1, 7, 5), torch.zeros(2, 7, 5).long())
    with caplog.at_level("INFO"):
        plan = choose(model, nn.CrossEntropyLoss(), one, 4)
    assert plan.strategy is not Strategy.BOOK_KEEPING
    assert "not those of one patient at a time" in caplog.text


def test_dropout_that_drops_next_to_nothing_still_takes_one_patient_at_a_time():
    """Its outputs are the same in nearly every pass, and a unit dropped for one would move everybody's masks."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout2d(1e-9), nn.Conv2d(4, 2, 1))
    assert choose(model, dice_ce, patient(2, 1), 20.0).strategy is Strategy.ONE_AT_A_TIME


def test_dropout_is_allowed_and_left_on():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout2d(0.5), nn.Conv2d(4, 2, 1))
    private_step(model, wrapped(model), [patient(2, 1)], nn.CrossEntropyLoss())
    assert model[1].training


def test_more_memory_for_a_crop_means_fewer_crops_together():
    edges = [torch.zeros(1, 1, edge, edge) for edge in (64, 128)]
    small, large = (crops_together(network(), nn.CrossEntropyLoss(), Patient(one, one[:, 0].long())) for one in edges)
    assert small == pytest.approx(4 * large, rel=0.1)
    # Input and output of the layers, in float32, are what is kept for a crop of 128 x 128.
    assert 1 / 3 < large * (1 + 4 + 4 + 2) * 128**2 * 4 / autotune._CPU_BYTES < 1.2


def test_sums_of_gradients_of_all_sizes_have_no_order(monkeypatch):
    """Added up as they come, what is lost of the small ones would depend on who came first."""
    seen = []

    def record(sums, **_):
        seen.append(torch.cat([one.flatten() for one in sums]))
        return [torch.zeros_like(one) for one in sums]

    monkeypatch.setattr(engine, "noised", record)
    generator = torch.Generator().manual_seed(2)
    sizes = 10 ** (-12 * torch.rand(60, 1, generator=generator))
    patients = [Patient(row[None], torch.zeros(1)) for row in sizes * torch.randn(60, 300, generator=generator)]
    for some in (patients, patients[::-1], patients[1:], patients[:1]):
        model = nn.Linear(300, 1, bias=False)
        private_step(model, wrapped(model), some, lambda logits, _: logits.mean())
    forwards, backwards, fewer, alone = seen
    assert torch.equal(forwards, backwards)
    assert torch.equal(forwards - fewer, alone)

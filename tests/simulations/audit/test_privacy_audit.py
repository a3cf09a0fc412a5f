"""The audit passes on the client as it is, and names what is wrong with each way of breaking it."""

import json
import math
import random
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from client.data.cohort import Case, Cohort
from client.train import training
from common.errors import FederationError, PrivacyError
from common.privacy import engine
from common.privacy.charges import Charged
from common.privacy.engine import private_optimizer, private_step
from common.privacy.gradients import patient_gradients
from common.privacy.ledger import Ledger
from common.privacy.patient import Patient
from simulations.audit import audited_site, fresh_process, privacy_audit
from simulations.audit.apart import TOLERANCE, Setting, sensitivity
from simulations.audit.fresh_process import release_from_fresh_process
from simulations.audit.privacy_audit import (
    Finding,
    audit_apart,
    audit_attack,
    audit_canaries,
    audit_noise,
    audit_patients,
    noise_sites,
    patient_sites,
)
from simulations.commands.main import app
from tests.json_forms import conforms

Break = Callable[[pytest.MonkeyPatch], None]
Part = Callable[[], list[Finding]]


pytestmark = pytest.mark.slow


def fresh() -> np.random.Generator:
    return np.random.default_rng(5)


def failed(findings: Iterable[Finding]) -> set[str]:
    return {one.check for one in findings if not one.passed}


# --- what the auditor knows


def test_directions_are_what_an_update_is_made_of(tmp_path: Path) -> None:
    """With hardly any noise, and all patients in the step, nothing else is in it."""
    patients = audited_site.draw_patients(3, fresh(), slices=2)
    audited_site.write_patients(tmp_path / "data", patients)
    site = audited_site.open_audited(tmp_path, "north", tmp_path / "data", 3)
    run = audited_site.audited_run(declared=3, epsilon=1e5, sampling_rate=1.0, steps=1)
    released = audited_site.release(site, run, round_=1, attempt="a")
    known = audited_site.directions(run, patients)
    assert released.charge.noise_multiplier < 0.005
    np.testing.assert_allclose(np.linalg.norm(known, axis=1), 1.0)
    assert np.linalg.norm(known @ known.T - np.eye(3)) < 0.5  # nearly at right angles
    np.testing.assert_allclose(released.sum @ known.T, known.sum(0) @ known.T, atol=0.05)


def test_only_chosen_patients_are_in_a_site(tmp_path: Path) -> None:
    audited_site.write_patients(tmp_path / "data", audited_site.draw_patients(4, fresh(), slices=3))
    run = audited_site.audited_run(declared=4, epsilon=1.0, sampling_rate=1.0, steps=1)
    few = audited_site.open_audited(tmp_path, "few", tmp_path / "data", 4, (1, 3)).cohort(run)
    assert (few.size, len(few.cases), few.declared_size, few.quarantined) == (2, 6, 4, ())


def test_an_auditor_leaves_the_usual_generators_as_they_were(tmp_path: Path) -> None:
    before = random.getstate(), torch.get_rng_state()
    with audited_site._same_seeds():
        random.shuffle([1, 2, 3])
        torch.rand(3)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


# --- the audit, unbroken and broken


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    """The parts of the audit, each of which can be run again and again. Here no process is started for them."""
    folder = tmp_path_factory.mktemp("audit")
    noise = noise_sites(folder / "noise", fresh())
    patients = patient_sites(folder / "patients", fresh())
    return {
        "noise": lambda: audit_noise(noise, audited_site.release),
        "patients": lambda: audit_patients(patients),
        "canaries": lambda: audit_canaries(folder / secrets.token_hex(4), np.random.default_rng(), 200),
    }


def replaced_settings(monkeypatch: pytest.MonkeyPatch, **factors: float) -> None:
    """The private optimiser gets other settings than the ledger was told."""
    real = private_optimizer

    def optimizer(model: nn.Module, inner: torch.optim.Optimizer, **settings: float) -> Any:
        return real(model, inner, **{name: value * factors.get(name, 1) for name, value in settings.items()})

    monkeypatch.setattr(training, "private_optimizer", optimizer)


def noise_divided_by_four(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced_settings(monkeypatch, noise_multiplier=1 / 4)


def noise_divided_by_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What few canaries see for sure; 800 see a quarter of the noise 99 times in 100 (docs/privacy-audit.md)."""
    replaced_settings(monkeypatch, noise_multiplier=1 / 10)


def clipping_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise stays as it was."""
    replaced_settings(monkeypatch, clipping_norm=1e6, noise_multiplier=1e-6)


def empty_batches_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = private_step

    def step(model: Any, optimizer: Any, patients: Iterable[Any], *rest: Any, **options: Any) -> Any:
        batch = list(patients)
        return real(model, optimizer, batch, *rest, **options) if batch else None

    monkeypatch.setattr(training, "private_step", step)


def own_noise(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[[nn.Parameter], torch.Tensor], new: Callable[[], object] = object
) -> None:
    """Noise of the right size that the test draws, in place of the engine's; `new` is called for each optimiser."""
    real_optimizer, real_step = private_optimizer, private_step
    known: dict[str, Any] = {}

    def optimizer(model: nn.Module, inner: torch.optim.Optimizer, **settings: float) -> Any:
        new()
        known["inner"] = inner
        known["deviation"] = settings["noise_multiplier"] * settings["clipping_norm"] / settings["expected_patients"]
        return real_optimizer(model, inner, **{**settings, "noise_multiplier": 1e-6})

    def step(model: nn.Module, *rest: Any, **options: Any) -> Any:
        value = real_step(model, *rest, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(known["inner"].param_groups[0]["lr"] * known["deviation"] * draw(parameter))
        return value

    monkeypatch.setattr(training, "private_optimizer", optimizer)
    monkeypatch.setattr(training, "private_step", step)


def noise_from_a_fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator()
    own_noise(
        monkeypatch,
        lambda parameter: torch.randn(parameter.shape, generator=generator),
        lambda: generator.manual_seed(7),
    )


def noise_from_the_usual_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a round seeds from the operating system; here it is a program that seeds it as it likes."""
    monkeypatch.setattr(secrets, "randbits", lambda _bits: 7)
    own_noise(monkeypatch, lambda parameter: torch.randn(parameter.shape))


def noise_from_numpys_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the client leaves alone, but a caller may have seeded."""

    def draw(parameter: nn.Parameter) -> torch.Tensor:
        return torch.from_numpy(np.random.standard_normal(parameter.shape)).float()

    own_noise(monkeypatch, draw)


def noise_reused_in_each_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng()
    drawn: list[torch.Tensor] = []

    def new() -> None:
        drawn[:] = [torch.from_numpy(source.standard_normal(10_000)).float()]

    own_noise(monkeypatch, lambda parameter: drawn[0][: parameter.numel()].view_as(parameter), new)


def noise_of_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform noise has bounded support, so it hides nothing beyond its edge."""
    source = np.random.default_rng()

    def draw(parameter: nn.Parameter) -> torch.Tensor:
        return torch.from_numpy(math.sqrt(3) * source.uniform(-1, 1, parameter.shape)).float()

    own_noise(monkeypatch, draw)


def biases_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng()

    def draw(parameter: nn.Parameter) -> torch.Tensor:
        return torch.from_numpy(source.standard_normal(parameter.shape) * (parameter.ndim > 1)).float()

    own_noise(monkeypatch, draw)


def slices_as_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture is sampled, clipped and counted for itself."""

    def patients(cohort: Cohort, split: str) -> tuple[str, ...]:
        return tuple(str(number) for number, case in enumerate(cohort.cases) if case.split == split)

    def cases_of(cohort: Cohort, patient: str) -> tuple[Case, ...]:
        return (cohort.cases[int(patient)],)

    monkeypatch.setattr(Cohort, "patients", patients)
    monkeypatch.setattr(Cohort, "cases_of", cases_of)


def crops_clipped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = private_step

    def step(model: Any, optimizer: Any, patients: Iterable[Any], *rest: Any, **options: Any) -> Any:
        crops = [
            Patient(image[None], label[None])
            for images, labels, _ in patients
            for image, label in zip(images, labels, strict=True)
        ]
        return real(model, optimizer, crops, *rest, **options)

    monkeypatch.setattr(training, "private_step", step)


def patients_by_the_share_of_their_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices are sampled and then grouped: the sixth of one patient brings it in nearly always."""

    def sample(count: int, rate: float) -> list[int]:
        slices = [1] * (count - 1) + [6]
        source = random.SystemRandom()
        return [index for index in range(count) if source.random() < 1 - (1 - rate) ** slices[index]]

    monkeypatch.setattr(training, "sample_patients", sample)


def shuffled_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each patient once in an epoch, as ordinary loaders do."""
    queue: list[int] = []

    def sample(count: int, rate: float) -> list[int]:
        while len(queue) < round(rate * count):
            queue.extend(random.SystemRandom().sample(range(count), count))
        return [queue.pop(0) for _ in range(round(rate * count))]

    monkeypatch.setattr(training, "sample_patients", sample)


def crops_from_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: a generator that all patients share, one after the other."""

    def read(chosen: list[str], crops: Any, streams: Any, step: int) -> Iterator[Patient]:
        generator = torch.Generator().manual_seed(1000 * streams.round + step)
        for name in chosen:
            images, labels = crops.of([name] * crops.run.privacy.crops_per_patient, generator)
            yield Patient(images, labels, 0)

    monkeypatch.setattr(training, "_read", read)


def streams_by_place_and_not_by_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Iterator[Patient]] = training._read

    def read(chosen: list[str], crops: Any, streams: Any, step: int) -> Iterator[Patient]:
        class ByPlace:
            def seed(self, step: int, name: str, use: str) -> int:
                return int(streams.seed(step, str(chosen.index(name)), use))

        return real(chosen, crops, ByPlace(), step)

    monkeypatch.setattr(training, "_read", read)


def images_normalised_over_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    real = training._read

    def read(*asked: Any) -> Iterator[Patient]:
        patients = list(real(*asked))
        mean = torch.stack([one.crops.mean() for one in patients]).mean()
        return iter([one._replace(crops=one.crops - mean) for one in patients])

    monkeypatch.setattr(training, "_read", read)


def dropout_from_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded once for the step, where it should be for each patient."""
    real = patient_gradients

    def gradients(*asked: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "manual_seed", lambda _seed: None)
            return real(*asked, **options)

    monkeypatch.setattr(engine, "patient_gradients", gradients)
    monkeypatch.setattr(secrets, "randbits", lambda _bits: 5)


def steps_without_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Ledger.charge

    def charge(ledger: Ledger, *which: Any, steps: int, **rest: Any) -> Charged:
        return real(ledger, *which, steps=max(1, steps // 2), **rest)

    monkeypatch.setattr(Ledger, "charge", charge)


BOUND, CLIP, LEDGER, SAMPLING = (
    "canaries: lower bound of epsilon",
    "clip: one patient",
    "ledger: steps",
    "sampling: unit is the patient",
)
VARIANCE, NORMALITY, INDEPENDENCE = "noise: variance", "noise: normality", "noise: independence"


@pytest.mark.parametrize(
    ("broken", "part", "findings"),
    [
        (noise_divided_by_four, "noise", ({VARIANCE, NORMALITY}, set())),
        (noise_divided_by_ten, "canaries", ({BOUND}, set())),
        (clipping_off, "patients", ({CLIP}, {SAMPLING})),
        (empty_batches_skipped, "noise", ({LEDGER}, set())),
        (noise_from_a_fixed_seed, "noise", ({INDEPENDENCE}, {VARIANCE, NORMALITY})),
        (noise_from_the_usual_generator, "noise", ({INDEPENDENCE}, {VARIANCE, NORMALITY})),
        (noise_from_numpys_generator, "noise", ({INDEPENDENCE}, {VARIANCE, NORMALITY})),
        (slices_as_patients, "patients", ({CLIP, SAMPLING}, set())),
        (crops_clipped_one_by_one, "patients", ({CLIP, SAMPLING}, set())),
        (patients_by_the_share_of_their_slices, "patients", ({SAMPLING}, set())),
        (shuffled_batches, "patients", ({SAMPLING}, set())),
        (noise_reused_in_each_tensor, "noise", ({INDEPENDENCE}, {VARIANCE, NORMALITY, LEDGER})),
        (noise_of_another_shape, "noise", ({NORMALITY}, set())),
        (biases_without_noise, "noise", ({VARIANCE}, {NORMALITY})),
        (steps_without_charge, "noise", ({LEDGER}, set())),
    ],
)
def test_a_broken_client_is_named_for_what_is_broken(
    broken: Break,
    part: str,
    findings: tuple[set[str], set[str]],
    parts: dict[str, Part],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Findings: those that must be there, and those that may."""
    broken(monkeypatch)
    must, may = findings
    assert must <= failed(parts[part]()) <= must | may


def test_an_update_without_a_charge_stops_the_audit(parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_charge", lambda *_: None)
        with pytest.raises(PrivacyError, match="has no charge under this attempt"):  # the client's own ledger
            parts["noise"]()
    said = Charged((), ((1.0, 0.5, 1),), 1e-5)
    monkeypatch.setattr(Ledger, "charge", lambda *_, **__: said)
    with pytest.raises(PrivacyError, match="0 new charges"):
        parts["noise"]()


@pytest.mark.parametrize(
    ("broken", "setting"),
    [
        (crops_from_one_stream, Setting(2, 1)),
        (crops_from_one_stream, Setting(3, 4)),
        (crops_from_one_stream, Setting(3, 4, flat=True)),
        (crops_from_one_stream, Setting(3, 4, preset="nnunet")),
        (streams_by_place_and_not_by_patient, Setting(2, 1)),
        (images_normalised_over_everybody, Setting(2, 1)),
        (dropout_from_one_stream, Setting(2, 4, 0.2)),
        (clipping_off, Setting(2, 1)),
    ],
)
def test_patients_that_move_each_other_are_seen_where_one_of_them_is_missing(
    broken: Break, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not failed(audit_apart(tmp_path / "unbroken", fresh(), [setting]))
    broken(monkeypatch)
    assert failed(audit_apart(tmp_path / "broken", fresh(), [setting])) == {f"apart: {setting.name}"}


def test_a_fault_behind_the_first_patient_is_seen_from_the_first_place_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why the audit leaves out the first, a middle and the last one."""
    crops_from_one_stream(monkeypatch)
    (moved,) = sensitivity(tmp_path, fresh(), [Setting(2, 1)])
    assert moved.by_place["last"] <= 1 + TOLERANCE
    assert moved.by_place["first"] > moved.by_place["middle"] > 2


def test_the_attack_refutes_an_epsilon_that_shared_crops_void(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = "attack: lower bound of epsilon"
    assert not failed(audit_attack(tmp_path / "unbroken", fresh(), 40))
    crops_from_one_stream(monkeypatch)
    assert failed(audit_attack(tmp_path / "broken", fresh(), 100)) == {attack}


# --- the command


def test_command_prints_a_table_writes_a_report_and_ends_with_its_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Finding("noise: variance", True, "deviation 1.0003 of the charged", "1 of the charged", 0.5)
    bad = Finding("clip: one patient", False, "moves the sum by <6.00> clips", "1 clip", 1e-30)
    for findings, code in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(privacy_audit, "audit", lambda *_, findings=findings, **__: findings)
        done = CliRunner().invoke(app, ["audit", "--out", str(tmp_path / "out"), "--json"])
        assert done.exit_code == code, done.output
        conforms("wardround-sim audit", json.loads(done.stdout))
        assert [row["result"] for row in json.loads(done.stdout)] == ["pass", "FAIL"][: len(findings)]
    report = (tmp_path / "out" / "audit.html").read_text()
    assert "FAILED: clip: one patient" in report
    assert "&lt;6.00&gt;" in report
    assert "cannot prove" in report


def test_the_client_as_it_is_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole audit but for the second process, with fewer canaries."""
    monkeypatch.setattr(privacy_audit, "release_from_fresh_process", audited_site.release)
    done = CliRunner().invoke(app, ["audit", "--canaries", "40", "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    checks = [row["check"] for row in json.loads(done.stdout)]
    assert len(checks) == len(set(checks)) == 17
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["audit.html"]


def test_a_program_started_anew_releases_as_this_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is bytes: they must be the update, and the charge must be its own."""
    audited = noise_sites(tmp_path, fresh())
    run = audited_site.audited_run(declared=len(audited.patients), epsilon=1e5, sampling_rate=1.0, steps=1)
    here = audited_site.release(audited.sites[0], run, round_=1, attempt="a")
    there = release_from_fresh_process(audited.sites[1], run, round_=1, attempt="b")
    assert there.charge.attempt == "b"
    known = audited_site.directions(run, audited.patients).sum(0)
    for one in (here, there):
        assert float(one.sum @ known) == pytest.approx(float(known @ known), rel=0.01)
    monkeypatch.setattr(fresh_process, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(FederationError, match="process of the privacy audit failed"):
        release_from_fresh_process(audited.sites[1], run, round_=1, attempt="c")

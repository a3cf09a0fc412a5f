"""The privacy audit: what the client really releases, held against what it promises.

Small hospitals of patients with known gradients (simulations/audit/audited_site.py) train through the client's own
door, ledger and all. The auditor sees what the coordinator sees, and the ledger:

    noise      what is left of an update without its known gradients is the noise the ledger was charged for: its
               variance in every tensor, its normality, and no two parts of it alike, be it of tensors, rounds,
               attempts, sites or processes
    ledger     the steps that added noise, counted from the variance of a round of nearly all empty batches, are the
               steps charged, and every update has its charge
    clip       a patient with a gradient 10,000 times the clip and with many slices moves the sum by one clip at most
    sampling   each patient, of many slices or of one, takes part in as many steps as Poisson sampling has it
    canaries   the audit with one training run (Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846):
               guess from the updates who was in the cohort; good guesses refute a small epsilon
    apart      with the noise taken out and everything else as shipped, no patient's absence moves a step's sum by more
               than one clip, wherever the patient stands (simulations/audit/apart.py)
    attack     guess in whole rounds at the claimed epsilon whether the first patient was there

Canaries and attack give a lower bound at 95 % confidence, apart a bound on what was measured; the others are tests with
a false alarm rate of one in a million each. An audit can refute a guarantee. It cannot prove one.
"""

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np

from client.site import Site
from common.config import RunConfig
from common.pages.html import render
from common.privacy.accountant import epsilon
from common.system.files import write_atomically
from simulations.audit.apart import SETTINGS, TOLERANCE, Setting, attack, sensitivity
from simulations.audit.audited_site import (
    Pictures,
    Release,
    audited_run,
    directions,
    draw_patients,
    open_audited,
    release,
    tensor_parts,
    write_patients,
)
from simulations.audit.bounds import (
    Values,
    bonferroni,
    counts_p_value,
    epsilon_lower_bound,
    independence_p_value,
    length_p_value,
    normality_p_value,
    ratio_p_value,
    shift_p_value,
    variance_p_value,
)
from simulations.audit.fresh_process import release_from_fresh_process

PARTS = 5
CLAIMED_EPSILON = 1.0
CONFIDENCE = 0.95
FALSE_ALARM = 1e-6
REPORT_NAME = "audit.html"

_PATIENTS = 30
_PLANNED_ROUNDS = 3
# A batch is empty with probability 0.98.
_EMPTY_RATE, _EMPTY_STEPS = 1e-3, 8

# Noise far below a clip, so that single patients stand out: what is tested with it is not the noise.
_CLIP_EPSILON, _SAMPLING_EPSILON = 100.0, 20_000.0
_SAMPLING_RATE, _SAMPLING_STEPS = 0.25, 64
_SLICES, _CROPS = 6, 2

# More weights make more room for gradients at right angles. Everyone takes part in each step: Poisson sampling would
# only add its own scatter to what the canaries show, and has its own check.
_CANARY_CHANNELS = (32, 64)
_CANARY_RATE, _CANARY_STEPS, _CANARY_ROUNDS = 1.0, 2, 2
_GUESSED = 0.2  # of the canaries: half of them called in, half of them out

_TRIALS = 160

LIMITS = (
    f"A p-value under {FALSE_ALARM:g} fails, and so does a lower bound above what was charged. An audit can refute a "
    "guarantee, it cannot prove one. The canaries give a lower bound on what leaks, found by one attack; a stronger "
    "one may find more. The tests look at small networks, at small images, on the CPU; a fault that shows only with "
    "others passes. Passing means: none of the faults that this audit knows how to see was there."
)


class Releaser(Protocol):
    """As `simulations.audit.audited_site.release`."""

    def __call__(self, site: Site, run: RunConfig, *, round_: int, attempt: str) -> Release:
        """The update of one round, with its charge."""


@dataclass(frozen=True)
class Finding:
    """One check. figure and limit are for people; p_value is None where the check is a bound and no test."""

    check: str
    passed: bool
    figure: str
    limit: str
    p_value: float | None = None


@dataclass(frozen=True, eq=False)
class Audited:
    """Sites, and the patients whose pictures lie in their folder."""

    patients: Sequence[Pictures]
    sites: Sequence[Site]


def audit(
    folder: Path,
    rng: np.random.Generator,
    *,
    canaries: int,
    progress: Callable[[int, str], None] | None = None,
) -> list[Finding]:
    """Audit the client of this installation.

    Args:
        folder: empty; receives the audited sites.
        rng: pictures, and who is in the cohort. For a verdict that holds it must be fresh.
        canaries: patients of the one-run audit, half of them in the cohort.
        progress: called with (parts done, what is looked at next); there are `PARTS`.
    """
    tell = progress or (lambda _done, _text: None)
    tell(0, "noise and ledger")
    findings = audit_noise(noise_sites(folder / "noise", rng), release_from_fresh_process)
    tell(1, "clip and sampling")
    findings += audit_patients(patient_sites(folder / "patients", rng))
    tell(2, f"{canaries} canaries")
    findings += audit_canaries(folder / "canaries", rng, canaries)
    tell(3, "patients apart")
    findings += audit_apart(folder / "apart", rng)
    tell(4, "guesses at a patient")
    findings += audit_attack(folder / "attack", rng)
    tell(PARTS, "done")
    return findings


def noise_sites(folder: Path, rng: np.random.Generator) -> Audited:
    """Three hospitals of the same patients; two of them have the same name."""
    patients = draw_patients(_PATIENTS, rng)
    write_patients(folder / "data", patients)
    homes = (("one", "north"), ("two", "north"), ("one", "south"))
    sites = [open_audited(folder / home, name, folder / "data", _PATIENTS) for home, name in homes]
    return Audited(patients, sites)


def patient_sites(folder: Path, rng: np.random.Generator) -> Audited:
    """A hospital with a patient of many slices, who is the last, and the same hospital without that patient."""
    patients = [*draw_patients(_PATIENTS, rng), *draw_patients(1, rng, slices=_SLICES)]
    write_patients(folder / "data", patients)
    chosen: dict[str, Iterable[int]] = {"with": (), "without": range(_PATIENTS)}
    sites = [open_audited(folder, name, folder / "data", len(patients), only) for name, only in chosen.items()]
    return Audited(patients, sites)


def audit_noise(audited: Audited, elsewhere: Releaser) -> list[Finding]:
    """Noise on known gradients, and the steps that made it.

    Args:
        audited: from `noise_sites`.
        elsewhere: lets the second site train: in a newly started program, to show what follows from how one starts.
    """
    north, twin, south = audited.sites
    run = audited_run(declared=_PATIENTS, epsilon=CLAIMED_EPSILON, sampling_rate=1.0, steps=1, rounds=_PLANNED_ROUNDS)
    known = directions(run, audited.patients).sum(0)
    attempt = secrets.token_hex(8)
    # Whatever a seed could follow from is the same in two of these: all of it, all but attempt, round or site.
    releases = [
        release(north, run, round_=1, attempt=attempt),
        elsewhere(twin, run, round_=1, attempt=attempt),
        release(north, run, round_=1, attempt=f"{attempt} again"),
        release(north, run, round_=2, attempt=attempt),
        release(south, run, round_=1, attempt=attempt),
    ]
    noises = [(one.sum - known) / one.charge.noise_multiplier for one in releases]

    sparse = audited_run(declared=_PATIENTS, epsilon=CLAIMED_EPSILON, sampling_rate=_EMPTY_RATE, steps=_EMPTY_STEPS)
    empty = release(north, sparse, round_=1, attempt=attempt)

    parts = [tensor_parts(run, noise) for noise in noises]
    pooled = np.concatenate(noises)
    return [
        _test(
            "noise: variance",
            variance_p_value([np.concatenate(tensor) for tensor in zip(*parts, strict=True)]),
            f"deviation {math.sqrt(float((pooled**2).mean())):.4f} of the charged",
            "1 of the charged",
        ),
        _test(
            "noise: normality",
            normality_p_value(pooled),
            f"largest of {pooled.size} values {np.abs(pooled).max():.2f} deviations",
            "normal",
        ),
        _test(
            "noise: independence",
            bonferroni([independence_p_value(noises), *(independence_p_value(tensors) for tensors in parts)]),
            f"largest correlation of two updates {_largest_correlation(noises):.4f}",
            "0",
        ),
        _ledger_finding(empty, pooled),
    ]


def audit_patients(audited: Audited) -> list[Finding]:
    """What one patient of many slices can do, and how often each one is taken; `audited` is from `patient_sites`."""
    with_ = audited.sites[0]
    declared, attempt = len(audited.patients), secrets.token_hex(8)

    run = audited_run(declared=declared, epsilon=_CLIP_EPSILON, sampling_rate=1.0, steps=1, crops=_CROPS)
    vectors = directions(run, audited.patients)
    present, absent = (release(site, run, round_=1, attempt=attempt) for site in audited.sites)
    shift = present.sum - absent.sum
    deviation = math.hypot(present.charge.noise_multiplier, absent.charge.noise_multiplier)
    moved = float(shift @ vectors[-1])
    clip_p = bonferroni(
        [shift_p_value(moved, deviation, 1.0), length_p_value(float(shift @ shift), shift.size, deviation, 1.0)]
    )

    run = audited_run(
        declared=declared,
        epsilon=_SAMPLING_EPSILON,
        sampling_rate=_SAMPLING_RATE,
        steps=_SAMPLING_STEPS,
        crops=_CROPS,
    )
    seen, spread = _least_squares(release(with_, run, round_=1, attempt=attempt), vectors)
    return [
        _test("clip: one patient", clip_p, f"moves the sum by {moved:.2f} clips", "1 clip"),
        _test(
            "sampling: unit is the patient",
            counts_p_value(seen, _SAMPLING_STEPS, _SAMPLING_RATE, spread),
            f"{_SLICES} slices: {seen[-1]:.0f} of {_SAMPLING_STEPS} steps; one slice: {seen[:-1].mean():.1f}",
            f"{_SAMPLING_RATE * _SAMPLING_STEPS:.0f} of {_SAMPLING_STEPS} steps",
        ),
    ]


def audit_canaries(folder: Path, rng: np.random.Generator, canaries: int) -> list[Finding]:
    """A lower bound on epsilon from guesses at who was in the cohort."""
    patients = draw_patients(canaries, rng)
    included = rng.random(canaries) < 0.5
    write_patients(folder / "data", [one for one, here in zip(patients, included, strict=True) if here])
    # Declared is the number of canaries, not of those included: that number is no secret.
    site = open_audited(folder, "canaries", folder / "data", canaries)
    run = audited_run(
        declared=canaries,
        epsilon=CLAIMED_EPSILON,
        sampling_rate=_CANARY_RATE,
        steps=_CANARY_STEPS,
        rounds=_CANARY_ROUNDS,
        channels=_CANARY_CHANNELS,
    )
    releases = [release(site, run, round_=round_, attempt=f"round {round_}") for round_ in range(1, _CANARY_ROUNDS + 1)]
    scores = canary_scores(releases, directions(run, patients))

    guesses = 2 * round(canaries * _GUESSED / 2)
    order = np.argsort(scores)
    correct = int((~included[order[: guesses // 2]]).sum() + included[order[-(guesses // 2) :]].sum())
    charges = [one.charge for one in releases]
    delta = charges[0].delta
    claimed = epsilon(((one.noise_multiplier, one.sampling_rate, one.steps) for one in charges), delta)
    bound = epsilon_lower_bound(canaries, guesses, correct, delta, CONFIDENCE)
    return [
        Finding(
            "canaries: lower bound of epsilon",
            bound <= claimed,
            f"{bound:.2f} at {CONFIDENCE:.0%}: {correct} of {guesses} guesses right, {canaries} canaries",
            f"{claimed:.2f} charged, delta {delta:.2g}",
        )
    ]


def audit_apart(folder: Path, rng: np.random.Generator, settings: Sequence[Setting] = SETTINGS) -> list[Finding]:
    """How far one patient moves the sum, by setting and by where the patient stands; see `simulations.audit.apart`."""
    return [
        Finding(
            f"apart: {moved.setting.name}",
            moved.most <= 1 + TOLERANCE,
            ", ".join(f"{place} {clips:.3f}" for place, clips in moved.by_place.items()) + " clips",
            "1 clip",
        )
        for moved in sensitivity(folder, rng, settings)
    ]


def audit_attack(folder: Path, rng: np.random.Generator, trials: int = _TRIALS) -> list[Finding]:
    """A lower bound on epsilon from guesses whether the first patient was there."""
    found = attack(folder, rng, trials)
    bound = epsilon_lower_bound(found.trials, found.guesses, found.correct, found.delta, CONFIDENCE)
    return [
        Finding(
            "attack: lower bound of epsilon",
            bound <= found.epsilon,
            f"{bound:.2f} at {CONFIDENCE:.0%}: {found.correct} of {found.guesses} guesses right in {found.trials}, "
            f"sums {found.moved:.2f} clips apart",
            f"{found.epsilon:.2f} charged for each, delta {found.delta:.2g}",
        )
    ]


def canary_scores(releases: Sequence[Release], vectors: Values) -> Values:
    """How much each canary seems to be in the updates: the best linear estimate of its number of steps, centred.

    A canary that is in takes part in Binomial(steps, rate) steps, one that is out in none; each is in with probability
    1/2. The updates hold the sum over those who took part, under normal noise.

    Args:
        releases: of rounds that all began with the same weights.
        vectors: (canaries, parameters), clipped gradients in clips.
    """
    total = sum(one.sum for one in releases)
    steps = sum(one.charge.steps for one in releases)
    rate = releases[0].charge.sampling_rate
    noise = sum(one.charge.steps * one.charge.noise_multiplier**2 for one in releases)
    mean, variance = steps * rate / 2, steps * rate * (1 - rate) / 2 + (steps * rate) ** 2 / 4
    system = variance * (vectors @ vectors.T) + noise * np.eye(len(vectors))
    scores: Values = np.linalg.solve(system, vectors @ (total - mean * vectors.sum(0)))
    return scores


def write_report(folder: Path, findings: Sequence[Finding]) -> Path:
    """One HTML file with the findings and with what they can and cannot show."""
    failed = [one.check for one in findings if not one.passed]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "passed"
    columns, rows = summary_rows(findings)
    page = render(
        "simulations/studies/study.html",
        title="Privacy audit",
        headline=f"Privacy audit: {verdict}",
        above="",
        columns=columns,
        rows=rows,
        further=(),
        below=(LIMITS,),
        plots=(),
    )
    path = folder / REPORT_NAME
    write_atomically(path, page.encode())
    return path


def summary_rows(findings: Sequence[Finding]) -> tuple[list[str], list[list[object]]]:
    """The findings as a table."""
    rows: list[list[object]] = [
        [one.check, "pass" if one.passed else "FAIL", one.figure, one.limit, one.p_value] for one in findings
    ]
    return ["check", "result", "figure", "limit", "p-value"], rows


def _test(check: str, p_value: float, figure: str, limit: str) -> Finding:
    return Finding(check, p_value >= FALSE_ALARM, figure, limit, p_value)


def _ledger_finding(empty: Release, unit: Values) -> Finding:
    """Compare the variance of a round of empty batches with that of single steps, so that only their number counts."""
    measured = float((empty.sum**2).mean()) / empty.charge.noise_multiplier**2 / float((unit**2).mean())
    return _test(
        "ledger: steps",
        ratio_p_value(measured / empty.charge.steps, empty.sum.size, unit.size),
        f"noise of {measured:.2f} steps, nearly all of them empty",
        f"{empty.charge.steps} steps charged",
    )


def _least_squares(taken: Release, vectors: Values) -> tuple[Values, Values]:
    """In how many steps each patient took part, and the standard deviation of that estimate."""
    inverse = np.linalg.inv(vectors @ vectors.T)
    deviation = taken.charge.noise_multiplier * math.sqrt(taken.charge.steps)
    return inverse @ (vectors @ taken.sum), deviation * np.sqrt(np.diag(inverse))


def _largest_correlation(noises: Sequence[Values]) -> float:
    pairs = combinations(noises, 2)
    return max(abs(float(one @ two)) / float(np.linalg.norm(one) * np.linalg.norm(two)) for one, two in pairs)

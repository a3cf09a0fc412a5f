"""What a site tells of its training patients: its numbers, when there are none, and what they give away of one."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.cohort import Case, Cohort
from client.home.folder import STATISTICS_NAME
from client.home.statistics import kept
from client.site import Site, open_site
from client.train.answer import answer
from client.train.statistics import statistics_of, told
from common.config import PolicyConfig, RunConfig, validate
from common.config.rundocument import RunDocument, issue
from common.config.statistics import COUNTED, STATISTICS
from common.learning.checkpoint import pack
from common.learning.network import build_model, weights_of
from common.wire.messages import TrainReply, TrainRequest
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run_of_format, tiny_site

PATIENTS = 30
ASKED = {"rounds": 2, "statistics": True}


def a_run(**tables: dict[str, object]) -> RunConfig:
    federation = {**ASKED, **tables.pop("federation", {})}
    return tiny_run_of_format(2, federation=federation, preprocessing={"intensity": "min-max"}, **tables)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, tiny_site(tmp_path / "images", "north", PATIENTS))


def with_policy(site: Site, **changes: object) -> Site:
    return dataclasses.replace(site, policy=validate(PolicyConfig, {"require_privacy": False, **changes}))


def request(document: RunDocument, number: int = 1) -> TrainRequest:
    return TrainRequest(document.hash, number, {"weights": pack(weights_of(build_model(document.config)))})


def metrics_of(site: Site, document: RunDocument, number: int = 1) -> dict[str, float]:
    reply = answer(request(document, number), document, site, f"attempt-{number}")
    assert isinstance(reply, TrainReply)
    return reply.metrics


def cohort_of(images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Cohort:
    """A patient for each image (rows, columns), who trains."""
    cases = [
        Case(
            f"patient-{number}",
            f"study-{number}",
            "train",
            torch.tensor(image)[None, None].float(),
            torch.tensor(label)[None],
        )
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return Cohort(tuple(cases), (), "cohort", len(cases))


def labelled(have: int, of: int) -> Cohort:
    """So many of the patients have the class, in a quarter of their voxels."""
    label = np.zeros((of, 8, 8), np.uint8)
    label[:have, :4, :4] = 1
    return cohort_of([np.full((8, 8), 0.5)] * of, list(label))


def test_the_numbers_are_those_of_the_training_patients_files(site: Site, tmp_path: Path) -> None:
    document = issue(a_run())
    found = metrics_of(site, document)
    names = sorted(f"north-{number}.png" for number in range(PATIENTS))
    cohort = site.cohort(document.config)
    training = [name for name, case in zip(names, cohort.cases, strict=True) if case.split == "train"]
    assert len(training) == len(cohort.patients("train"))
    shares, means, medians = [], [], []
    for name in training:
        image = np.asarray(Image.open(tmp_path / "images" / "images" / name)).astype(float)
        image = (image - image.min()) / (image.max() - image.min())
        shares.append((np.asarray(Image.open(tmp_path / "images" / "labels" / name)) > 0).mean())
        means.append(image.mean())
        medians.append(np.median(image))
    assert found[COUNTED] == 5 * round(len(training) / 5)
    for name, values in {
        "foreground-share-disc": shares, "intensity-mean-1": means, "intensity-p50-1": medians
    }.items():  # fmt: skip
        assert found[name] == float(f"{statistics.fmean(values):.2g}")
    assert found["foreground-spread-disc"] == float(f"{statistics.stdev(shares):.2g}")
    assert found["intensity-mean-spread-1"] == pytest.approx(statistics.stdev(means), rel=0.05)
    assert found["class-share-disc"] == 0.5  # all have it; of about twenty that is ten at most


@pytest.mark.parametrize(
    ("have", "of", "share"),
    [
        (0, 60, 10 / 60), (1, 60, 10 / 60), (12, 60, 10 / 60), (13, 60, 15 / 60), (30, 60, 0.5), (32, 60, 0.5),
        (33, 60, 35 / 60), (47, 60, 45 / 60), (48, 60, 50 / 60), (59, 60, 50 / 60), (60, 60, 50 / 60),
        (0, 18, 0.5), (18, 18, 0.5), (0, 17, None), (17, 17, None),
    ],
)  # fmt: skip
def test_a_share_is_told_in_steps_of_five_patients_and_ten_from_none_and_all(
    have: int, of: int, share: float | None
) -> None:
    found = statistics_of(labelled(have, of), a_run()).get("class-share-disc")
    assert found == (None if share is None else float(f"{share:.2g}"))


def test_how_large_a_class_is_is_not_told_of_fewer_than_ten_who_have_it() -> None:
    assert "foreground-share-disc" not in statistics_of(labelled(9, 60), a_run())
    found = statistics_of(labelled(10, 60), a_run())
    assert (found["foreground-share-disc"], found["foreground-spread-disc"]) == (0.25, 0.0)


def test_what_but_one_patient_has_in_a_narrow_window_is_not_told() -> None:
    """A mean of v/n beside a spread of v/sqrt(n) says that one has it, and v."""
    images = [np.zeros((8, 8)) for _ in range(30)]
    images[7][:4] = 0.8
    cohort = cohort_of(images, [np.zeros((8, 8), np.uint8)] * 30)
    told_of = statistics_of(cohort, a_run())
    assert not [name for name in told_of if name.startswith(("intensity-mean", "intensity-deviation", "intensity-p95"))]
    assert told_of["intensity-p05-1"] == told_of["intensity-p05-spread-1"] == 0.0  # all alike: nobody's
    images = [image + 1e-6 * number for number, image in enumerate(images)]  # below what is told of anybody
    assert "intensity-mean-1" not in statistics_of(cohort_of(images, [np.zeros((8, 8), np.uint8)] * 30), a_run())


def test_an_image_that_is_no_number_costs_only_what_is_of_its_values() -> None:
    images = [np.full((8, 8), 0.1 * number) for number in range(12)]
    images[3][0, 0] = np.nan
    images[4][0, 0] = np.inf
    label = np.zeros((12, 8, 8), np.uint8)
    label[:, :4, :4] = 1
    found = statistics_of(cohort_of(images, list(label)), a_run())
    assert found["foreground-share-disc"] == 0.25
    assert not [name for name in found if name.startswith("intensity-mean")]
    assert all(np.isfinite(value) for value in found.values())


def test_the_size_of_a_class_is_not_told_where_one_patient_makes_it() -> None:
    labels = np.zeros((30, 64, 64), np.uint8)
    labels[:10, 0, 0] = 1
    labels[3, :32] = 1
    found = statistics_of(cohort_of([np.zeros((64, 64))] * 30, list(labels)), a_run())
    assert {"class-share-disc"} == {name for name in found if "disc" in name}


def test_percentiles_of_a_large_channel_are_of_all_of_it() -> None:
    """A million voxels at equal distances, of an image that is dark above and bright below."""
    image = np.zeros((1500, 1500))
    image[750:] = 1.0
    found = statistics_of(cohort_of([image] * 12, [np.zeros((2, 2), np.uint8)] * 12), a_run())
    assert (found["intensity-p05-1"], found["intensity-mean-1"], found["intensity-p95-1"]) == (0.0, 0.5, 1.0)


def test_a_patient_counts_once_whatever_the_number_of_studies() -> None:
    bright, dark = np.full((8, 8), 1.0), np.zeros((8, 8))
    cohort = cohort_of([bright, *[dark] * 12], [np.ones((8, 8), np.uint8)] * 13)
    (one, *others) = cohort.cases
    again = [dataclasses.replace(one, key=f"again-{number}") for number in range(20)]
    many = Cohort((one, *again, *others), (), "cohort", 13)
    assert statistics_of(many, a_run()) == statistics_of(cohort, a_run())


def test_a_task_that_draws_nothing_tells_no_size() -> None:
    values = a_run().model_dump(by_alias=True)
    changes = {"task": {"kind": "classification"}, "model": {"architecture": "cnn"}}
    data = {**values["data"], "classes": ["benign", "malignant"]}
    run = validate(RunConfig, {**values, **changes, "data": data})
    names = statistics_of(labelled(30, 60), run)
    assert {"class-share-benign", "class-share-malignant"} <= names.keys()
    assert not any(name.startswith("foreground") for name in names)


@pytest.mark.parametrize("named", STATISTICS)
def test_only_what_the_policy_names_is_told_with_the_count(site: Site, named: str) -> None:
    found = metrics_of(with_policy(site, metrics=("dice", named)), issue(a_run()))
    stems = ("foreground-share", "foreground-spread") if named == "foreground-share" else (named,)
    statistic = {name for name in found if name == COUNTED or name.startswith(("class-", "foreground-", "intensity-"))}
    assert statistic == {COUNTED, *(name for name in statistic if name.startswith(stems))}
    assert len(statistic) > 1


def test_nothing_is_told_by_default_nor_of_few_patients_nor_where_a_run_does_not_ask(site: Site) -> None:
    document = issue(a_run())
    training = len(site.cohort(document.config).patients("train"))
    cohort = site.cohort(document.config)
    assert told(document, with_policy(site), cohort) == {}
    everything = {"metrics": (*STATISTICS, "dice")}
    assert told(document, with_policy(site, **everything, min_patients=training + 1), cohort) == {}
    assert told(issue(a_run(federation={"statistics": False})), with_policy(site, **everything), cohort) == {}
    assert not (site.home / STATISTICS_NAME).exists()
    assert told(document, with_policy(site, **everything, min_patients=training), cohort)
    # Of 9 who have the class no size is told, and then no count either.
    nine = labelled(9, 12)
    assert told(issue(a_run(federation={"rounds": 4})), with_policy(site, metrics=("foreground-share",)), nine) == {}
    few = Cohort(tuple(one for one in cohort.cases if one.split == "train")[:9], (), "cohort", 9)
    assert (
        told(issue(a_run(data={"validation-fraction": 0.1})), with_policy(site, **everything, min_patients=1), few)
        == {}
    )


def test_the_same_is_told_in_each_round_though_a_patient_comes(site: Site, tmp_path: Path) -> None:
    document = issue(a_run())
    first = metrics_of(site, document)
    before = len(site.cohort(document.config).patients("train"))
    tiny_site(tmp_path / "images", "south", 20)
    later = open_site(site.home)
    later.let_go()
    assert len(later.cohort(document.config).patients("train")) > before + 5
    again = metrics_of(later, document, 2)
    other = metrics_of(later, issue(a_run(federation={"rounds": 3})))
    about = {name for name in first if name == COUNTED or name.startswith(("class-", "foreground-", "intensity-"))}
    assert {name: again[name] for name in about} == {name: first[name] for name in about}
    assert other[COUNTED] > first[COUNTED]
    of_run = kept(site.home, site.key, document.hash)
    assert of_run is not None
    assert of_run.patients == before
    assert {name: of_run.values[name] for name in about} == {name: first[name] for name in about}
    # More patients train now than the minimum, and what was told is of fewer.
    assert told(document, with_policy(later, metrics=STATISTICS, min_patients=before), later.cohort(document.config))
    raised = with_policy(later, metrics=STATISTICS, min_patients=before + 1)
    assert told(document, raised, later.cohort(document.config)) == {}
    (sealed, _) = (site.home / STATISTICS_NAME).glob("*.sealed")
    assert b"intensity" not in sealed.read_bytes()


def test_what_goes_wrong_costs_no_update(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.train.statistics.statistics_of", lambda *_: 1 / 0)
    assert COUNTED not in metrics_of(site, issue(a_run()))


def guesses(values: np.ndarray, name: str, cohort: Cohort) -> tuple[float, float]:
    """Root mean squares, over who is missing in a second run: of what an attacker makes of both means, and of the mean
    of the others, which anybody may guess."""
    count, run = len(values), a_run()
    whole = statistics_of(cohort, run)[name]
    attacks, means = [], []
    for number, value in enumerate(values):
        rest = dataclasses.replace(cohort, cases=cohort.cases[:number] + cohort.cases[number + 1 :])
        attacks.append(count * whole - (count - 1) * statistics_of(rest, run)[name] - value)
        means.append(np.delete(values, number).mean() - value)
    return float(np.sqrt(np.square(attacks).mean())), float(np.sqrt(np.square(means).mean()))


def test_two_runs_do_not_tell_an_ordinary_patient_and_tell_one_whose_values_lie_far_off() -> None:
    """Two digits hide what lies near the mean of the others; docs/privacy-engine.md says that they hide no more."""
    rng = np.random.default_rng(0)
    ordinary = rng.normal(0.45, 0.02, 60)
    cohort = cohort_of([np.full((8, 8), value) for value in ordinary], [np.ones((8, 8), np.uint8)] * 60)
    by_attack, by_mean = guesses(ordinary, "intensity-mean-1", cohort)
    assert by_attack > 0.9 * by_mean
    shares = np.minimum(rng.exponential(0.07, 60), 1.0)  # a few lesions are much larger than the others
    labels = [(np.arange(4096).reshape(64, 64) < max(1, round(share * 4096))).astype(np.uint8) for share in shares]
    cohort = cohort_of([np.full((64, 64), 0.5)] * 60, labels)
    by_attack, by_mean = guesses(np.array([label.mean() for label in labels]), "foreground-share-disc", cohort)
    assert by_attack < 0.5 * by_mean


def test_many_runs_with_other_settings_average_the_rounding_away() -> None:
    """Each rounds the same patients anew; docs/privacy-engine.md says so, and how many it takes."""
    ordinary = np.random.default_rng(0).normal(0.45, 0.02, 60)
    offsets = np.arange(40) * 0.01 / 40  # of a window, which the coordinator chooses

    def mean_by_runs(values: np.ndarray) -> float:
        found = []
        for offset in offsets:
            images = [np.full((2, 2), value + offset) for value in values]
            cohort = cohort_of(images, [np.zeros((2, 2), np.uint8)] * len(values))
            found.append(statistics_of(cohort, a_run())["intensity-mean-1"] - offset)
        return float(np.mean(found))

    whole, attacks, means = mean_by_runs(ordinary), [], []
    for number in range(0, 60, 10):
        rest = np.delete(ordinary, number)
        attacks.append(60 * whole - 59 * mean_by_runs(rest) - ordinary[number])
        means.append(rest.mean() - ordinary[number])
    assert np.sqrt(np.square(attacks).mean()) < 0.5 * np.sqrt(np.square(means).mean())

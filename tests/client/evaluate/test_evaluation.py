"""A model on a site's patients: whose scores, of which split, on which grid; against files made with known content."""

import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance

from client.data.forget import forget
from client.data.isolate.isolation import Readers, Reading
from client.evaluate.evaluation import score_site
from client.evaluate.model import Evaluated, evaluate
from client.predict.prediction import predict_study
from client.rules import approvals
from client.train.training import evaluate as score_of_training
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode
from common.learning.network import build_model
from simulations.scenarios.homes import make_site
from tests.client.data.studies import dice
from tests.client.evaluate.sites import (
    SPACING,
    THRESHOLD_HU,
    cohort_of,
    lesion,
    name_of,
    raw_id,
    shining,
    site_with,
    threshold_model,
    write_patient,
)
from tests.client.thresholds import run_for, save, threshold_network
from tests.simulations.tiny import tiny_run, tiny_site

PATIENTS = 7


def rows_of(one: Evaluated) -> dict[str, dict[str, Any]]:
    """The table by patient, each row by column."""
    table = one.findings.patients
    return {str(row[0]): dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_each_patient_is_scored_on_the_grid_of_the_study_in_mm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_with(tmp_path, PATIENTS)
    found = evaluate(threshold_model(tmp_path / "model", monkeypatch), [site], wanted="all", readers=0)
    rows = rows_of(found.sites[0])
    assert len(rows) == PATIENTS
    for number in range(PATIENTS):
        row, label, bright = rows[name_of(site, number)], lesion(number), shining(number)
        one, two = (torch.from_numpy(mask)[None, None].float() for mask in (bright, label))
        hd95 = compute_hausdorff_distance(one, two, include_background=True, percentile=95, spacing=SPACING)
        assert row["dice"] == pytest.approx(dice(bright, label))
        assert row["hd95-mm-lesion"] == pytest.approx(float(hd95), abs=1e-5)
        assert row["labelled-ml-lesion"] == pytest.approx(label.sum() * np.prod(SPACING) / 1000)
        assert row["found-ml-lesion"] == pytest.approx(bright.sum() * np.prod(SPACING) / 1000)
    assert list(rows) == [name_of(site, number) for number in reversed(range(PATIENTS))]  # the worst first
    summary = found.sites[0].findings.summary
    scores = [dice(shining(number), lesion(number)) for number in range(PATIENTS)]
    assert summary["mean-of-patients"]["dice"]["value"] == pytest.approx(np.mean(scores))
    together = [np.stack([of(number) for number in range(PATIENTS)]) for of in (shining, lesion)]
    assert summary["pooled"]["dice"]["value"] == pytest.approx(dice(*together))
    assert summary["mean-of-patients"]["dice"]["low"] < np.mean(scores) < summary["mean-of-patients"]["dice"]["high"]


def test_a_model_of_another_grid_is_scored_by_what_a_prediction_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run resamples; the label that is scored is that of the DICOM SEG, on the study's own voxels."""
    site, number = site_with(tmp_path, 3), 2
    values = run_for().model_dump(by_alias=True)
    values["preprocessing"] |= {"spacing-mm": [1.7, 1.9]}
    run = type(run_for()).model_validate(values)
    model = threshold_model(tmp_path / "model", monkeypatch, run)
    row = rows_of(evaluate(model, [site], wanted="all", readers=0).sites[0])[name_of(site, number)]
    folder = tmp_path / "images"
    shutil.copytree(tmp_path / "north" / f"p{number}", folder, ignore=shutil.ignore_patterns("seg*"))
    monkeypatch.setattr("client.predict.prediction.Readers", lambda _count: Readers(0))
    predict_study(model, folder, tmp_path / "out")
    places = {float(image.ImagePositionPatient[2]): image for image in map(pydicom.dcmread, folder.glob("*.dcm"))}
    uids = [places[place].SOPInstanceUID for place in sorted(places)]
    predicted = highdicom.seg.segread(tmp_path / "out" / "segmentation.dcm").get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True, combine_segments=True
    )
    assert not np.array_equal(predicted > 0, shining(number))  # resampling has changed something
    assert row["dice"] == pytest.approx(dice(predicted > 0, lesion(number)))


def test_the_score_of_the_run_itself_is_of_the_prepared_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both by hand: the run's from what it resampled, ours from the patients' own voxels."""
    values = run_for(validation_fraction=0.2, test_fraction=0.4).model_dump(by_alias=True)
    values["preprocessing"] |= {"spacing-mm": [2.6, 2.2]}
    run = type(run_for()).model_validate(values)
    site = site_with(tmp_path, PATIENTS)
    cohort = cohort_of(site, run)
    brighter = (THRESHOLD_HU + 100.0) / 400.0  # in the run's window
    by_hand = {}
    for patient in cohort.patients("test"):
        (case,) = cohort.cases_of(patient)
        by_hand[patient] = dice((case.images[:, 0] > brighter).numpy(), case.labels.numpy() > 0)
    network = threshold_network(run, (THRESHOLD_HU,), (-100.0, 300.0))
    patients, told = score_of_training(network, cohort, run, "test", "cpu")
    assert patients == len(by_hand) > 1
    assert told["dice"] == pytest.approx(np.mean(list(by_hand.values())))
    rows = rows_of(evaluate(threshold_model(tmp_path / "model", monkeypatch, run), [site], readers=0).sites[0])
    assert set(rows) == set(by_hand)
    assert np.mean([row["dice"] for row in rows.values()]) != pytest.approx(told["dice"], abs=1e-3)


@pytest.mark.parametrize("wanted", ["test", "validation", "train"])
def test_splits_are_those_of_training_and_only_asked_patients_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: Any
) -> None:
    site, run = site_with(tmp_path, PATIENTS), run_for(validation_fraction=0.3, test_fraction=0.3)
    trained = cohort_of(site, run)
    read: list[str] = []
    plain = Readers.read

    def watched(self: Readers, jobs: Any) -> Any:
        read.extend(job.reference.patient for job in jobs)
        return plain(self, jobs)

    monkeypatch.setattr(Readers, "read", watched)
    model = threshold_model(tmp_path / "model", monkeypatch, run)
    (one,) = evaluate(model, [site], wanted=wanted, readers=0).sites
    assert set(rows_of(one)) == set(trained.patients(wanted))
    asked = {*trained.patients(wanted), *trained.patients("validation")}
    assert {name_of(site, number) for number in range(PATIENTS) if raw_id(number) in read} == asked
    assert one.seen == ({} if wanted == "test" else {wanted: len(trained.patients(wanted))})


def test_by_default_a_site_that_trained_is_scored_on_test_patients_and_another_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, run = site_with(tmp_path, PATIENTS), run_for(validation_fraction=0.3, test_fraction=0.3)
    (here,) = evaluate(threshold_model(tmp_path / "here", monkeypatch, run), [site], readers=0).sites
    model = threshold_model(tmp_path / "else", monkeypatch, run, sites=("south",))
    (elsewhere,) = evaluate(model, [site], readers=0).sites
    assert (here.wanted, here.took_part, here.patients) == ("test", True, 2)
    assert (elsewhere.wanted, elsewhere.took_part, elsewhere.patients, elsewhere.seen) == ("all", False, PATIENTS, {})
    (everybody,) = evaluate(tmp_path / "here", [site], wanted="all", readers=0).sites
    assert everybody.seen == {"train": 3, "validation": 2}


def test_places_once_given_hold_and_a_look_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_for(validation_fraction=0.3, test_fraction=0.3)
    site = site_with(tmp_path, PATIENTS)
    tested = set(cohort_of(site, run).patients("test"))
    kept = (site.home / "state" / "splits.sealed").read_bytes()
    for number in range(PATIENTS, PATIENTS + 4):
        write_patient(tmp_path / "north", number)
    (one,) = evaluate(threshold_model(tmp_path / "model", monkeypatch, run), [site], wanted="test", readers=0).sites
    assert tested < set(rows_of(one))
    assert (site.home / "state" / "splits.sealed").read_bytes() == kept
    (everybody,) = evaluate(tmp_path / "model", [site], wanted="all", readers=0).sites
    assert everybody.patients == PATIENTS + 4
    assert (site.home / "state" / "splits.sealed").read_bytes() == kept


@pytest.mark.parametrize("approved", [True, False])
def test_a_site_that_approved_the_run_took_part_in_it_whatever_the_model_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approved: bool
) -> None:
    """As a site that was renamed, or a model whose manifest names others."""
    site, run = site_with(tmp_path, PATIENTS), run_for(validation_fraction=0.3, test_fraction=0.3)
    document = issue(run)
    approvals.record(site.home, document, is_open=False)
    approvals.answer(site.home, document.hash, approved=approved, by="person")
    model = threshold_model(tmp_path / "model", monkeypatch, document.config, sites=("south",))
    (one,) = evaluate(model, [site], readers=0).sites
    assert (one.took_part, one.wanted) == ((True, "test") if approved else (False, "all"))


def test_a_threshold_is_chosen_on_validation_patients_who_are_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, run = site_with(tmp_path, PATIENTS), run_for(validation_fraction=0.3, test_fraction=0.3)
    model = threshold_model(tmp_path / "model", monkeypatch, run)
    ranking = evaluate(model, [site], wanted="test", readers=0).sites[0].findings.summary["ranking"]["lesion"]
    # The probability grows with the intensity, so that a threshold between dark and bright gives what the model gives.
    assert 0.4 < ranking["threshold"] < 0.6
    numbers = [number for number in range(PATIENTS) if name_of(site, number) in cohort_of(site, run).patients("test")]
    expected = dice(np.stack([shining(n) for n in numbers]), np.stack([lesion(n) for n in numbers]))
    assert ranking["dice-at-threshold"] == pytest.approx(expected, abs=0.01)
    for wanted in ("all", "validation"):
        (one,) = evaluate(model, [site], wanted=wanted, readers=0).sites
        assert one.findings.summary["ranking"]["lesion"]["threshold"] is None


def test_who_is_forgotten_copied_or_unusable_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_with(tmp_path, 4)
    forget(site.home, site.key, site.config.data, raw_id(3))
    shutil.copytree(tmp_path / "north" / "p1", tmp_path / "north" / "copy")
    for file in (tmp_path / "north" / "p0").glob("seg*"):
        file.unlink()
    (one,) = evaluate(threshold_model(tmp_path / "model", monkeypatch), [site], wanted="all", readers=0).sites
    assert set(rows_of(one)) == {name_of(site, 1), name_of(site, 2)}
    assert one.left_out == {str(ErrorCode.NO_LABEL): 1}


def test_two_studies_of_one_patient_are_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_with(tmp_path, 3)
    write_patient(tmp_path / "north", 6, patient=raw_id(2))
    (one,) = evaluate(threshold_model(tmp_path / "model", monkeypatch), [site], wanted="all", readers=0).sites
    row = rows_of(one)[name_of(site, 2)]
    together = [np.stack([of(number) for number in (2, 6)]) for of in (shining, lesion)]
    assert (one.patients, one.studies) == (3, 4)
    assert row["dice"] == pytest.approx(dice(*together))
    assert row["labelled-ml-lesion"] == pytest.approx(together[1].sum() * np.prod(SPACING) / 1000)
    assert row["hd95-mm-lesion"] == pytest.approx(6 * 0.7, abs=0.71)  # of the worse study: six columns of 0.7 mm


def test_a_missed_lesion_is_infinitely_far_and_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_with(tmp_path, 3)
    monkeypatch.setattr("tests.client.evaluate.sites.THRESHOLD_HU", 2000.0)
    (one,) = evaluate(threshold_model(tmp_path / "model", monkeypatch), [site], wanted="all", readers=0).sites
    assert {row["hd95-mm-lesion"] for row in rows_of(one).values()} == {float("inf")}
    distances = one.findings.summary["distances"]["lesion"]
    assert (distances["patients"], distances["undefined"], distances["hd95"]) == (3, 3, None)
    assert distances["surface-dice"]["value"] == 0


def test_nobody_to_be_scored_is_an_error_that_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_with(tmp_path, 1)
    model = threshold_model(tmp_path / "model", monkeypatch)
    with pytest.raises(DataError, match=r"no study of the test patients can be scored: 1 found"):
        evaluate(model, [site], wanted="test", readers=0)


@pytest.mark.parametrize("wanted", ["all", "test"])
def test_where_nothing_is_usable_the_reason_is_said_in_a_sentence(tmp_path: Path, wanted: Any) -> None:
    """Pictures know no spacing, and without the model's run `data check` calls them usable."""
    run = tiny_run(preprocessing={"spacing-mm": [1.0, 1.0]})
    model = save(tmp_path / "model", run, build_model(run))
    site = make_site(tmp_path / "sites", tiny_site(tmp_path / "pictures", "north", 3))
    with pytest.raises(
        DataError, match=r"3 found. 3 left out: unsupported: .* does not know its spacing. Give"
    ) as told:
        evaluate(model, [site], wanted=wanted, readers=0)
    assert "data check" not in str(told.value)
    assert ("--split all" in str(told.value)) == (wanted == "test")


def test_of_many_reasons_the_most_frequent_are_said(tmp_path: Path) -> None:
    site = make_site(tmp_path / "sites", tiny_site(tmp_path / "pictures", "north", 14))
    numbers = iter([0, 0, 0, *range(1, 12)])

    def refuse(_reading: Reading) -> str:
        raise DataError(f"reason {next(numbers)}.", ErrorCode.IMPLAUSIBLE)

    with pytest.raises(DataError) as told:
        score_site(site, tiny_run(), refuse, str, wanted="all", took_part=False, readers=0)
    said = str(told.value)
    assert said.startswith("no study can be scored: 14 found. 3 left out: implausible: reason 0. 1 left out: ")
    assert said.endswith("reason 7. 4 left out for other reasons.")

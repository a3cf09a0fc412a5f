import json

import numpy as np
import pytest

from client.data.study.label_grid import resample
from client.data.study.labels import Naming, Vocabulary
from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode

DATA = DataConfig(modality="CT", classes=("liver", "liver-tumour"))


def naming(label_map: dict[str, str] | None = None) -> Naming:
    return Vocabulary.of_run(DATA, label_map or {}).naming()


def test_values_are_classes_in_order_without_a_map() -> None:
    values = np.array([[0, 1], [2, 1]], np.int64)
    assert naming({}).numbers(values).tolist() == [[0, 1], [2, 1]]


def test_map_joins_drops_and_renames_values() -> None:
    label_map = {"5": "liver", "6": "liver", "300": "liver-tumour", "9": "background"}
    assert naming(label_map).numbers(np.array([0, 5, 6, 300, 9])).tolist() == [0, 1, 1, 2, 0]


def test_float_values_that_are_whole_are_accepted() -> None:
    assert naming({}).numbers(np.array([0.0, 2.0], np.float32)).tolist() == [0, 2]


@pytest.mark.parametrize("value", [3, -1, 0.5, 1e9, float("nan")])
def test_value_without_a_class_is_unknown(value: float) -> None:
    with pytest.raises(DataError) as error:
        naming({}).numbers(np.array([0, value]))
    assert error.value.code is ErrorCode.LABEL_UNKNOWN


def test_value_outside_the_map_is_unknown_though_it_would_be_a_class() -> None:
    with pytest.raises(DataError, match=r"value.*2"):
        naming({"1": "liver"}).numbers(np.array([1, 2]))


def test_map_to_a_class_of_no_run_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'liver'"):
        naming({"1": "livre"}).numbers(np.array([1]))


def test_map_key_that_is_no_number_is_refused_for_values() -> None:
    with pytest.raises(ConfigError, match="no label value"):
        naming({"one": "liver"}).numbers(np.array([1]))


@pytest.mark.parametrize("name", ["liver-tumour", "Liver Tumour", " LIVER_TUMOUR "])
def test_names_match_whatever_their_case_and_spacing(name: str) -> None:
    assert naming().number([name], 1) == 2


def test_map_adds_names_to_the_classes_own() -> None:
    label_map = {"Leber": "liver", "spine": "background"}
    assert [naming(label_map).number([name], 1) for name in ("leber", "liver", "Spine")] == [1, 1, 0]


def test_unknown_name_is_refused_by_ordinal_and_not_repeated() -> None:
    with pytest.raises(DataError) as error:
        naming().number(["tumour of Mrs Smith"], 3)
    assert error.value.code is ErrorCode.LABEL_UNKNOWN
    assert "segment 3" in str(error.value)
    assert "Smith" not in str(error.value)


def test_first_of_several_names_that_has_a_class_decides() -> None:
    label_map = {"CALC": "background", "M": "liver-tumour"}
    assert naming(label_map).find(("SPIC", "M")) == 2
    assert naming(label_map).find(("calc", "M")) == 0
    assert naming(label_map).find(("SPIC", "B")) is None


def test_label_map_is_asked_before_the_names_of_the_classes() -> None:
    assert naming({"SCT:1": "background"}).find(("liver", "sct:1")) == 0
    assert naming().find(("liver", "SCT:1")) == 1


def test_map_to_a_class_that_the_run_lacks_is_refused_before_a_label_is_read() -> None:
    with pytest.raises(ConfigError, match="does not have"):
        naming({"spleen": "spleen"})


def test_as_found_names_become_classes_in_the_order_met_whatever_their_spelling() -> None:
    found = Vocabulary.as_found({"Leber": "liver", "table": "background"}).naming()
    names = ("Left Lung", "liver", "TABLE", "left_lung", "leber", "")
    assert [found.number([name], 6) for name in names] == [1, 2, 0, 1, 2, 3]
    assert found.classes == ("Left Lung", "liver", "segment 6")


def test_as_found_the_first_name_counts_unless_the_map_has_another() -> None:
    found = Vocabulary.as_found({"SCT:2": "liver"}).naming()
    assert [found.number(names, 1) for names in (["x", "SCT:1"], ["y", "SCT:2"])] == [1, 2]
    assert found.classes == ("x", "liver")


def test_as_found_each_study_starts_afresh() -> None:
    wanted = Vocabulary.as_found({})
    for name in ("a", "b"):
        fresh = wanted.naming()
        assert fresh.number([name], 1) == 1
        assert fresh.classes == (name,)


def test_as_found_values_are_joined_dropped_and_named_by_themselves() -> None:
    found = Vocabulary.as_found({"5": "liver", "6": "liver", "9": "background"}).naming()
    assert found.numbers(np.array([0, 6, 9, 7, 5])).tolist() == [0, 1, 0, 2, 1]
    assert found.classes == ("liver", "7")


def test_more_classes_than_a_label_can_hold_are_refused() -> None:
    assert len(Vocabulary.as_found({}).naming().numbers(np.arange(255))) == 255
    with pytest.raises(DataError, match="more than 254") as error:
        Vocabulary.as_found({}).naming().numbers(np.arange(256))
    assert error.value.code is ErrorCode.LABEL_UNKNOWN


@pytest.mark.parametrize("wanted", [Vocabulary.of_run(DATA, {"a": "liver"}), Vocabulary.as_found({"a": "b"})])
def test_vocabulary_survives_json(wanted: Vocabulary) -> None:
    assert Vocabulary.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


def test_resampling_to_a_finer_grid_and_back_changes_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.uint8)
    coarse, fine = np.diag([3.0, 2.0, 2.0, 1.0]), np.diag([1.0, 1.0, 0.5, 1.0])
    fine[:3, 3] = -1.0, -0.5, -0.75  # both grids begin at the same outer edge
    finer = resample(labels, coarse, fine, (9, 8, 20))
    assert (finer == labels.repeat(3, 0).repeat(2, 1).repeat(4, 2)).all()
    assert (resample(finer, fine, coarse, labels.shape) == labels).all()


def test_what_the_labels_do_not_reach_is_background() -> None:
    shifted = np.eye(4)
    shifted[2, 3] = 3.0
    found = resample(np.ones((1, 2, 5), np.uint8), shifted, np.eye(4), (1, 2, 5))
    assert found.tolist() == [[[0, 0, 0, 1, 1]] * 2]


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan)])
def test_labels_without_a_volume_do_not_fit(affine: np.ndarray) -> None:
    with pytest.raises(DataError) as error:
        resample(np.ones((2, 2, 2), np.uint8), affine, np.eye(4), (2, 2, 2))
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH


def test_labels_that_all_fall_beside_the_image_do_not_fit_though_the_grids_meet() -> None:
    labels = np.zeros((1, 1, 6), np.uint8)
    labels[..., 5] = 1
    with pytest.raises(DataError) as error:
        resample(labels, np.eye(4), np.eye(4), (1, 1, 3))
    assert error.value.code is ErrorCode.GEOMETRY_MISMATCH
    assert not resample(np.zeros_like(labels), np.eye(4), np.eye(4), (1, 1, 3)).any()

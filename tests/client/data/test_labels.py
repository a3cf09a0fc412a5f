import numpy as np
import pytest

from client.data.labels import class_of_any, class_of_name, map_values, resample
from common.config import DataConfig
from common.errors import ConfigError, DataError, ErrorCode

DATA = DataConfig(modality="CT", classes=("liver", "liver-tumour"))


def test_values_are_classes_in_order_without_a_map() -> None:
    values = np.array([[0, 1], [2, 1]], np.int64)
    assert map_values(values, DATA, {}).tolist() == [[0, 1], [2, 1]]


def test_map_joins_drops_and_renames_values() -> None:
    label_map = {"5": "liver", "6": "liver", "300": "liver-tumour", "9": "background"}
    assert map_values(np.array([0, 5, 6, 300, 9]), DATA, label_map).tolist() == [0, 1, 1, 2, 0]


def test_float_values_that_are_whole_are_accepted() -> None:
    assert map_values(np.array([0.0, 2.0], np.float32), DATA, {}).tolist() == [0, 2]


@pytest.mark.parametrize("value", [3, -1, 0.5, 1e9, float("nan")])
def test_value_without_a_class_is_unknown(value: float) -> None:
    with pytest.raises(DataError) as error:
        map_values(np.array([0, value]), DATA, {})
    assert error.value.code is ErrorCode.LABEL_UNKNOWN


def test_value_outside_the_map_is_unknown_though_it_would_be_a_class() -> None:
    with pytest.raises(DataError, match=r"value.*2"):
        map_values(np.array([1, 2]), DATA, {"1": "liver"})


def test_map_to_a_class_of_no_run_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'liver'"):
        map_values(np.array([1]), DATA, {"1": "livre"})


def test_map_key_that_is_no_number_is_refused_for_values() -> None:
    with pytest.raises(ConfigError, match="no label value"):
        map_values(np.array([1]), DATA, {"one": "liver"})


@pytest.mark.parametrize("name", ["liver-tumour", "Liver Tumour", " LIVER_TUMOUR "])
def test_names_match_whatever_their_case_and_spacing(name: str) -> None:
    assert class_of_name(name, DATA, {}, 1) == 2


def test_map_adds_names_to_the_classes_own() -> None:
    label_map = {"Leber": "liver", "spine": "background"}
    assert [class_of_name(name, DATA, label_map, 1) for name in ("leber", "liver", "Spine")] == [1, 1, 0]


def test_unknown_name_is_refused_by_ordinal_and_not_repeated() -> None:
    with pytest.raises(DataError) as error:
        class_of_name("tumour of Mrs Smith", DATA, {}, 3)
    assert error.value.code is ErrorCode.LABEL_UNKNOWN
    assert "segment 3" in str(error.value)
    assert "Smith" not in str(error.value)


def test_first_of_several_names_that_has_a_class_decides() -> None:
    label_map = {"CALC": "background", "M": "liver-tumour"}
    assert class_of_any(("SPIC", "M"), DATA, label_map) == 2
    assert class_of_any(("calc", "M"), DATA, label_map) == 0
    assert class_of_any(("SPIC", "B"), DATA, label_map) is None


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

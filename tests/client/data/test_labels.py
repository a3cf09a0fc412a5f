import numpy as np
import pytest

from client.data.labels import class_of_name, map_values
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

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.data.study.study import Found, Reference, Study, parsing, quiet
from common.errors import ConfigError, DataError, ErrorCode


def fail(error: BaseException) -> Callable[[], None]:
    def raising() -> None:
        with parsing("picture"):
            raise error

    return raising


@pytest.mark.parametrize("error", [ValueError("of Mrs Smith"), KeyError("Smith"), RecursionError("Smith"), EOFError()])
def test_whatever_a_parser_raises_is_unreadable_and_its_words_stay_out(error: Exception) -> None:
    with pytest.raises(DataError, match="this picture could not be decoded: it is damaged") as refused:
        fail(error)()
    assert refused.value.code is ErrorCode.UNREADABLE
    assert "Smith" not in str(refused.value)


def test_lack_of_memory_has_a_code_of_its_own() -> None:
    with pytest.raises(DataError, match="not enough memory") as refused:
        fail(MemoryError())()
    assert refused.value.code is ErrorCode.OUT_OF_MEMORY


@pytest.mark.parametrize("error", [DataError("x", ErrorCode.NO_LABEL), ConfigError("x"), KeyboardInterrupt()])
def test_errors_of_ours_and_a_persons_stop_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed:
        fail(error)()
    assert passed.value is error


@pytest.mark.parametrize("library", ["pydicom", "highdicom", "highdicom.seg.sop"])
def test_parsers_are_quiet_within_and_loud_after(library: str, caplog: pytest.LogCaptureFixture) -> None:
    def talk() -> None:
        warnings.warn("value of Mrs Smith", stacklevel=1)
        logging.getLogger(library).warning("value of Mrs Smith")

    @quiet()
    def stumble() -> None:
        talk()
        raise ValueError("x")

    with warnings.catch_warnings(record=True) as heard:
        with pytest.raises(ValueError, match="x"):
            stumble()
        assert (len(heard), caplog.text) == (0, "")
        talk()
        assert len(heard) == 1
    assert "Smith" in caplog.text


def test_neither_a_study_nor_a_reference_names_whom_it_is_of_when_shown() -> None:
    path = Path("smith.png")
    study = Study(np.zeros((1, 2, 2), np.float32), None, None, None, "CT", "smith", "smith", (path,), ("smith",))
    reference = Reference("images", "smith", "smith", (path,), (path,))
    assert not any("smith" in repr(one) for one in (study, reference))


def test_files_left_out_are_counted_over_all_reasons() -> None:
    assert Found((), {"a": 2, "b": 3}).ignored == 5
    assert Found(()).ignored == 0

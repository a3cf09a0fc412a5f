"""A text is no number and no truth value, a number no truth value, and 4.0 no count; a count may stand for a number."""

import pytest

from common.config import RunConfig, parse, sha256_of
from common.config.rundocument import from_bundle, from_toml
from common.errors import ConfigError

RUN = """
format = 2
name = "lesions"
deterministic = {deterministic}
[data]
modality = "CT"
classes = ["lesion"]
[preprocessing]
spacing-mm = {spacing}
[training]
patch-size = {patch}
learning-rate = {rate}
batch-size = {batch}
[federation]
rounds = 2
"""
GOOD = {"deterministic": "true", "spacing": "[1, 2.5]", "patch": "[16, 16]", "rate": "1", "batch": "4"}


def text(**changes: str) -> str:
    return RUN.format(**GOOD | changes)


def test_whole_numbers_stand_for_numbers() -> None:
    run = parse(RunConfig, text())
    assert (run.training.learning_rate, run.preprocessing.spacing_mm) == (1.0, (1.0, 2.5))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch": '"4"'}, r'training.batch-size is "4", must be a whole number, without quotes'),
        ({"rate": '"1e-3"'}, r'training.learning-rate is "1e-3", must be a number, without quotes'),
        ({"deterministic": '"yes"'}, r'deterministic is "yes", must be true or false, without quotes'),
        ({"deterministic": "1"}, r"deterministic is 1, must be true or false"),
        ({"batch": "true"}, r"training.batch-size is true, must be a whole number"),
        ({"batch": "4.0"}, r"training.batch-size is 4.0, must be a whole number, without a point"),
        ({"patch": '[16, "16"]'}, r'training.patch-size.1 is "16", must be a whole number'),
        ({"spacing": '["1", 2]'}, r'preprocessing.spacing-mm.0 is "1", must be a number'),
    ],
)
def test_what_is_of_another_type_is_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(RunConfig, text(**changes))


def test_what_an_earlier_version_issued_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took "4" for 4, and a hospital that has the run keeps it."""
    with monkeypatch.context() as patched:
        patched.setattr("common.document.table.mistaken", lambda *_: iter(()))
        issued = from_toml(text(batch='"4"'))
    assert from_bundle(issued.bundle).hash == issued.hash == sha256_of(parse(RunConfig, text()))

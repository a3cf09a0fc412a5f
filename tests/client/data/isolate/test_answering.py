"""Whatever is asked of a study, the same studies are refused."""

from pathlib import Path

import pytest

from client.data.isolate.answering import answer_to
from client.data.read import sources
from client.data.study.as_json import reference_to_json
from client.data.study.labels import Vocabulary
from common.errors import ErrorCode
from tests.client.data.studies import source, write_pair


@pytest.mark.parametrize("what", ["read", "check"])
def test_study_too_large_when_decoded_is_refused_by_check_and_reading_alike(tmp_path: Path, what: str) -> None:
    write_pair(tmp_path, "p1", (20, 31))
    (reference,) = sources.find(source(path="."), tmp_path).references
    of = {"reference": reference_to_json(reference), "wanted": Vocabulary().to_json()}
    question = {"do": what, **of, "empty-is-negative": False, "most-missing": 0.0}
    decoded = 20 * 31 * (3 * 4 + 1)  # three channels of float32, and a label
    assert answer_to(question, decoded)[0]["kind"] == "answer"
    header, arrays = answer_to(question, decoded - 1)
    assert (header["kind"], header["problem"]["code"], len(arrays)) == ("problem", ErrorCode.OUT_OF_MEMORY, 0)

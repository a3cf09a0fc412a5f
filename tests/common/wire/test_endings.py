"""How a run ended goes over the wire whole, and nothing that this version does not know is believed."""

import pytest

from common.errors import ErrorCode
from common.wire.endings import Ending, ending_of, ending_to_proto
from common.wire.wardround_pb2 import Ending as EndingProto
from common.wire.wardround_pb2 import Proposal

ENDINGS = (
    Ending("completed", "", 3),
    Ending("stopped", "", 0),
    Ending("failed", ErrorCode.TOO_FEW_UPDATES, 1),
    Ending("failed"),
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_ending_comes_out_as_it_went_in(ending: Ending) -> None:
    sent = Proposal(open=False, ending=ending_to_proto(ending)).SerializeToString()
    assert ending_of(Proposal.FromString(sent)) == ending


def test_run_that_is_open_or_of_which_nothing_is_told_has_none() -> None:
    assert ending_of(Proposal(open=False)) is None
    assert ending_of(Proposal(open=True, ending=ending_to_proto(ENDINGS[0]))) is None


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        (EndingProto(how="exploded"), None),
        (EndingProto(), None),
        (EndingProto(how="failed", code="Anna Mueller", rounds=2), Ending("failed", "", 2)),
        (EndingProto(how="completed", rounds=-1), Ending("completed")),
    ],
)
def test_words_that_are_not_known_are_left_out(told: EndingProto, believed: Ending | None) -> None:
    assert ending_of(Proposal(open=False, ending=told)) == believed


@pytest.mark.parametrize("how", [None, 3, ["completed"], {}])
def test_damaged_file_says_nothing(how: object) -> None:
    assert Ending.checked(how, [], "3") is None
    assert Ending.checked("completed", {}, True) == Ending("completed")

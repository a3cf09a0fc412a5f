"""What a site says that it is at: read back as it was said, and nothing of another form is believed."""

import pytest

from common.wire.at_work import AtWork, said, stamp

RUN = "ab" * 32


@pytest.mark.parametrize("work", [AtWork(RUN, 1), AtWork(RUN, 9_999_999, hangs=True), None])
def test_what_is_said_arrives(work: AtWork | None) -> None:
    assert said((("wardround-time", "1790000000.5"), *stamp(work))) == work


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"{RUN} 1",
        f"{RUN} -1 moves",
        f"{RUN} 1 moves ",
        f"{RUN} 12345678 moves",
        f"{RUN} 1 waits",
        f"{RUN[:-1]} 1 moves",
        f"{RUN.upper()} 1 moves",
        f"{RUN} 1 moves\n",
        f"{RUN} \N{ARABIC-INDIC DIGIT ONE} moves",
        b"\xff" * 9,
    ],
)
def test_what_is_of_another_form_says_nothing(value: str | bytes) -> None:
    assert said((("wardround-work", value),)) is None
    assert said(None) is None

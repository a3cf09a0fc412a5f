"""Which versions work together: what each side says, what is refused, and the table in the docs."""

import re
from importlib import metadata

import pytest

from common.wire import versions
from common.wire.versions import FIRST, OURS, PROTOCOLS, OtherVersionError, Version
from tests import ROOT


def test_what_is_said_is_understood() -> None:
    own = Version(metadata.version("wardround"), OURS.number)
    assert versions.said(versions.stamp()) == own
    assert versions.said([("user-agent", f"{versions.user_agent()} grpc-python/1.80.0 grpc-c/53.0.0 (linux)")]) == own
    assert versions.refusal(own, "site north") == ""


@pytest.mark.parametrize(
    "sent",
    [
        None,
        [],
        [("user-agent", "grpc-python/1.80.0")],
        [("user-agent", b"wardround/9.0.0-protocol.9")],
        [("wardround-version", "protocol.9")],
        [("wardround-version", "9.0.0-protocol.")],
        [("wardround-version", "x" * 10_000 + "9.0.0-protocol.9")],
        [("other", "9.0.0-protocol.9")],
    ],
)
def test_who_says_nothing_that_is_understood_is_of_the_first_version(sent: list[tuple[str, str | bytes]]) -> None:
    assert versions.said(sent) == FIRST == Version("0.1.0", 1)


def test_who_is_to_update_is_the_older_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    later = versions.refusal(Version("9.0.0", OURS.number + 1), "site north")
    assert f"site north has wardround 9.0.0, which speaks protocol {OURS.number + 1}" in later
    assert f"the coordinator has wardround {metadata.version('wardround')}" in later
    assert "Update wardround at the coordinator" in later
    assert "Update wardround at this site" in versions.refusal(Version("9.0.0", OURS.number + 1), "the coordinator")
    monkeypatch.setattr(versions, "OURS", versions.Protocol(7, "0.7.0", 5, ""))
    earlier = versions.refusal(Version("0.4.0", 4), "site north")
    assert "understands protocols 5 to 7" in earlier
    assert "Update wardround at site north" in earlier
    assert [bool(versions.refusal(Version("", number), "site north")) for number in (4, 5, 6, 7, 8)] == [
        *(True, False, False, False, True)
    ]
    with pytest.raises(OtherVersionError, match="Update wardround at the coordinator"):
        versions.check_coordinator([("wardround-version", "0.4.0-protocol.4")])


def test_table_is_whole_and_the_docs_have_the_same() -> None:
    assert [one.number for one in PROTOCOLS] == list(range(1, len(PROTOCOLS) + 1))
    assert all(one.oldest <= one.number for one in PROTOCOLS)
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split("## Versions\n")[1]
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert rows == [(str(one.number), one.since, str(one.oldest), one.what) for one in PROTOCOLS]

"""One check's trouble is told as its own, and the others are made all the same."""

import json
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from common.console.doctor import Check, Finding, examine, tell
from common.errors import ConfigError, EnrolmentError

TROUBLES = (
    EnrolmentError("the certificate is gone"),
    FileNotFoundError("no such file"),
    subprocess.TimeoutExpired("python", 3),
    psutil.AccessDenied(7),
)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda one: type(one).__name__)
def test_check_that_cannot_be_made_hides_no_other(trouble: Exception) -> None:
    def breaks() -> str:
        raise trouble

    def breaks_halfway() -> Iterator[Finding]:
        yield Finding("a part", True, "fine")
        raise trouble

    checks: dict[str, Check] = {
        "first": lambda: "well",
        "second": breaks,
        "third": breaks_halfway,
        "last": lambda: "well too",
    }
    findings = examine(checks)
    assert [(one.what, one.ok) for one in findings] == [
        ("first", True),
        ("second", False),
        ("third", False),
        ("last", True),
    ]
    assert findings[1].detail == str(trouble)


def test_what_is_wrong_is_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("disk", True, "9 GiB"), Finding("agent", False, "not running")]
    with pytest.raises(ConfigError, match=r"1 of 2 checks failed: agent\."):
        tell(findings, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"check": "disk", "result": "ok", "detail": "9 GiB"},
        {"check": "agent", "result": "WRONG", "detail": "not running"},
    ]
    tell(findings[:1], as_json=False)

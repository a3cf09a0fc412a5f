"""Homes of other versions: an earlier one is brought up after a copy, a later one is refused."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.rescue.migration import HomeVersions, Step, version_of
from common.system.locks import locked


def to_one(home: Path) -> None:
    (home / "list.txt").write_text((home / "list.txt").read_text().upper())


def to_two(home: Path) -> None:
    (home / "state").mkdir(exist_ok=True)
    (home / "list.txt").replace(home / "state/list.txt")


STEPS = (
    Step("the list is in capitals", ("list.txt", "absent"), to_one),
    Step("the list has a folder", ("list.txt",), to_two),
)


def versions(steps: tuple[Step, ...] = STEPS) -> HomeVersions:
    return HomeVersions("hospital", "wardround-client", "agent.lock", steps)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "list.txt").write_text("a b")
    return tmp_path


def test_home_of_before_is_brought_up_step_by_step_and_what_changes_is_kept(home: Path) -> None:
    told: list[str] = []
    versions().open(home, told.append)
    assert (home / "state/list.txt").read_text() == "A B"
    assert [(home / f"before-version-{n}/list.txt").read_text() for n in (1, 2)] == ["a b", "A B"]
    assert version_of(home) == 2
    assert [("before-version" in line, line.split(":")[0]) for line in told] == [
        (True, "The home is of version 1 now"),
        (True, "The home is of version 2 now"),
    ]
    before = sorted(home.rglob("*"))
    versions().open(home, told.append)
    assert (len(told), sorted(home.rglob("*"))) == (2, before)


def test_home_of_a_later_version_is_refused_with_what_to_do(home: Path) -> None:
    (home / "home.json").write_text('{"version": 3, "side": "hospital", "program": "0.9.0"}')
    with pytest.raises(ConfigError, match=r"of version 3, written by wardround 0\.9\.0; .* up to 2\. Update wardround"):
        versions().open(home)
    assert (home / "list.txt").read_text() == "a b"


def test_new_home_is_of_our_version_and_one_that_has_a_version_keeps_it(home: Path) -> None:
    versions(STEPS[:1]).begin(home)
    assert version_of(home) == 1
    versions().begin(home)
    assert version_of(home) == 1


def test_home_in_use_by_an_earlier_program_is_left_alone(home: Path) -> None:
    with locked(home / "agent.lock"), pytest.raises(ConfigError, match="Stop it first"):
        versions().open(home)
    assert version_of(home) == 0


def test_step_that_was_interrupted_is_done_again_and_the_copy_is_of_before(home: Path) -> None:
    def half(place: Path) -> None:
        (place / "list.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        versions((Step("", ("list.txt",), half),)).open(home)
    assert (version_of(home), (home / "before-version-1/list.txt").read_text()) == (0, "a b")
    versions(STEPS[:1]).open(home)
    assert (version_of(home), (home / "before-version-1/list.txt").read_text()) == (1, "a b")


@pytest.mark.parametrize("text", ["", "[]", '{"version": "1"}', '{"version": -1}', '{"version": true}'])
def test_damaged_version_is_said(home: Path, text: str) -> None:
    (home / "home.json").write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        versions().open(home)


def test_version_file_says_whose_it_is(home: Path) -> None:
    versions().begin(home)
    assert json.loads((home / "home.json").read_bytes()) | {"program": ""} == {
        "version": 2,
        "side": "hospital",
        "program": "",
    }

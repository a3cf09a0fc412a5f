"""Who keeps the site key: a private file, a passphrase or the environment, each from the first command to the worker.

What the key does (pseudonyms, cohort) must not depend on who keeps it.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.agent.worker_process import Worker
from client.commands.main import app
from client.home import sitekey
from client.home.offer import Offer
from client.home.sitekey import KEY_VARIABLE, PASSPHRASE_VARIABLE
from client.site import open_site
from client.worker import loop
from client.worker.protocol import Describe, PipeError
from common.config.rundocument import issue
from common.crypto.passphrase import is_sealed, seal
from common.errors import ConfigError
from common.system.files import write_private
from simulations.scenarios.homes import make_site
from tests.patience import PATIENCE_S
from tests.simulations.mammograms import mass_run, region_run, write_archive
from tests.simulations.tiny import tiny_run, tiny_site

PASSPHRASE = "five random words on paper"  # noqa: S105
KEY = bytes(range(32))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A site that nothing has opened yet in this process."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "site.toml").write_text('name = "north"\n')
    return folder


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, PASSPHRASE_VARIABLE, f"{PASSPHRASE_VARIABLE}_FILE"):
        monkeypatch.delenv(name, raising=False)


def forget(home: Path) -> None:
    """As in a new process."""
    sitekey._held(home.resolve()).clear()


def call(home: Path, *arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(home)], **options)


def sealed(home: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Put the site's key under PASSPHRASE by the command; returns the key."""
    key = open_site(home).key
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    result = call(home, "key", "protect")
    assert result.exit_code == 0, result.output
    forget(home)
    return key


def test_key_is_made_once_and_for_its_owner_only(home: Path) -> None:
    key = open_site(home).key
    assert len(key) == 32
    assert (home / "site.key").read_bytes() == key
    assert stat.S_IMODE((home / "site.key").stat().st_mode) == 0o600
    forget(home)
    assert open_site(home).key == key
    assert [path.name for path in home.iterdir() if "key" in path.name] == ["site.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_that_others_may_read_is_refused_with_the_way_out(home: Path, mode: int) -> None:
    open_site(home)
    forget(home)
    (home / "site.key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"chmod 600 .*give the key in {KEY_VARIABLE} instead"):
        open_site(home)


def test_protected_key_is_nowhere_in_the_home_and_stays_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = sealed(home, monkeypatch)
    assert open_site(home).key == key
    for path in (path for path in home.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not any(form in content for form in (key, key.hex().encode(), PASSPHRASE.encode()))
    assert is_sealed((home / "site.key").read_bytes())
    assert stat.S_IMODE((home / "site.key").stat().st_mode) == 0o600


def test_file_that_was_sealed_as_the_site_key_opens_and_another_purposes_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    write_private(home / "site.key", seal(KEY, PASSPHRASE, "site key"))
    assert open_site(home).key == KEY
    forget(home)
    write_private(home / "site.key", seal(KEY, PASSPHRASE, "coordinator key"))
    with pytest.raises(ConfigError, match="the site key does not open"):
        open_site(home)


def test_unprotected_key_is_the_first_one_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = sealed(home, monkeypatch)
    assert call(home, "key", "unprotect", "--yes").exit_code == 0
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    forget(home)
    assert open_site(home).key == key == (home / "site.key").read_bytes()


def test_passphrase_may_lie_in_a_file_as_containers_mount_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = sealed(home, monkeypatch)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    (tmp_path / "credential").write_text(f"{PASSPHRASE}\n")
    monkeypatch.setenv(f"{PASSPHRASE_VARIABLE}_FILE", str(tmp_path / "credential"))
    assert open_site(home).key == key


def test_passphrase_is_asked_for_on_a_terminal_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = sealed(home, monkeypatch)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def typed(prompt: str) -> str:
        asked.append(prompt)
        return PASSPHRASE

    monkeypatch.setattr("getpass.getpass", typed)
    for name in ("north", "south"):  # the second time site.toml has changed
        (home / "site.toml").write_text(f'name = "{name}"\n')
        assert open_site(home).key == key
    assert len(asked) == 1


def test_without_a_passphrase_and_a_terminal_the_site_does_not_open(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(home, monkeypatch)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(ConfigError, match=PASSPHRASE_VARIABLE):
        open_site(home)


def test_wrong_passphrase_and_damaged_file_get_the_same_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = sealed(home, monkeypatch)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE + "!")
    with pytest.raises(ConfigError) as wrong:
        open_site(home)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    values = json.loads((home / "site.key").read_bytes())
    values["sealed"] = ("0" if values["sealed"][0] != "0" else "1") + values["sealed"][1:]
    (home / "site.key").write_text(json.dumps(values))
    with pytest.raises(ConfigError) as damaged:
        open_site(home)
    assert str(wrong.value) == str(damaged.value)
    assert not any(secret in str(wrong.value) for secret in (PASSPHRASE, key.hex()))


def test_short_passphrase_is_refused_and_the_key_left_as_it_was(home: Path) -> None:
    key = open_site(home).key
    result = call(home, "key", "protect", env={PASSPHRASE_VARIABLE: "short"})
    assert (result.exit_code, "12" in result.stderr) == (1, True)
    assert (home / "site.key").read_bytes() == key


def test_key_of_the_environment_needs_no_file_and_makes_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    assert open_site(home).key == KEY
    assert not (home / "site.key").exists()
    assert call(home, "key", "protect").exit_code == 1


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "00" * 31])
def test_key_of_the_environment_that_is_none_is_refused_without_showing_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, text)
    with pytest.raises(ConfigError, match="64 hex digits") as caught:
        open_site(home)
    assert not text or text not in str(caught.value)
    assert not (home / "site.key").exists()


def test_two_keys_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_site(home)
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    with pytest.raises(ConfigError, match="Two keys"):
        open_site(home)


def test_key_is_not_sealed_under_a_running_agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client.agent.status import only_one  # noqa: PLC0415

    key = open_site(home).key
    monkeypatch.setenv(PASSPHRASE_VARIABLE, PASSPHRASE)
    with only_one(home):
        assert call(home, "key", "protect").exit_code == 1
    assert (home / "site.key").read_bytes() == key


@pytest.mark.parametrize("place", ["images/site", "images"])
def test_home_among_the_images_is_refused(tmp_path: Path, place: str) -> None:
    inside = tmp_path / place
    inside.mkdir(parents=True)
    (inside / "site.toml").write_text(f'name = "north"\n[[data]]\npath = "{tmp_path / "images"}"\n')
    with pytest.raises(ConfigError, match="inside a data folder"):
        open_site(inside)
    (inside / "site.toml").write_text('name = "north"\n')
    result = call(inside, "data", "add", str(tmp_path / "images"))
    assert (result.exit_code, "inside a data folder" in result.stderr) == (1, True)
    assert (inside / "site.toml").read_text() == 'name = "north"\n'


def test_doctor_says_who_keeps_the_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "first use" in sitekey.custody(home)
    sealed(home, monkeypatch)
    assert "passphrase" in sitekey.custody(home)
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    assert KEY_VARIABLE in sitekey.custody(home)


def test_worker_gets_the_key_by_its_pipe_and_has_no_way_to_it_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "north", patients=5))
    before = loop.answer(Describe(issue(tiny_run())), site.home)
    assert isinstance(before, Offer)
    key = sealed(site.home, monkeypatch)
    worker = Worker(site.home, threads=1)
    try:
        after = worker.ask(Describe(issue(tiny_run())), PATIENCE_S)
        process = psutil.Process(worker.pid)
        seen = " ".join([*process.cmdline(), *process.environ(), *process.environ().values()])
    finally:
        worker.stop()
    assert isinstance(after, Offer)
    assert (after.cohort_id, after.patients) == (before.cohort_id, before.patients)
    assert not any(secret in seen for secret in (PASSPHRASE, key.hex(), PASSPHRASE_VARIABLE, KEY_VARIABLE))
    log = (site.home / "logs" / "worker.log").read_bytes()
    assert not any(secret in log for secret in (key, key.hex().encode(), PASSPHRASE.encode()))


def test_worker_that_is_not_handed_a_key_ends(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "north"\n')
    questions, answers = os.pipe(), os.pipe()
    os.close(questions[1])
    with pytest.raises(PipeError, match="site key"):
        loop.serve(tmp_path, questions[0], answers[1], "removed")
    assert not (tmp_path / "site.key").exists()


def test_a_cohort_is_of_the_task_and_the_patch_that_are_asked_for(tmp_path: Path) -> None:
    """One open site serves maps, regions and images as a whole by turns; none may be taken for another."""
    site = make_site(tmp_path / "homes", write_archive(tmp_path / "north", 4))
    maps = mass_run(data={"folds": 2})
    small, large = (region_run(data={"folds": 2}, training={"patch-size": [edge, edge]}) for edge in (32, 48))
    for _ in range(2):
        assert {case.labels.shape[1:] for case in site.cohort(maps).cases} == {(128, 128)}
        for run, edge in ((small, 32), (large, 48)):
            cases = site.cohort(run).cases
            assert {case.labels.shape[1:] for case in cases if case.split == "test"} == {(edge, edge)}
            assert {case.labels.shape[1:] for case in cases if case.split == "train"} == {(2 * edge, 2 * edge)}
            assert sum(len(case.labels) for case in cases) > len(cases), "films with two regions"

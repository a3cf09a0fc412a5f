"""Make the folder of a format: a coordinator and two hospitals as real processes, stopped, and what they left.

Run it once for each format, from the last commit that writes it: `python -m tests.formats.make tests/formats/N`.
Three runs. `private` is complete, so that ledgers have rows. `refused` is denied by both hospitals. `plain` failed
after its first round, because a policy allowed one hospital no second one that day: it can be resumed.

The keys are made for this and guard nothing.
"""

import json
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import free_ports
from tests.simulations.tiny import tiny_site
from tests.system.play import SITES, Play

PATIENTS = 5
RUN_TOML = """\
# One comment, so that text and meaning differ.
name = "NAME"
seed = 3
deterministic = true
model = { channels = [4, 8], residual-units = 0 }
data = { modality = "photo", classes = ["disc"], validation-fraction = 0.2, test-fraction = 0.2 }
training = { local-steps = 2, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = ROUNDS, quorum = 2, join-timeout-s = 300, round-timeout-s = 300 }
"""
PRIVACY = "privacy = { target-epsilon = 8.0, sampling-rate = 0.5, crops-per-patient = 2 }\n"
POLICY = "require-privacy = false\nmin-patients = 4\nmin-held-out = 1\n"
# Of a home: what its process makes anew, or cannot be had anywhere else.
PASSING = (
    "logs",
    "flower",
    "cache",
    "scratch",
    "invitations",
    "*.sock",
    "*.pid",
    "*.lock",
    "status.json",
    "printed.log",
)


def make(play: Play) -> None:
    """Play the three runs in an empty folder."""
    ports = zip(("--gateway-port", "--enrolment-port", "--superlink-port"), map(str, free_ports(3)), strict=True)
    play.server("init", *(word for pair in ports for word in pair))
    play.start("coordinator")
    play.server("invite", *SITES, "--out", str(play.folder))
    joins = [
        play.spawn("client.commands.main", "join", f"{site}.json", "--home", str(play.folder / site)) for site in SITES
    ]
    eventually(lambda: len(json.loads(play.server("requests", "--json"))) == len(SITES), "both ask to join")
    play.server("approve", *SITES)
    for join in joins:
        assert join.wait(timeout=PATIENCE_S) == 0
    for site in SITES:
        tiny_site(play.folder / f"{site}-pictures", site, PATIENTS)
        text = f'threads = 1\nname = "{site}"\n[[data]]\npath = "../{site}-pictures"\nkind = "images"\n'
        (play.folder / site / "site.toml").write_text(text)
        (play.folder / site / "policy.toml").write_text(POLICY)
        play.start(site)
    _propose(play, "private", "approve", rounds=1, more=PRIVACY)
    _propose(play, "refused", "deny", rounds=2)
    (play.folder / "south" / "policy.toml").write_text(POLICY + "max-rounds-per-day = 2\n")
    _propose(play, "plain", "approve", rounds=2)
    states = _states(play)
    assert states == {"private": "completed", "refused": "failed", "plain": "failed"}, states


def keep(play: Play, folder: Path) -> None:
    """Copy what lasts."""
    for name in ("coordinator", *SITES, *(f"{site}-pictures" for site in SITES)):
        shutil.copytree(play.folder / name, folder / name, ignore=shutil.ignore_patterns(*PASSING))
    for toml in play.folder.glob("*.toml"):
        shutil.copy(toml, folder)
    for path in folder.rglob("*.sqlite"):
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in [*folder.rglob("*.sqlite-*")]:
        path.unlink()


def _propose(play: Play, name: str, answer: str, *, rounds: int, more: str = "") -> None:
    """Propose a run, let both hospitals answer, and see it end; the first no may end it before the second."""
    (play.folder / f"{name}.toml").write_text(RUN_TOML.replace("NAME", name).replace("ROUNDS", str(rounds)) + more)
    play.server("run", f"{name}.toml")
    wanted = len(_states(play))
    for site in SITES:
        proposals = play.folder / site / "proposals"
        seen = partial(proposals.glob, "*/offer.json")
        eventually(lambda: len([*seen()]) >= wanted, f"{site} has looked at {name}")  # noqa: B023 - asked here and now
        play.client(site, answer, name, *(["--yes"] if answer == "approve" else []))
    eventually(lambda: _states(play)[name] in ("completed", "failed"), f"{name} to end")


def _states(play: Play) -> dict[str, str]:
    return {row["run"]: row["state"] for row in json.loads(play.server("runs", "--json"))}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        played = Play(Path(place))
        try:
            make(played)
        finally:
            played.end()
        keep(played, Path(sys.argv[1]))

"""Break a federation again and again, and see how its runs end.

    python -m tests.faults [--faults 100] [--seed 1] [--only KIND ...] [--out DIR]

Runs are proposed one after the other and struck until so many faults were (kinds.py): of each kind as likely as of any
other, at moments drawn from the seed. Every second run is private. Then come those faults that have an outcome of their
own (scenes.py). Prints how often each kind struck, and how long the run took to go on; writes DIR/faults.json. The exit
code is 0 only if every run ended as it should.
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.config import RunConfig, parse
from tests import loopback
from tests.faults import trial
from tests.faults.kinds import Fault, drawn, faults
from tests.faults.scenes import Scene, scenes
from tests.faults.stage import Stage, staged
from tests.faults.trial import Struck, Verdict
from tests.system.play import run_text

ROUNDS, STEPS, TIMEOUT_S = 24, 4, 600.0
PRIVACY = "privacy = { target-epsilon = 50.0, sampling-rate = 0.5, crops-per-patient = 1 }\n"
_PRIVATE_EVERY = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Strike, print and write."""
    options = _parser().parse_args(arguments)
    loopback.enter()
    console = Console(width=None if sys.stdout.isatty() else 120)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    struck: list[Struck] = []
    verdicts: list[Verdict] = []
    with staged(folder) as stage:
        by_kind, lacking = faults(stage)
        played, unplayed = scenes()
        for kind, why in (lacking | unplayed).items():
            console.print(f"left out: {kind}: {why}")
        if options.only:
            by_kind = {kind: ones for kind, ones in by_kind.items() if any(map(kind.startswith, options.only))}
            played = {name: one for name, one in played.items() if any(map(name.startswith, options.only))}
        most = options.faults if by_kind else 0
        for more, verdict in fire(stage, by_kind, played, most, options.seed):
            struck += more
            verdicts.append(verdict)
            console.print(told(verdict, more), markup=False, highlight=False)
            _write(out / "faults.json", options.seed, struck, verdicts)
        if any(one.wrong for one in verdicts):
            shutil.copytree(
                folder,
                out / "federation",
                dirs_exist_ok=True,
                ignore_dangling_symlinks=True,
                ignore=lambda at, names: [name for name in names if (Path(at) / name).is_socket()],
            )
    shutil.rmtree(folder, ignore_errors=True)
    console.print(counts(struck))
    wrong = [f"{one.run}: {what}" for one in verdicts for what in one.wrong]
    console.print(
        f"{len(struck)} faults in {len(verdicts)} runs, {sum(bool(one.failures) for one in verdicts)} of which failed "
        f"for a reason and were resumed; {len(wrong)} wrong; {time.monotonic() - began:.0f} s. {out / 'faults.json'}",
        *wrong,
        sep="\n",
        markup=False,
        highlight=False,
    )
    return 1 if wrong else 0


def fire(
    stage: Stage, by_kind: dict[str, list[Fault]], played: dict[str, Scene], most: int, seed: int
) -> Iterator[tuple[list[Struck], Verdict]]:
    """Run after run until so many faults were, then the scenes; before them all a run that nothing disturbs."""
    quiet = trial.uninterrupted(stage.propose("quiet", rounds=ROUNDS, steps=STEPS))
    yield [], quiet
    draw, left = random.Random(seed), most  # noqa: S311 - which process to kill is no secret
    queue = iter(lambda: drawn(by_kind, draw), None)
    for number in itertools.count(1):
        if left <= 0:
            break
        is_private = number % _PRIVATE_EVERY == 0
        document = run_text(f"plain-{number}", ROUNDS, STEPS, TIMEOUT_S)
        if is_private:
            document = document.replace("plain", "private").replace("deterministic = true\n", "") + PRIVACY
        run = stage.begin(parse(RunConfig, document).name, document)
        expected = (lambda: None) if is_private else (lambda: quiet.sha256)
        struck, verdict = trial.under_fire(run, queue, draw, expected, most=left)
        left -= len(struck)
        yield struck, verdict
    for number, (what, scene) in enumerate(played.items(), start=1):
        began = time.monotonic()
        try:
            verdict = scene(stage, f"scene-{number}", (ROUNDS, STEPS), quiet.sha256)
        except AssertionError as error:  # something that it waits for did not come
            verdict = Verdict(what, "not asked", time.monotonic() - began, 0, [], [str(error)])
        yield [], replace(verdict, run=what)


def told(verdict: Verdict, struck: Sequence[Struck]) -> str:
    """A run in a line, and more where something is wrong."""
    line = (
        f"{verdict.run}: {verdict.state} after {verdict.rounds} rounds, {verdict.seconds:.0f} s, {len(struck)} faults"
    )
    if verdict.ledger:
        line += "; left, charged, kills: " + str(verdict.ledger)
    reasons = [f"  failed, then resumed: {reason}" for reason in verdict.failures]
    wrong = [f"  WRONG: {what}" for what in verdict.wrong]
    return "\n".join([line, *reasons, *wrong, *(f"  {one.name}, {one.phase}" for one in struck if verdict.wrong)])


def counts(struck: Iterable[Struck]) -> Table:
    """How often each kind was, and how long it took until all was as before."""
    table = Table(title="Seconds: median and most", title_justify="left")
    for heading in ("fault", "times", "lasted", "started again after", "run went on after"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    ordered = sorted(struck, key=lambda one: one.kind)
    for kind, group in itertools.groupby(ordered, key=lambda one: one.kind):
        ones = list(group)
        shown = [_shown([getattr(one, name) for one in ones]) for name in ("lasted_s", "replaced_s", "progress_s")]
        table.add_row(kind, str(len(ones)), "" if kind.startswith("kill") else shown[0], *shown[1:])
    return table


def _shown(seconds: Iterable[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{statistics.median(known):.1f}  {max(known):.1f}" if known else ""


def _write(path: Path, seed: int, struck: Iterable[Struck], verdicts: Iterable[Verdict]) -> None:
    found = {"seed": seed, "faults": list(map(asdict, struck)), "runs": list(map(asdict, verdicts))}
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many [default: %(default)s]")
    parser.add_argument("--seed", type=int, default=1, help="of kinds and moments [default: %(default)s]")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="kinds that begin with one of these words")
    parser.add_argument("--out", type=Path, default=Path("out/faults"), help="folder [default: %(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Verify audit logs: `python -m common.audit.verify LOG [OTHER] --key ORIGIN=HEX ...`. Needs only `cryptography`.

Nothing in a file is believed but what follows from the keys on the command line. Each log is taken apart by itself
(see `history`); then every checkpoint anybody holds of a log must have the root of its first entries, and every
receipt must be in both logs with the same fields. What does not fit is named; the exit code is 0 only if all does.
What this proves, and what it cannot prove, is said in docs/audit.md.
"""

import argparse
import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common.audit import notes, reading
from common.audit.entries import COORDINATOR
from common.audit.history import Finding, Held, History, Keys, Signed, describe, take_apart
from common.audit.receipts import Receipt
from common.errors import AuditError
from common.text import counted, shown

_KEY = re.compile(r"(?P<origin>coordinator|site/[a-z0-9-]+)=(?P<key>[0-9a-f]{64})")


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    histories: tuple[History, ...]
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether there is no error; a warning is none."""
        return all(finding.severity != "error" for finding in self.findings)


def verify(paths: Sequence[Path], keys: Keys, checkpoints: Sequence[Path] = ()) -> Verdict:
    """Verify one log, or several together.

    Args:
        paths: SQLite files or exports.
        keys: origin -> public keys of 32 bytes, from a source that is trusted.
        checkpoints: files with one signed checkpoint each, kept by whoever asks.

    Raises:
        AuditError: a file cannot be read as a log.
    """
    histories = tuple(take_apart(reading.read(path), keys) for path in paths)
    findings = [finding for history in histories for finding in history.findings]
    held = [one for history in histories for one in history.held]
    for path in checkpoints:
        try:
            held.append(_kept(path, keys))
        except (AuditError, OSError, UnicodeDecodeError) as error:
            findings.append(Finding("error", path.name, f"the checkpoint cannot be used: {error}"))
    signed = [Held(one.name, checkpoint, one.key) for one in histories for checkpoint in one.own]
    for history in histories:
        findings += _check_roots(history, [*signed, *held])
    findings += _check_forks(held)
    for coordinator in (one for one in histories if one.origin == COORDINATOR):
        findings += _check_updates(coordinator)
        for site in (one for one in histories if one.origin != COORDINATOR):
            findings += _check_receipts(coordinator, site)
    return Verdict(histories, (*_exported_earlier(histories, findings), *findings))


def parse_key(text: str) -> tuple[str, bytes]:
    """Read ORIGIN=HEX.

    Raises:
        AuditError: it is something else.
    """
    found = _KEY.fullmatch(text)
    if found is None:
        raise AuditError(f"{text[:80]!r} is not ORIGIN=HEX, such as coordinator=9f86... (64 digits)")
    return found["origin"], bytes.fromhex(found["key"])


def report(verdict: Verdict) -> str:
    """The verdict for a person: a table of the logs, then what was found."""
    rows = [("log", "of", "entries", "signed", "receipts", "first entry", "last entry")]
    for one in verdict.histories:
        times = [_date(entry.time) for entry in (*one.entries[:1], *one.entries[-1:])] or ["-", "-"]
        signed = max((checkpoint.size for checkpoint in one.own), default=0)
        counts = (str(one.size), str(signed), str(len(one.receipts)))
        rows.append((shown(one.name), shown(one.origin), *counts, times[0], times[-1]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(shown(f"{one.severity}: {one.log}: {one.text}") for one in verdict.findings)]
    errors = sum(finding.severity == "error" for finding in verdict.findings)
    lines.append(
        "All is well."
        if verdict.is_well
        else f"{counted(errors, 'error')}: this history is not to be trusted as it is."
    )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the module. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m common.audit.verify", description="Verify Wardround audit logs.")
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="an audit log or an export of one")
    parser.add_argument(
        "--key", action="append", default=[], metavar="ORIGIN=HEX",
        help="a public key that is trusted, such as site/north=9f86...; once for each origin",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", action="append", default=[], type=Path, metavar="FILE", help="a signed checkpoint you kept"
    )
    given = parser.parse_args(arguments)
    keys: dict[str, tuple[bytes, ...]] = {}
    try:
        for origin, key in map(parse_key, given.key):
            keys[origin] = (*keys.get(origin, ()), key)
        verdict = verify(given.logs, keys, given.checkpoint)
    except AuditError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        return 1
    sys.stdout.write(report(verdict))
    return 0 if verdict.is_well else 1


def _exported_earlier(histories: Sequence[History], findings: Sequence[Finding]) -> Iterator[Finding]:
    """Logs in which something is wrong and that end before another: they may only have been written out earlier."""
    ends = {one.name: one.entries[-1].time for one in histories if one.entries}
    wrong = {one.log for one in findings if one.severity == "error"}
    for name, end in ends.items():
        later = max(ends, key=lambda other: ends[other])
        if name in wrong and ends[later] > end:
            yield Finding(
                "warning",
                name,
                f"it ends at {_second(end)}, and {later} at {_second(ends[later])}: if it is an export, it may be "
                "older than the other. Export it anew and verify again; the errors below count if they stay",
            )


def _check_roots(history: History, held: Iterable[Held]) -> Iterator[Finding]:
    """Whatever anybody knows of this log must be true of it; each holder's first complaint is told."""
    mine = [one for one in held if one.checkpoint.origin == history.origin and one.key in (history.key, None)]
    fitting, told = 0, set()
    for one in sorted(mine, key=lambda one: one.checkpoint.size):
        size = one.checkpoint.size
        if size <= history.size and history.root(size) == one.checkpoint.root:
            fitting = size
            continue
        if one.holder in told:
            continue
        told.add(one.holder)
        if size > history.size:
            text = f"a checkpoint over {size} entries exists, here are {history.size}: the end is missing"
        else:
            text = (
                f"the first {size} entries are not those that were signed: between entries {fitting} and {size - 1} "
                "something was changed, added or removed, or there are two histories"
            )
        yield Finding("error", history.name, f"{text} (known to {one.holder})")


def _check_forks(held: Iterable[Held]) -> Iterator[Finding]:
    """Two roots for one size of one log, in whosever hands."""
    roots: defaultdict[tuple[str, bytes | None, int], dict[bytes, str]] = defaultdict(dict)
    for one in held:
        checkpoint = one.checkpoint
        roots[checkpoint.origin, one.key, checkpoint.size].setdefault(checkpoint.root, one.holder)
    for (origin, _, size), holders in roots.items():
        if len(holders) > 1:
            yield Finding(
                "error", " and ".join(holders.values()), f"{origin} forked its log: two roots for {size} entries"
            )


def _check_receipts(coordinator: History, site: History) -> Iterator[Finding]:
    """Every receipt must be in both logs, with equal fields."""
    name = site.origin.removeprefix("site/")
    there = {key: one for key, one in coordinator.receipts.items() if one.receipt.site == name}
    extra = [site.receipts[key] for key in site.receipts.keys() - there.keys()]
    missing = [there[key] for key in there.keys() - site.receipts.keys()]
    for ours in sorted(extra, key=_place):
        other = next((one for one in missing if _place(one) == _place(ours)), None)
        if other is not None:
            missing.remove(other)
            yield Finding(
                "error",
                site.name,
                f"{describe(ours.receipt)} differs from {coordinator.name}'s in {_differing(ours, other)}",
            )
        elif ours.countersignature is not None:
            yield Finding(
                "error", coordinator.name, f"{describe(ours.receipt)} is missing, which the coordinator signed"
            )
        else:
            yield Finding("warning", site.name, f"{describe(ours.receipt)} was never acknowledged by the coordinator")
    for theirs in sorted(missing, key=_place):
        yield Finding("error", site.name, f"{describe(theirs.receipt)} is missing, which the site signed")


@dataclass
class _Updates:
    """What a coordinator's log says of updates. A place is a run and a round; a key adds the site and the update."""

    sent: dict[tuple[str, int, str, str], str | None] = field(default_factory=dict)  # key -> the model that was sent
    came: dict[tuple[str, int, str, str], int] = field(default_factory=dict)  # key -> the entry in which it came last
    refused: set[tuple[str, int, str]] = field(default_factory=set)
    models: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)  # place -> site -> update, as done last
    # Run or place -> the entries by which the run was opened, or the round's model made: each may do rounds again.
    starts: defaultdict[str | tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    miscounted: list[str] = field(default_factory=list)

    def done_again(self, receipt: Receipt) -> int | None:
        """The entry after which a round was done again, to which this update had come before, and never again."""
        place = (receipt.run, receipt.round)
        since, done = self.came.get((*place, receipt.site, receipt.update)), self.starts.get(place, [])
        if since is None or not done:
            return None
        starts = sorted([*self.starts.get(receipt.run, []), *done])
        return next((seq for seq in starts if since < seq < done[-1]), None)


def _updates(coordinator: History) -> _Updates:
    made, entering = _Updates(), defaultdict[tuple[str, int], dict[str, str]](dict)
    for entry in coordinator.entries:
        fields = entry.fields
        place = (str(fields.get("run")), int(fields.get("round", 0)))
        match entry.kind:
            case "proposed":
                made.starts[place[0]].append(entry.seq)
            case "arrived":
                made.sent[*place, fields["site"], fields["update"]] = fields.get("received")
                made.came[*place, fields["site"], fields["update"]] = entry.seq
            case "refusal" if "site" in fields:
                made.refused.add((*place, fields["site"]))
            case "entered":
                entering[place][fields["site"]] = fields["update"]
            case "aggregated":
                made.models[place] = entering.pop(place, {})
                made.starts[place].append(entry.seq)
                if (named := len(made.models[place])) != fields["updates"]:
                    made.miscounted.append(f"entry {entry.seq} counts {fields['updates']} updates, named are {named}")
    return made


def _check_updates(coordinator: History) -> Iterator[Finding]:
    """Every update with a receipt arrived, and is in its round's model or was refused.

    A round is done again where the run was stopped, or its coordinator ended, before the round's model was kept. Its
    last model counts; an update that came before that, and not again, is in none: that is told, and is no error.
    """
    made, name = _updates(coordinator), coordinator.name
    yield from (Finding("error", name, text) for text in made.miscounted)
    receipts = [one.receipt for one in coordinator.receipts.values()]
    for receipt in sorted(receipts, key=lambda one: (one.run, one.round, one.site)):
        place, site, about = (receipt.run, receipt.round), receipt.site, describe(receipt)
        # Entries of earlier versions do not say which model was sent.
        sent = made.sent.get((*place, site, receipt.update), "nothing") or receipt.received
        if sent != receipt.received:
            why = "an update that is not noted as arrived" if sent == "nothing" else "another model than was sent"
            yield Finding("error", name, f"{about} is signed for {why}")
        entered, is_refused = made.models.get(place, {}).get(site), (*place, site) in made.refused
        if place not in made.models or entered == receipt.update or (entered is None and is_refused):
            continue
        if (start := made.done_again(receipt)) is not None:
            text = f"{about}: its update is in no model, as the round was done again without it, after entry {start}"
            yield Finding("warning", name, text)
        elif entered is not None:
            yield Finding("error", name, f"{about} names another update than the one in the model")
        else:
            yield Finding("error", name, f"{about}: its update is not in the model, and was not refused")
    signed = {(one.run, one.round, one.site) for one in receipts}
    for (run, round_), sites in sorted(made.models.items()):
        for site in sorted(site for site in sites if (run, round_, site) not in signed):
            text = f"the update of site {site} for round {round_} of run {run[:12]} has no receipt"
            yield Finding("warning", name, text)


def _place(signed: Signed) -> tuple[str, int]:
    return signed.receipt.run, signed.receipt.round


def _differing(ours: Signed, theirs: Signed) -> str:
    mine, other = ours.receipt.to_fields(), theirs.receipt.to_fields()
    return ", ".join(sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)))


def _kept(path: Path, keys: Keys) -> Held:
    """A checkpoint from a file, signed with a key that is trusted."""
    note = path.read_text(encoding="utf-8")
    origin = notes.peek(note).origin
    for key in keys.get(origin, ()):
        with contextlib.suppress(AuditError):
            return Held(path.name, notes.read(note, key), key)
    raise AuditError(f"it is not signed with a key that was given for {origin}")


def _second(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _date(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    sys.exit(main())

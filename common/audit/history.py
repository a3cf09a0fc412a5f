"""One log, taken apart: all that a single file can tell by itself.

Entries must be canonical, of allowed kinds and numbered without a gap; the tree is computed anew from them;
checkpoints, the owner's and those it received, must be signed with their keys; receipts must bear their signatures, and
what operators at the coordinator did, theirs.
Whether the roots are the ones that were signed is decided in `verify`, where all checkpoints are at hand.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from common.audit import acts, merkle, notes
from common.audit.entries import COORDINATOR, Entry, check_site
from common.audit.notes import Checkpoint
from common.audit.reading import Stored
from common.audit.receipts import Receipt, is_countersigned, is_signed_by_site
from common.errors import AuditError
from common.text import counted

# Public keys by origin; several where a site has enrolled again.
Keys = Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    severity: Literal["error", "warning"]
    log: str  # the file it was found in
    text: str


@dataclass(frozen=True)
class Signed:
    """A receipt as a log holds it."""

    receipt: Receipt
    signature: bytes
    countersignature: bytes | None


@dataclass(frozen=True)
class Held:
    """Somebody's knowledge of a log: a checkpoint, and who holds it."""

    holder: str
    checkpoint: Checkpoint
    key: bytes | None  # that signed it; None if it is the holder's word


@dataclass(frozen=True)
class History:
    """What one file says, as far as it could be read."""

    name: str  # of the file
    origin: str
    key: bytes
    size: int
    nodes: Mapping[tuple[int, int], bytes]
    entries: tuple[Entry, ...]
    own: tuple[Checkpoint, ...]
    held: tuple[Held, ...]  # about other logs, or by others about this one
    receipts: Mapping[str, Signed]  # by hash
    findings: tuple[Finding, ...]

    def root(self, size: int) -> bytes:
        """The root of the first entries."""
        return merkle.root(size, lambda *place: self.nodes[place])


def take_apart(stored: Stored, keys: Keys) -> History:
    """Check a file by itself.

    Args:
        stored: what it holds.
        keys: that are trusted. Where one is missing, the log's own entries `enrolled` stand in, with a warning.
    """
    return _Examination(stored, keys).history()


class _Examination:
    """The complaints pile up while the file is gone through once."""

    def __init__(self, stored: Stored, keys: Keys) -> None:
        self._stored, self._keys = stored, keys
        self._findings: list[Finding] = []
        self._known = dict(keys)
        self._unknown: set[str] = set()

    def history(self) -> History:
        stored = self._stored
        if stored.damage:
            self._complain(f"SQLite finds the file damaged: {stored.damage}")
        entries = self._entries()
        origin, key = self._identity(entries)
        self._known = _enrolled(entries, origin) | self._known
        self._check_clock(entries)
        if origin == COORDINATOR:
            self._check_acts(entries)
        nodes = merkle.perfect_subtrees(merkle.leaf_hash(line) for line in stored.lines)
        self._check_stored_tree(nodes)
        return History(
            name=stored.name,
            origin=origin,
            key=key,
            size=len(stored.lines),
            nodes=nodes,
            entries=tuple(entries),
            own=tuple(self._own_checkpoints(origin, key)),
            held=tuple(self._held(entries, key if origin == COORDINATOR else None)),
            receipts=self._receipts(entries),
            findings=tuple(self._findings),
        )

    def _complain(self, text: str, severity: Literal["error", "warning"] = "error") -> None:
        self._findings.append(Finding(severity, self._stored.name, text))

    def _entries(self) -> list[Entry]:
        entries: list[Entry] = []
        expected = 0
        for number, line in zip(self._stored.numbers, self._stored.lines, strict=True):
            if number != expected:
                self._complain(f"entries {expected} to {number - 1} are missing")
            expected = number + 1
            try:
                entry = Entry.from_bytes(line)
            except AuditError as error:
                self._complain(f"entry {number} was changed: {error}")
                continue
            if entry.seq != number:
                self._complain(f"entry {number} calls itself {entry.seq}: entries were moved, added or removed")
            entries.append(entry)
        return entries

    def _identity(self, entries: list[Entry]) -> tuple[str, bytes]:
        if not entries or entries[0].kind != "created":
            self._complain("the log does not begin with an entry that says whose it is")
            return "unknown", b""
        origin, key = str(entries[0].fields["origin"]), bytes.fromhex(entries[0].fields["key"])
        if origin not in self._keys:
            self._complain(
                f"no key of {origin} was given: anybody could have written this log. Give --key {origin}=HEX"
            )
        elif key not in self._keys[origin]:
            self._complain(f"the log was begun with another key than the one given for {origin}")
        if any(entry.kind == "created" for entry in entries[1:]):
            self._complain("the log begins a second time in its middle")
        for entry in entries:
            try:
                check_site(origin, entry.fields)
            except AuditError as error:
                self._complain(f"entry {entry.seq}: {error}")
        return origin, key

    def _check_clock(self, entries: list[Entry]) -> None:
        backwards = [after.seq for before, after in pairwise(entries) if after.time < before.time]
        if backwards:
            self._complain(
                f"the clock went backwards {counted(len(backwards), 'time')}, first at entry {backwards[0]}", "warning"
            )

    def _check_acts(self, entries: list[Entry]) -> None:
        signed = acts.SignedActs()
        for entry in entries:
            for is_error, text in signed.take(entry):
                self._complain(f"entry {entry.seq}: {text}", "error" if is_error else "warning")

    def _check_stored_tree(self, nodes: Mapping[tuple[int, int], bytes]) -> None:
        stored = self._stored.nodes
        if stored is None or stored == nodes:
            return
        changed = sorted(place for place in stored.keys() | nodes.keys() if stored.get(place) != nodes.get(place))
        level, index = changed[0]
        if level == 0:
            self._complain(f"entry {index} is not the one whose hash was stored when it was written")
        else:
            self._complain(f"the stored tree is not the entries' tree, first at level {level}, position {index}")

    def _own_checkpoints(self, origin: str, key: bytes) -> Iterator[Checkpoint]:
        newest = 0
        for note in self._stored.notes:
            try:
                checkpoint = notes.read(note, key)
                if checkpoint.origin != origin:
                    raise AuditError(f"a checkpoint is of {checkpoint.origin}, the log is of {origin}")
            except AuditError as error:
                self._complain(f"a checkpoint of the log itself is not to be trusted: {error}")
                continue
            newest = max(newest, checkpoint.size)
            yield checkpoint
        if self._stored.is_export and newest != len(self._stored.lines):
            self._complain(
                f"the export has {len(self._stored.lines)} entries, its newest checkpoint is over {newest}: "
                "its end is missing"
            )

    def _held(self, entries: list[Entry], own_key: bytes | None) -> Iterator[Held]:
        """The checkpoints of others, and what those say about the coordinator."""
        last: dict[bytes, Checkpoint] = {}
        for entry in entries:
            if entry.kind == "conflict":
                first, second = (notes.peek(entry.fields[name]) for name in ("first", "second"))
                self._complain(
                    f"entry {entry.seq} keeps evidence: the checkpoint of {second.origin} over {second.size} entries "
                    f"does not fit the one of {first.origin} over {first.size}"
                )
            if entry.kind != "checkpoint-received":
                continue
            key = bytes.fromhex(entry.fields["key"])
            try:
                checkpoint = notes.read(entry.fields["note"], key)
            except AuditError as error:
                self._complain(f"entry {entry.seq}: {error}")
                continue
            if key not in self._keys_of(checkpoint.origin, default=key):
                self._complain(f"entry {entry.seq}: a checkpoint signed with a key that is not {checkpoint.origin}'s")
                continue
            if key in last and checkpoint.size <= last[key].size:
                self._complain(f"entry {entry.seq}: {checkpoint.origin}'s log did not grow, yet it was accepted")
            last[key] = checkpoint
            yield Held(self._stored.name, checkpoint, key)
            if checkpoint.seen is not None:
                seen = Checkpoint(COORDINATOR, checkpoint.seen.size, checkpoint.seen.root, checkpoint.time)
                yield Held(f"{checkpoint.origin} (in {self._stored.name})", seen, own_key)

    def _receipts(self, entries: list[Entry]) -> dict[str, Signed]:
        found: dict[str, Signed] = {}
        for entry in entries:
            if entry.kind == "round":
                receipt = Receipt.from_fields(entry.fields["receipt"])
                signature = base64.b64decode(entry.fields["signature"])
                keys = self._keys_of(f"site/{receipt.site}")
                if keys and not any(is_signed_by_site(receipt, signature, key) for key in keys):
                    self._complain(f"entry {entry.seq}: {describe(receipt)} is not signed by the site")
                known = found.setdefault(receipt.sha256, Signed(receipt, signature, None))
                if "countersignature" in entry.fields:
                    found[receipt.sha256] = self._countersigned(entry, known)
            elif entry.kind == "countersigned":
                name = entry.fields["receipt-hash"]
                if name in found:
                    found[name] = self._countersigned(entry, found[name])
                else:
                    self._complain(f"entry {entry.seq} countersigns a receipt that is not in the log: it is missing")
        return found

    def _countersigned(self, entry: Entry, signed: Signed) -> Signed:
        countersignature = base64.b64decode(entry.fields["countersignature"])
        keys = self._keys_of(COORDINATOR)
        if keys and not any(is_countersigned(signed.receipt, signed.signature, countersignature, key) for key in keys):
            self._complain(f"entry {entry.seq}: {describe(signed.receipt)} is not signed by the coordinator")
        return Signed(signed.receipt, signed.signature, countersignature)

    def _keys_of(self, origin: str, default: bytes | None = None) -> tuple[bytes, ...]:
        """The keys to check with; a warning, once, where none was given."""
        if origin not in self._keys and origin not in self._unknown:
            self._unknown.add(origin)
            instead = "the key in the log's own entries was used" if origin in self._known else "nothing was checked"
            self._complain(f"no key of {origin} was given: for its signatures {instead}", "warning")
        return self._known.get(origin, () if default is None else (default,))


def describe(receipt: Receipt) -> str:
    """A receipt in a sentence."""
    return f"the receipt of site {receipt.site} for round {receipt.round} of run {receipt.run[:12]}"


def _enrolled(entries: list[Entry], origin: str) -> dict[str, tuple[bytes, ...]]:
    """The keys a log itself names; the coordinator's own is the one it began with."""
    found: dict[str, tuple[bytes, ...]] = {}
    for entry in entries:
        if entry.kind == "created":
            found[origin] = (bytes.fromhex(entry.fields["key"]),)
        if entry.kind == "enrolled":
            for name, key in ((f"site/{entry.fields['site']}", "key"), (COORDINATOR, "coordinator-key")):
                value = bytes.fromhex(entry.fields[key])
                if value not in found.get(name, ()):
                    found[name] = (*found.get(name, ()), value)
    return found

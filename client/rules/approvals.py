"""Runs proposed to this hospital and the hospital's answers, one folder each under home/proposals.

    <run hash>/bundle.fab      the proposal as received: data, never unpacked
    <run hash>/run.json        the text of the run as it was issued, whose SHA-256 is the folder's name
    <run hash>/signers.json    the operators whose signatures were checked, as they are shown
    <run hash>/keys.json       their names and keys
    <run hash>/state.json      written by the agent: is the run still open, and else, how has it ended?
    <run hash>/offer.json      what this site could give to it; written by the agent
    <run hash>/told.json       that the coordinator was told that the policy refuses it; written by the agent
    <run hash>/answer.json     written by the command line, or by the agent where the policy approves by itself

Files, so that the command line and the agent need no channel between them; each is written whole by a rename.
An approval names the SHA-256 of the run document: a changed byte is another run, to be approved anew.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from client.home.offer import Offer, offer_from_json
from common.config import RunConfig
from common.config.rundocument import RunDocument, from_text
from common.errors import ConfigError
from common.identity.operators import Signer, people
from common.system.files import move, write_private
from common.text import meant
from common.wire.endings import Ending

_BUNDLE, _RUN, _SIGNERS, _KEYS = "bundle.fab", "run.json", "signers.json", "keys.json"
_STATE, _OFFER, _ANSWER, _TOLD = "state.json", "offer.json", "answer.json", "told.json"
_HASH = re.compile(r"[0-9a-f]{64}")
_SHORTEST_PREFIX = 6
_LOOK_EVERY_S = 0.3
_PATIENCE_S = 300.0
_PATIENCE_BESIDE_S = 10.0  # where what is here is probably meant: a new proposal comes within seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What the hospital said to a proposal."""

    approved: bool
    by: Literal["person", "policy"]
    at: float  # seconds since the epoch

    @property
    def in_words(self) -> str:
        """Approved; or denied, which a person does, or refused, which the policy does."""
        return "approved" if self.approved else "denied" if self.by == "person" else "refused"


@dataclass(frozen=True)
class Appraisal:
    """What the agent found out about our data for a proposal; what policy.toml says of it is asked anew each time."""

    offer: Offer | None  # None: no data for it
    refusal: str | None  # why this site cannot take part; None: nothing in its data speaks against it


@dataclass(frozen=True)
class Proposal:
    """A run somebody wants to do with this hospital."""

    document: RunDocument
    bundle_sha256: str
    signers: tuple[str, ...]  # operators at the coordinator
    open: bool
    appraisal: Appraisal | None
    answer: Answer | None
    ending: Ending | None = None  # as the coordinator told it; None: it has not ended, or that was not told

    @property
    def run_hash(self) -> str:
        """SHA-256 of the document as it was received."""
        return self.document.hash

    @property
    def run(self) -> RunConfig:
        """Its settings."""
        return self.document.config

    @property
    def approved(self) -> bool:
        """Whether the run may train here, as far as the answer goes."""
        return self.open and self.answer is not None and self.answer.approved


def record(
    home: Path,
    document: RunDocument,
    *,
    is_open: bool,
    signers: Sequence[str] = (),
    keys: Sequence[Signer] = (),
    ending: Ending | None = None,
) -> Proposal:
    """Store a proposal; the hospital's earlier answer to the same document stays.

    Args:
        home: the site's.
        document: what is proposed, as received.
        is_open: at the coordinator.
        signers: as they are shown; those of `keys`, where there are any.
        keys: whose signatures were checked.
        ending: of a run that is over.
    """
    folder = _root(home) / document.hash
    # A new folder appears with all its files in it, or not at all.
    made = folder if folder.exists() else folder.with_name(f".{folder.name}.{os.getpid()}")
    made.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(made / _BUNDLE, document.bundle)
    write_private(made / _RUN, document.text.encode())
    write_private(made / _SIGNERS, json.dumps(list(people(keys) or signers)).encode())
    write_private(made / _KEYS, _keys_text(keys))
    write_private(made / _STATE, _state_text(is_open=is_open, nonces=(), ending=ending))
    if made != folder:
        move(made, folder)
    return load(home, folder.name)


def note_signers(home: Path, run_hash: str, signers: Sequence[Signer]) -> None:
    """Keep whose signatures were checked; those of before are gone."""
    folder = _root(home) / run_hash
    write_private(folder / _KEYS, _keys_text(signers))
    write_private(folder / _SIGNERS, json.dumps(people(signers)).encode())


def signers_of(home: Path, run_hash: str) -> tuple[Signer, ...]:
    """Whose signatures were checked; empty where that was not kept, or cannot be read."""
    try:
        return tuple(
            Signer(str(name), str(key)) for name, key in json.loads((_root(home) / run_hash / _KEYS).read_bytes())
        )
    except (OSError, ValueError, TypeError):
        return ()


def set_open(home: Path, run_hash: str, *, is_open: bool, resumption: str = "", ending: Ending | None = None) -> None:
    """Note whether the coordinator still holds the run open, by which act an operator resumed it, or how it ended."""
    nonces = [*resumptions(home, run_hash), *filter(None, [resumption])]
    text = _state_text(is_open=is_open, nonces=nonces, ending=ending)
    write_private(_root(home) / run_hash / _STATE, text)


def resumptions(home: Path, run_hash: str) -> tuple[str, ...]:
    """The acts by which the run was resumed so far, by their nonces; each is good for once."""
    try:
        state = json.loads((_root(home) / run_hash / _STATE).read_bytes())
        return tuple(str(nonce) for nonce in state.get("resumptions", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        return ()


def note_appraisal(home: Path, run_hash: str, appraisal: Appraisal) -> None:
    """Keep what the agent found out, for the person who decides."""
    write_private(_root(home) / run_hash / _OFFER, json.dumps(asdict(appraisal)).encode())


def note_told(home: Path, run_hash: str, *, refused: bool) -> None:
    """Keep whether the coordinator was told that the policy refuses a run, or that was taken back."""
    path = _root(home) / run_hash / _TOLD
    if refused:
        write_private(path, b"{}")
    else:
        path.unlink(missing_ok=True)


def was_told(home: Path, run_hash: str) -> bool:
    """Whether the coordinator was told that the policy refuses a run, and that was not taken back."""
    return (_root(home) / run_hash / _TOLD).exists()


def answer(home: Path, run_hash: str, *, approved: bool, by: Literal["person", "policy"]) -> None:
    """Note the hospital's answer; the agent sends it."""
    text = json.dumps({"approved": approved, "by": by, "at": time.time()})
    write_private(_root(home) / run_hash / _ANSWER, text.encode())


def load(home: Path, run_hash: str) -> Proposal:
    """One proposal.

    Raises:
        ConfigError: there is none, or its files were changed.
    """
    folder = _root(home) / run_hash
    if not _HASH.fullmatch(run_hash) or not folder.is_dir():
        raise ConfigError(f"no run {run_hash[:12]} was proposed here. List the runs with `wardround-client runs`.")
    try:
        issued = from_text((folder / _RUN).read_text(encoding="utf-8"))
        document = replace(issued, bundle=(folder / _BUNDLE).read_bytes())
        state = json.loads((folder / _STATE).read_bytes())
        is_open, ended = state["open"] is True, state.get("ending") or {}
        ending = Ending.checked(*(ended.get(key) for key in ("how", "code", "rounds")))
        signers = tuple(str(name) for name in json.loads((folder / _SIGNERS).read_bytes()))
        appraisal, given = _read_appraisal(folder / _OFFER), _read_answer(folder / _ANSWER)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the files of run {run_hash[:12]} are damaged. Delete {folder}; it is fetched again."
        ) from error
    if document.hash != run_hash:
        raise ConfigError(f"run.json of run {run_hash[:12]} was changed. Delete {folder}; it is fetched again.")
    digest = hashlib.sha256(document.bundle).hexdigest()
    return Proposal(document, digest, signers, is_open, appraisal, given, ending)


def load_all(home: Path) -> list[Proposal]:
    """All proposals, open ones first, then by name. Damaged ones are left out: the agent fetches them again."""
    root = _root(home)
    proposals = []
    for folder in root.iterdir() if root.is_dir() else ():
        if not _HASH.fullmatch(folder.name):
            continue
        try:
            proposals.append(load(home, folder.name))
        except ConfigError as error:
            _log.warning("%s", error)
    return sorted(proposals, key=lambda p: (not p.open, p.run.name, p.run_hash))


def last_ended(home: Path) -> Proposal | None:
    """The run that was closed here last, of those that were approved."""
    ended = [p for p in load_all(home) if not p.open and p.answer is not None and p.answer.approved]
    return max(ended, key=lambda one: (_root(home) / one.run_hash / _STATE).stat().st_mtime_ns, default=None)


def find(home: Path, wanted: str) -> Proposal:
    """The one proposal with this name, hash, or start of a hash; of one name the open one, if there is one.

    Raises:
        ConfigError: none, or more than one.
    """
    match _fitting(home, wanted) or [p for p in load_all(home) if p.run.name == wanted]:
        case [proposal]:
            return proposal
        case []:
            raise ConfigError(
                f"no proposed run is called {wanted!r}.{meant(wanted, (one.run.name for one in load_all(home)))} List "
                "the runs with `wardround-client runs`, or give the path of a run.toml where the command takes one."
            )
        case several:
            hashes = ", ".join(p.run_hash[:12] for p in several)
            raise ConfigError(f"{wanted!r} could be any of {hashes}. Give the start of the hash.")


def await_appraisal(
    home: Path,
    wanted: str,
    *,
    timeout_s: float | None,
    is_counting: Callable[[Proposal | None], bool],
    tell: Callable[[str], None],
) -> Proposal:
    """The one proposal with this name or hash, when it is here and the agent has found out what it would mean.

    Args:
        home: the site's.
        wanted: as for `find`.
        timeout_s: how long to wait for either; None: as usual, and not long for a proposal where one is here that is
            probably meant.
        is_counting: whether an agent counts for it: one runs, and the policy allows the run, if it is here. Where none
            does, only the proposal is waited for, and not where one is here that is probably meant.
        tell: told in a line what is waited for.

    Raises:
        ConfigError: not proposed, or not counted, within that time; or more than one fits.
    """
    began, told = time.monotonic(), ""
    while True:
        fitting = _fitting(home, wanted)
        beside = "" if fitting else _beside(home, wanted)
        patience_s = _PATIENCE_S if not beside else _PATIENCE_BESIDE_S if is_counting(None) else 0.0
        deadline = began + (patience_s if timeout_s is None else timeout_s)
        if len(fitting) > 1 or (not fitting and time.monotonic() >= deadline):
            return _not_closed(find(home, wanted))
        if fitting and (
            fitting[0].appraisal is not None or fitting[0].answer is not None or not is_counting(fitting[0])
        ):
            return fitting[0]
        if fitting and time.monotonic() >= deadline:
            raise ConfigError(
                f"the patients for {wanted!r} are not counted yet. See logs/worker.log, or wait longer with --timeout."
            )
        what = f"the count of patients for {wanted!r}" if fitting else f"a run {wanted!r} to be proposed here"
        if what + beside != told:
            left_s = max(0.0, deadline - time.monotonic())
            tell(f"Waiting for {what}, {left_s:.0f} s at most. Ctrl-C ends.{beside}")
            told = what + beside
        time.sleep(_LOOK_EVERY_S)


def answers_stamp(home: Path) -> tuple[tuple[str, int], ...]:
    """Changes with an answer, an appraisal or a signature, or a run closed or resumed; looked at every second."""
    told = (path for name in (_STATE, _OFFER, _ANSWER, _KEYS) for path in _root(home).glob(f"*/{name}"))
    return tuple(sorted((f"{path.parent.name}/{path.name}", path.stat().st_mtime_ns) for path in told))


def _fitting(home: Path, wanted: str) -> list[Proposal]:
    proposals = load_all(home)
    by_name = [p for p in proposals if p.run.name == wanted and p.open]
    by_hash = [p for p in proposals if len(wanted) >= _SHORTEST_PREFIX and p.run_hash.startswith(wanted.lower())]
    return by_name or by_hash


def _beside(home: Path, wanted: str) -> str:
    """What is here that is probably meant, in a sentence with a space before it."""
    here = load_all(home)
    if closed := [one.run_hash[:8] for one in here if one.run.name == wanted]:
        return f" Closed runs of that name: {', '.join(closed)}; one that is meant is named by its hash."
    return meant(wanted, (one.run.name for one in here))


def _not_closed(proposal: Proposal) -> Proposal:
    if not proposal.open:
        raise ConfigError(
            f"the run {proposal.run.name!r} is closed at the coordinator, and no other of that name is proposed here. "
            f"If this one is meant, for when it is resumed, give its hash: {proposal.run_hash[:8]}."
        )
    return proposal


def _root(home: Path) -> Path:
    return home / "proposals"


def _read_appraisal(path: Path) -> Appraisal | None:
    if not path.exists():
        return None
    values: dict[str, Any] = json.loads(path.read_bytes())
    if values.get("code") is not None:
        return None  # an earlier version's, which had counted nothing as the policy refused the run
    try:
        offer = None if values["offer"] is None else offer_from_json(values["offer"])
    except KeyError:
        return None  # an earlier version's: the agent counts again
    return Appraisal(offer, values["refusal"])


def _read_answer(path: Path) -> Answer | None:
    if not path.exists():
        return None
    values: dict[str, Any] = json.loads(path.read_bytes())
    return Answer(values["approved"] is True, "policy" if values["by"] == "policy" else "person", float(values["at"]))


def _state_text(*, is_open: bool, nonces: Sequence[str], ending: Ending | None) -> bytes:
    told = None if is_open or ending is None else asdict(ending)
    return json.dumps({"open": is_open, "resumptions": list(nonces), "ending": told}).encode()


def _keys_text(signers: Sequence[Signer]) -> bytes:
    return json.dumps([[one.name, one.key] for one in signers]).encode()

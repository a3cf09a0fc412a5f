"""Prediction as a service: every study that arrives in a folder is segmented once, while the model stays loaded.

    out/STAMP/              segmentation or labels, overlay.png, result.json; result.json comes last: the study is done
    out/failed/STAMP.json   a study that was set aside, with its code; tried again when its files change
    out/status.json         how the service is: state, counts, time of the last sign of life
    out/watch.json          the one model that works here

STAMP are 16 digits of the SHA-256 of the study: of its one file, or of its files' sorted digests. So names tell
nothing, a study that comes twice is not done twice, and what was done is remembered across restarts. Nothing in the
watched folder is changed or removed. One study at a time is in memory.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.data.study.study import Reference, Study
from client.predict.dropfolder import Arrived, DropFolder
from client.predict.personal import Personal
from client.predict.prediction import Read, Segmenter, StudyResult, check_apart, load_predictor, predict_one, reading
from common.errors import ConfigError, DataError, WardroundError
from common.system.files import write_atomically
from common.system.locks import locked
from common.text import counted

RESULT_NAME, STATUS_NAME, MODEL_NAME = "result.json", "status.json", "watch.json"
FAILED = "failed"
POLL_S = 1.0
HEARTBEAT_S = 10.0

_LOCK_NAME = "watch.lock"
_STAMP_DIGITS = 16
# A look that took t seconds is followed by a pause of four times t: looking never takes more than a fifth of a core.
_REST = 4.0
# How soon a signal is noticed.
_STEP_S = 0.2
# After trouble that is not the study's; the next try costs a whole prediction.
_TROUBLE_PAUSE_S = 60.0

_log = logging.getLogger(__name__)


def watch(
    model: Path,
    folder: Path,
    out: Path,
    *,
    settle_s: float,
    stopped: Callable[[], bool],
    device: str = "cpu",
    personal: Personal | None = None,
    reports: bool = False,
    poll_s: float = POLL_S,
) -> None:
    """Segment what arrives in a folder until told to stop; the study in hand is finished first.

    Args:
        model: as for `predict_study`.
        folder: where studies arrive.
        out: receives the results.
        settle_s: how long the files of a study must not have changed.
        stopped: asked between studies and during pauses.
        device: as for `predict_study`.
        personal: as for `predict_study`.
        reports: as for `predict_study`.
        poll_s: least pause between two looks.

    Raises:
        ConfigError: the folder is not there, the model cannot be loaded, or `out` cannot be written, is in use, or
            belongs to another model.
    """
    if not folder.is_dir():
        raise ConfigError("--watch needs a folder that is there. Make it, or leave out --watch for a single file.")
    check_apart(folder, out)
    with only_one(out):
        segmenter = load_predictor(model, device, personal, reports=reports)
        claim(out, segmenter.sha256)
        with reading(segmenter.run) as (find, read):
            drop = DropFolder(folder.absolute(), find, settle_s)
            _Service(segmenter, read, drop, out, stopped).run(poll_s)


class _Service:
    """The work on one folder, from start to stop."""

    def __init__(
        self, segmenter: Segmenter, read: Read, drop: DropFolder, out: Path, stopped: Callable[[], bool]
    ) -> None:
        self._segmenter, self._read, self._drop, self._out, self._stopped = segmenter, read, drop, out, stopped
        # What needs no work: signatures of files, stamps of contents.
        self._signatures, self._stamps = _remembered(out)
        self._done = self._failed = 0
        self._signed: dict[str, Any] = {}
        self._signed_at = 0.0

    def run(self, poll_s: float) -> None:
        """Look, work, rest, until stopped."""
        _log.info(
            "watching with model %s; %s known",
            self._segmenter.sha256[:12],
            counted(len(self._stamps), "study", "studies"),
        )
        while not self._stopped():
            self._sign("watching")
            try:
                pause = max(poll_s, _REST * self._look())
            except (WardroundError, OSError) as error:
                # No space, or no reader: nothing is lost, all of it is tried again.
                _log.error("waiting: %s", error if isinstance(error, WardroundError) else error.strerror)
                self._sign("waiting")
                pause = _TROUBLE_PAUSE_S
            self._rest(pause)
        self._sign("stopped")
        _log.info("stopped; done %d, set aside %d", self._done, self._failed)

    def _look(self) -> float:
        """Look once, and take what has arrived. Returns the seconds that looking alone took."""
        began, working = time.monotonic(), 0.0
        for study in self._drop.arrived(self._signatures, self._stopped):
            started = time.monotonic()
            self._take(study)
            working += time.monotonic() - started
            if self._stopped():
                break
        return time.monotonic() - began - working

    def _take(self, study: Arrived) -> None:
        """Segment a study, or set it aside; nothing of it may stop the service."""
        try:
            # What cannot be read as it is has no stamp of its content: without its problem it is another study.
            broken = study.reference.problem is not None
            stamp = study.signature[:_STAMP_DIGITS] if broken else stamp_of(study.reference.images)
        except OSError:
            return  # gone, or not to be opened yet; the next look sees it again
        if stamp not in self._stamps:
            self._sign("working")
            if not self._predict(study, stamp):
                return
            self._stamps.add(stamp)
        self._signatures.add(study.signature)

    def _predict(self, study: Arrived, stamp: str) -> bool:
        """Segment a study. Returns whether it needs no more work; not when its files changed meanwhile."""

        def read(reference: Reference) -> Study:
            image = self._read(reference)
            if not self._drop.is_unchanged(study):
                raise DataError("a file changed while it was read. It is read again when it has come to rest.")
            return image

        record: dict[str, Any] = {"signature": study.signature, "at": time.time()}
        try:
            result = predict_one(self._segmenter, read, study.reference, self._out / stamp, "")
        except DataError as error:
            if not self._drop.is_unchanged(study):
                return False
            record |= {"code": error.code, "reason": str(error)}
            _write(self._out / FAILED / f"{stamp}.json", record)
            self._failed += 1
            _log.warning("study %s set aside: %s: %s", stamp, error.code, error)
            return True
        finish(self._out / stamp, result, record)
        self._done += 1
        _log.info("study %s: %s", stamp, told(result))
        return True

    def _sign(self, state: str) -> None:
        """Write the status file, if something changed or it is time for a sign of life."""
        now = time.monotonic()
        values = {"state": state, "model": self._segmenter.sha256, "done": self._done, "set-aside": self._failed}
        if values == self._signed and now - self._signed_at < HEARTBEAT_S:
            return
        self._signed, self._signed_at = values, now
        with suppress(OSError):  # a full disk is said where a result waits for it
            _write(self._out / STATUS_NAME, values | {"at": time.time()})

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped() and time.monotonic() < end:
            self._sign(self._signed["state"])
            time.sleep(min(_STEP_S, max(0.0, end - time.monotonic())))


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the lock of `out`.

    Raises:
        ConfigError: another one holds it, or it cannot be written.
    """
    busy = ConfigError("another --watch or --listen works on this --out. Stop it first, or give another --out.")
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out / _LOCK_NAME, busy))
        except OSError as error:
            raise ConfigError(f"--out cannot be written ({error.strerror}). Give another folder.") from error
        yield


def claim(out: Path, model_sha256: str) -> None:
    """Bind `out` to one model: what another one did would count as done.

    Raises:
        ConfigError: it is another's.
    """
    path = out / MODEL_NAME
    if not path.exists():
        _write(path, {"model": model_sha256})
    elif _read(path).get("model") != model_sha256:
        raise ConfigError("--out holds results of another model. Give another --out for this one.")


def _remembered(out: Path) -> tuple[set[str], set[str]]:
    """Signatures and stamps of the studies that are done or set aside."""
    records = {path.parent.name: path for path in out.glob(f"*/{RESULT_NAME}")}
    records |= {path.stem: path for path in (out / FAILED).glob("*.json")}
    return {str(_read(path).get("signature", "")) for path in records.values()}, set(records)


def stamp_of(paths: Iterable[Path]) -> str:
    """The name of a study's result, of the bytes of its files."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    text = "\n".join(sorted(digests))
    return (digests[0] if len(digests) == 1 else hashlib.sha256(text.encode()).hexdigest())[:_STAMP_DIGITS]


def finish(folder: Path, result: StudyResult, record: dict[str, Any]) -> None:
    """Say that the result in a folder is whole.

    Args:
        folder: of the result.
        result: what it is.
        record: what else is said of it.
    """
    record = record | {"slices": result.slices, "voxels": result.voxels, "seconds": asdict(result.seconds)}
    record |= {} if result.told is None else {"told": asdict(result.told)}
    _write(folder / RESULT_NAME, record | {"notes": result.notes})


def told(result: StudyResult) -> str:
    """A result, for the log: no name, no path."""
    found = "voxels of " + ", ".join(f"{name} {count}" for name, count in result.voxels.items())
    if result.told is not None:
        found = f"answer: {', '.join(result.told.answer) or 'none of the classes'}"
    seconds = result.seconds
    times = f"read {seconds.reading:.2f} s, network {seconds.network:.2f} s, write {seconds.writing:.2f} s"
    return "; ".join((counted(result.slices, "slice"), found, times, *result.notes))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        values = None
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, f"{json.dumps(values, indent=2)}\n".encode())


__all__ = [
    "FAILED",
    "MODEL_NAME",
    "RESULT_NAME",
    "STATUS_NAME",
    "claim",
    "finish",
    "only_one",
    "stamp_of",
    "told",
    "watch",
]

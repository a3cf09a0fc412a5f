"""What can break within the programs, one function each, with `disguises.TEXT` in its way.

`scripted`: a process that says what a broken or taken-over worker could. `inline`: the worker's code in this process,
where its libraries can be made to fail. `agent`: the agent itself.
"""

import errno
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from client.worker import loop, protocol
from client.worker.protocol import Answer, Question
from common.errors import DataError, WardroundError
from common.wire.frames import Frame
from tests.system.disguises import IDENTIFIERS, PATTERN, TEXT
from tests.system.mishaps import Hospital, Mishap


class Inline:
    """The worker's code in this process, its answers through the frames of the pipe."""

    pid, network, still_s = 1, "removed", 0.0

    def __init__(self, home: Path) -> None:
        self._home = home

    def tend(self) -> None: ...

    def stop(self) -> None: ...

    def ask(self, question: Question, _timeout_s: float) -> Answer:
        asked = protocol.question_from_frame(protocol.question_to_frame(question))
        frame = protocol.answer_to_frame(loop.answer(asked, self._home))
        return protocol.answer_from_frame(Frame(json.loads(json.dumps(frame.header)), frame.parts))


def frame(header: object, weights: bytes | None = None, parts: object = None) -> bytes:
    """A frame of the pipe, whatever its header is."""
    if isinstance(header, dict):
        parts = parts or ([] if weights is None else [["weights", len(weights)]])
        header = {"header": header, "parts": parts}
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(raw)) + raw + (weights or b"")


def in_the_programs() -> list[Mishap]:
    """By the worker's words, by what its libraries raise, by the agent's own trouble."""
    return [*_words(), *_errors(), *_agents()]


def _words() -> Iterator[Mishap]:
    """Frames that no honest worker sends, with names and pixels wherever something can be."""
    pixels = PATTERN.tobytes()
    honest: dict[str, Any] = {"kind": "train", "patients": 10, "metrics": {"train-loss": 0.5, "steps": 2.0}}

    def replying(make: Callable[[Hospital], bytes], part: str = "work") -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            site.say(part, make(site))
            site.train()

        return happen

    def trained(**changes: Any) -> Callable[[Hospital], bytes]:
        return lambda site: frame(honest | {"run-hash": site.run_hash, "round": site.round} | changes, site.weights)

    def weights(make: Callable[[dict[str, np.ndarray]], bytes]) -> Callable[[Hospital], bytes]:
        return lambda site: frame(honest | {"run-hash": site.run_hash, "round": 1}, make(load(site.weights)))

    def instead(tensors: dict[str, np.ndarray]) -> bytes:
        name = max(tensors, key=lambda one: tensors[one].size)
        return save(tensors | {name: PATTERN.astype(np.float32)})

    def named(tensors: dict[str, np.ndarray]) -> bytes:
        return save({f"{name} {TEXT}": one for name, one in tensors.items()})

    def offer(site: Hospital, **changes: Any) -> bytes:
        return frame(json.loads(site.frames["describe"][4:])["header"] | changes)

    for name, words in {
        "text": lambda _site: (TEXT * 3).encode(),
        "text for a header": lambda _site: frame(TEXT.encode()),
        "a list for a header": lambda _site: frame([TEXT]),
        "a deep header": lambda _site: frame(b"[" * 100_000),
        "a header too large": lambda _site: struct.pack(">I", 1 << 30) + TEXT.encode(),
        "a part too large": lambda _site: frame({}, parts=[["weights", 1 << 40]]) + TEXT.encode(),
        "names for a part": lambda site: frame(honest | {"run-hash": site.run_hash, "round": 1}, parts=[[TEXT, 0]]),
        "a frame that ends early": lambda site: trained()(site)[:-9] + b"",
        "an unknown kind": lambda _site: frame({"kind": TEXT}),
        "an unknown code": lambda site: frame({"kind": "refusal", "code": TEXT, "run-hash": site.run_hash, "round": 1}),
        "names about a refusal": lambda _site: frame(
            {"kind": "refusal", "code": "internal", "run-hash": TEXT, "round": 7, "reason": TEXT}, TEXT.encode()
        ),
        "names for a run": trained(**{"run-hash": TEXT, "reason": TEXT}),
        "a date for a round": trained(round=19530417),
        "a date for patients": trained(patients=19530417),
        "an exact count": trained(patients=13),
        "names for patients": trained(patients=TEXT),
        "names of metrics": trained(metrics={TEXT: 1.0, IDENTIFIERS["patient's id"]: 2.0, "train-loss": 0.5}),
        "a date for a metric": trained(metrics={"birth": 19530417.0, "dice-19530417": 0.5}),
        "names for a metric": trained(metrics={"train-loss": TEXT}),
        "a metric that is not finite": trained(metrics={"train-loss": float("nan"), "steps": float("inf")}),
        "pixels as metrics": trained(metrics={f"p{index}": float(one) for index, one in enumerate(PATTERN.flat)}),
        "notes in the weights": weights(lambda one: save(one, metadata={"note": TEXT})),
        "names of tensors": weights(named),
        "a tensor too many": weights(lambda one: save(one | {TEXT: PATTERN.astype(np.float32)})),
        "pixels for a tensor": weights(instead),
        "pixels for weights": weights(lambda _one: pixels),
        "weights with an end": weights(lambda one: save(one) + TEXT.encode() + pixels),
        "weights that are not finite": weights(
            lambda one: save({name: values * np.nan for name, values in one.items()})
        ),
        "weights of another type": weights(
            lambda one: save({name: values.astype(np.float64) for name, values in one.items()})
        ),
        "an offer for a reply": lambda site: offer(site, cohort_id=TEXT),
        "an evaluation for a training": trained(kind="evaluate", phase=TEXT),
    }.items():
        may = name in ("names for a run", "a date for a round", "notes in the weights") or "metric" in name
        yield Mishap(f"the worker says {name}", "scripted", replying(words), done=may)
    for name, words in {
        "names for codes": lambda site: offer(site, quarantined={TEXT: 1}),
        "names of tensors": lambda site: offer(site, parts={TEXT: {TEXT: [3, 3]}}),
        "a name for its cohort": lambda site: offer(site, cohort_id=TEXT),
        "names for patients": lambda site: offer(site, patients=TEXT),
        "text": lambda _site: TEXT.encode(),
    }.items():
        yield Mishap(f"the worker offers {name}", "scripted", replying(words, "describe"), done="cohort" in name)
    yield Mishap("the worker ends without a word", "scripted", replying(lambda _site: b""))


class _TellingError(Exception):
    """An exception that tells everything, however it is printed."""

    def __str__(self) -> str:
        return TEXT

    __repr__ = __str__


class _SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError(TEXT)


def _errors() -> Iterator[Mishap]:
    """What a ClientApp and its libraries may raise."""

    def chained() -> None:
        try:
            raise KeyError(TEXT)
        except KeyError as error:
            raise ValueError(TEXT) from error

    def raising(error: BaseException) -> Callable[[], None]:
        def throw() -> None:
            raise error

        return throw

    code = type("Named", (WardroundError,), {"code": TEXT})
    for name, throw in {
        "ValueError": raising(ValueError(TEXT)),
        "KeyError": raising(KeyError(TEXT)),
        "UnicodeDecodeError": raising(UnicodeDecodeError("utf-8", TEXT.encode(), 0, 1, TEXT)),
        "an error that tells": raising(_TellingError(TEXT)),
        "an error that cannot be printed": raising(_SilentError(TEXT)),
        "one error from another": chained,
        "MemoryError": raising(MemoryError(TEXT)),
        "a full disk": raising(OSError(errno.ENOSPC, TEXT, TEXT)),
        "a missing file": raising(FileNotFoundError(errno.ENOENT, TEXT, TEXT)),
        "a recursion": raising(RecursionError(TEXT)),
        "an unusable study": raising(DataError(TEXT)),
        "an error with a code of its own": raising(code(TEXT)),
        "a group of errors": raising(ExceptionGroup(TEXT, [ValueError(TEXT)])),
        "tensors that do not fit": lambda: torch.zeros(2, 3) @ torch.zeros(5, 7),
        "a name for an index": lambda: torch.zeros(1)[TEXT],  # type: ignore[index]  # what it is about
    }.items():

        def happen(site: Hospital, throw: Callable[[], object] = throw) -> None:
            site.patch.setattr("client.train.training.train_round", lambda *_values, **_named: throw())
            site.train()

        yield Mishap(f"the training raises {name}", "inline", happen)

    def telling(site: Hospital) -> None:
        told = {TEXT: 1.0, "train-loss": 0.25, IDENTIFIERS["patient's name"]: 19530417.0}
        site.patch.setattr("client.train.training.train_round", lambda *_values, **_named: told)
        site.train()

    yield Mishap("the training measures names", "inline", telling, done=True)


def _agents() -> Iterator[Mishap]:
    """The agent's own trouble."""

    def raising(where: str, error: Exception) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            def throw(*_values: object, **_named: object) -> None:
                raise error

            site.patch.setattr(where, throw)
            site.train()

        return happen

    def damaged(name: str) -> Callable[[Hospital], None]:
        def happen(site: Hospital) -> None:
            path = site.home / "proposals" / site.run_hash / name
            kept = path.read_bytes()
            path.write_text(TEXT)
            site.train()
            path.write_bytes(kept)

        return happen

    for where in (
        "client.rules.exit_gate.release",
        "client.rules.policy.decide",
        "client.agent.rounds.current_site",
        "client.rules.exit_gate.check_received",
    ):
        for error in (ValueError(TEXT), _TellingError(TEXT), DataError(TEXT)):
            yield Mishap(f"{type(error).__name__} in {where}", "agent", raising(where, error))
    for name in ("run.json", "answer.json", "signers.json"):
        yield Mishap(f"a damaged {name}", "agent", damaged(name))

"""What a hospital sends while everything goes wrong: numbers, codes from the closed list, and nothing else.

One agent over real TLS, with all loggers at DEBUG, meets more than a hundred mishaps (mishaps.py, breakages.py); the
coordinator's double keeps each byte of each call, metadata included. Identifiers are planted in files, folders, tags,
tables, settings, exceptions and in whatever a worker may say.
"""

import base64
import hashlib
import json
import logging
import queue
import socket
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from client.agent.loop import Agent
from client.agent.worker_process import Worker
from client.home.offer import Offer
from client.site import open_site
from client.worker import protocol
from client.worker.protocol import Answer, Describe, Question, Ready
from common.config import METRICS, RunConfig, parse, sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import ErrorCode
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.system import sandbox
from common.wire.messages import Request
from tests import ROOT
from tests.client.coordinator import FLOWER_RUN, Authority
from tests.patience import PATIENCE_S
from tests.system.breakages import Inline, frame, in_the_programs
from tests.system.disguises import IDENTIFIERS, TEXT, dresses, found_in, pixel_rows
from tests.system.ear import Ear
from tests.system.mishaps import Hospital, Kind, Mishap, at_the_site, kept
from tests.system.patients import PATIENTS, write_patients

pytestmark = [pytest.mark.system, pytest.mark.slow]

PLAIN_TOML = """
name = "plain"
model = { channels = [4, 8] }
data = { modality = "CT", classes = ["lesion"] }
preprocessing = { spacing-mm = [6.0, 6.0], intensity = "window", window = [-100, 250] }
training = { local-steps = 1, batch-size = 2, patch-size = [16, 16] }
federation = { rounds = 400, round-timeout-s = 300 }
"""
PRIVATE_TOML = (
    PLAIN_TOML.replace('"plain"', '"private"')
    + "privacy = { target-epsilon = 8.0, sampling-rate = 0.5, crops-per-patient = 1 }\n"
)
GREEDY_TOML = PRIVATE_TOML.replace('"private"', '"greedy"').replace("rounds = 400", "rounds = 1")
POLICY = (
    f"# {IDENTIFIERS['policy comment']}\nauto-approve = true\nrequire-privacy = false\n"
    "min-patients = 1\nmin-held-out = 1\n"
)
SITE = f"""# {IDENTIFIERS["site comment"]}
name = "north"
threads = 1
[[data]]
path = "../pacs"
label-map = {{ {IDENTIFIERS["segment label"]} = "lesion", {IDENTIFIERS["structure name"]} = "lesion" }}
[[data]]
path = "../nifti"
label-map = {{ 9 = "lesion" }}
[[data]]
path = "../photos"
csv = "table.csv"
label-map = {{ 7 = "lesion" }}
"""
# What may be in a reply, and of which type.
HEAD = {"run-hash": str, "round": int, "kind": str}
KINDS: dict[str, dict[str, type]] = {
    "refusal": HEAD | {"code": str},
    "train": HEAD | {"patients": int, "metrics": dict},
    "evaluate": HEAD | {"patients": int, "phase": str, "metrics": dict},
}


@dataclass
class Outcome:
    """What one mishap led to."""

    mishap: Mishap
    requests: list[Request] = field(default_factory=list)
    records: list[RecordDict] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    sent: bytes = b""


@dataclass
class Day:
    """All that happened, and what was sent outside any mishap."""

    outcomes: list[Outcome]
    sent: bytes
    log: str
    worker_log: str
    pixels: bytes  # images as the network sees them
    alive: bool


@pytest.mark.parametrize("name", [*IDENTIFIERS, "pixels"])
def test_no_planted_thing_leaves_in_any_dress(day: Day, name: str) -> None:
    leaks = [one.mishap.name for one in day.outcomes if name in found_in_once(one.sent)]
    assert leaks == []
    assert name not in found_in_once(day.sent)


def test_every_mishap_was_answered_and_a_third_by_the_real_worker(day: Day) -> None:
    kinds = Counter(one.mishap.kind for one in day.outcomes)
    assert kinds.total() >= 100
    assert kinds["real"] >= kinds.total() / 3
    assert min(kinds.values()) >= 10
    assert [one.mishap.name for one in day.outcomes if len(one.records) != len(one.requests)] == []


def test_refusal_is_the_request_and_a_code_of_the_closed_list(day: Day) -> None:
    codes: Counter[str] = Counter()
    for one in day.outcomes:
        for request, record in zip(one.requests, one.records, strict=True):
            head = _checked_head(record, one.mishap.name)
            said = (head["run-hash"], head["round"])
            if head["kind"] == "refusal" and said != (request.run_hash, request.round):
                # Refused before the message's content was fetched: by its run alone, or not even that.
                assert said in ((request.run_hash, 0), ("", 0)), one.mishap.name
            else:
                assert said == (request.run_hash, request.round), one.mishap.name
            if head["kind"] == "refusal":
                assert list(record) == ["head"], one.mishap.name
                assert head["code"] in set(ErrorCode), one.mishap.name
                codes[str(head["code"])] += 1
    assert len(codes) >= 10, f"the mishaps must be of many kinds: {codes}"


def test_mishap_that_cannot_succeed_is_refused(day: Day) -> None:
    for one in day.outcomes:
        kinds = [head_of(record)["kind"] for record in one.records]
        if not one.mishap.done:
            assert set(kinds) == {"refusal"}, one.mishap.name
    assert {head_of(record)["kind"] for one in day.outcomes[:2] for record in one.records} == {"train", "evaluate"}


def test_numbers_that_leave_are_on_the_list(day: Day) -> None:
    allowed = {*METRICS, "steps", "seconds", "epsilon", "delta", "dice-lesion"}
    for one in day.outcomes:
        for record in one.records:
            metrics = head_of(record).get("metrics", {})
            assert set(metrics) <= allowed, one.mishap.name
            assert all(isinstance(value, float) for value in metrics.values())
            assert head_of(record).get("patients", 0) in (0, 10), one.mishap.name


def test_hospital_itself_was_told_the_reasons(day: Day) -> None:
    """The search is not idle: what was planted did reach this side's logs, from agent and worker."""
    assert IDENTIFIERS["exception"] in day.log
    assert IDENTIFIERS["worker's word"] in day.worker_log


def test_pattern_survives_preprocessing_so_that_pixels_would_be_found(day: Day) -> None:
    assert "pixels" in found_in(day.pixels)


def test_agent_works_at_the_end_of_the_day(day: Day) -> None:
    assert day.alive
    assert day.outcomes[-1].mishap.name == "a round at the end"
    assert head_of(day.outcomes[-1].records[0])["kind"] == "train"


@pytest.mark.parametrize("name", list(IDENTIFIERS))
def test_search_finds_what_is_planted_in_every_dress(name: str) -> None:
    text = IDENTIFIERS[name]
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        for form in (text.encode(encoding), text.upper().encode(encoding), text.lower().encode(encoding)):
            for dress in (*dresses(form), zlib.compress(form)):
                assert name in found_in(b"\x00\xffnoise" + dress + b"noise"), (encoding, dress)


def test_search_finds_pixels_and_what_an_ordinary_encoder_makes() -> None:
    for row in pixel_rows():
        assert "pixels" in found_in(b"\x01" + row + b"\x02")
    for before in (b"", b"a", b"ab"):
        assert "folder" in found_in(base64.b64encode(before + IDENTIFIERS["folder"].encode() + b"tail"))
    assert found_in(bytes(range(256)) * 9) == set()


class Switch:
    """The agent's worker: one of several."""

    def __init__(self) -> None:
        self.current: Any = None

    @property
    def pid(self) -> int | None:
        pid: int | None = self.current.pid
        return pid

    network = sandbox.REMOVED
    crashes = 0
    still_s = 0.0

    def tend(self) -> None: ...

    def stop(self) -> None: ...

    def ask(self, question: Question, timeout_s: float) -> Answer:
        answer: Answer = self.current.ask(question, timeout_s)
        return answer


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    folder = tmp_path_factory.mktemp("day") / "hospital"
    folder.mkdir()
    log = _Log()
    root = logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.agent.worker_process.PAUSES_S", (0.0,))
        patch.setattr("client.agent.loop.UPKEEP_S", 0.05)
        root.addHandler(log)
        root.setLevel(logging.DEBUG)
        try:
            yield _day(folder, log)
        finally:
            root.removeHandler(log)
            root.setLevel(level)


def _day(folder: Path, log: "_Log") -> Day:
    write_patients(folder)
    authority = Authority()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ear = Ear(authority, port).start()
    home = folder / "north"
    identity = authority.admit(home, "north", ear.address)
    (home / "site.toml").write_text(SITE)
    (home / "policy.toml").write_text(POLICY)
    real = Worker(home, 1)
    scripted = _Scripted(home, 1)
    workers: dict[Kind, Any] = {"real": real, "scripted": scripted, "inline": Inline(home), "agent": Inline(home)}
    switch = Switch()
    switch.current = real
    agent = Agent(home, identity, switch)  # type: ignore[arg-type]  # a double of the worker's shape
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            site, bundles = _opened(home, real, ear, patch)
            before = len(ear.heard)
            last = Mishap("a round at the end", "real", lambda one: one.train(), done=True)
            mishaps = [*at_the_site(), *in_the_programs(), last]
            outcomes = []
            for mishap in mishaps:
                switch.current = workers[mishap.kind]
                outcomes.append(_happen(mishap, site, ear, bundles))
            pixels = b"".join(case.images.numpy().tobytes() for case in open_site(home).cohort(site.plain).cases)
        alive = thread.is_alive()
    finally:
        agent.stop()
        thread.join(timeout=PATIENCE_S)
        real.stop()
        scripted.stop()
        ear.stop()
    rest = b"\n".join(content for _, content in ear.heard[:before]) + b"\n".join(c for _, c in ear.heard[-5:])
    worker_log = (home / "logs" / "worker.log").read_text()
    return Day(outcomes, rest, "\n".join(log.lines), worker_log, pixels, alive)


def _opened(home: Path, worker: Worker, ear: Ear, patch: pytest.MonkeyPatch) -> tuple[Hospital, dict[str, str]]:
    """Both runs proposed, and approved by the policy; what an honest worker would say."""
    runs, bundles = [], {}
    for text in (PLAIN_TOML, PRIVATE_TOML, GREEDY_TOML):
        run = parse(RunConfig, text)
        bundle = from_toml(text).bundle
        run_hash, digest = sha256_of(run), hashlib.sha256(bundle).hexdigest()
        ear.propose(run_hash, bundle, digest)
        while ear.answers.get(timeout=PATIENCE_S) != (run_hash, True):  # the earlier ones are told again
            continue
        runs.append(run)
        bundles[run_hash] = digest
    offer = worker.ask(Describe(issue(runs[0])), PATIENCE_S)
    assert isinstance(offer, Offer), offer
    assert offer.patients >= PATIENTS
    said = home.parent / "said"
    said.mkdir()
    frames = {}
    answers: dict[str, Answer] = {"ready": Ready(sandbox.REMOVED), "describe": offer}
    for part, answer in answers.items():
        one = protocol.answer_to_frame(answer)
        frames[part] = frame(one.header)
        (said / part).write_bytes(frames[part])
    (said / "work").write_bytes(b"")
    (said / "log").write_text(TEXT)
    torch.manual_seed(0)
    plain, private, greedy = runs
    weights = pack(build_model(plain).state_dict())
    run_hash = sha256_of(plain)
    site = Hospital(
        home.parent, home, plain, private, greedy, worker, frames, weights, run_hash, lambda _request: None, patch
    )
    return site, bundles


def _happen(mishap: Mishap, site: Hospital, ear: Ear, bundles: dict[str, str]) -> Outcome:
    outcome = Outcome(mishap)
    start = len(ear.heard)

    def ask(request: Request) -> None:
        ear.run.fab_hash = bundles.get(request.run_hash, "")
        outcome.requests.append(request)
        ear.ask_in(request, FLOWER_RUN + list(bundles).index(request.run_hash) if request.run_hash in bundles else 1)
        try:
            outcome.records.append(ear.records.get(timeout=PATIENCE_S))
        except queue.Empty:
            pytest.fail(f"no answer to: {mishap.name}")

    site.ask = ask
    with kept(site):
        mishap.happen(site)
    heard = ear.heard[start:]
    outcome.calls = [name for name, _ in heard]
    outcome.sent = b"\n".join(content for _, content in heard)
    return outcome


class _Scripted(Worker):
    """The keeper as it is, with another program in the place of Python."""

    def _spawn(self) -> Any:
        program = self._home.parent / "scripted"
        if not program.exists():
            program.write_text(f"#!{sys.executable}\n" + (ROOT / "tests/system/scripted_worker.py").read_text())
            program.chmod(0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(program))
            return super()._spawn()

    def ask(self, question: Question, timeout_s: float) -> Answer:
        return super().ask(question, min(timeout_s, 5.0))


class _Log(logging.Handler):
    """All records as a file would hold them, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


_found: dict[bytes, set[str]] = {}


def found_in_once(content: bytes) -> set[str]:
    """As `found_in`, looked for once."""
    if content not in _found:
        _found[content] = found_in(content)
    return _found[content]


def head_of(record: RecordDict) -> dict[str, Any]:
    """What stands in the head of a reply."""
    head = record["head"]
    assert isinstance(head, ConfigRecord)
    assert list(head) == ["json"]
    values: dict[str, Any] = json.loads(bytes(head["json"]))  # type: ignore[arg-type]  # bytes, or a view of what came
    return values


def _checked_head(record: RecordDict, name: str) -> dict[str, Any]:
    """The head of a reply, if it holds what it may and no more."""
    head = head_of(record)
    wanted = KINDS[str(head["kind"])]
    assert {key: type(value) for key, value in head.items()} == wanted, name
    return head

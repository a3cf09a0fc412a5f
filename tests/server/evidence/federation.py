"""A private run of two hospitals, with a third that refuses, through the code of both sides: a ledger and an audit log
at each hospital, receipts that the coordinator's gateway signs, a model, and what the coordinator keeps of it.

What trains is made up; what is charged, signed, noted and kept is not.
"""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.audit import receipts
from common.audit.entries import decimal_text
from common.audit.log import AuditLog
from common.audit.notes import public_bytes
from common.config import RunConfig
from common.config.rundocument import RunDocument, from_toml
from common.document.tomlfile import to_toml
from common.errors import ErrorCode, FederationError
from common.identity.operators import Act
from common.learning.checkpoint import pack, unpack
from common.privacy.accountant import epsilon
from common.privacy.guarantee import charge_round
from common.privacy.ledger import Ledger
from common.system.files import write_private
from common.wire.messages import EvaluateReply, Refusal, Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_to_record
from server.federation.events import INITIAL_NAME
from server.federation.rounds import NoteRound, federate
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import GatewayTrail, RoundNotes, open_log
from server.registry.registry import Registry
from tests.server.coordinators import Member, enrol, new_home
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run

PATIENTS = {"north": 20, "south": 35}
POLICY = "5e" * 32
PRIVATE: dict[str, Any] = {"privacy": {"target-epsilon": 8.0, "clipping-norm": 0.7}}


@dataclass(frozen=True)
class Federation:
    """What is left on both sides."""

    home: Home
    registry: Registry
    document: RunDocument
    folder: Path  # the hospitals' files: SITE.sqlite, SITE-ledger.sqlite
    sent: list[tuple[str, Reply, int]] = field(default_factory=list)  # site, reply, bytes of its header on the wire

    @property
    def results(self) -> Path:
        return self.home.run_folder(self.document)

    def ledger(self, site: str) -> Ledger:
        return Ledger(self.folder / f"{site}-ledger.sqlite", bytes(32))

    def spent(self, site: str) -> float:
        """What the run has cost the hospital's cohort, by the steps in its ledger."""
        ledger = self.ledger(site)
        return epsilon(ledger.history("ours", self.document.hash), ledger.entries()[0].delta)


class _Hospital:
    """Charges, signs and answers as a site does."""

    def __init__(self, member: Member, home: Home, registry: Registry, federation: "Federation") -> None:
        self.member, self.gateway = member, GatewayTrail(home, registry)
        self.document, self.coordinator = federation.document, open_log(home)
        self.ledger = federation.ledger(member.name)
        self.log = AuditLog(
            federation.folder / f"{member.name}.sqlite",
            f"site/{member.name}",
            member.receipt_key,
            coordinator_key=public_bytes(home.log_key),
        )
        self.site, self.sent = registry.site(member.name), federation.sent
        self.best = federation.document.config.federation.rounds
        self.patients = 15  # told, without privacy

    def __call__(self, request: Request) -> Reply:
        reply = self._answer(request)
        head = reply_to_record(reply)["head"]
        self.sent.append((self.member.name, reply, len(bytes(head["json"]))))  # type: ignore[arg-type]
        return reply

    def _answer(self, request: Request) -> Reply:
        number, private = request.round, self.document.config.privacy is not None
        if not isinstance(request, TrainRequest):
            noise = {"score-noise": 0.0625, "scores-epsilon": 0.75, "scores-delta": 0.001} if private else {}
            dice = (
                0.5
                + (self.best - abs(self.best - number)) / 8
                + len(self.member.name) / 128
                + self.document.config.seed / 512
            )
            patients = 0 if private else self.patients
            return EvaluateReply(request.run_hash, number, request.phase, patients, {"dice": dice, **noise})
        spent = self._charged(number) if private else None
        weights = unpack(request.parts["weights"])
        shift = 1e-5 * number + 1e-6 * len(self.member.name)
        update = pack({name: tensor + shift for name, tensor in weights.items()})
        told = {"train-loss": 0.875}
        if spent is not None:
            steps = float(self.document.config.training.local_steps)
            told = {"steps": steps, "epsilon": spent.epsilon, "delta": spent.delta}
        reply = TrainReply(request.run_hash, number, {"weights": update}, 0 if private else self.patients, told)
        cost = None if spent is None else (decimal_text(spent.cost), decimal_text(spent.delta))
        self._sign(request, reply, cost)
        return reply

    def _charged(self, number: int) -> Any:
        charged = charge_round(
            self.ledger,
            self.document,
            cohort="ours",
            cohort_size=PATIENTS[self.member.name],
            round_=number,
            attempt=f"agent.{number}",
            lifetime_epsilon=100.0,
        )
        about = {"run": self.document.hash, "round": number}
        cost = {"epsilon": decimal_text(charged.cost), "delta": decimal_text(charged.delta)}
        self.log.append("spend", about | cost)
        return charged

    def _sign(self, request: TrainRequest, reply: TrainReply, cost: tuple[str, str] | None) -> None:
        receipt = receipts.receipt_for(
            run=request.run_hash,
            round_=request.round,
            site=self.member.name,
            received=request.sha256,
            update=reply.sha256,
            size=reply.size,
            policy=POLICY,
            time=1_790_000_000,
            patients=reply.patients,
            spent=cost,
        )
        signature = receipts.sign(receipt, self.member.receipt_key)
        self.log.append("round", receipts.entry_fields(receipt, signature))
        about = {"run": receipt.run, "round": receipt.round, "site": receipt.site}
        self.coordinator.append("arrived", {**about, "update": receipt.update, "received": receipt.received})
        counter = self.gateway.countersign(self.site, receipt.to_bytes(), signature)
        self.log.append("countersigned", receipts.countersigned_fields(receipt, counter))


def refusing(request: Request) -> Said:
    return Refusal(request.run_hash, request.round, ErrorCode.NO_DATA)


def document_of(run: RunConfig) -> RunDocument:
    """As it is proposed, with its bundle."""
    return from_toml(to_toml(run.model_dump(mode="json", by_alias=True, exclude_unset=True)))


def founded(folder: Path) -> tuple[Home, Registry, dict[str, Member]]:
    """A coordinator with three hospitals."""
    home = new_home(folder / "wardround-server")
    registry = Registry(home.registry)
    return home, registry, {name: enrol(home, registry, name) for name in ("north", "south", "west")}


def trained(
    home: Home,
    registry: Registry,
    members: dict[str, Member],
    run: RunConfig | None = None,
    *,
    folder: Path | None = None,
    quorum_fails: bool = False,
    best: int | None = None,
    cut: int | None = None,
    leaves: bool = False,
    initial: bytes | None = None,
    patients: int = 15,
) -> Federation:
    """Propose a run, have it approved, train it, close it.

    Args:
        home: of the coordinator.
        registry: its.
        members: the hospitals.
        run: None: a private one of three rounds.
        folder: for the hospitals' files.
        quorum_fails: south refuses too.
        best: the round with the best scores; None: the last.
        cut: the coordinator is stopped once, when this round is noted and its model not kept; then south refuses.
        leaves: south is away then, and is not asked.
        initial: the weights that the run names.
        patients: what each hospital tells, without privacy.
    """
    document = document_of(run or a_run(rounds=3, quorum=2, **PRIVATE))
    made = Federation(home, registry, document, folder or home.path.parent)
    signer = operators.acting(home, registry, "run", operators.FIRST)

    def publish(_act: Act) -> None:
        registry.propose(document, [operators.endorse(signer, document.hash, document.bundle)])
        open_log(home).append("proposed", {"run": document.hash})

    operators.carry_out(home, signer, (document.hash,), publish)
    for site in ("north", "south"):
        registry.answer(document.hash, site, approved=True)
        open_log(home).append("approved", {"run": document.hash, "site": site})
    registry.started(document.hash, 1)
    sites: dict[str, FakeSite] = {
        name: refusing if name == "west" else _Hospital(member, home, registry, made)
        for name, member in members.items()
    }
    if quorum_fails:
        sites["south"] = refusing
    for hospital in sites.values():
        if isinstance(hospital, _Hospital):
            hospital.patients = patients
            hospital.best = hospital.best if best is None else best
    out, notes = made.results, RoundNotes(home, document.hash)
    if initial is not None:
        write_private(out / INITIAL_NAME, initial)

    def started(note: NoteRound) -> None:
        sealer = home.sealer_of(document.hash)
        federate(FakeGrid(sites), document, out, wake=lambda _: None, note_round=note, sealer=sealer)

    def stopped(number: int, entered: Any, refused: Any, model: str | None) -> None:
        notes(number, entered, refused, model)
        if number == cut:
            raise KeyboardInterrupt

    try:
        if cut is not None:
            with contextlib.suppress(KeyboardInterrupt):
                started(stopped)
            if leaves:
                del sites["south"]
            else:
                sites["south"] = refusing
        started(notes)
        registry.close(document.hash, "completed")
    except FederationError as error:
        registry.close(document.hash, "failed", str(error))
    open_log(home).append("closed", {"run": document.hash})
    registry.ended(document.hash)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

"""The coordinator signs for what arrived, once for a round, and shows a log that every site can follow.

The sites' side is played with the audit package alone; the calls go through the real gateway and mutual TLS. The
oracle is the verifier.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import DEFAULT_TTL, Metadata
from flwr.app.message import make_message
from flwr.proto.fleet_pb2 import PushMessagesRequest

from common.audit import notes, receipts, verify, witness
from common.audit.log import AuditLog
from common.audit.receipts import Receipt
from common.audit.witness import ConflictError
from common.errors import ErrorCode, UpdateError
from common.flower.packing import pack_message
from common.identity import certificates
from common.identity.receipt_keys import receipt_key_of
from common.wire.messages import EvaluateRequest, Request, TrainReply, TrainRequest
from common.wire.records import reply_to_record
from common.wire.wardround_pb2 import ExchangeCheckpointsReply, ExchangeCheckpointsRequest, SubmitReceiptRequest
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.coordinator import serve
from server.gateway.services import Gateway
from server.home.folder import Home
from server.registry import operators
from server.registry.audit_trail import AUDIT_NAME, GatewayTrail, RoundNotes
from server.registry.registry import Registry
from tests.patience import PATIENCE_S
from tests.server.coordinators import Member, enrol, new_home

RUN, POLICY = "1f" * 32, "2e" * 32
MODEL = sha256(b"new model").hexdigest()


@dataclass
class Hospital:
    """One site: its log, and its channel to the gateway."""

    member: Member
    log: AuditLog
    stub: Any

    def receipt(self, round_: int, update: bytes = b"update", **changes: Any) -> tuple[Receipt, bytes]:
        values: dict[str, Any] = {
            "run": RUN, "round_": round_, "site": self.member.name, "received": sha256(b"model").hexdigest(),
            "update": sha256(update).hexdigest(), "size": len(update),
            "policy": POLICY, "time": 1_790_000_000.0, "patients": 35, "spent": None, **changes,
        }  # fmt: skip
        receipt = receipts.receipt_for(**values)
        return receipt, receipts.sign(receipt, self.member.receipt_key)

    def submit(self, receipt: Receipt, signature: bytes) -> bytes:
        request = SubmitReceiptRequest(receipt=receipt.to_bytes(), signature=signature)
        reply: bytes = self.stub.SubmitReceipt(request, timeout=PATIENCE_S).signature
        return reply

    def show(self, from_size: int) -> ExchangeCheckpointsReply:
        """One call, as the agent makes it."""
        known = witness.last_seen(self.log, self.log.coordinator_key or b"")
        note = self.log.checkpoint()
        request = ExchangeCheckpointsRequest(
            checkpoint=note.encode(),
            from_size=from_size,
            proof=self.log.prove(from_size, notes.peek(note).size),
            known_size=known.size if known else 0,
        )
        reply: ExchangeCheckpointsReply = self.stub.ExchangeCheckpoints(request, timeout=PATIENCE_S)
        return reply

    def exchange(self, from_size: int) -> ExchangeCheckpointsReply:
        reply = self.show(from_size)
        key = self.log.coordinator_key or b""
        witness.observe(self.log, reply.checkpoint.decode(), list(reply.proof), key, origin="coordinator")
        return reply


@dataclass
class Stage:
    """A gateway without a SuperLink, and two hospitals."""

    home: Home
    registry: Registry
    gateway: Gateway
    north: Hospital
    south: Hospital

    @property
    def trail(self) -> GatewayTrail:
        return self.gateway.trail

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.trail.log.entries()]

    def arrive(self, hospital: Hospital, round_: int, update: bytes = b"update", asked: Request | None = None) -> None:
        """An update, to the message that asked for it unless told otherwise."""
        asked = asked or TrainRequest(RUN, round_, {"weights": b"model"})
        self.trail.arrived(
            hospital.member.name, lambda: asked, *packed(TrainReply(RUN, round_, {"weights": update}, 35, {}))
        )

    def keys(self) -> dict[str, tuple[bytes, ...]]:
        sites = {one.log.origin: (one.log.public_key,) for one in (self.north, self.south)}
        return {"coordinator": (self.trail.log.public_key,), **sites}


def packed(reply: TrainReply) -> tuple[PushMessagesRequest, dict[str, bytes]]:
    metadata = Metadata(1, "", 1, 2, "", "", 0.0, DEFAULT_TTL, "train")
    head, tree, objects = pack_message(make_message(metadata, reply_to_record(reply)))
    return PushMessagesRequest(messages_list=[head], message_object_trees=[tree]), objects


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    home = new_home(tmp_path / "coordinator")
    registry = Registry(home.registry)
    members = [enrol(home, registry, name) for name in ("north", "south")]
    gateway = Gateway(home, registry)
    server = serve.start_gateway(home, gateway)
    log_key = home.log_key.public_key().public_bytes_raw()
    channels = [member.channel(home) for member in members]
    hospitals = [
        Hospital(
            member,
            AuditLog(tmp_path / member.name, f"site/{member.name}", member.receipt_key, coordinator_key=log_key),
            CoordinationStub(channel),
        )
        for member, channel in zip(members, channels, strict=True)
    ]
    yield Stage(home, registry, gateway, *hospitals)
    for channel in channels:
        channel.close()
    server.stop(0).wait()
    gateway.close()


def refused(call: Any, *arguments: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_receipt_of_an_update_that_arrived_is_signed_and_recorded_once(stage: Stage) -> None:
    receipt, signature = stage.north.receipt(1)
    stage.arrive(stage.north, 1)
    stage.arrive(stage.north, 1)  # a reply that was sent twice
    first = stage.north.submit(receipt, signature)
    assert receipts.is_countersigned(receipt, signature, first, stage.trail.log.public_key)
    assert stage.north.submit(receipt, signature) == first
    assert (stage.kinds().count("arrived"), stage.kinds().count("round")) == (1, 1)


@pytest.mark.parametrize(("round_", "update"), [(2, b"update"), (1, b"another update")])
def test_receipt_of_an_update_that_never_came_is_not_signed(stage: Stage, round_: int, update: bytes) -> None:
    stage.arrive(stage.north, 1)
    stage.arrive(stage.south, 2)
    assert refused(stage.north.submit, *stage.north.receipt(round_, update)) == grpc.StatusCode.NOT_FOUND
    assert "round" not in stage.kinds()


def test_second_receipt_for_a_round_is_refused_and_recorded(stage: Stage) -> None:
    stage.arrive(stage.north, 1)
    stage.north.submit(*stage.north.receipt(1))
    for changed in ({"update": b"another update"}, {"policy": RUN}, {"patients": 40}):
        assert refused(stage.north.submit, *stage.north.receipt(1, **changed)) == grpc.StatusCode.INVALID_ARGUMENT
    assert stage.kinds().count("round") == 1
    refusals = [entry.fields for entry in stage.trail.log.entries() if entry.kind == "refusal"]
    assert refusals == [{"code": "receipt-missing", "site": "north", "run": RUN, "round": 1}] * 3


@pytest.mark.parametrize(
    "asked",
    [
        TrainRequest("3d" * 32, 1, {"weights": b"model"}),
        TrainRequest(RUN, 2, {"weights": b"model"}),
        EvaluateRequest(RUN, 1, "test", {"weights": b"model"}),
        None,
    ],
    ids=["another run", "another round", "scores", "nothing of ours"],
)
def test_update_that_the_site_was_not_asked_for_gets_no_signature(stage: Stage, asked: Request | None) -> None:
    stage.trail.arrived("north", lambda: asked, *packed(TrainReply(RUN, 1, {"weights": b"update"}, 35, {})))
    assert refused(stage.north.submit, *stage.north.receipt(1)) == grpc.StatusCode.NOT_FOUND
    assert not {"arrived", "round"} & set(stage.kinds())


def test_receipt_that_names_another_model_than_the_one_sent_is_refused_and_recorded(stage: Stage) -> None:
    stage.arrive(stage.north, 1, asked=TrainRequest(RUN, 1, {"weights": b"the model that was sent"}))
    receipt = stage.north.receipt(1, received=sha256(b"a model with a patient in it").hexdigest())
    assert refused(stage.north.submit, *receipt) == grpc.StatusCode.INVALID_ARGUMENT
    assert ("round" in stage.kinds(), stage.kinds()[-1]) == (False, "refusal")
    stage.north.submit(*stage.north.receipt(1, received=sha256(b"the model that was sent").hexdigest()))


def test_hospital_cannot_make_the_model_and_its_receipt_name_two_updates(stage: Stage) -> None:
    """A round that is asked for again, after a restart say, answered in another way than the first time."""
    stage.arrive(stage.north, 1, b"the first")
    stage.arrive(stage.north, 1, b"the second")
    assert refused(stage.north.submit, *stage.north.receipt(1, b"the first")) == grpc.StatusCode.NOT_FOUND
    stage.north.submit(*stage.north.receipt(1, b"the second"))
    with pytest.raises(UpdateError, match="a receipt for another update of round 1"):
        stage.arrive(stage.north, 1, b"the third")
    stage.arrive(stage.north, 1, b"the second")
    assert stage.kinds().count("arrived") == 2


def test_receipt_of_another_site_or_without_its_signature_is_refused_and_recorded(stage: Stage) -> None:
    stage.arrive(stage.north, 1)
    receipt, signature = stage.north.receipt(1)
    forged = receipts.sign(receipt, stage.south.member.receipt_key)
    assert refused(stage.south.submit, receipt, signature) == grpc.StatusCode.INVALID_ARGUMENT
    assert refused(stage.north.submit, receipt, forged) == grpc.StatusCode.INVALID_ARGUMENT
    assert stage.kinds().count("refusal") == 2


def test_revoked_site_gets_no_signature(stage: Stage) -> None:
    stage.arrive(stage.north, 1)
    stage.registry.revoke("north")
    assert refused(stage.north.submit, *stage.north.receipt(1)) == grpc.StatusCode.PERMISSION_DENIED
    assert refused(stage.north.show, 0) == grpc.StatusCode.PERMISSION_DENIED
    denials = [entry.fields for entry in stage.trail.log.entries() if entry.kind == "call-refused"]
    assert denials == [{"status": "permission-denied", "site": "north"}] * 2


def test_denials_do_not_fill_the_log(stage: Stage) -> None:
    stage.registry.revoke("north")
    for _ in range(40):
        refused(stage.north.show, 0)
    assert 2 <= stage.kinds().count("call-refused") <= 10


def test_sites_and_coordinator_follow_each_other(stage: Stage) -> None:
    sizes = {"north": 0, "south": 0}
    for round_ in (1, 2, 3):
        for one in (stage.north, stage.south):
            receipt, signature = one.receipt(round_)
            one.log.append("round", receipts.entry_fields(receipt, signature))
            stage.arrive(one, round_)
            counter = one.submit(receipt, signature)
            one.log.append("countersigned", receipts.countersigned_fields(receipt, counter))
            reply = one.exchange(sizes[one.member.name])
            sizes[one.member.name] = reply.seen_size
            for other in reply.others:
                witness.heard(
                    one.log, other.checkpoint.decode(), list(other.proof), site=other.site,
                    site_key=receipt_key_of(other.certificate_pem, stage.home.root_pem, other.site),
                    coordinator_key=one.log.coordinator_key or b"",
                )  # fmt: skip
    assert [other.site for other in reply.others] == ["north"]
    paths = [stage.home.path / AUDIT_NAME, *(stage.home.path.parent / name for name in sizes)]
    assert verify.verify(paths, stage.keys()).findings == ()


def test_caller_who_begins_elsewhere_is_told_where_to_begin(stage: Stage) -> None:
    size = stage.north.exchange(0).seen_size
    reply = stage.north.show(0)
    assert (reply.seen_size, reply.checkpoint) == (size, b"")


def test_site_whose_log_was_rewritten_is_refused_and_the_evidence_kept(stage: Stage, tmp_path: Path) -> None:
    stage.north.log.append("policy-changed", {"policy": POLICY})
    size = stage.north.exchange(0).seen_size
    member = stage.north.member
    key = stage.north.log.coordinator_key
    stage.north.log = AuditLog(tmp_path / "new", "site/north", member.receipt_key, coordinator_key=key)
    for _ in range(size):
        stage.north.log.append("data-forgotten")
    assert refused(stage.north.show, size) == grpc.StatusCode.DATA_LOSS
    assert stage.kinds()[-1] == "conflict"


def test_forked_coordinator_is_noticed_by_a_site_through_gossip(stage: Stage, tmp_path: Path) -> None:
    """Two homes from one copy, one shown to each hospital; the lie is complete but for what the other signed."""
    stage.north.exchange(0)
    shutil.copytree(stage.home.path, tmp_path / "copy")
    stage.trail.log.append("crashed", {"program": "gateway"})
    stage.north.exchange(stage.north.show(0).seen_size)
    copy = AuditLog(tmp_path / "copy" / AUDIT_NAME, "coordinator", stage.home.log_key)
    copy.append("crashed", {"program": "launcher"})
    key = stage.south.log.coordinator_key or b""
    note = copy.checkpoint()
    witness.observe(stage.south.log, note, copy.prove(0, notes.peek(note).size), key, origin="coordinator")
    said = stage.south.log.checkpoint()
    seen = notes.peek(said).seen
    mine = witness.last_seen(stage.north.log, key)
    assert seen is not None
    assert mine is not None
    small, large = sorted((seen.size, mine.size))
    with pytest.raises(ConflictError):
        witness.heard(
            stage.north.log, said, copy.prove(small, min(large, notes.peek(note).size)), site="south",
            site_key=stage.south.log.public_key, coordinator_key=key,
        )  # fmt: skip
    # And the honest part of the coordinator would not have relayed it.
    assert refused(stage.south.show, 0) == grpc.StatusCode.DATA_LOSS


def test_round_is_told_update_by_update(stage: Stage) -> None:
    note = RoundNotes(stage.home, RUN)
    note(1, {"north": POLICY}, {"south": ErrorCode.DEADLINE}, MODEL)
    note(2, {"north": POLICY}, {"south": ErrorCode.NO_DATA}, None)
    told = [(entry.kind, dict(entry.fields)) for entry in stage.trail.log.entries()][-4:]
    first = {"run": RUN, "round": 1}
    assert told == [
        ("refusal", {**first, "site": "south", "code": "deadline"}),
        ("entered", {**first, "site": "north", "update": POLICY}),
        ("aggregated", {**first, "model": MODEL, "updates": 1}),
        ("refusal", {"run": RUN, "round": 2, "site": "south", "code": "no-data"}),
    ]


def test_reply_that_is_no_update_needs_no_note(stage: Stage) -> None:
    request, objects = packed(TrainReply(RUN, 1, {"weights": b"update"}, 35, {}))
    altered = dict.fromkeys(objects, b"x")
    stage.trail.arrived("north", lambda: TrainRequest(RUN, 1, {"weights": b"model"}), request, altered)
    assert "arrived" not in stage.kinds()


def test_membership_is_recorded(stage: Stage) -> None:
    operators.add(stage.home, stage.registry, "maria", "operator")
    operators.remove(stage.home, stage.registry, "maria")
    entries = {entry.kind: entry.fields for entry in stage.trail.log.entries()}
    south = stage.registry.site("south")
    assert entries["enrolled"]["certificate"] == south.fingerprint
    assert entries["enrolled"]["key"] == stage.south.log.public_key.hex()
    (member,) = [one for one in stage.registry.operators() if one.name == "maria"]
    fingerprint = certificates.fingerprint(certificates.load_certificate(member.certificate))
    signing = certificates.load_certificate(member.certificate).public_key()
    assert isinstance(signing, Ed25519PublicKey)
    key = signing.public_bytes_raw().hex()
    about = {"operator": "maria", "certificate": fingerprint, "key": key, "role": "operator"}
    assert entries["operator-added"] == about
    assert entries["operator-removed"] == {"certificate": fingerprint}

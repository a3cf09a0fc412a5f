"""A coordinator for tests of the agent: real certificates and gRPC over mutual TLS; all that is sent is kept."""

# ruff: noqa: N802 - the methods' names and arguments are the protocol's

import hashlib
import json
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import DEFAULT_TTL, Message, MessageType, Metadata
from flwr.app.message import make_message
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2, transport_pb2
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server

from client.home.identity import Identity, load_identity
from client.home.templates import prepare_home
from common.audit import notes, receipts, witness
from common.audit.log import AuditLog
from common.flower.packing import object_ids, pack_message, unpack_message
from common.identity import certificates, operators
from common.system.files import write_private
from common.wire import wardround_pb2, wardround_pb2_grpc
from common.wire.channels import Credentials, serve
from common.wire.endings import Ending, ending_to_proto
from common.wire.messages import Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_from_record, request_to_record

NODE_ID = 4711
FLOWER_RUN = 99


@dataclass
class Authority:
    """A root with a server certificate for 127.0.0.1."""

    root_key: ec.EllipticCurvePrivateKey = field(default_factory=certificates.new_key)
    server_key: ec.EllipticCurvePrivateKey = field(default_factory=certificates.new_key)
    log_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    operator_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    receipt_keys: dict[str, bytes] = field(default_factory=dict)  # of the sites admitted

    def __post_init__(self) -> None:
        self.root = certificates.new_root(self.root_key, "test root")
        self.server = certificates.server_certificate(self.server_key, ["127.0.0.1"], self.root, self.root_key)
        self.operator = operators.certificate(
            self.operator_key.public_key(), "maria", "operator", self.root, self.root_key
        )

    def endorse(self, run_hash: str, bundle_sha256: str) -> wardround_pb2.Endorsement:
        one = operators.endorse(
            self.operator_key, certificates.to_pem(self.operator), run_hash, bundle_sha256, 1_700_000_000
        )
        return wardround_pb2.Endorsement(
            certificate_pem=one.certificate_pem, signature=one.signature, signed_at=one.signed_at
        )

    def act(self, action: str, subject: str) -> operators.Act:
        certificate = certificates.to_pem(self.operator)
        nonce = secrets.token_hex(16)
        return operators.sign_act(self.operator_key, certificate, action, subject, signed_at=1_700_000_000, nonce=nonce)

    def removal(
        self,
        certificate: x509.Certificate,
        role: operators.Role = "admin",
        by: tuple[Ed25519PrivateKey, x509.Certificate] | None = None,
    ) -> wardround_pb2.Removal:
        """An operator is removed; by a new one of this role, unless told otherwise."""
        key = Ed25519PrivateKey.generate()
        signed = operators.certificate(key.public_key(), "ines", role, self.root, self.root_key)
        key, signed = by or (key, signed)
        admin = certificates.to_pem(signed)
        subject = operators.subject_of(certificates.common_name(certificate), certificates.fingerprint(certificate))
        now = int(certificates.now().timestamp())
        act = operators.sign_act(key, admin, "operator-remove", subject, signed_at=now, nonce="0f" * 16)
        return wardround_pb2.Removal(
            certificate_pem=certificates.to_pem(certificate),
            admin_pem=admin,
            signed_at=act.signed_at,
            nonce=act.nonce,
            signature=act.signature,
        )

    def admit(self, home: Path, site: str, gateway: str) -> Identity:
        """Give a home folder what `join` would."""
        prepare_home(home, site)
        key = certificates.new_key()
        receipt_key = Ed25519PrivateKey.generate()
        self.receipt_keys[site] = receipt_key.public_key().public_bytes_raw()
        certificate = certificates.site_certificate(
            certificates.csr_for(site, key), site, self.root, self.root_key, self.receipt_keys[site]
        )
        tls = home / "tls"
        write_private(tls / "key.pem", certificates.key_to_pem(key))
        write_private(tls / "certificate.pem", certificates.to_pem(certificate))
        write_private(tls / "root.pem", certificates.to_pem(self.root))
        write_private(tls / "receipt.key", receipt_key.private_bytes_raw())
        log_key = self.log_key.public_key().public_bytes_raw().hex()
        coordinator = {"site": site, "gateway": gateway, "log-key": log_key}
        write_private(tls / "coordinator.json", json.dumps(coordinator).encode())
        return load_identity(home)


class Coordinator(FleetServicer, wardround_pb2_grpc.CoordinationServicer):
    """Hands out requests, collects replies."""

    def __init__(self, authority: Authority, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.proposals: list[wardround_pb2.Proposal] = []
        self.removals: list[wardround_pb2.Removal] = []
        self.answers: queue.Queue[tuple[str, bool]] = queue.Queue()
        self.codes: dict[str, str] = {}  # run hash -> what the site said about it last, beside yes or no
        self.withdrawn: list[str] = []  # the runs whose code was taken back
        self.hold_s = 0.3  # a call for news, while there is none
        self.replies: queue.Queue[Reply] = queue.Queue()
        self.run = run_pb2.Run(run_id=FLOWER_RUN)
        self.sent: list[bytes] = []  # every byte of content the agent pushed, and its messages' heads
        self.pushed: list[fleet_pb2.PushMessagesRequest] = []
        self.heads: list[message_pb2.Message] = []  # of the requests
        self.fetched: list[str] = []
        self.receipts: list[receipts.Receipt] = []  # every one that was shown
        self.answer_receipt: Callable[[bytes], bytes] = lambda signature: signature  # before it goes out; may abort
        self.log = AuditLog(Path(tempfile.mkdtemp()) / "audit.sqlite", "coordinator", authority.log_key)
        self.limit: Callable[[str, grpc.ServicerContext], None] = lambda *_: None  # may abort
        self.clock: Callable[[], float] | None = None  # its time, Unix s; None: it does not say
        self.arrived: set[str] = set()
        self.others: list[wardround_pb2.SiteCheckpoint] = []
        self.heartbeats = 0
        self.work: list[str | None] = []  # what the site was at, by each heartbeat
        self.goodbyes = 0
        self.activations = 0
        self._authority = authority
        self._revision = 1
        self._heard = 0  # the revision that the agent has, by its own word
        self._messages: queue.Queue[message_pb2.Message] = queue.Queue()
        self._trees: dict[str, message_pb2.ObjectTree] = {}
        self._objects: dict[str, bytes] = {}
        self._reply: tuple[message_pb2.Message, message_pb2.ObjectTree] | None = None
        self._received: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    def start(self) -> Self:
        def add(server: grpc.Server) -> None:
            add_FleetServicer_to_server(self, server)
            wardround_pb2_grpc.add_CoordinationServicer_to_server(self, server)

        authority = self._authority
        credentials = Credentials(
            certificates.key_to_pem(authority.server_key),
            certificates.to_pem(authority.server),
            certificates.to_pem(authority.root),
        )
        self._server = serve(self.address, lambda: credentials, add, workers=8)
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()

    def propose(
        self,
        run_hash: str,
        bundle: bytes,
        bundle_sha256: str,
        endorsements: Sequence[wardround_pb2.Endorsement] | None = None,
    ) -> None:
        if endorsements is None:
            endorsements = [self._authority.endorse(run_hash, bundle_sha256)]
        self.proposals.append(
            wardround_pb2.Proposal(
                run_hash=run_hash, bundle=bundle, bundle_sha256=bundle_sha256, open=True, endorsements=endorsements
            )
        )
        self._revision += 1

    def was_heard(self) -> bool:
        """Whether the agent has gone through all that there is."""
        return self._heard == self._revision

    def close(self, run_hash: str, ending: Ending | None = None) -> None:
        """The run has ended; a coordinator of before does not say how."""
        for proposal in self.proposals:
            proposal.open = proposal.open and proposal.run_hash != run_hash
            if ending is not None and proposal.run_hash == run_hash:
                proposal.ending.CopyFrom(ending_to_proto(ending))
        self._revision += 1

    def resume(self, run_hash: str, *, act: operators.Act | None = None, signed: bool = True) -> operators.Act:
        """The run that had ended is open again, by an operator's signature unless a test says otherwise."""
        act = act or self._authority.act("resume", operators.subject_of(run_hash))
        for proposal in self.proposals:
            if proposal.run_hash == run_hash:
                proposal.open = True
                proposal.ClearField("resumption")
                if signed:
                    proposal.resumption.CopyFrom(
                        wardround_pb2.Resumption(
                            certificate_pem=act.certificate_pem,
                            signed_at=act.signed_at,
                            nonce=act.nonce,
                            signature=act.signature,
                        )
                    )
        self._revision += 1
        return act

    def ask(self, request: Request, message_type: str | None = None) -> None:
        """Put a request where the agent will find it."""
        kind = MessageType.TRAIN if isinstance(request, TrainRequest) else MessageType.EVALUATE
        metadata = Metadata(
            self.run.run_id, "", 1, NODE_ID, "", "", certificates.now().timestamp(), DEFAULT_TTL, message_type or kind
        )
        self.send(make_message(metadata, request_to_record(request)))

    def send(self, message: Message, alter: Callable[[bytes], bytes] = lambda content: content) -> None:
        head, tree, objects = pack_message(message)
        self._trees[head.metadata.message_id] = tree
        self._objects |= {name: alter(content) for name, content in objects.items()}
        self.heads.append(head)
        self._messages.put(head)

    def PullMessages(self, request, context):
        self.limit("PullMessages", context)
        assert request.node.node_id == NODE_ID
        try:
            head = self._messages.get(timeout=0.3)
        except queue.Empty:
            return fleet_pb2.PullMessagesResponse()
        if not context.is_active():
            self._messages.put(head)
        return fleet_pb2.PullMessagesResponse(
            messages_list=[head], message_object_trees=[self._trees[head.metadata.message_id]]
        )

    def PullObject(self, request, context):
        self.limit("PullObject", context)
        self.fetched.append(request.object_id)
        content = self._objects.get(request.object_id, b"")
        return message_pb2.PullObjectResponse(
            object_found=bool(content), object_available=bool(content), object_content=content
        )

    def ConfirmMessageReceived(self, request, context):
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(self, request, context):
        head, tree = request.messages_list[0], request.message_object_trees[0]
        self.pushed.append(request)
        self.sent.append(request.SerializeToString())
        self._reply, self._received = (head, tree), {}
        return fleet_pb2.PushMessagesResponse(objects_to_push=object_ids(tree), session_id="session")

    def PushObject(self, request, context):
        self.limit("PushObject", context)
        self.sent.append(request.object_content)
        with self._lock:
            self._received[request.object_id] = request.object_content
            assert self._reply is not None
            complete = set(self._received) == set(object_ids(self._reply[1]))
        if complete:
            message = unpack_message(*self._reply, self._received)
            reply = reply_from_record(message.content)
            if isinstance(reply, TrainReply):
                self.arrived.add(hashlib.sha256(reply.parts["weights"]).hexdigest())
            self.replies.put(reply)
        return message_pb2.PushObjectResponse(stored=True)

    def GetRun(self, request, context):
        return run_pb2.GetRunResponse(run=self.run)

    def GetFab(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no agent asks for it")

    def RegisterNode(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no agent asks for it")

    def UnregisterNode(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no agent asks for it")

    def ActivateNode(self, request, context):
        self.limit("ActivateNode", context)
        assert request.public_key == b""
        if self.clock is not None:
            context.send_initial_metadata((("wardround-time", f"{self.clock():.3f}"),))
        self.activations += 1
        return fleet_pb2.ActivateNodeResponse(node_id=NODE_ID)

    def DeactivateNode(self, request, context):
        self.goodbyes += 1
        return fleet_pb2.DeactivateNodeResponse()

    def SendNodeHeartbeat(self, request, context):
        self.heartbeats += 1
        self.work.append(dict(context.invocation_metadata()).get("wardround-work"))
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def ListProposals(self, request, context):
        self.limit("ListProposals", context)
        self._heard = request.revision
        until = time.monotonic() + self.hold_s
        while request.revision == self._revision and context.is_active() and time.monotonic() < until:
            threading.Event().wait(0.03)
        return wardround_pb2.ListProposalsReply(
            revision=self._revision, proposals=self.proposals, removals=self.removals
        )

    def AnswerProposal(self, request, context):
        if request.withdrawn:
            self.withdrawn.append(request.run_hash)
            return wardround_pb2.AnswerProposalReply()
        self.codes[request.run_hash] = request.code
        self.answers.put((request.run_hash, request.approved))
        return wardround_pb2.AnswerProposalReply()

    def SubmitReceipt(self, request, context):
        self.limit("SubmitReceipt", context)
        receipt = receipts.Receipt.from_bytes(request.receipt)
        self.receipts.append(receipt)
        if receipt.update not in self.arrived:
            context.abort(grpc.StatusCode.NOT_FOUND, "it never came")
        site_key = self._authority.receipt_keys[receipt.site]
        signature = receipts.countersign(receipt, request.signature, site_key, self._authority.log_key)
        return wardround_pb2.SubmitReceiptReply(signature=self.answer_receipt(signature))

    def ExchangeCheckpoints(self, request, context):
        (site_key,) = self._authority.receipt_keys.values()
        known = witness.last_seen(self.log, site_key)
        if request.from_size != (known.size if known else 0):
            return wardround_pb2.ExchangeCheckpointsReply(seen_size=known.size if known else 0)
        note, origin = request.checkpoint.decode(), notes.peek(request.checkpoint.decode()).origin
        try:
            seen = witness.observe(self.log, note, list(request.proof), site_key, origin=origin)
        except witness.ConflictError:  # this one does not mind
            seen = notes.peek(note)
        own = self.log.checkpoint()
        size = notes.peek(own).size
        proof = self.log.prove(request.known_size, size) if request.known_size <= size else []
        return wardround_pb2.ExchangeCheckpointsReply(
            seen_size=seen.size, checkpoint=own.encode(), proof=proof, others=self.others
        )


OVERRIDE = transport_pb2.Scalar(string="another run")

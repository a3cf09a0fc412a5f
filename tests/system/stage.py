"""A coordinator as it is started in earnest, two honest hospitals at work, and a third that means harm.

The honest ones answer an endless run of small rounds through the client's own code, so that every test of an attack
can ask whether the federation went on meanwhile. The hostile one has a certificate and a message it owes an answer to.
"""

import contextlib
import datetime
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtensionOID
from flwr.app import Message
from flwr.proto import fleet_pb2
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node

from client.agent.fleet import Fleet
from common.config.rundocument import from_toml
from common.flower import calls
from common.identity import certificates
from common.wire.channels import MAX_MESSAGE_BYTES
from common.wire.messages import TrainReply
from common.wire.records import reply_to_record, request_from_record
from common.wire.wardround_pb2_grpc import CoordinationStub
from server.home import folder as homes
from server.home.folder import Home
from server.home.root import root_credentials
from server.registry.registry import Registry
from tests import ROOT
from tests.patience import PATIENCE_S, eventually
from tests.server.coordinators import RUN_TOML, Member, enrol, new_home
from tests.server.gateway.test_services import PROJECT, bundle_of

HONEST = ("north", "south")
HOSTILE = "mallory"

# One message for the hostile site, never waited for; then rounds for the honest ones without an end.
SERVER_APP = """
import itertools
from flwr.app import MessageType
from flwr.serverapp import ServerApp
from common.wire.messages import TrainRequest
from common.wire.records import request_to_record
from common.system.wakeup import gateway_hint, strategy_wake
from server.federation.broadcast import ask
from server.home.folder import open_home, read_nodes
from server.federation.members import Member, State
app = ServerApp()
class Honest:
    def __init__(self, nodes): self.nodes = nodes
    def look(self): return {name: Member(name, State.HERE, node) for name, node in self.nodes.items()}
    def unheld(self, asked): return set()

@app.main()
def main(grid, context):
    home = open_home()
    wake, names = strategy_wake(home.path), read_nodes(home)
    here = lambda: {names[node]: node for node in grid.get_node_ids() if node in names}
    while not {"north", "south", "mallory"} <= set(here()): wake(0.1)
    nodes = here()
    bait = request_to_record(TrainRequest("0" * 64, 1, {"weights": b"bait"}))
    grid.push_messages([grid.create_message(bait, MessageType.TRAIN, nodes["mallory"], "1", ttl=3600)])
    gateway_hint(home.path)([nodes["mallory"]])
    sites = Honest({name: nodes[name] for name in ("north", "south")})
    with (home.path / "rounds").open("a") as done:
        for number in itertools.count(1):
            request = TrainRequest("0" * 64, number, {"weights": bytes([number % 256]) * 100_000})
            answers = list(ask(grid, sites, request, timeout_s=300, wait=wake, hint=gateway_hint(home.path)))
            if all(answer.reply is not None and hasattr(answer.reply, "parts") for answer in answers):
                print(number, file=done, flush=True)
"""


@dataclass
class Hospital:
    """An honest site at work in a thread."""

    member: Member
    home: Home
    stop: threading.Event = field(default_factory=threading.Event)
    failures: list[str] = field(default_factory=list)
    replies: list[float] = field(default_factory=list)  # time.monotonic() of each

    def run(self) -> None:
        with self.member.channel(self.home) as channel:
            fleet = Fleet(channel, self.stop)
            try:
                fleet.activate()
                while not self.stop.is_set():
                    if (delivery := fleet.pull()) is not None:
                        message = fleet.fetch(*delivery, MAX_MESSAGE_BYTES)
                        request = request_from_record(message.content)
                        reply = TrainReply(
                            request.run_hash,
                            request.round,
                            {"weights": request.parts["weights"]},
                            3,
                            {"train-loss": 1.0},
                        )
                        fleet.push(Message(reply_to_record(reply), reply_to=message))
                        self.replies.append(time.monotonic())
            except grpc.RpcError as error:
                if not self.stop.is_set():
                    self.failures.append(f"{error.code()} {error.details()}")
            finally:
                fleet.close()


class Stage:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = new_home(folder / "coordinator")
        self.registry = Registry(self.home.registry)
        self.members = {name: enrol(self.home, self.registry, name) for name in (*HONEST, HOSTILE, "held", "gone")}
        for name in self.members:
            self.registry.collected(name)
        self.registry.revoke("gone")
        self.root_key, self.root = root_credentials(self.home)
        self.hospitals = [Hospital(self.members[name], self.home) for name in HONEST]

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """Start everything, and end it."""
        command = [sys.executable, "-m", "server.commands.main", "start", "--home", str(self.home.path)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("ready: "), line
                threads = [threading.Thread(target=one.run, name=one.member.name) for one in self.hospitals]
                for thread in threads:
                    thread.start()
                self.channel = self.members[HOSTILE].channel(self.home)
                self.fleet: Any = FleetStub(self.channel)
                self.coordination = CoordinationStub(self.channel)
                self.node = Node(node_id=self.fleet.ActivateNode(fleet_pb2.ActivateNodeRequest()).node_id)
                self._begin_run()
                self.delivery = self._bait()
                yield
                for one in self.hospitals:
                    one.stop.set()
                self.channel.close()
            finally:
                for one in self.hospitals:
                    one.stop.set()
                process.terminate()
                process.communicate(timeout=PATIENCE_S)
                for thread in threads:
                    thread.join()

    def rounds(self) -> int:
        """Rounds that both honest hospitals have answered."""
        path = self.home.path / "rounds"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def log(self) -> str:
        """All that the doors have written so far."""
        return (self.home.logs / "gateway.log").read_text(errors="replace")

    def node_of(self, site: str) -> Node:
        return Node(node_id=next(node for node, name in homes.read_nodes(self.home).items() if name == site))

    def certificate(
        self, name: str, *, root: Any = None, days: tuple[float, float] = (-1, 90), usage: Any = None
    ) -> Member:
        """A site's certificate as it should not be; valid from and until days from now."""
        key = certificates.new_key()
        signer, issuer = root or (self.root_key, self.root)
        proper = certificates.site_certificate(certificates.csr_for(name, key), name, issuer, signer)
        now = certificates.now()
        builder = x509.CertificateBuilder(proper.issuer, proper.subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now + datetime.timedelta(days=days[0]))
        builder = builder.not_valid_after(now + datetime.timedelta(days=days[1]))
        for extension in proper.extensions:
            value = usage if usage and extension.oid == ExtensionOID.EXTENDED_KEY_USAGE else extension.value
            builder = builder.add_extension(value, extension.critical)
        return Member(name, key, certificates.to_pem(builder.sign(signer, hashes.SHA256())))

    def tls(self, port: int, member: Member | None = None, **settings: Any) -> "Tls":
        """A TLS client of our own making, for what gRPC's would not do."""
        return Tls(self, port, member, **settings)

    def _begin_run(self) -> None:
        proposal = self.registry.propose(from_toml(RUN_TOML), ())
        run_id = calls.start_run(self.home.superlink, bundle_of(PROJECT, SERVER_APP))
        self.registry.started(proposal.run_hash, run_id)
        self.run_id = run_id

    def _bait(self) -> Any:
        def pulled() -> Any:
            response = self.fleet.PullMessages(fleet_pb2.PullMessagesRequest(node=self.node), timeout=PATIENCE_S)
            return response.messages_list and (response.messages_list[0], response.message_object_trees[0])

        return eventually(pulled, "the run begins")


class Tls:
    """One connection, as far as it gets."""

    def __init__(
        self,
        stage: Stage,
        port: int,
        member: Member | None,
        *,
        version: ssl.TLSVersion | None = None,
        ciphers: str | None = None,
        alpn: tuple[str, ...] = ("h2",),
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(alpn)
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if ciphers is not None:
            context.set_ciphers(ciphers)
        if member is not None:
            path = stage.folder / "client.pem"
            path.write_bytes(certificates.key_to_pem(member.key) + member.certificate)
            context.load_cert_chain(path)
        self.plain = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self.socket = context.wrap_socket(self.plain)

    def says(self, data: bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])) -> bytes:
        """Send, by default HTTP/2's preface and empty settings, and return the first answer; b"" when it hangs up."""
        try:
            self.socket.sendall(data)
            return self.socket.recv(65536)
        except (ssl.SSLError, ConnectionError):
            return b""

    def close(self) -> None:
        self.socket.close()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(stream: int, path: str) -> bytes:
    """A request's head without its body: literal fields, no table, no Huffman (RFC 7541, section 6.2.2)."""
    fields = {":method": "POST", ":scheme": "https", ":path": path, ":authority": "x", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(1, 4, stream, block)


def matching(text: str, pattern: str) -> bool:
    return re.search(pattern, text) is not None

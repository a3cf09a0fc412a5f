"""The coordinator's folder: configuration, keys, registry, runs, logs. Everything in it is the owner's alone (0700).

server.toml          ports, host names, listening address
coordinator.key      seals the others: 32 bytes, plain or under a passphrase; key.sock hands it on (key_agent.py)
pki/                 root.key root.pem (the federation's identity: back it up), server.key server.pem, log.key (Ed25519:
                     audit log and receipts), during a rotation next-root.key next-root.pem, afterwards old-roots.pem
                     and vouchers.pem (by the root, for the old ones: common/identity/rotation.py)
operators/           NAME.key NAME.pem: who may propose runs; a key may lie elsewhere
registry.sqlite      sites, invitations, proposals and the hospitals' answers
invitations/         one file per invited site; secret until used
runs/NAME-HASH8/     metrics.jsonl, summary.json, report.html, model.*.sealed, checkpoint/
models/NAME-HASH8/   each completed run, written once: server/archive/record.py
nodes.json           Flower node id -> site name
logs/ flower/ wake/  process logs; Flower's own disposable state; sockets for hints
forms.lock forms/     while the other forms of a finished model are made: server/archive/forms.py
home.json            the version of this folder: server/home/version.py
restored.json        after a restore, until a site has seen the audit log: common/rescue/restored.py
superlink.sock processes.json   the way to the SuperLink; the processes that `start` keeps alive
serving              touched while the gateway and the SuperLink answer: server/coordinator/health.py

Sealed with the coordinator's key (common/crypto/stream.py) are all private keys, the sites' Flower keys in the registry
among them, checkpoints and models. Root and operator keys that have a passphrase of their own are under that instead.
Not sealed, because it is no secret: certificates, site names, run documents, hashes of tokens, metrics, summaries,
reports, the audit log. Not sealed either is an invitation, which is made to be sent and is void after 24 hours. While
coordinator.key is plain, a copy of the whole folder opens; under a passphrase, or with that file kept elsewhere, it
does not. A checkpoint put back whole as it was after an earlier round does open: the run then goes on from there.
"""

import json
import logging
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from common.advice import Advice
from common.config import Table, load
from common.config.rundocument import RunDocument
from common.crypto.keyfile import KeyFile
from common.crypto.stream import Sealer
from common.errors import ConfigError
from common.flower.calls import SuperLink
from common.system.files import write_private
from server.home import key_agent
from server.home.version import VERSIONS

ENVIRONMENT = "WARDROUND_SERVER_HOME"
DEFAULT = Path("wardround-server")

_HOSPITALS = "site.toml"  # of client/home/folder.py

KEY_NAME = "coordinator.key"
KEY_PASSPHRASE = "WARDROUND_COORDINATOR_PASSPHRASE"  # noqa: S105 - a variable's name

_log = logging.getLogger(__name__)

Port = Annotated[int, Field(ge=1, le=65535)]


class ServerConfig(Table):
    """server.toml."""

    # Names and addresses under which sites reach this host; the first one is written into invitations.
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    # The address to listen on. 127.0.0.1: this machine only.
    listen: str = "127.0.0.1"
    gateway_port: Port = 9443
    enrolment_port: Port = 9444
    # Never leaves loopback.
    superlink_port: Port = 9445
    # Whether that loopback is the coordinator's own, in a network namespace that no other account reaches. Without it
    # every account of this host can have the SuperLink run programs as the coordinator's.
    private_network: bool = True
    # Whether the folder of a finished run also holds the model as MONAI bundle and as ONNX, both sealed. Making them
    # takes a process beside the coordinator's, which loads torch, about a minute; where it cannot, they are left out.
    exchange_forms: bool = True


@dataclass(frozen=True)
class Home:
    """An initialised coordinator folder."""

    path: Path
    config: ServerConfig
    # The coordinator's key, where it has just been made or opened.
    held: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def key_file(self) -> KeyFile:
        """Where the coordinator's key lies."""
        return KeyFile(self.path / KEY_NAME, "coordinator key", KEY_PASSPHRASE)

    @cached_property
    def key(self) -> bytes:
        """The coordinator's key: from its file, or under a passphrase from the coordinator that runs, or asked for.

        Raises:
            ConfigError: see `KeyFile.open`.
        """
        if self.held is not None:
            return self.held
        handed = key_agent.ask(self.path) if self.key_file.is_protected else None
        return handed or self.key_file.open()

    @property
    def sealer(self) -> Sealer:
        """Seals the private keys under pki/."""
        return Sealer(self.key)

    @property
    def node_keys(self) -> Sealer:
        """Seals the sites' Flower keys, by the site's name."""
        return self.sealer.at("node key")

    @property
    def operator_keys(self) -> Sealer:
        """Seals operators' keys, by the operator's name."""
        return self.sealer.at("operator key")

    def sealer_of(self, run_hash: str) -> Sealer:
        """Seals the checkpoints and the model of a run."""
        return self.sealer.at(f"run {run_hash}")

    @property
    def registry(self) -> Path:
        """Sites and proposals."""
        return self.path / "registry.sqlite"

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.path / "logs"

    @property
    def flower(self) -> Path:
        """FLWR_HOME of the SuperLink."""
        return self.path / "flower"

    @property
    def superlink(self) -> SuperLink:
        """Where the SuperLink is for the coordinator's other processes: beyond its own network, by a unix socket."""
        return self.path / "superlink.sock" if self.config.private_network else self.config.superlink_port

    @property
    def root_pem(self) -> bytes:
        """The root certificate."""
        return (self.path / "pki" / "root.pem").read_bytes()

    @property
    def trusted_roots_pem(self) -> bytes:
        """Every root whose site certificates are accepted: the present one, the next, and those rotated away."""
        names = ("root.pem", "next-root.pem", "old-roots.pem")
        return b"".join(
            (self.path / "pki" / name).read_bytes() for name in names if (self.path / "pki" / name).exists()
        )

    @property
    def successor_pem(self) -> bytes:
        """The next root, self-signed and then cross-signed by the present one; empty while there is none."""
        path = self.path / "pki" / "next-root.pem"
        return path.read_bytes() if path.exists() else b""

    @property
    def log_key(self) -> Ed25519PrivateKey:
        """Signs the coordinator's audit log and receipts."""
        return Ed25519PrivateKey.from_private_bytes(self.open_key("log"))

    @property
    def enrolment_address(self) -> str:
        """Where sites enrol: host:port."""
        return f"{self._host}:{self.config.enrolment_port}"

    @property
    def gateway_address(self) -> str:
        """Where sites work: host:port."""
        return f"{self._host}:{self.config.gateway_port}"

    @property
    def _host(self) -> str:
        host = self.config.hosts[0]
        return f"[{host}]" if ":" in host else host  # an IPv6 address beside a port

    def open_key(self, name: str) -> bytes:
        """The private key pki/NAME.key.

        Raises:
            ConfigError: the coordinator's key cannot be had, or the file is damaged.
        """
        return self.sealer.open((self.path / "pki" / f"{name}.key").read_bytes(), f"{name} key")

    def write_key(self, name: str, key: bytes) -> None:
        """Inverse of `open_key`."""
        write_private(self.path / "pki" / f"{name}.key", self.sealer.seal(key, f"{name} key"))

    def invitation(self, site: str) -> Path:
        """The invitation file of a site; secret until used."""
        return self.path / "invitations" / f"{site}.json"

    def run_folder(self, document: RunDocument) -> Path:
        """Where a run's results go; server/app.py writes to the same place."""
        return self.path / "runs" / folder_name(document)


def folder_name(document: RunDocument) -> str:
    """Of a run's results."""
    return f"{document.name}-{document.hash[:8]}"


def resolve(path: Path | None) -> Path:
    """The folder meant: the option, else the environment variable, else ./wardround-server."""
    return (path or Path(os.environ.get(ENVIRONMENT) or DEFAULT)).absolute()


def advice(home: Path) -> Advice:
    """What completes the commands of this side: with --home where they would look into another folder."""
    return Advice.about("wardround-server", home, resolve(None))


def default_hosts() -> tuple[str, ...]:
    """Names that mean this machine."""
    return tuple(dict.fromkeys(["127.0.0.1", "localhost", socket.gethostname()]))


def check_kind(folder: Path) -> None:
    """Refuse the folder of a hospital: what a coordinator keeps would be mixed with it.

    Raises:
        ConfigError: it is one.
    """
    if (folder / _HOSPITALS).exists():
        raise ConfigError(
            f"{folder} is a hospital's folder (it has {_HOSPITALS}), and not a coordinator's. A hospital's commands "
            f"begin with wardround-client; for a coordinator name another folder with --home or {ENVIRONMENT}."
        )


def open_home(path: Path | None = None) -> Home:
    """Open an initialised folder.

    Raises:
        ConfigError: not initialised, its configuration is wrong, others could read it, or it is of a later version.
    """
    folder = resolve(path)
    if not (folder / "server.toml").exists():
        check_kind(folder)
        raise ConfigError(
            f"{folder} is not a coordinator's home. Run `wardround-server init`, "
            f"or say where it is with --home or the environment variable {ENVIRONMENT}."
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise ConfigError(f"{folder} holds keys and is open to other users. Run `chmod 700 {folder}`.")
    VERSIONS.open(folder, _log.info)
    return Home(folder, load(ServerConfig, folder / "server.toml"))


def write_nodes(home: Home, nodes: Mapping[int, str]) -> None:
    """Publish which Flower node is which site; the ServerApp reads it."""
    names = {str(node): site for node, site in nodes.items()}
    write_private(home.path / "nodes.json", json.dumps(names, indent=2).encode())


def read_nodes(home: Home) -> Mapping[int, str]:
    """Inverse of `write_nodes`, and always up to date: sites may join while a run is going on."""
    return _Nodes(home.path / "nodes.json")


class _Nodes(Mapping[int, str]):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = -1
        self._names: dict[int, str] = {}

    def __getitem__(self, node: int) -> str:
        return self._load()[node]

    def __iter__(self) -> Iterator[int]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())

    def _load(self) -> dict[int, str]:
        try:
            version = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        if version != self._version:
            names = json.loads(self._path.read_text(encoding="utf-8"))
            self._names, self._version = {int(node): site for node, site in names.items()}, version
        return self._names

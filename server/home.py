"""The coordinator's folder: configuration, keys, registry, runs, logs. Everything in it is the owner's alone (0700).

server.toml          ports, host names, listening address
coordinator.key      seals the others: 32 bytes, plain or under a passphrase; key.sock hands it on (server/keyholder.py)
pki/                 root.key root.pem (the federation's identity: back it up), server.key server.pem, log.key (Ed25519:
                     audit log and receipts), during a rotation next-root.key next-root.pem, afterwards old-roots.pem
operators/           NAME.key NAME.pem: who may propose runs; a key may lie elsewhere
registry.sqlite      sites, invitations, proposals and the hospitals' answers
invitations/         one file per invited site; secret until used
runs/NAME-HASH8/     metrics.jsonl, summary.json, report.html, model.*.sealed, checkpoint/
nodes.json           Flower node id -> site name
logs/ flower/ wake/  process logs; Flower's own disposable state; sockets for hints

Sealed with the coordinator's key (common/sealer.py) are all private keys, the sites' Flower keys in the registry among
them, checkpoints and models. Root and operator keys that have a passphrase of their own are under that instead.
Not sealed, because it is no secret: certificates, site names, run documents, hashes of tokens, metrics, summaries,
reports, the audit log. Not sealed either is an invitation, which is made to be sent and is void after 24 hours. While
coordinator.key is plain, a copy of the whole folder opens; under a passphrase, or with that file kept elsewhere, it
does not. A checkpoint put back whole as it was after an earlier round does open: the run then goes on from there.
"""

import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import Certificate
from pydantic import Field

from common import pki
from common.config import RunConfig, Table, load, sha256_of
from common.errors import ConfigError
from common.files import write_private
from common.keyfile import KeyFile
from common.operators import key_to_bytes
from common.sealed import is_sealed, passphrase_from, seal, unseal
from common.sealer import Sealer
from server import keyholder

ENVIRONMENT = "WARDROUND_SERVER_HOME"
DEFAULT = Path("wardround-server")

ROOT_PASSPHRASE = "WARDROUND_ROOT_PASSPHRASE"  # noqa: S105 - a variable's name
ROOT_PURPOSE = "root key"
KEY_NAME = "coordinator.key"
KEY_PASSPHRASE = "WARDROUND_COORDINATOR_PASSPHRASE"  # noqa: S105 - a variable's name

_RENEW_BEFORE = pki.SERVER_LIFETIME / 3

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
        handed = keyholder.ask(self.path) if self.key_file.is_protected else None
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
        return f"{self.config.hosts[0]}:{self.config.enrolment_port}"

    @property
    def gateway_address(self) -> str:
        """Where sites work: host:port."""
        return f"{self.config.hosts[0]}:{self.config.gateway_port}"

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

    def run_folder(self, run: RunConfig) -> Path:
        """Where a run's results go; server/app.py writes to the same place."""
        return self.path / "runs" / f"{run.name}-{sha256_of(run)[:8]}"


def resolve(path: Path | None) -> Path:
    """The folder meant: the option, else the environment variable, else ./wardround-server."""
    return (path or Path(os.environ.get(ENVIRONMENT) or DEFAULT)).absolute()


def default_hosts() -> tuple[str, ...]:
    """Names that mean this machine."""
    return tuple(dict.fromkeys(["127.0.0.1", "localhost", socket.gethostname()]))


def create(path: Path, config: ServerConfig, passphrase: str | None = None, key_passphrase: str | None = None) -> Home:
    """Make the folder, the coordinator's key, the federation's root and the server's certificate.

    Args:
        path: the folder.
        config: ports and names.
        passphrase: seals the root key, and is then needed to approve and renew sites; None: the coordinator's key does.
        key_passphrase: seals the coordinator's key, and is then needed to start; None: the file's mode guards it.

    Raises:
        ConfigError: the folder is already a coordinator's home, or a passphrase is too short.
    """
    if (path / "server.toml").exists():
        raise ConfigError(f"{path} is already initialised. Use it, or give another folder with --home.")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    for name in ("pki", "operators", "invitations", "runs", "logs", "flower"):
        (path / name).mkdir(exist_ok=True, mode=0o700)
    home = Home(path, config)
    home = Home(path, config, home.key_file.make(key_passphrase))
    root_key, root = new_root(home, "root", passphrase)
    home.write_key("log", key_to_bytes(Ed25519PrivateKey.generate()))
    _renew_server_certificate(home, root_key, root)
    write_private(path / "server.toml", _toml(config).encode())
    return home


def open_home(path: Path | None = None) -> Home:
    """Open an initialised folder.

    Raises:
        ConfigError: not initialised, its configuration is wrong, or others could read it.
    """
    folder = resolve(path)
    if not (folder / "server.toml").exists():
        raise ConfigError(
            f"{folder} is not a coordinator's home. Run `wardround-server init`, "
            f"or say where it is with --home or the environment variable {ENVIRONMENT}."
        )
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise ConfigError(f"{folder} holds keys and is open to other users. Run `chmod 700 {folder}`.")
    return Home(folder, load(ServerConfig, folder / "server.toml"))


def server_credentials(home: Home) -> tuple[bytes, bytes]:
    """Key and certificate (PEM) of the server, renewed when a third of its life is left or the hosts changed.

    Raises:
        ConfigError: it has to be renewed, and the root key is sealed.
    """
    certificate = pki.load_certificate((home.path / "pki" / "server.pem").read_bytes())
    old = certificate.not_valid_after_utc - pki.now() < _RENEW_BEFORE
    if old or set(pki.hosts_of(certificate)) != set(home.config.hosts):
        _renew_server_certificate(home, *root_credentials(home))
    return home.open_key("server"), (home.path / "pki" / "server.pem").read_bytes()


def is_root_sealed(home: Home) -> bool:
    """Whether the root key is under a passphrase."""
    return is_sealed((home.path / "pki" / "root.key").read_bytes())


def root_credentials(home: Home, passphrase: str | None = None) -> tuple[pki.PrivateKey, Certificate]:
    """The root's key and certificate, to sign with.

    Args:
        home: the coordinator's.
        passphrase: of a sealed key; None: from WARDROUND_ROOT_PASSPHRASE, or the file WARDROUND_ROOT_PASSPHRASE_FILE.

    Raises:
        ConfigError: the key is sealed and no passphrase, or another one, was given.
    """
    data = (home.path / "pki" / "root.key").read_bytes()
    if is_sealed(data):
        passphrase = passphrase or passphrase_from(ROOT_PASSPHRASE)
        if passphrase is None:
            raise ConfigError(
                f"the root key is under a passphrase. Set {ROOT_PASSPHRASE} or {ROOT_PASSPHRASE}_FILE, or run the "
                "command on a terminal, which asks for it."
            )
    return pki.load_key(_open_root_key(home, data, passphrase)), pki.load_certificate(home.root_pem)


def new_root(home: Home, name: str, passphrase: str | None) -> tuple[pki.PrivateKey, Certificate]:
    """Make a root and store it as NAME.key and NAME.pem."""
    key = pki.new_key()
    certificate = pki.new_root(key, f"Wardround root {pki.now():%Y-%m-%d %H:%M:%S}")
    pem = pki.key_to_pem(key)
    folder = home.path / "pki"
    # The next root's key is sealed as the root's: it becomes that.
    sealed = home.sealer.seal(pem, ROOT_PURPOSE) if passphrase is None else seal(pem, passphrase, ROOT_PURPOSE)
    write_private(folder / f"{name}.key", sealed)
    write_private(folder / f"{name}.pem", pki.to_pem(certificate))
    return key, certificate


def protect_root(home: Home, passphrase: str, old_passphrase: str | None = None) -> None:
    """Seal the root key, and the next root's during a rotation, which else would undo it.

    Args:
        home: the coordinator's.
        passphrase: from now on.
        old_passphrase: of a key that is sealed already.

    Raises:
        ConfigError: a key does not open, or the new passphrase is too short.
    """
    sealed = {}
    for path in (home.path / "pki" / "root.key", home.path / "pki" / "next-root.key"):
        if path.exists():
            pem = _open_root_key(home, path.read_bytes(), old_passphrase)
            sealed[path] = seal(pem, passphrase, ROOT_PURPOSE)
    for path, data in sealed.items():
        write_private(path, data)


def rotate_root(home: Home, passphrase: str | None = None) -> None:
    """Make the next root and let the present one vouch for it; sites learn of it when they renew.

    Raises:
        ConfigError: a rotation is under way, or the root key does not open.
    """
    if home.successor_pem:
        raise ConfigError("a next root is there already. Finish the rotation: `wardround-server root finish`.")
    passphrase = passphrase or passphrase_from(ROOT_PASSPHRASE)
    root_key, root = root_credentials(home, passphrase)
    _, successor = new_root(home, "next-root", passphrase if is_root_sealed(home) else None)
    cross = pki.cross_sign(successor, root, root_key)
    write_private(home.path / "pki" / "next-root.pem", pki.to_pem(successor) + pki.to_pem(cross))


def finish_rotation(home: Home, passphrase: str | None = None) -> None:
    """The next root becomes the root. The old one is trusted on, for the certificates it has signed, and signs no more.

    Raises:
        ConfigError: there is no next root, or its key does not open.
    """
    folder = home.path / "pki"
    if not home.successor_pem:
        raise ConfigError("there is no next root. Begin with `wardround-server root rotate`.")
    old = folder / "old-roots.pem"
    write_private(old, home.root_pem + (old.read_bytes() if old.exists() else b""))
    successor = pki.load_certificate(home.successor_pem)
    write_private(folder / "root.key", (folder / "next-root.key").read_bytes())
    write_private(folder / "root.pem", pki.to_pem(successor))
    for name in ("next-root.key", "next-root.pem"):
        (folder / name).unlink()
    _renew_server_certificate(home, *root_credentials(home, passphrase))


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


def _open_root_key(home: Home, data: bytes, passphrase: str | None) -> bytes:
    """Under its own passphrase, or sealed with the coordinator's key."""
    return unseal(data, passphrase or "", ROOT_PURPOSE) if is_sealed(data) else home.sealer.open(data, ROOT_PURPOSE)


def _renew_server_certificate(home: Home, root_key: pki.PrivateKey, root: Certificate) -> None:
    key = pki.new_key()
    certificate = pki.server_certificate(key, home.config.hosts, root, root_key)
    home.write_key("server", pki.key_to_pem(key))
    write_private(home.path / "pki" / "server.pem", pki.to_pem(certificate))


def _toml(config: ServerConfig) -> str:
    # A JSON string, list of strings or number is also TOML.
    values = config.model_dump(mode="json", by_alias=True)
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())

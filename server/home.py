"""The coordinator's folder: configuration, keys, registry, runs, logs. Everything in it is the owner's alone (0700).

server.toml          ports, host names, listening address
pki/                 root.key root.pem (the federation's identity: back it up), server.key server.pem
registry.sqlite      sites, invitations, proposals and the hospitals' answers
invitations/         one file per invited site; secret until used
runs/NAME-HASH8/     metrics.jsonl, summary.json, report.html, model.safetensors, checkpoint/
nodes.json           Flower node id -> site name
logs/ flower/ wake/  process logs; Flower's own disposable state; sockets for hints
"""

import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.x509 import Certificate
from pydantic import Field

from common import pki
from common.config import RunConfig, Table, load, sha256_of
from common.errors import ConfigError

ENVIRONMENT = "WARDROUND_SERVER_HOME"
DEFAULT = Path("wardround-server")

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
    def enrolment_address(self) -> str:
        """Where sites enrol: host:port."""
        return f"{self.config.hosts[0]}:{self.config.enrolment_port}"

    @property
    def gateway_address(self) -> str:
        """Where sites work: host:port."""
        return f"{self.config.hosts[0]}:{self.config.gateway_port}"

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


def create(path: Path, config: ServerConfig) -> Home:
    """Make the folder, the federation's root and the server's certificate.

    Raises:
        ConfigError: the folder is already a coordinator's home.
    """
    if (path / "server.toml").exists():
        raise ConfigError(f"{path} is already initialised. Use it, or give another folder with --home.")
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    for name in ("pki", "invitations", "runs", "logs", "flower"):
        (path / name).mkdir(exist_ok=True, mode=0o700)
    root_key = pki.new_key()
    root = pki.new_root(root_key, f"Wardround root {pki.now():%Y-%m-%d}")
    pki.write_private(path / "pki" / "root.key", pki.key_to_pem(root_key))
    pki.write_private(path / "pki" / "root.pem", pki.to_pem(root))
    home = Home(path, config)
    _renew_server_certificate(home)
    pki.write_private(path / "server.toml", _toml(config).encode())
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
    """Key and certificate (PEM) of the server, renewed when a third of its life is left or the hosts changed."""
    certificate = pki.load_certificate((home.path / "pki" / "server.pem").read_bytes())
    old = certificate.not_valid_after_utc - pki.now() < _RENEW_BEFORE
    if old or set(pki.hosts_of(certificate)) != set(home.config.hosts):
        _renew_server_certificate(home)
    return (home.path / "pki" / "server.key").read_bytes(), (home.path / "pki" / "server.pem").read_bytes()


def root_credentials(home: Home) -> tuple[pki.PrivateKey, Certificate]:
    """The root's key and certificate, to sign with."""
    key = pki.load_key((home.path / "pki" / "root.key").read_bytes())
    return key, pki.load_certificate(home.root_pem)


def write_nodes(home: Home, nodes: Mapping[int, str]) -> None:
    """Publish which Flower node is which site; the ServerApp reads it."""
    names = {str(node): site for node, site in nodes.items()}
    pki.write_private(home.path / "nodes.json", json.dumps(names, indent=2).encode())


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


def _renew_server_certificate(home: Home) -> None:
    root_key, root = root_credentials(home)
    key = pki.new_key()
    certificate = pki.server_certificate(key, home.config.hosts, root, root_key)
    pki.write_private(home.path / "pki" / "server.key", pki.key_to_pem(key))
    pki.write_private(home.path / "pki" / "server.pem", pki.to_pem(certificate))


def _toml(config: ServerConfig) -> str:
    # A JSON string, list of strings or number is also TOML.
    values = config.model_dump(mode="json", by_alias=True)
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())

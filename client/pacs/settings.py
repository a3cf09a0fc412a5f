"""pacs.toml, in a site's folder: the PACS of this hospital, by name, and how each is reached.

Two ways: DIMSE (PS3.7, PS3.8; C-FIND and C-GET on an association that we open) and DICOMweb (PS3.18; QIDO-RS and
WADO-RS). Neither needs an open port here, save C-MOVE for a PACS without C-GET. What is secret stays in a file of the
hospital's; only its path stands here.
"""

import ipaddress
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.config import Document, Table, load, parse
from common.document.choice import OneOf
from common.document.table import Name, Positive
from common.document.tomlfile import with_entry, without_entry
from common.errors import ConfigError
from common.system.files import write_private

PACS_NAME = "pacs.toml"

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_BEGINNING = "# The PACS of this hospital. Stays here. Add one with `wardround-client pacs add NAME`.\n"

# PS3.5 6.2, AE: printable signs but the backslash, no space at its ends.
_AE_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,253}")


def _title(text: str) -> str:
    if not _AE_TITLE.fullmatch(text):
        raise ValueError("an AE title has 1 to 16 printable signs, no backslash, and no space at its ends")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("host is a name or an address, such as pacs.hospital.example, without a port")
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("address is one of this machine in numbers, such as 192.0.2.7, or 0.0.0.0 for all") from None


AeTitle = Annotated[str, AfterValidator(_title)]
Address = Annotated[str, AfterValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Peer(Table):
    """What both ways have in common."""

    name: Name
    # PEM files. ca: who has signed the PACS's certificate. certificate, key: our own, where the PACS asks for one.
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    # Seconds in which the PACS must answer, or send the next piece.
    timeout: Positive = 30.0

    @model_validator(mode="after")
    def _both_or_none(self) -> "_Peer":
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both files, or none")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Those of them that are for the eyes of their owner only."""
        return () if self.key is None else (self.key,)


class Dimse(_Peer):
    """A PACS by its AE title, host and port."""

    protocol: Literal["dimse"] = "dimse"
    host: Annotated[str, AfterValidator(_host)]
    port: Port
    # The PACS's AE title, and ours as the PACS knows it.
    called: AeTitle
    calling: AeTitle = "WARDROUND"
    # How studies come: auto: by C-GET, and where the PACS does not offer it and move-port is given, by C-MOVE.
    retrieve: Literal["auto", "c-get", "c-move"] = "auto"
    # C-MOVE: the address and port of this machine to which the PACS sends; open while a study comes.
    move_address: Address | None = None
    move_port: Port | None = None

    @model_validator(mode="after")
    def _signed(self) -> "Dimse":
        if self.certificate is not None and self.ca is None:
            raise ValueError(
                "a certificate is for TLS, and TLS needs ca: the file that the PACS's certificate is checked with"
            )
        return self

    @model_validator(mode="after")
    def _reachable(self) -> "Dimse":
        if (self.move_address is None) != (self.move_port is None):
            raise ValueError("move-address and move-port go together: the PACS sends to both")
        if self.move_port is None:
            if self.retrieve == "c-move":
                raise ValueError("C-MOVE needs move-address and move-port: where the PACS sends to")
        elif self.is_encrypted and self.certificate is None:
            raise ValueError("over TLS the PACS sends to us with TLS too: move-port needs certificate and key")
        return self

    @property
    def moves(self) -> bool:
        """Whether C-MOVE may be used."""
        return self.move_port is not None and self.retrieve != "c-get"

    @property
    def opened(self) -> int | None:
        """The port that is opened here for it; None: none."""
        return self.move_port if self.moves else None

    @property
    def is_encrypted(self) -> bool:
        """Whether all is sent over TLS."""
        return self.ca is not None

    @property
    def address(self) -> str:
        """Where it is, for a person."""
        return f"{self.called} at {self.host}:{self.port}"


class DicomWeb(_Peer):
    """A PACS by the URL of its DICOMweb service."""

    protocol: Literal["dicomweb"] = "dicomweb"
    url: str
    # A file with one line: a bearer token, or user:password.
    token: str | None = None
    login: str | None = None

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("url is no address such as https://pacs.hospital.example/dicom-web")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url names a user: put user:password into a file, and the file's path under login")
        if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:]+", parts.hostname) or not _is_port(parts.netloc):
            raise ValueError("url has no host or port that could be one")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _in_secret(self) -> "DicomWeb":
        if self.token is not None and self.login is not None:
            raise ValueError("token and login are two ways to say who we are: give one")
        secret = self.token or self.login
        if secret is not None and not self.is_encrypted and urlsplit(self.url).hostname not in _LOOPBACK:
            raise ValueError("token and login would be sent in the clear: give an https:// address")
        return self

    @property
    def is_encrypted(self) -> bool:
        """Whether all is sent over TLS."""
        return self.url.startswith("https:")

    @property
    def address(self) -> str:
        """Where it is, for a person."""
        return self.url

    @property
    def port(self) -> int:
        """Of its host."""
        return urlsplit(self.url).port or (443 if self.is_encrypted else 80)

    @property
    def opened(self) -> None:
        """No port is opened here for it."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return (*super().files, *self._said)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Those of them that are for the eyes of their owner only."""
        return (*super().secrets, *self._said)

    @property
    def _said(self) -> tuple[str, ...]:
        return tuple(path for path in (self.token, self.login) if path is not None)


Peer: TypeAlias = Dimse | DicomWeb
PEERS = OneOf("protocol", (Dimse, DicomWeb), always_said=True)


class PacsConfig(Document):
    """pacs.toml."""

    KIND: ClassVar[str] = PACS_NAME

    pacs: tuple[Annotated[Peer, PEERS], ...] = ()


def read_peers(home: Path) -> tuple[Peer, ...]:
    """The PACS of a site; none where there is no file.

    Raises:
        ConfigError: the file is not valid.
    """
    path = home / PACS_NAME
    return load(PacsConfig, path).pacs if path.exists() else ()


def peer_of(home: Path, name: str) -> Peer:
    """The PACS of that name, whose files are there.

    Raises:
        ConfigError: there is none, or a file of it is missing or open to others.
    """
    peers = read_peers(home)
    for peer in peers:
        if peer.name == name:
            check_files(peer)
            return peer
    known = f"Known: {', '.join(peer.name for peer in peers)}." if peers else "None is known yet."
    raise ConfigError(f"no PACS is called {name!r}. {known} Add one with: `wardround-client pacs add NAME`.")


def check_files(peer: Peer) -> None:
    """Refuse a PACS whose files are missing, or whose secrets others may read.

    Raises:
        ConfigError: names the file and what to do.
    """
    check_there(peer.files, peer.secrets, f"the PACS {peer.name}", f" Correct {PACS_NAME}.")


def check_there(files: Iterable[str], secrets: Iterable[str], whose: str, advice: str = "") -> None:
    """Refuse files that are missing, or that others may read.

    Args:
        files: their paths.
        secrets: those of them that are for the eyes of their owner only.
        whose: who needs them, for a person.
        advice: what to do where one is missing.

    Raises:
        ConfigError: names the file and what to do.
    """
    for path in map(Path, files):
        if not path.is_file():
            raise ConfigError(f"{path}, which {whose} needs, is not there.{advice}")
    for path in map(Path, secrets):
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"other users of this computer may read {path}. Run: chmod go-rwx {path}")


def add_peer(home: Path, peer: Peer) -> None:
    """Append a PACS to pacs.toml.

    Raises:
        ConfigError: the file is not valid, or has one of that name.
    """
    path = home / PACS_NAME
    if any(known.name == peer.name for known in read_peers(home)):
        raise ConfigError(
            f"there is a PACS {peer.name} already, and nothing was changed. Take it out with `wardround-client pacs "
            f"remove {peer.name}`, or choose another name."
        )
    old = path.read_text(encoding="utf-8") if path.exists() else _BEGINNING
    values = {"name": peer.name, "protocol": peer.protocol}
    values |= peer.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    _replace(path, with_entry(old, "pacs", values))


def remove_peer(home: Path, name: str) -> None:
    """Take a PACS out of pacs.toml. Its files stay as they are.

    Raises:
        ConfigError: there is none of that name.
    """
    path, names = home / PACS_NAME, [peer.name for peer in read_peers(home)]
    if name not in names:
        raise ConfigError(f"no PACS is called {name!r}. See: `wardround-client pacs list`.")
    _replace(path, without_entry(path.read_text(encoding="utf-8"), "pacs", names.index(name)))


def _replace(path: Path, text: str) -> None:
    parse(PacsConfig, text, source=f"{path} with the change")
    write_private(path, text.encode())


def _is_port(netloc: str) -> bool:
    try:
        return urlsplit(f"//{netloc}").port != 0
    except ValueError:
        return False


__all__ = [
    "PACS_NAME",
    "Address",
    "AeTitle",
    "DicomWeb",
    "Dimse",
    "PacsConfig",
    "Peer",
    "Port",
    "add_peer",
    "check_files",
    "check_there",
    "peer_of",
    "read_peers",
    "remove_peer",
]

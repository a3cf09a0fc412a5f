"""Where studies that others send are waited for, and of whom they are taken: as a person types it at --listen.

By C-STORE a sender is known by its AE title, which proves nothing, and by a certificate. By STOW-RS it is known by a
token or a certificate; a token is worth nothing in the clear, so beyond this machine there is no STOW-RS without TLS.
"""

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from client.pacs.settings import Address, AeTitle, Port, check_there
from common.config import Table, validate
from common.errors import ConfigError

# The path under which STOW-RS is served.
BASE = "/dicom-web"
# What a person is told where the port or the files of TLS cannot be used.
ANOTHER = "Give another address or port with --listen, or stop what listens there."
TLS_FILES = "the files of --tls-certificate, --tls-key and --tls-ca"


class _Waiting(Table):
    """What both ways have in common."""

    # An address of this machine, or 0.0.0.0 for all that it has.
    address: Address
    port: Port
    # Seconds without anything more until a study is whole.
    quiet: Annotated[float, Field(ge=0, le=3600)] = 5.0
    # TLS: ours, and who has signed those of the senders, where they must show one.
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "_Waiting":
        if (self.certificate is None) != (self.key is None) or (self.ca is not None and self.certificate is None):
            raise ValueError("TLS needs --tls-certificate and --tls-key; --tls-ca goes with them")
        return self

    @property
    def host(self) -> str:
        """The address as a URL has it."""
        return f"[{self.address}]" if ":" in self.address else self.address

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.address).is_loopback

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return tuple(path for path in (self.certificate, self.key, self.ca) if path is not None)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Those of them that are for the eyes of their owner only."""
        return () if self.key is None else (self.key,)


class Listening(_Waiting):
    """For C-STORE."""

    protocol: Literal["c-store"] = "c-store"
    title: AeTitle = "WARDROUND"
    # The AE titles of those who may send; others are refused.
    accept: Annotated[tuple[AeTitle, ...], Field(min_length=1)]

    @property
    def where(self) -> str:
        """For a person."""
        return f"{self.title} at {self.host}:{self.port}"

    @property
    def senders(self) -> str:
        """Who may send, likewise."""
        return f"{', '.join(self.accept)}{'' if self.ca is None else ' with a certificate of theirs'}"


class Stowing(_Waiting):
    """For STOW-RS."""

    protocol: Literal["stow-rs"] = "stow-rs"
    # A file with one line: the bearer token that a sender must show.
    token: str | None = None

    @model_validator(mode="after")
    def _known(self) -> "Stowing":
        if not self.is_local and self.ca is None and (self.token is None or self.certificate is None):
            raise ValueError(
                "at an address that others reach, STOW-RS needs TLS and something that a sender proves itself with: "
                "--tls-certificate, --tls-key, and --token or --tls-ca"
            )
        return self

    @property
    def where(self) -> str:
        """For a person: what a sender is given as the address of this service."""
        return f"{'http' if self.certificate is None else 'https'}://{self.host}:{self.port}{BASE}"

    @property
    def senders(self) -> str:
        """Who may send, likewise."""
        proofs = [("the token", self.token), ("a certificate of theirs", self.ca)]
        shown = " and ".join(what for what, given in proofs if given is not None)
        return f"whoever shows {shown}" if shown else "whoever is on this machine"

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names."""
        return (*super().files, *filter(None, [self.token]))

    @property
    def secrets(self) -> tuple[str, ...]:
        """Those of them that are for the eyes of their owner only."""
        return (*super().secrets, *filter(None, [self.token]))


Waiting: TypeAlias = Listening | Stowing


def listening_at(text: str, *, stow: bool = False, **more: Any) -> Waiting:
    """Where to wait, as a person has typed it: ADDRESS:PORT.

    Args:
        text: as typed.
        stow: by STOW-RS in place of C-STORE.
        more: the other settings, where they are given.

    Raises:
        ConfigError: it is none, or a file is missing, or a secret is open to others.
    """
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal():
        raise ConfigError(f"--listen {text!r} is no ADDRESS:PORT. Write it as 192.0.2.7:11112, or 127.0.0.1:11112.")
    given = {key: one for key, one in more.items() if one not in (None, ())}  # --settle 0 is given
    given |= {"address": address.strip("[]"), "port": int(port)}
    foreign = {"title", "accept"} if stow else {"token"}
    if wrong := sorted(foreign & given.keys()):
        names = " and ".join(f"--{name}" for name in wrong)
        raise ConfigError(f"{names}: of {'C-STORE' if stow else '--stow'} only. Leave out, or change --stow.")
    found = waiting_of(given | {"protocol": "stow-rs" if stow else "c-store"})
    check_there(found.files, found.secrets, "--listen")
    return found


def waiting_of(values: Mapping[str, Any]) -> Waiting:
    """The settings of one of the two ways, by their protocol.

    Raises:
        ConfigError: they are not valid.
    """
    if values["protocol"] == "stow-rs":
        return validate(Stowing, values, "--listen")
    return validate(Listening, values, "--listen")


__all__ = ["ANOTHER", "BASE", "TLS_FILES", "Listening", "Stowing", "Waiting", "listening_at", "waiting_of"]

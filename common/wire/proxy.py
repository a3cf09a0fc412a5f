"""The HTTP proxy that a connection to another machine goes through, as the environment names it.

gRPC reads grpc_proxy, https_proxy and http_proxy in small letters only, and says nothing of it. Here capitals count
too, as everywhere else, small letters first; no_grpc_proxy and no_proxy name the hosts that are reached without. A
connection through a proxy is opened by CONNECT, so the proxy sees host and port, and the TLS inside stays ours.
"""

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from common.errors import ConfigError

_KINDS = ("grpc_proxy", "https_proxy", "http_proxy")
_WITHOUT = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """uri: for gRPC, may hold a password. shown: without one. variable: of the environment that names it."""

    uri: str = field(repr=False)
    shown: str
    variable: str


def proxy_of(address: str) -> Proxy | None:
    """The proxy to an address, host:port; None for this machine, for hosts in no_proxy, and where none is named.

    Raises:
        ConfigError: what is named is no HTTP proxy.
    """
    host = address.rpartition(":")[0].strip("[]")
    if is_loopback(host) or _is_excepted(address, host):
        return None
    variable, value = next(filter(None, map(_variable, _KINDS)), ("", ""))
    if not variable:
        return None
    uri = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(uri)
        name, port = parts.hostname, parts.port
    except ValueError:
        name = port = None
    if parts.scheme != "http" or not name:
        raise ConfigError(
            f"{variable} in the environment is not of the form http://HOST:PORT. Correct it, or add {host} to no_proxy."
        )
    return Proxy(uri, f"http://{f'[{name}]' if ':' in name else name}:{port or 80}", variable)


def told_of_proxy(address: str) -> str:
    """A sentence about the proxy to an address, with a space before it; empty where there is none."""
    try:
        proxy = proxy_of(address)
    except ConfigError as error:
        return f" {error}"
    if proxy is None:
        return ""
    host = address.rpartition(":")[0]
    return (
        f" The connection goes through the proxy {proxy.shown}, which {proxy.variable} in the environment names: check "
        f"that it answers and lets {address} through, or set no_proxy={host} where none is needed."
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _variable(name: str) -> tuple[str, str] | None:
    """Name and value of a variable in small letters, else in capitals; one that is empty says none."""
    found = next((one for one in (name, name.upper()) if one in os.environ), None)
    return None if found is None or not os.environ[found].strip() else (found, os.environ[found].strip())


def _is_excepted(address: str, host: str) -> bool:
    found = next(filter(None, map(_variable, _WITHOUT)), None)
    if found is None:
        return False
    entries = [entry.strip().lower() for entry in found[1].split(",") if entry.strip()]
    names = (host.lower(), address.lower())
    return any(
        one == "*" or one in names or any(name.endswith(f".{one.lstrip('.')}") for name in names) or _within(host, one)
        for one in entries
    )


def _within(host: str, network: str) -> bool:
    """Whether an address lies in a network such as 10.0.0.0/8."""
    try:
        return "/" in network and ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


__all__ = ["Proxy", "is_loopback", "proxy_of", "told_of_proxy"]

"""What must not lie in the clear in a coordinator's folder, and a search for it through every byte."""

from pathlib import Path

from common.identity import certificates
from common.identity.operators import key_to_bytes
from server.home.folder import Home
from server.home.root import root_credentials
from server.registry.registry import Registry

PIECE_BYTES = 32


def private_keys(home: Home) -> set[bytes]:
    """Every private key of the home, in each form it might be written in. The root's has no passphrase of its own."""
    root = certificates.key_to_pem(root_credentials(home)[0])
    sites = [home.node_keys.open(site.node_key, site.name) for site in Registry(home.registry).sites() if site.node_key]
    secrets = {key_to_bytes(home.log_key)}
    secrets |= {home.operator_keys.open(path.read_bytes(), path.stem) for path in home.path.glob("operators/*.key")}
    for pem in (root, home.open_key("server"), *sites):
        number = certificates.load_key(pem).private_numbers().private_value.to_bytes(32, "big")
        secrets |= {number, *pem.splitlines()[1:3]}
    return secrets | {secret.hex().encode() for secret in secrets} | {b"PRIVATE KEY"}


def pieces(weights: bytes) -> set[bytes]:
    """Parts of a safetensors file that nothing else holds, from its beginning to its end."""
    starts = range(8, len(weights) - PIECE_BYTES, max(PIECE_BYTES, len(weights) // 64))
    return {piece for start in starts if len(set(piece := weights[start : start + PIECE_BYTES])) > PIECE_BYTES // 2}


def found(folder: Path, secrets: set[bytes]) -> list[str]:
    """Files below a folder that hold one of them."""
    assert len(secrets) > 3
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files
    return sorted(
        path.relative_to(folder).as_posix() for path, data in files.items() if any(secret in data for secret in secrets)
    )

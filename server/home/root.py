"""The federation's root, from `init` on: how its key is kept, what it signs for the server, how the next one follows.

Its key is sealed with the coordinator's key, or under a passphrase of its own (WARDROUND_ROOT_PASSPHRASE). A rotation
makes the next root and lets the present one vouch for it; sites learn of it when they renew, and then it takes over.
"""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509 import Certificate

from common.crypto.passphrase import is_sealed, passphrase_from, seal, unseal
from common.document.tomlfile import to_toml
from common.errors import ConfigError
from common.identity import certificates, rotation
from common.identity.operators import key_to_bytes
from common.system.files import write_private
from server.home.folder import Home, ServerConfig, check_kind
from server.home.version import VERSIONS

ROOT_PASSPHRASE = "WARDROUND_ROOT_PASSPHRASE"  # noqa: S105 - a variable's name
ROOT_PURPOSE = "root key"
VOUCHERS = "vouchers.pem"

_RENEW_BEFORE = certificates.SERVER_LIFETIME / 3


def create(path: Path, config: ServerConfig, passphrase: str | None = None, key_passphrase: str | None = None) -> Home:
    """Make the folder, the coordinator's key, the federation's root and the server's certificate.

    Args:
        path: the folder.
        config: ports and names.
        passphrase: seals the root key, and is then needed to approve and renew sites; None: the coordinator's key does.
        key_passphrase: seals the coordinator's key, and is then needed to start; None: the file's mode guards it.

    Raises:
        ConfigError: the folder is already a coordinator's or a hospital's, or a passphrase is too short.
    """
    if (path / "server.toml").exists():
        raise ConfigError(f"{path} is already initialised. Use it, or give another folder with --home.")
    check_kind(path)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    for name in ("pki", "operators", "invitations", "runs", "logs", "flower"):
        (path / name).mkdir(exist_ok=True, mode=0o700)
    home = Home(path, config)
    home = Home(path, config, home.key_file.make(key_passphrase))
    root_key, root = new_root(home, "root", passphrase)
    home.write_key("log", key_to_bytes(Ed25519PrivateKey.generate()))
    _renew_server_certificate(home, root_key, root)
    VERSIONS.begin(path)
    write_private(path / "server.toml", to_toml(config.model_dump(mode="json", by_alias=True)).encode())
    return home


def server_credentials(home: Home) -> tuple[bytes, bytes]:
    """Key and certificate (PEM) of the server, renewed when a third of its life is left or the hosts changed.

    Raises:
        ConfigError: it has to be renewed, and the root key is sealed.
    """
    certificate = certificates.load_certificate((home.path / "pki" / "server.pem").read_bytes())
    old = certificate.not_valid_after_utc - certificates.now() < _RENEW_BEFORE
    if old or set(certificates.hosts_of(certificate)) != set(home.config.hosts):
        _renew_server_certificate(home, *root_credentials(home))
    return home.open_key("server"), (home.path / "pki" / "server.pem").read_bytes()


def is_root_sealed(home: Home) -> bool:
    """Whether the root key is under a passphrase."""
    return is_sealed((home.path / "pki" / "root.key").read_bytes())


def root_credentials(home: Home, passphrase: str | None = None) -> tuple[certificates.PrivateKey, Certificate]:
    """The root's key and certificate, to sign with.

    Args:
        home: the coordinator's.
        passphrase: of a sealed key; None: from WARDROUND_ROOT_PASSPHRASE, or the file WARDROUND_ROOT_PASSPHRASE_FILE.

    Raises:
        ConfigError: the key is sealed and no passphrase, or another one, was given.
    """
    return _credentials(home, "root", passphrase)


def new_root(
    home: Home, name: str, passphrase: str | None, after: Certificate | None = None
) -> tuple[certificates.PrivateKey, Certificate]:
    """Make a root, newer than the one that it is to follow, and store it as NAME.key and NAME.pem."""
    key = certificates.new_key()
    certificate = certificates.new_root(key, f"Wardround root {certificates.now():%Y-%m-%d %H:%M:%S}", after)
    pem = certificates.key_to_pem(key)
    folder = home.path / "pki"
    # The next root's key is sealed as the root's: it becomes that.
    sealed = home.sealer.seal(pem, ROOT_PURPOSE) if passphrase is None else seal(pem, passphrase, ROOT_PURPOSE)
    write_private(folder / f"{name}.key", sealed)
    write_private(folder / f"{name}.pem", certificates.to_pem(certificate))
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
    _, successor = new_root(home, "next-root", passphrase if is_root_sealed(home) else None, root)
    cross = rotation.cross_sign(successor, root, root_key)
    write_private(home.path / "pki" / "next-root.pem", certificates.to_pem(successor) + certificates.to_pem(cross))


def finish_rotation(home: Home, passphrase: str | None = None) -> None:
    """The next root becomes the root. The old one is trusted on, for the certificates it has signed, and signs no more.

    Sites that join from now on know the new root alone; so that they believe those that have yet to renew, it vouches
    for the old one, see `with_vouchers`.

    Raises:
        ConfigError: there is no next root, or its key does not open.
    """
    folder = home.path / "pki"
    if not home.successor_pem:
        raise ConfigError("there is no next root. Begin with `wardround-server root rotate`.")
    # First, because without its key nothing may change.
    successor_key, successor = _credentials(home, "next-root", passphrase)
    old = folder / "old-roots.pem"
    ends = {certificates.load_certificate(home.root_pem): certificates.now() + certificates.SITE_LIFETIME}
    ends |= {one: one.not_valid_after_utc for one in _vouchers(home) if one.not_valid_after_utc > certificates.now()}
    vouchers = [rotation.vouch_for(one, successor, successor_key, until) for one, until in ends.items()]
    write_private(folder / VOUCHERS, b"".join(certificates.to_pem(one) for one in vouchers))
    write_private(old, home.root_pem + (old.read_bytes() if old.exists() else b""))
    write_private(folder / "root.key", (folder / "next-root.key").read_bytes())
    write_private(folder / "root.pem", certificates.to_pem(successor))
    for name in ("next-root.key", "next-root.pem"):
        (folder / name).unlink()
    _renew_server_certificate(home, successor_key, successor)


def with_vouchers(home: Home, certificate_pem: bytes) -> bytes:
    """A site's certificate for other sites; if a root before this one has signed it, with the voucher for that."""
    issuer = certificates.load_certificate(certificate_pem).issuer
    return certificate_pem + b"".join(certificates.to_pem(one) for one in _vouchers(home) if one.subject == issuer)


def _vouchers(home: Home) -> list[Certificate]:
    """What the root has signed for those before it; read anew, because `root finish` runs while the gateway does."""
    path = home.path / "pki" / VOUCHERS
    return x509.load_pem_x509_certificates(path.read_bytes()) if path.exists() else []


def _credentials(home: Home, name: str, passphrase: str | None) -> tuple[certificates.PrivateKey, Certificate]:
    """Key and certificate of the root, or of the next one."""
    data, pem = ((home.path / "pki" / f"{name}.{kind}").read_bytes() for kind in ("key", "pem"))
    if is_sealed(data):
        passphrase = passphrase or passphrase_from(ROOT_PASSPHRASE)
        if passphrase is None:
            raise ConfigError(
                f"the root key is under a passphrase. Set {ROOT_PASSPHRASE} or {ROOT_PASSPHRASE}_FILE, or run the "
                "command on a terminal, which asks for it."
            )
    return certificates.load_key(_open_root_key(home, data, passphrase)), certificates.load_certificate(pem)


def _open_root_key(home: Home, data: bytes, passphrase: str | None) -> bytes:
    """Under its own passphrase, or sealed with the coordinator's key."""
    return unseal(data, passphrase or "", ROOT_PURPOSE) if is_sealed(data) else home.sealer.open(data, ROOT_PURPOSE)


def _renew_server_certificate(home: Home, root_key: certificates.PrivateKey, root: Certificate) -> None:
    key = certificates.new_key()
    certificate = certificates.server_certificate(key, home.config.hosts, root, root_key)
    home.write_key("server", certificates.key_to_pem(key))
    write_private(home.path / "pki" / "server.pem", certificates.to_pem(certificate))

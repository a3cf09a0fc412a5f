"""The file of a backup: a tar archive, sealed in chunks under a key of its own, which a passphrase seals.

    file    = lock | sealed
    lock    = a line of JSON: 32 random bytes under the passphrase (common/crypto/passphrase.py)
    sealed  = the archive (common/crypto/stream.py), authenticated together with the lock
    archive = about.json, home/NAME for each file and folder, members.json      POSIX tar (pax)

about.json says whose it is and when it was made; members.json, which comes last, every file with its length and
SHA-256, and what was left out. So a file that is cut off, changed, put together from two, or opened with another
passphrase does not open, and what was taken out of it before that is thrown away. No more than a few chunks are ever
held in memory.
"""

import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag

from common.crypto.derivation import KEY_BYTES, derived
from common.crypto.passphrase import is_sealed, seal, unseal
from common.crypto.stream import new_header, read_header, seal_parts, unseal_parts
from common.errors import ConfigError
from common.rescue.members import LeftOut, Walk

FORMAT = 1

_MAGIC = b"WRBACKUP"
_PURPOSE = "backup"
_LONGEST_LOCK = 4096
_ABOUT, _MEMBERS, _HOME = "about.json", "members.json", "home/"
_LONGEST_TEXT = 256 << 20  # of members.json: half a million files
_PIECE_BYTES = 1 << 20

Take = Callable[[str, int, Iterator[bytes] | None], None]  # name, mode and content; None for a folder


@dataclass(frozen=True)
class About:
    """Whose backup it is."""

    side: str
    name: str  # of the site; "" of a coordinator
    made: str  # ISO 8601, UTC
    program: str  # the version of Wardround that made it
    home_version: int


@dataclass(frozen=True)
class Contents:
    """What a backup holds, all of it checked."""

    about: About
    members: Mapping[str, int]  # name -> bytes
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all members together."""
        return sum(self.members.values())


def written(
    about: About, walk: Walk, passphrase: str, begin: Callable[[], object], tell: Callable[[str, int], None]
) -> Iterator[bytes]:
    """The bytes of a backup, made while they are asked for.

    Args:
        about: what is written of it.
        walk: through the home.
        passphrase: at least 12 characters.
        begin: called before the first file is taken.
        tell: told each file, and its length.

    Raises:
        ConfigError: the passphrase is too short, or the home cannot be copied.
    """
    key = secrets.token_bytes(KEY_BYTES)
    lock, header = seal(key, passphrase, _PURPOSE), new_header(_MAGIC)
    begin()
    yield lock
    yield from seal_parts(header, derived(key, _PURPOSE, salt=header.salt), _archive(about, walk, tell), lock)


def read(path: Path, passphrase: str, take: Take) -> Contents:
    """Look through a whole backup, and check all of it.

    Args:
        path: of the file.
        passphrase: that it was made with.
        take: given each folder, and each file with its content. What it was given counts only when this returns.

    Raises:
        ConfigError: no backup, another passphrase, cut off or changed, or of a later format.
    """
    with path.open("rb") as file:
        lock = file.readline(_LONGEST_LOCK)
        if not is_sealed(lock):
            raise ConfigError(f"{path} is no backup that Wardround made. Give the file that `backup` wrote.")
        key = unseal(lock, passphrase, _PURPOSE)
        try:
            header = read_header(file, _MAGIC)
            plain = unseal_parts(header, derived(key, _PURPOSE, salt=header.salt), file, lock)
            return _contents(_Stream(plain), take)
        except (InvalidTag, ValueError, KeyError, TypeError, tarfile.TarError) as error:
            raise ConfigError(
                f"{path} is cut off or was changed, and nothing of it is used. Copy it again from where it was made, "
                "or take another backup."
            ) from error


def _archive(about: About, walk: Walk, tell: Callable[[str, int], None]) -> Iterator[bytes]:
    told = {"wardround-backup": FORMAT, "side": about.side, "name": about.name, "made": about.made}
    told |= {"program": about.program, "home-version": about.home_version}
    yield from _text(_ABOUT, told)
    for name, mode in walk.folders().items():
        yield _head(_HOME + name, 0, mode, tarfile.DIRTYPE)
    members: dict[str, dict[str, Any]] = {}
    for member in walk.members():
        tell(member.name, member.size)
        yield _head(_HOME + member.name, member.size, member.mode)
        digest = hashlib.sha256()
        for piece in _pieces(member.file, member.size, member.name):
            digest.update(piece)
            yield piece
        yield _filled(member.size)
        members[member.name] = {"bytes": member.size, "sha256": digest.hexdigest()}
    if walk.side.mark not in members:
        raise ConfigError(f"{walk.side.mark} is not in the home, or lies in a data source. Correct {walk.side.mark}.")
    left = {name: {"why": one.why, "files": one.files, "bytes": one.size} for name, one in walk.left_out.items()}
    yield from _text(_MEMBERS, {"members": members, "left-out": left})
    yield bytes(2 * tarfile.BLOCKSIZE)


def _contents(stream: "_Stream", take: Take) -> Contents:
    about: About | None = None
    listed: Mapping[str, Any] | None = None
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE_BYTES) as archive:
        for member in archive:
            if listed is not None or (about is None) != (member.name == _ABOUT):
                raise ValueError("out of order")
            if member.name == _ABOUT:
                about = _about(_json(archive, member))
            elif member.name == _MEMBERS:
                listed = _json(archive, member)
            else:
                name, mode = _safe(member.name), member.mode & 0o700
                if member.isdir():
                    take(name, mode, None)
                    continue
                if not member.isfile() or name in found:
                    raise ValueError("not a file, or twice there")
                digest = hashlib.sha256()
                take(name, mode, _hashed(_body(archive, member), digest))
                found[name] = {"bytes": member.size, "sha256": digest.hexdigest()}
    stream.drain()
    if about is None or listed is None or listed["members"] != found:
        raise ValueError("its list is of other files")
    left = {str(name): LeftOut(one["why"], one["files"], one["bytes"]) for name, one in listed["left-out"].items()}
    return Contents(about, {name: one["bytes"] for name, one in found.items()}, left)


def _about(values: Mapping[str, Any]) -> About:
    if values["wardround-backup"] > FORMAT:
        raise ConfigError(
            f"the backup has format {values['wardround-backup']}, written by wardround {values['program']}; this "
            f"version reads up to {FORMAT}. Update wardround."
        )
    return About(
        str(values["side"]),
        str(values["name"]),
        str(values["made"]),
        str(values["program"]),
        int(values["home-version"]),
    )


def _safe(name: str) -> str:
    """The place of a member within the home; none leads out of it."""
    inner = PurePosixPath(name.removeprefix(_HOME))
    if not name.startswith(_HOME) or inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise ValueError("a member that is not of a home")
    return inner.as_posix()


def _text(name: str, values: Mapping[str, Any]) -> Iterator[bytes]:
    data = json.dumps(values, sort_keys=True).encode()
    yield _head(name, len(data), 0o600)
    yield data + _filled(len(data))


def _head(name: str, size: int, mode: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.type = size, mode, kind
    return about.tobuf(tarfile.PAX_FORMAT)


def _filled(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _pieces(file: BinaryIO, size: int, name: str) -> Iterator[bytes]:
    left = size
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise ConfigError(f"{name} became shorter while it was copied. Try again.")
        left -= len(piece)
        yield piece


def _body(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    body = archive.extractfile(member)
    if body is None:
        raise ValueError("a member without content")
    return body  # type: ignore[return-value]  # typeshed: IO[bytes]


def _json(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Mapping[str, Any]:
    if member.size > _LONGEST_TEXT:
        raise ValueError("too long")
    values = json.loads(_body(archive, member).read())
    if not isinstance(values, dict):
        raise ValueError("no list")
    return values


def _hashed(file: BinaryIO, digest: Any) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        yield piece


class _Stream(io.RawIOBase):
    """A payload in parts, as a file to be read once."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts, self._held = iter(parts), memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = bytearray()
        while size < 0 or len(found) < size:
            if not self._held:
                part = next(self._parts, None)
                if part is None:
                    break
                self._held = memoryview(part)
            wanted = len(self._held) if size < 0 else size - len(found)
            found += self._held[:wanted]
            self._held = self._held[wanted:]
        return bytes(found)

    def drain(self) -> None:
        """To the end, which proves that nothing is missing.

        Raises:
            ValueError: there is more than the archive.
        """
        while rest := self.read(_PIECE_BYTES):
            if any(rest):
                raise ValueError("something stands behind its end")


__all__ = ["FORMAT", "About", "Contents", "Take", "read", "written"]

"""Files that only the site can open: what is derived from patients' images and kept on disk.

A file is a sealed stream (common/crypto/stream.py) whose stamp has 32 bytes. The key is made for each file from the
site key, the vault's purpose and the file's salt; folder and file name are authenticated with every chunk.

A file's size tells the length of its payload, and nothing else is in the clear. Names are HMACs where the caller makes
them with `name`. The stamp says what the payload was made from; a file with another stamp is out of date.
"""

import hashlib
import hmac
import json
import logging
import os
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidTag

from common.crypto.derivation import derived
from common.crypto.stream import Header, Payload, new_header, read_header, seal, unseal
from common.system.files import write_private

STAMP_BYTES = 32
NO_STAMP = bytes(STAMP_BYTES)

_MAGIC = b"WRVAULT1"
_NAME_HEX = 32

_log = logging.getLogger(__name__)


class Vault:
    """Seals and opens files for one purpose. What was sealed for another purpose, or by another site, does not open.

    Its state: whether the disk still takes what is kept by best effort.
    """

    def __init__(self, site_key: bytes, purpose: str) -> None:
        """No file is touched yet.

        Args:
            site_key: secret key of the site; the keys of the files are derived from it.
            purpose: what is kept, such as "cache"; a part of every key.
        """
        self._site_key = site_key
        self._purpose = purpose
        self._takes_more = True

    def read(self, path: Path, stamp: bytes = NO_STAMP) -> bytearray | None:
        """The payload as it was written; None when it is not there.

        A file that is out of date, damaged or unreadable is not there: its content has to be made again.
        """
        try:
            with path.open("rb") as file:
                header = read_header(file, _MAGIC, STAMP_BYTES)
                if not hmac.compare_digest(header.stamp, stamp):
                    return None
                length = os.fstat(file.fileno()).st_size
                return unseal(header, self._file_key(header), file, length, _place(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning(
                "%s %s cannot be read (%s); its content is made again", self._purpose, path.stem, error.strerror
            )
        except (InvalidTag, ValueError):
            self.report_damage(path)
        return None

    def write(self, path: Path, payload: Payload, stamp: bytes = NO_STAMP) -> None:
        """Seal a payload, whole or not at all; file and new folders are for their owner only. What a power failure
        takes is made again.

        Raises:
            OSError: the disk is full or does not allow it; what stood there before still stands.
        """
        header = new_header(_MAGIC, stamp)
        write_private(path, seal(header, self._file_key(header), payload, _place(path)), durable=False)

    def keep(self, path: Path, payload: Payload, stamp: bytes = NO_STAMP) -> None:
        """`write`, by best effort: a full disk ends the keeping, with one line in the log, and not the work."""
        if not self._takes_more:
            return
        try:
            self.write(path, payload, stamp)
        except OSError as error:
            self._takes_more = False
            _log.warning(
                "the %s cannot be written (%s). The work goes on without it, and the next look makes its content "
                "again. Free space in the site's home folder, or make it writable.",
                self._purpose,
                error.strerror,
            )

    def name(self, *parts: object) -> str:
        """A file name that tells nothing about its parts; they must be JSON, or have a text."""
        return self.mac(*parts).hex()[:_NAME_HEX]

    def mac(self, *parts: object) -> bytes:
        """HMAC-SHA256 of the parts under a key of this purpose: a name or a stamp, 32 bytes."""
        text = json.dumps(parts, default=str, sort_keys=True)
        return hmac.new(self._naming_key, text.encode(), hashlib.sha256).digest()

    def report_damage(self, path: Path) -> None:
        """Log that a file does not hold what it should; also for payloads that opened and then made no sense."""
        _log.warning("%s %s is damaged; its content is made again", self._purpose, path.stem)

    def _file_key(self, header: Header) -> bytes:
        return derived(self._site_key, self._purpose, "encryption", header.salt)

    @cached_property
    def _naming_key(self) -> bytes:
        return derived(self._site_key, self._purpose, "names and stamps")


def _place(path: Path) -> bytes:
    return f"{path.parent.name}/{path.name}".encode()


__all__ = ["NO_STAMP", "STAMP_BYTES", "Vault"]

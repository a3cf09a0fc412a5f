"""home/outbox: the last update of each run, with its receipt, sealed, as long as the run can go on.

An update is written here before it leaves. Asked for the same round again, because one of the two sides was killed in
between, the coordinator went back to its checkpoint, or a run that failed for another site is resumed, the hospital
sends the same bytes under the same receipt: no patient is drawn a second time, no privacy is spent, and no round has
two receipts. A run that is closed without its last model having been asked about can be resumed: its update stays for
30 days. Sealed as a record of its run (common/crypto/record_box.py).
"""

import base64
import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from client.home.offer import ONLY_PART
from common.audit.receipts import Receipt
from common.crypto.derivation import derived
from common.crypto.record_box import seal, unseal
from common.errors import AuditError, ErrorCode
from common.system.files import write_private
from common.wire.messages import TrainReply

FOLDER = "outbox"
# How long the update of a closed run waits for the run to be resumed.
KEPT_S = 30 * 24 * 3600.0

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Parcel:
    """An update as it leaves, with the signed receipt."""

    reply: TrainReply
    receipt: Receipt
    signature: bytes


@dataclass(frozen=True)
class Outbox:
    """The parcels of a site, one for each run."""

    folder: Path
    site_key: bytes = field(repr=False)

    def keep(self, parcel: Parcel) -> None:
        """Write a parcel, whole or not at all; the run's earlier one is gone.

        Raises:
            AuditError: it cannot be written, so nothing may leave.
        """
        parts = parcel.reply.parts
        head = {
            "receipt": parcel.receipt.to_fields(),
            "signature": base64.b64encode(parcel.signature).decode(),
            "patients": parcel.reply.patients,
            "metrics": parcel.reply.metrics,
            "parts": [[name, len(part)] for name, part in parts.items()],
        }
        text = json.dumps(head).encode()
        plain = b"".join((len(text).to_bytes(_LENGTH_BYTES, "big"), text, *parts.values()))
        run = parcel.receipt.run
        try:
            # Not flushed to the disk, which takes long: a power cut may cost this site a round, but no receipt.
            write_private(self.folder / run, seal(self._key, plain, run.encode()), durable=False)
        except OSError as error:
            raise AuditError(
                f"the update cannot be kept ({error.strerror}), and is not sent. Free disk space in the site's home.",
                ErrorCode.DISK_FULL,
            ) from error

    def find(self, run_hash: str) -> Parcel | None:
        """The run's parcel; None where there is none, or one that this site did not write."""
        try:
            plain = unseal(self._key, (self.folder / run_hash).read_bytes(), run_hash.encode())
        except (OSError, ValueError):
            return None
        start = _LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "big")
        head = json.loads(plain[_LENGTH_BYTES:start])
        receipt = Receipt.from_fields(head["receipt"])
        parts = {}
        for name, size in head.get("parts", [[ONLY_PART, len(plain) - start]]):
            parts[name], start = plain[start : start + size], start + size
        reply = TrainReply(receipt.run, receipt.round, parts, head["patients"], head["metrics"])
        return Parcel(reply, receipt, base64.b64decode(head["signature"]))

    def drop(self, run_hash: str) -> None:
        """The run is done."""
        (self.folder / run_hash).unlink(missing_ok=True)

    def drop_old(self, open_runs: Collection[str]) -> None:
        """Remove what was made long ago for runs that are closed, and what a crash left of a parcel."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in open_runs and time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink(missing_ok=True)

    @property
    def _key(self) -> bytes:
        return derived(self.site_key, "outbox")

"""An invitation: what a site needs to join, once. Handed over on a trusted channel, and checked all the same.

A hospital writes what it says into files of its own. So there is no such object but with fields of the one form that
each may have: what is not so is refused before anything is written.
"""

import datetime
import json
import re
from dataclasses import asdict, dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from common.errors import EnrolmentError
from common.identity import certificates
from common.text import NAME_PATTERN

MAX_BYTES = 64 * 1024

_HOST = r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])"
_ADDRESS = rf"{_HOST}:(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}|6[0-4][0-9]{{3}}|65[0-4][0-9]{{2}}|655[0-2][0-9]|6553[0-5])"
_FORMS = {
    "site": NAME_PATTERN,
    "token": r"[0-9a-f]{32}",
    "enrolment": _ADDRESS,
    "gateway": _ADDRESS,
    "log_key": r"[0-9a-f]{64}",
}


@dataclass(frozen=True)
class Invitation:
    """What a site needs to join, once. The token is a secret for 24 hours."""

    site: str
    token: str
    root_pem: str  # one root, which the site pins
    enrolment: str  # host:port, server TLS
    gateway: str  # host:port, mutual TLS
    log_key: str  # Ed25519, hex: signs the coordinator's audit log and receipts
    expires: str  # ISO 8601, with the offset from UTC

    def __post_init__(self) -> None:
        """Refuse what has another form.

        Raises:
            EnrolmentError: names the field.
        """
        wrong = next((name for name, form in _FORMS.items() if not _matches(form, getattr(self, name))), None)
        wrong = wrong or (None if _is_one_root(self.root_pem) else "root_pem")
        wrong = wrong or (None if _is_time(self.expires) else "expires")
        if wrong is not None:
            raise EnrolmentError(
                f"the invitation is damaged, or was not made by `wardround-server invite`: its {wrong} is not what it "
                "has to be. Nothing was written. Ask the coordinator, on another channel, for a new one."
            )

    def to_text(self) -> str:
        """The invitation file: JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str) -> "Invitation":
        """Read an invitation file.

        Raises:
            EnrolmentError: not an invitation, or expired.
        """
        try:
            if len(text) > MAX_BYTES:
                raise ValueError("too long")
            invitation = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise EnrolmentError(
                "the file is not an invitation. Use the file that `wardround-server invite` wrote, unchanged."
            ) from error
        if datetime.datetime.fromisoformat(invitation.expires) < certificates.now():
            raise EnrolmentError(
                f"the invitation expired at {invitation.expires}, and by this computer's clock it is "
                f"{certificates.now():%Y-%m-%d %H:%M} UTC. If the clock is right, ask the coordinator for a new one "
                f"(`wardround-server invite {invitation.site}`)."
            )
        return invitation


def _matches(form: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(form, value) is not None


def _is_one_root(pem: object) -> bool:
    """One certificate and nothing beside it, that may sign and has signed itself, within its time."""
    try:
        (root,) = x509.load_pem_x509_certificates(pem.encode() if isinstance(pem, str) else b"")
        root.verify_directly_issued_by(root)
        may_sign = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return may_sign and certificates.to_pem(root).decode() == pem and certificates.is_valid_now(root)


def _is_time(text: object) -> bool:
    try:
        return isinstance(text, str) and datetime.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


__all__ = ["MAX_BYTES", "Invitation"]

"""Whose signatures under a run count: of operators whom no admin has removed. How many it takes, the policy says.

Removals are in home/tls/removed-operators.json. The coordinator passes them on with its proposals; what an admin has
signed is believed, and kept for good, by the removed operator's key. A coordinator can hold one back from a hospital
that has not heard of it: then the operator's certificate counts until it runs out.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from client.rules import approvals
from common.errors import EnrolmentError, PolicyError
from common.identity.certificates import common_name, fingerprint, load_certificate
from common.identity.operators import Act, Signer, check_removal, subject_of
from common.system.files import write_private
from common.wire.wardround_pb2 import Removal

NAME = "removed-operators.json"
# As many as a federation may have had in its life.
MOST = 1000


def removed(home: Path) -> frozenset[str]:
    """The keys (hex) of removed operators.

    Raises:
        PolicyError: the file cannot be read, so no signature is believed.
    """
    path = home / "tls" / NAME
    try:
        return frozenset(json.loads(path.read_bytes())) if path.exists() else frozenset()
    except (OSError, ValueError, TypeError) as error:
        raise PolicyError(f"{path} cannot be read. Delete it; the coordinator tells it again.") from error


def of(home: Path, run_hash: str) -> tuple[Signer, ...]:
    """Whose signatures under a run were checked here, and count still.

    A signature that was checked stays good when its certificate runs out, or its root is let go of.
    """
    gone = removed(home)
    return tuple(one for one in approvals.signers_of(home, run_hash) if one.key not in gone)


def learn(home: Path, told: Iterable[Removal], roots_pem: bytes) -> list[tuple[Signer, str]]:
    """Keep the removals that an admin has signed.

    Args:
        home: the site's.
        told: by the coordinator.
        roots_pem: those that are pinned.

    Returns:
        Those that are new: who, and the certificate's fingerprint.
    """
    try:
        known = set(removed(home))
    except PolicyError:
        known = set()  # all that there was is told again
    new = []
    for one in told:
        try:
            certificate = load_certificate(one.certificate_pem)
            digest = fingerprint(certificate)
            subject = subject_of(common_name(certificate), digest)
            act = Act("operator-remove", subject, one.admin_pem, one.signed_at, one.nonce, one.signature)
            signer, admin = check_removal(one.certificate_pem, act, roots_pem)
        except (EnrolmentError, ValueError):
            continue
        # They are told in the order in which they were done: who was removed before removes nobody.
        if signer.key not in known and admin.key not in known and len(known) < MOST:
            known.add(signer.key)
            new.append((signer, digest))
    if new:
        write_private(home / "tls" / NAME, json.dumps(sorted(known)).encode())
    return new


__all__ = ["learn", "of", "removed"]

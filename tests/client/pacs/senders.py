"""Who sends studies to a listener, in order and not: pynetdicom's side of a C-STORE."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sent(
    port: int,
    objects: Sequence[Dataset | Path],
    *,
    calling: str = "CT1",
    called: str = "WARDROUND",
    tls: Any = None,
    abort: bool = False,
) -> list[int] | None:
    """The status of each object; None: no association.

    Args:
        port: of the listener.
        objects: in their order.
        calling: who says it is sending.
        called: who is asked for.
        tls: an SSLContext.
        abort: break off after the last one, in place of a release.
    """
    read = [dcmread(one) if isinstance(one, Path) else one for one in objects]
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = 60
    ways = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in read}
    association = entity.associate(
        "127.0.0.1",
        port,
        contexts=[build_context(*way) for way in ways],
        ae_title=called,
        bind_address=("127.0.0.1", 0),
        tls_args=None if tls is None else (tls, "127.0.0.1"),
    )
    if not association.is_established:
        return None
    answers = [int(association.send_c_store(one).Status) for one in read]
    association.abort() if abort else association.release()
    return answers

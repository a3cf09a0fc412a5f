"""A PACS, whichever way it is reached."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from client.pacs.query import Answer, Instance, Query, Study
from client.pacs.receiving import Meter, Receiver
from client.pacs.settings import DicomWeb, Dimse
from common.config import validate


class Connection(Protocol):
    """What both ways can. Each raises PacsError, or AwayError where it may go well later."""

    def check(self) -> Iterator[tuple[str, str]]:
        """What was tried, and what came of it, one after the other."""

    def search(self, query: Query) -> Answer:
        """The studies that a query is for."""

    def instances(self, study: str, series: str) -> list[Instance]:
        """The objects of a series."""

    def retrieve(self, study: Study, series: str, objects: Sequence[Instance], receiver: Receiver) -> None:
        """Have the objects of a series sent to a receiver."""

    def send(self, objects: Sequence[Path]) -> None:
        """Have the PACS take objects: files in the DICOM file format."""


def connection_to(values: Mapping[str, Any], meter: Meter) -> Connection:
    """The connection to a PACS as pacs.toml has it; nothing is opened yet.

    Args:
        values: of its table.
        meter: of all that comes.
    """
    if values["protocol"] == "dimse":
        from client.pacs.dimse import DimseConnection  # noqa: PLC0415 - the one that is needed

        return DimseConnection(validate(Dimse, values), meter)
    from client.pacs.dicomweb import DicomWebConnection  # noqa: PLC0415

    return DicomWebConnection(validate(DicomWeb, values), meter)


__all__ = ["Connection", "connection_to"]

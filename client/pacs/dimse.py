"""A PACS by DIMSE: C-ECHO, C-FIND and C-GET, all on associations that we open (PS3.4 annexes A and C; PS3.7; PS3.8).

Where it offers no C-GET, and pacs.toml says at which port of ours, C-MOVE (`client.pacs.moving`). pynetdicom does the
protocol; its bounds are in `client.pacs.associations`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom import uid as syntax
from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from client.pacs import moving
from client.pacs.associations import CONNECT_S, MOST_PDU, bound, not_opened
from client.pacs.listing import (
    INSTANCE_KEYS,
    MOST_INSTANCES,
    MOST_STUDIES,
    SERIES_KEYS,
    STUDY_KEYS,
    Listing,
    bounded,
    instance_of,
    series_of,
    study_of,
)
from client.pacs.problems import AwayError, PacsError
from client.pacs.query import Answer, Instance, Query, Study
from client.pacs.receiving import MOST_ANSWER_BYTES, MOST_BYTES, PACKED, PLAIN, Meter, Receiver
from client.pacs.settings import Dimse
from client.pacs.tls import to_pacs

# PS3.4 A.4, C.6.2.3: verification; query and retrieve of the study root.
_ECHO, _FIND, _GET = "1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"
_MOST_CONTEXTS = 126  # PS3.8 9.3.2.2: odd numbers to 255; two are for C-GET and C-MOVE
# Where a PACS does not say of which class its objects are.
_USUAL_CLASSES = (
    syntax.CTImageStorage, syntax.MRImageStorage, syntax.EnhancedCTImageStorage, syntax.EnhancedMRImageStorage,
    syntax.DigitalXRayImageStorageForPresentation, syntax.ComputedRadiographyImageStorage,
    syntax.SegmentationStorage, syntax.RTStructureSetStorage, syntax.PositronEmissionTomographyImageStorage,
)  # fmt: skip
_FOUND, _PENDING = 0x0000, (0xFF00, 0xFF01)
_NOT_ALLOWED = (0xA801, 0x0122, 0x0124)  # the destination is not known; PS3.7 C: not offered, not for us
_TAKEN = (0x0000, 0xB000, 0xB006, 0xB007)  # PS3.4 B.2.3: stored; the others with a warning


class DimseConnection:
    """Associations with one PACS, each as long as it is needed."""

    def __init__(self, peer: Dimse, meter: Meter) -> None:
        """Nothing is opened yet."""
        self._peer, self._meter = peer, meter
        self._gets = peer.retrieve != "c-move"
        _config.LOG_HANDLER_LEVEL = "none"
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        self._entity = AE(ae_title=peer.calling)
        self._entity.maximum_pdu_size = MOST_PDU
        self._entity.connection_timeout = min(CONNECT_S, peer.timeout)
        self._entity.acse_timeout = self._entity.dimse_timeout = self._entity.network_timeout = peer.timeout

    def check(self) -> Iterator[tuple[str, str]]:
        """What `pacs test` tries, and what came of it.

        Raises:
            PacsError: what is wrong; nothing after it is tried.
        """
        peer = self._peer
        with self._associated([build_context(_ECHO)]) as association:
            how = "over TLS, its certificate checked" if peer.is_encrypted else "NOT encrypted: give --ca for TLS"
            yield "connection", f"{peer.host}:{peer.port}, {how}"
            yield "association", f"{peer.called} takes {peer.calling}"
            status = association.send_c_echo()
            if "Status" not in status or status.Status != _FOUND:
                raise self._ended()
            yield "C-ECHO", "answered"
        with self._associated([build_context(_FIND)]) as association:
            # A UID that nobody has: the answer is empty, and shows no patient.
            keys = _identifier("STUDY", {"StudyInstanceUID": syntax.generate_uid()})
            list(self._find(association, keys))
            yield "C-FIND", "answered"
        classes = (syntax.CTImageStorage,)
        if self._gets:
            with self._associated(self._contexts(classes), classes) as association:
                self._gets = self._check_get(association, classes)
            yield "C-GET", "offered, with no port open here" if self._gets else "not offered: C-MOVE is used"
        if not self._gets:
            keys = _identifier("STUDY", {"StudyInstanceUID": syntax.generate_uid()})
            last = self._move(keys, classes, 1, lambda _encoded: None)
            if last in _NOT_ALLOWED:
                raise moving.refused(peer, last)
            yield "C-MOVE", f"offered; {peer.calling} must be registered there as {moving.place_of(peer)}"

    def search(self, query: Query) -> Answer:
        """The studies that a query is for, with their series."""
        listing = Listing(query)
        asked = {"StudyDate": query.date_range, "StudyDescription": query.description or "", "PatientID": ""}
        asked |= {"ModalitiesInStudy": query.modality or "", "NumberOfStudyRelatedInstances": ""}
        with self._associated([build_context(_FIND)]) as association:
            for accession in query.accessions or ("",):
                keys = _identifier("STUDY", dict.fromkeys(STUDY_KEYS, "") | asked | {"AccessionNumber": accession})
                for found in self._find(association, keys):
                    listing.add(study_of(found))
            for study in listing.studies:
                keys = _identifier("SERIES", dict.fromkeys(SERIES_KEYS, "") | {"StudyInstanceUID": study.uid})
                listing.complete(study, map(series_of, self._find(association, keys)))
        return listing.answer()

    def instances(self, study: str, series: str) -> list[Instance]:
        """The objects of a series."""
        keys = dict.fromkeys(INSTANCE_KEYS, "") | {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        with self._associated([build_context(_FIND)]) as association:
            return [instance_of(found) for found in self._find(association, _identifier("IMAGE", keys))]

    def retrieve(self, study: Study, series: str, objects: Sequence[Instance], receiver: Receiver) -> None:
        """Have the objects of a series sent to a receiver.

        Raises:
            PacsError: not all of them came, or one that must not.
        """
        classes = tuple({one.sop_class for one in objects if one.sop_class}) or _USUAL_CLASSES
        keys = _identifier("SERIES", {"StudyInstanceUID": study.uid, "SeriesInstanceUID": series})
        most = 2 * len(objects) + 10
        self._gets = self._gets and self._get(keys, classes, most, receiver)
        if not self._gets:
            status = self._move(keys, classes, most, receiver.take)
            if status != _FOUND:
                raise moving.refused(self._peer, status)

    def _get(self, keys: Dataset, classes: Sequence[str], most: int, receiver: Receiver) -> bool:
        """Have what fits sent on our own association; False: it is not offered, and C-MOVE is to be used."""
        refused: list[Exception] = []

        def stored(event: evt.Event) -> int:
            try:
                receiver.take(event.encoded_dataset())
            except (PacsError, OSError, MemoryError) as error:
                refused.append(error)
                event.assoc.abort()
                return 0xA900  # the data set does not match
            return _FOUND

        with self._associated(self._contexts(classes), classes, stored) as association:
            if not self._check_get(association, classes):
                return False
            status = Dataset()
            answers = association.send_c_get(keys, _GET)
            for status, _ in bounded(answers, most, "answers to one C-GET"):  # noqa: B007
                if refused:
                    break
            if refused:
                raise refused[0]
            if "Status" not in status:
                raise self._ended()
            if status.Status != _FOUND:
                raise _not_sent(int(status.Status))
        return True

    def _move(self, keys: Dataset, classes: Sequence[str], most: int, take: Callable[[bytes], None]) -> int:
        """Have what fits sent to our port; the status at its end."""
        with (
            moving.receiving(self._peer, self._meter, classes, take) as came,
            # The second so that a PACS without the first does not refuse all of it.
            self._associated([build_context(moving.MOVE), build_context(_FIND)]) as association,
        ):
            return moving.ask(association, self._peer, keys, most, came)

    def send(self, objects: Sequence[Path]) -> None:
        """Have the PACS take objects, each as it is written.

        Raises:
            PacsError: it does not take one.
        """
        files = [dcmread(path) for path in objects]
        ways = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in files}
        with self._associated([build_context(*way) for way in ways]) as association:
            for one in files:
                if not any(one.SOPClassUID == taken.abstract_syntax for taken in association.accepted_contexts):
                    raise PacsError(
                        f"{self._peer.called} takes no {one.SOPClassUID.name} from {self._peer.calling}. Have storage "
                        "of it allowed there for that AE title."
                    )
                status = association.send_c_store(one)
                if "Status" not in status:
                    raise self._ended()
                if status.Status not in _TAKEN:
                    raise _not_taken(int(status.Status))

    def _contexts(self, classes: Sequence[str]) -> list[PresentationContext]:
        """C-GET, and each class with each way to write it: the PACS can then send as it has stored."""
        ways: list[tuple[str, ...]] = [PLAIN, *((one,) for one in PACKED)]
        wanted = [build_context(one, list(way)) for way in ways for one in classes]  # what all can, first
        asked = [_GET, *([moving.MOVE] if self._peer.moves else [])]
        return [*map(build_context, asked), *wanted[:_MOST_CONTEXTS]]

    @contextmanager
    def _associated(
        self,
        contexts: Sequence[PresentationContext],
        stored_here: Sequence[str] = (),
        stored: Callable[[evt.Event], int] | None = None,
    ) -> Iterator[Association]:
        """An association, released at the end.

        Args:
            contexts: to propose.
            stored_here: classes whose objects are sent to us.
            stored: what takes them.
        """
        peer, most = self._peer, MOST_BYTES if stored else MOST_ANSWER_BYTES
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, self._meter, most))]
        if stored is not None:
            handlers.append((evt.EVT_C_STORE, stored))
        association = self._entity.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.called,
            max_pdu=MOST_PDU,
            ext_neg=[build_role(one, scp_role=True) for one in stored_here],
            evt_handlers=handlers,
            tls_args=(to_pacs(peer), peer.host) if peer.is_encrypted else None,
        )
        if not association.is_established:
            raise not_opened(peer, association)
        try:
            yield association
        except BaseException:  # whatever it is, the peer is not waited for
            association.abort()
            raise
        association.release()

    def _find(self, association: Association, keys: Dataset) -> Iterator[Dataset]:
        """The answers to a C-FIND.

        Raises:
            PacsError: it was refused, or did not come to its end.
        """
        if not any(one.abstract_syntax == _FIND for one in association.accepted_contexts):
            raise PacsError(
                f"{self._peer.called} takes no C-FIND from {self._peer.calling}. Have query (study root) allowed for "
                "that AE title there."
            )
        status, what = Dataset(), "answers to one query"
        answers = association.send_c_find(keys, _FIND)
        for status, found in bounded(
            answers, MOST_INSTANCES if keys.QueryRetrieveLevel == "IMAGE" else MOST_STUDIES, what
        ):
            if "Status" in status and status.Status in _PENDING and found is not None:
                yield found
        if "Status" not in status:
            raise self._ended()
        if status.Status != _FOUND:
            raise PacsError(
                f"{self._peer.called} refuses the query (C-FIND status {int(status.Status):04X}). Have query allowed "
                f"there for {self._peer.calling}."
            )

    def _check_get(self, association: Association, classes: Sequence[str]) -> bool:
        """Whether C-GET is to be used; False: C-MOVE is."""
        taken = {one.abstract_syntax for one in association.accepted_contexts}
        if _GET not in taken and self._peer.moves:
            return False
        if _GET not in taken:
            raise PacsError(
                f"{self._peer.called} offers {self._peer.calling} no C-GET. Have C-GET allowed there, or use its "
                "DICOMweb (`wardround-client pacs add NAME --url URL`), or C-MOVE: give --move-address and --move-port."
            )
        if not taken & set(classes):
            raise PacsError(
                f"{self._peer.called} offers C-GET, and takes none of our contexts for the objects. Have our AE title "
                f"{self._peer.calling} allowed there as a receiver (SCP role) of images, uncompressed or as stored."
            )
        return True

    def _ended(self) -> PacsError:
        return AwayError(
            f"{self._peer.called} ended the association, sent what makes no sense, or was silent for "
            f"{self._peer.timeout:g} s (timeout in pacs.toml). Try again; if it stays so, have its log read: it may "
            f"not allow {self._peer.calling} to do this."
        )


def _identifier(level: str, keys: dict[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value or None)
    return identifier


def _not_sent(status: int) -> PacsError:
    code = f"C-GET status {status:04X}"
    if status == 0xB000:
        return PacsError(f"the PACS could not send all of it ({code}): often a transfer syntax. Have its log read.")
    if status >> 8 == 0xA7:
        return AwayError(f"the PACS has not the means to send it now ({code}).")
    return PacsError(f"the PACS refuses to send it ({code}). Have retrieve allowed there for our AE title.")


def _not_taken(status: int) -> PacsError:
    code = f"C-STORE status {status:04X}"
    if status >> 8 == 0xA7:
        return AwayError(f"the PACS has no room for it now ({code}).")
    return PacsError(f"the PACS does not take it ({code}). Have its log read for the reason.")


__all__ = ["DimseConnection"]

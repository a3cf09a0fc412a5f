"""A PACS by DICOMweb: QIDO-RS to search, WADO-RS to retrieve, STOW-RS to store (PS3.18 10.4, 10.5, 10.6).

dicomweb-client does the protocol; it reads an answer to a search whole, and follows where it is sent. So the bytes are
counted and bounded below it (`_Counted`), and no redirection is followed: neither is who we are told to another host,
nor does a PACS choose whom this process speaks with.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

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
from client.pacs.receiving import MOST_ANSWER_BYTES, MOST_BYTES, Meter, Receiver
from client.pacs.settings import DicomWeb

_PAGE = 500
_TAIL = 1024  # bytes: the end of a body of several parts, and what may stand after it
_AS_STORED = (("application/dicom", "*"),)
_BUSY = (408, 429, 500, 502, 503, 504)
_ADVICE = {
    401: "it does not know us. Give a token or a login that is valid now, as a file, in pacs.toml",
    403: "it knows us, and does not allow this. Have search (QIDO-RS) and retrieve (WADO-RS) allowed for this account",
    404: "there is no DICOMweb at this address. Correct url in pacs.toml: it often ends in /dicom-web or /dicomweb",
    405: "there is no DICOMweb at this address. Correct url in pacs.toml",
    406: "it cannot send objects as they are stored. Have its DICOMweb settings checked",
    407: "a proxy between wants to know us. Have IT allow this address without it",
}


class DicomWebConnection:
    """A session with one PACS."""

    def __init__(self, peer: DicomWeb, meter: Meter) -> None:
        """Nothing is opened yet.

        Raises:
            PacsError: a file of the peer's cannot be used.
        """
        self._peer, self._meter = peer, meter
        self._body: _Counted | None = None
        self._came, self._most = 0, MOST_ANSWER_BYTES  # bytes of what is read now
        session = self._session = requests.Session()
        session.trust_env = False  # no proxy, and no password from a .netrc
        session.max_redirects = 0
        session.verify = peer.ca or True
        if peer.certificate is not None and peer.key is not None:
            session.cert = (peer.certificate, peer.key)
        if peer.token is not None:
            session.headers["Authorization"] = f"Bearer {_secret(peer.token)}"
        elif peer.login is not None:
            user, _, password = _secret(peer.login).partition(":")
            session.auth = requests.auth.HTTPBasicAuth(user.encode(), password.encode())
        self._client = DICOMwebClient(
            peer.url,
            session,
            callback=self._bound,
            permissive_uid=True,
            timeout=(min(10.0, peer.timeout), peer.timeout),
        )
        self._client.set_http_retry_params(retry=False)

    def check(self) -> Iterator[tuple[str, str]]:
        """What `pacs test` tries, and what came of it.

        Raises:
            PacsError: what is wrong; nothing after it is tried.
        """
        with self._telling():
            # A UID that nobody has: the answer is empty, and shows no patient.
            self._client.search_for_studies(search_filters={"StudyInstanceUID": str(generate_uid())}, limit=1)
        how = (
            "over TLS, its certificate checked"
            if self._peer.is_encrypted
            else "NOT encrypted: give an https:// address"
        )
        yield "connection", f"{self._peer.url}, {how}"
        yield "QIDO-RS", "answered"

    def search(self, query: Query) -> Answer:
        """The studies that a query is for, with their series."""
        listing = Listing(query)
        filters = {"StudyDate": query.date_range, "StudyDescription": query.description}
        filters |= {"ModalitiesInStudy": query.modality}
        for accession in query.accessions or (None,):
            given = {key: value for key, value in (filters | {"AccessionNumber": accession}).items() if value}
            pages = self._pages(self._client.search_for_studies, STUDY_KEYS, search_filters=given)
            for found in bounded(pages, MOST_STUDIES, "studies"):
                listing.add(study_of(found))
        for study in listing.studies:
            listing.complete(study, map(series_of, self._pages(self._client.search_for_series, SERIES_KEYS, study.uid)))
        return listing.answer()

    def instances(self, study: str, series: str) -> list[Instance]:
        """The objects of a series."""
        found = self._pages(self._client.search_for_instances, INSTANCE_KEYS, study, series)
        return [instance_of(one) for one in bounded(found, MOST_INSTANCES, "objects of one series")]

    def retrieve(self, study: Study, series: str, objects: Sequence[Instance], receiver: Receiver) -> None:
        """Have the objects of a series sent to a receiver.

        Raises:
            PacsError: the PACS refuses, or sends what it must not.
        """
        most = 2 * len(objects) + 10  # some PACS send one twice, and none sends without end
        self._most = MOST_BYTES
        try:
            with self._telling():
                sent = self._client.iter_series(study.uid, series, media_types=_AS_STORED)
                for one in bounded(sent, most, "objects of one series, of which it listed fewer"):
                    receiver.take(_encoded(one))
                    self._came = 0
                if self._body is None or not self._body.is_whole:
                    raise AwayError(f"{self._peer.url} ended the answer in its middle. Try again.")
        finally:
            self._most = MOST_ANSWER_BYTES

    def send(self, objects: Sequence[Path]) -> None:
        """Have the PACS take objects, each as it is written (STOW-RS, PS3.18 10.5).

        Raises:
            PacsError: it does not take one.
        """
        files = [dcmread(path) for path in objects]
        with self._telling():
            answer = self._client.store_instances(files)
        if answer.get("FailedSOPSequence"):
            raise PacsError(
                f"{self._peer.url} does not take what is sent. Have storage (STOW-RS) allowed for us there."
            )

    def _pages(self, search: Callable[..., Any], keys: Sequence[str], *place: str, **given: Any) -> Iterator[Dataset]:
        """All answers to a search. A PACS that ignores the offset answers the same page again, and is then through."""
        seen: set[str] = set()
        offset = 0
        while True:
            with self._telling():
                page = search(*place, limit=_PAGE, offset=offset, fields=list(keys), **given)
            fresh = []
            for one in page if isinstance(page, list) else []:
                text = repr(one)
                if text not in seen:
                    seen.add(text)
                    fresh.append(one)
            yield from map(_dataset, fresh)
            offset += _PAGE
            if not fresh or len(page) < _PAGE:
                return

    def _bound(self, response: requests.Response, **_: Any) -> requests.Response:
        """Before its body is read."""
        self._came = 0
        (boundary,) = re.findall(r'boundary="?([^";,\s]+)', response.headers.get("Content-Type", ""))[:1] or [""]
        self._body = response.raw = _Counted(response.raw, self._arrived, boundary.encode())
        return response

    def _arrived(self, count: int) -> None:
        self._came += count
        if self._came > self._most:
            raise PacsError(f"an answer, or an object, is longer than {self._most >> 20} MiB. It is not taken.")
        self._meter.take(count)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the libraries raise, as what it means and what to do.

        Each question has a connection of its own: a PACS may close one that is kept as it is used again.
        """
        where = self._peer.url
        try:
            yield
        except (PacsError, MemoryError):
            raise
        except requests.HTTPError as error:
            code = 0 if error.response is None else error.response.status_code
            kind = AwayError if code in _BUSY else PacsError
            raise kind(f"{where} answers {code}: {_ADVICE.get(code, 'have its log read for the reason')}.") from error
        except requests.exceptions.InvalidJSONError as error:
            raise PacsError(f"{where} answers with what is no DICOMweb. Correct url in pacs.toml.") from error
        except requests.TooManyRedirects as error:
            raise PacsError(f"{where} sends us elsewhere. Give the address where its DICOMweb is as url.") from error
        except requests.exceptions.SSLError as error:
            raise PacsError(f"{where}: {_tls_trouble(error)}") from error
        except requests.Timeout as error:
            raise AwayError(
                f"{where} does not answer in {self._peer.timeout:g} s (timeout in pacs.toml). Check address "
                "and firewall."
            ) from error
        except requests.RequestException as error:
            raise AwayError(f"{where} is out of reach, or ended the answer in its middle. {_reach(error)}") from error
        except Exception as error:
            raise PacsError(f"{where} answers with what is no DICOMweb. Correct url in pacs.toml.") from error
        finally:
            self._session.close()


class _Counted:
    """A body as requests reads it, each piece told of."""

    def __init__(self, body: Any, arrived: Callable[[int], None], boundary: bytes) -> None:
        self._body, self._arrived = body, arrived
        self._end, self._last = b"--%b--" % boundary if boundary else b"", b""

    @property
    def is_whole(self) -> bool:
        """Whether the end of several parts (RFC 2046 5.1.1) has come: pydicom takes half an object for one."""
        return self._end in self._last

    def stream(self, _amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """The pieces, unpacked."""
        for piece in self._body.stream(1 << 16, decode_content=decode_content):
            self._arrived(len(piece))
            self._last = (self._last + piece)[-_TAIL:]
            yield piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _encoded(found: Dataset) -> bytes:
    """A data set as it came, as a file."""
    file = BytesIO()
    found.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _dataset(found: Any) -> Dataset:
    """DICOM JSON (PS3.18 F) as a data set; an empty one where it is none."""
    try:
        return Dataset.from_json(found)
    except Exception:  # noqa: BLE001 - foreign JSON raises many types in pydicom
        return Dataset()


def _secret(path: str) -> str:
    """The one line of a file.

    Raises:
        PacsError: it cannot be read, or holds something else. What it holds is not repeated.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PacsError(f"{path} cannot be read. Expected one line: a token, or user:password.") from error
    if not re.fullmatch(r"[!-~]+(:[ -~]*)?", text):
        raise PacsError(f"{path} holds no token and no login. Expected one line of printable signs.")
    return text


def _tls_trouble(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text or "not valid for" in text:
        return (
            "its certificate does not fit. Give the hospital's CA with --ca; the certificate must name the host of the "
            "address."
        )
    return (
        "it does not speak TLS with us. Check the port; if it asks for a certificate of ours, give --certificate and "
        "--key."
    )


def _reach(error: Exception) -> str:
    text = str(error)
    if "Name or service not known" in text or "NameResolutionError" in text:
        return "Its host's name is not known here: correct url, or have IT correct the name service."
    return "Check address and port, the firewall, and whether the PACS is started."


__all__ = ["DicomWebConnection"]

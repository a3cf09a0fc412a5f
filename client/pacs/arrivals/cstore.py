"""The server of C-STORE, in the process that waits (PS3.4 B, PS3.7 9.1.1): associations of those who may, bounded."""

from typing import Any

from pynetdicom import AE, _config, evt

from client.pacs.arrivals.arriving import IMAGES, Arrivals, head_of
from client.pacs.arrivals.settings import ANOTHER, TLS_FILES, Listening
from client.pacs.associations import MOST_PDU, bound
from client.pacs.problems import not_to_be_had
from client.pacs.receiving import MOST_BYTES, PACKED, PLAIN, Meter
from client.pacs.tls import Lazily, to_us

_VERIFICATION = "1.2.840.10008.1.1"
_MOST_ASSOCIATIONS = 8
_BROKE_OFF = "its association broke off"


def opened(settings: Listening, arrivals: Arrivals) -> Any:
    """The server at its port, until its `shutdown`.

    Raises:
        PacsError: the port is not to be had, or a file cannot be used.
    """
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    entity = AE(ae_title=settings.title)
    entity.require_called_aet, entity.require_calling_aet = True, list(settings.accept)
    entity.maximum_associations, entity.maximum_pdu_size = _MOST_ASSOCIATIONS, MOST_PDU
    # Longer than the longest pause: what is whole is known before a sender that keeps silent is let go.
    entity.network_timeout = max(settings.quiet, 60.0) + 60.0
    entity.acse_timeout = entity.dimse_timeout = 30.0
    entity.add_supported_context(_VERIFICATION)
    for one in IMAGES:
        entity.add_supported_context(one, [*PLAIN, *PACKED])

    def stored(event: evt.Event) -> int:
        encoded = event.encoded_dataset()
        return arrivals.take(id(event.assoc), encoded, head_of(encoded))

    def ended(event: evt.Event, *, in_order: bool) -> None:
        arrivals.ended(id(event.assoc), None if in_order else _BROKE_OFF)

    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, lambda event: bound(event.assoc, Meter(None, lambda _total: None), MOST_BYTES)),
        (evt.EVT_C_STORE, stored),
        (evt.EVT_RELEASED, lambda event: ended(event, in_order=True)),
        # After a release this finds nothing left to say.
        (evt.EVT_ABORTED, lambda event: ended(event, in_order=False)),
        (evt.EVT_CONN_CLOSE, lambda event: ended(event, in_order=event.assoc.is_released)),
    ]
    tls = to_us(Lazily, settings.certificate, settings.key, settings.ca, TLS_FILES)
    try:
        return entity.start_server(
            (settings.address, settings.port), block=False, evt_handlers=handlers, ssl_context=tls
        )
    except OSError as error:
        raise not_to_be_had(settings.where, error, ANOTHER) from error


__all__ = ["opened"]

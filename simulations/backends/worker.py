"""What a worker of a backend does all day: answer for the site it is told, as a hospital's worker does.

A question is one to a hospital's worker (client/worker/protocol.py) with a table `simulation` in its header. The parts
of a request come with the first question of a round; the others to the same worker only name them by their hash.
"""

import contextlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from client.home import sitekey
from client.site import open_site
from client.worker import protocol
from client.worker.loop import answer
from client.worker.protocol import Answer, PipeError, Work
from common.wire.frames import Buffer, Frame
from simulations.backends.memory import keep_and_enlarge
from simulations.backends.open_sites import MOST_BYTES, OpenSites

_PLACE, _KEY = "simulation", "site-key"


@dataclass(frozen=True)
class Place:
    """Where a question is answered.

    home: of the site.
    reading: threads while its images are read: its cache is that of as many.
    computing: threads while it trains.
    told: whether somebody has said already which of its studies are left out.
    most_bytes: of studies that the process may hold, see `simulations.backends.open_sites`.
    """

    home: str
    reading: int
    computing: int
    told: bool
    most_bytes: int = MOST_BYTES


def question_to_frame(work: Work, place: Place, key: bytes, *, with_parts: bool) -> Frame:
    """Encode a question; key: of the site. Without its parts the worker has them from the question before."""
    frame = protocol.question_to_frame(work)
    return Frame({**frame.header, _PLACE: asdict(place)}, {_KEY: key, **(frame.parts if with_parts else {})})


def serve(fd: int) -> None:
    """Answer until the socket is closed."""
    keep_and_enlarge()
    known, parts = "", dict[str, Buffer]()
    opened: OpenSites | None = None
    while (frame := protocol.receive(fd)) is not None:
        given = dict(frame.parts)
        key = {_KEY: given.pop(_KEY)}
        if given:
            known, parts = str(frame.header["sha256"]), given
        elif frame.header.get("sha256") != known:
            raise PipeError("a question names parts that this worker does not have")
        opened = opened or OpenSites(place_of(frame).most_bytes)
        protocol.send(fd, answered(Frame(frame.header, {**parts, **key}), opened))


def place_of(asked: Frame) -> Place:
    """Where a question is to be answered."""
    return Place(**asked.header[_PLACE])


def answered(asked: Frame, opened: OpenSites) -> Frame:
    """Answer a question; opened: the sites of this process."""
    parts = dict(asked.parts)
    key = bytes(parts.pop(_KEY))
    header = {name: value for name, value in asked.header.items() if name != _PLACE}
    question = protocol.question_from_frame(Frame(header, parts))
    assert isinstance(question, Work)  # noqa: S101 - for the type checker: it has an attempt
    return protocol.answer_to_frame(_answered(question, place_of(asked), key, opened))


def _answered(question: Work, place: Place, key: bytes, opened: OpenSites) -> Answer:
    home = Path(place.home)
    sitekey.hold(home, key)
    logging.getLogger("client.data.cohort").setLevel(logging.ERROR if place.told else logging.NOTSET)
    torch.set_num_threads(place.reading)
    with contextlib.suppress(Exception):  # it comes again in a moment, where it is told
        site = open_site(home)
        site.cohort(question.run.config, keep=False)
        opened.used(site)
    torch.set_num_threads(place.computing)
    return answer(question, home)


__all__ = ["Place", "answered", "place_of", "question_to_frame", "serve"]

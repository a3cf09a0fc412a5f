"""The process that speaks with a PACS: it sees the hospital's network, and nothing of the federation.

Started by `client.pacs.caller`, which may kill it at any time. This file is the door: before the first connection it
hides the site's keys from itself, lets itself connect to the PACS's port alone, wait at one port at most (for C-MOVE)
and write into the staging folder alone; its environment holds no secret, and what its libraries print goes nowhere, for
it may name patients. Only then it imports what speaks and parses.

    python -P -m client.pacs.process --home HOME --staging FOLDER --port PORT     frames on stdin and stdout
"""

import argparse
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.system import sandbox
from common.wire import frames

if TYPE_CHECKING:
    from client.pacs.connection import Connection
    from client.pacs.query import Instance, Series, Study
    from client.pacs.receiving import Meter

_MEMORY = 6 << 30  # bytes of address space: an object, some copies of it, and a third more
_BEAT_S = 0.2
_INDEXING_S = (0.0, 1.0, 3.0)  # a PACS may list later what it has taken
HEADER_LIMIT = 64 << 20  # bytes: a query's answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer questions until the pipe is closed."""
    parser = argparse.ArgumentParser(prog="client.pacs.process", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the site's home folder")
    parser.add_argument("--staging", type=Path, help="the folder to write into; without it none")
    parser.add_argument("--port", type=int, required=True, help="of the PACS")
    parser.add_argument("--opened", type=int, help="a port of ours, to which the PACS may send; without it none")
    given = parser.parse_args(arguments)
    sandbox.die_with_parent()
    sandbox.shed()
    keys = sandbox.hide([given.home / name for name in sandbox.SECRETS])
    disk = sandbox.lock(
        [] if given.staging is None else [given.staging],
        [given.port],
        [] if given.opened is None else [given.opened],
    )
    questions, answers = sandbox.take_pipe()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    frames.send(answers, {"kind": "ready", "keys": keys, "disk": disk})
    one_at_a_time = threading.Lock()  # each association has a thread, and tells of what it brings

    def tell(header: dict[str, Any]) -> None:
        with one_at_a_time:
            frames.send(answers, header, header_limit=HEADER_LIMIT)

    while (question := frames.receive(questions, lambda _header: (), header_limit=HEADER_LIMIT)) is not None:
        tell(_answered(question, tell))
    return 0


def _answered(question: dict[str, Any], told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The answer to a question; progress is told meanwhile."""
    from client.pacs import problems  # noqa: PLC0415 - what speaks and parses comes after the sandbox

    try:
        return {"kind": "answer", **_done(question, told)}
    except problems.PacsError as error:
        return problems.to_json(error)
    except OSError as error:
        return problems.to_json(problems.not_written(error))
    except MemoryError:
        return problems.to_json(problems.PacsError("what the PACS sends does not fit into memory. It is not taken."))


def _done(question: dict[str, Any], told: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from client.pacs.connection import connection_to  # noqa: PLC0415 - after the sandbox
    from client.pacs.query import Query, Study  # noqa: PLC0415
    from client.pacs.receiving import Meter  # noqa: PLC0415
    from common.config import validate  # noqa: PLC0415

    meter = Meter(question.get("rate"), _beats(told))
    connection = connection_to(question["peer"], meter)
    match question["do"]:
        case "check":
            for what, detail in connection.check():
                told({"kind": "checked", "what": what, "detail": detail})
            return {}
        case "search":
            return {"found": connection.search(validate(Query, question["query"])).model_dump(mode="json")}
        case "size":
            study = validate(Study, question["study"])
            listed = [one for series in study.series for one in connection.instances(study.uid, series.uid)]
            sizes = [one.size for one in listed]
            return {"objects": len(listed), "size": None if None in sizes else sum(filter(None, sizes))}
        case "retrieve":
            return _retrieved(connection, validate(Study, question["study"]), Path(question["folder"]), meter)
        case "send":
            return _sent(connection, [Path(path) for path in question["files"]])
    raise ValueError("a question of an unknown kind")


def _retrieved(connection: "Connection", study: "Study", folder: Path, meter: "Meter") -> dict[str, Any]:
    """Have a study sent; nothing less than all that the PACS lists of it is an answer."""
    from client.pacs.problems import PacsError  # noqa: PLC0415 - after the sandbox
    from client.pacs.receiving import Receiver  # noqa: PLC0415

    listed = {series.uid: _listed(connection, study, series) for series in study.series}
    places = {one.uid: series for series, objects in listed.items() for one in objects}
    if len(places) < sum(map(len, listed.values())):
        raise PacsError("the PACS lists one object in two series. Have the study checked there.")
    receiver = Receiver(folder, study.uid, places)
    for series, objects in listed.items():
        connection.retrieve(study, series, objects, receiver)
    if receiver.missing:
        raise PacsError(
            f"{receiver.missing} of {len(places)} objects did not come, though the PACS says that all was sent. Have "
            "the study checked there."
        )
    return {"files": receiver.files, "size": receiver.size, "repeated": receiver.repeated, "came": meter.total}


def _sent(connection: "Connection", files: Sequence[Path]) -> dict[str, Any]:
    """Have objects taken; only what the PACS lists afterwards has arrived."""
    from pydicom import dcmread  # noqa: PLC0415 - after the sandbox

    from client.pacs.problems import AwayError  # noqa: PLC0415

    connection.send(files)
    tags = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    heads = [dcmread(path, stop_before_pixels=True, specific_tags=list(tags)) for path in files]
    waiting = {(str(one.StudyInstanceUID), str(one.SeriesInstanceUID), str(one.SOPInstanceUID)) for one in heads}
    for pause_s in _INDEXING_S:
        time.sleep(pause_s)
        for study, series in {(study, series) for study, series, _ in waiting}:
            there = {one.uid for one in connection.instances(study, series)}
            waiting -= {(study, series, uid) for uid in there}
        if not waiting:
            return {"arrived": len(files)}
    raise AwayError(f"the PACS took {len(files)} objects, and does not list {len(waiting)} of them.")


def _listed(connection: "Connection", study: "Study", series: "Series") -> list["Instance"]:
    """The objects of a series, each once, and no fewer than the PACS has counted."""
    from client.pacs.problems import PacsError  # noqa: PLC0415 - after the sandbox

    objects = list({one.uid: one for one in connection.instances(study.uid, series.uid)}.values())
    if not objects or (series.instances is not None and len(objects) < series.instances):
        raise PacsError(
            f"the PACS counts {series.instances or 'some'} objects in a series and lists {len(objects)}. It may still "
            "be receiving the study: try again later, or have it checked there."
        )
    return objects


def _beats(told: Callable[[dict[str, Any]], None]) -> Callable[[int], None]:
    """Tells of bytes that come, now and then: that this process is alive."""
    last = 0.0

    def beat(total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BEAT_S:
            last = now
            told({"kind": "beat", "came": total})

    return beat


if __name__ == "__main__":
    sys.exit(main())

"""Results back to the PACS: each until the PACS lists it, also when it was away.

    RESULT/sent.json        the PACS has it: which, how many objects, when
    RESULT/not-sent.json    the PACS does not take it, and why; remove this file to try again

What is to be sent is known from the folders alone: a result that is whole and has neither of the two. So nothing is
lost when this ends in between; what was sent and not noted is sent again, the same object under the same UID.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from client.pacs.caller import Caller
from client.pacs.problems import AwayError, PacsError
from common.errors import WardroundError
from common.system.files import write_private
from common.text import counted

SENT, NOT_SENT = "sent.json", "not-sent.json"

_LOOK_S = 0.5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0

_log = logging.getLogger(__name__)


def send(caller: Caller, name: str, folder: Path, audited: Callable[[], None]) -> int:
    """Have the PACS take the DICOM objects of a result, and list them.

    Args:
        caller: of the PACS.
        name: what it is called here.
        folder: of the result.
        audited: called when they have arrived, before that is noted.

    Returns:
        How many objects; 0: there is none to send.

    Raises:
        PacsError: it does not take them; noted. AwayError: it may later.
    """
    files = sorted(folder.glob("*.dcm"))
    if not files:
        return 0
    try:
        caller.ask("send", files=[str(path.resolve()) for path in files])
    except AwayError:
        raise
    except PacsError as error:
        _note(folder / NOT_SENT, pacs=name, why=str(error))
        raise
    audited()
    _note(folder / SENT, pacs=name, objects=len(files))
    return len(files)


class Sender:
    """Sends each result of a folder as it comes, beside other work, until it is closed."""

    def __init__(
        self, caller: Caller, name: str, waiting: Callable[[], Iterable[Path]], audited: Callable[[], None]
    ) -> None:
        """Nothing is sent yet.

        Args:
            caller: of the PACS; for this alone.
            name: what it is called here.
            waiting: the results that are whole and may have to be sent.
            audited: as for `send`.
        """
        self._caller, self._name, self._waiting, self._audited = caller, name, waiting, audited
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def __enter__(self) -> "Sender":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """After the result in hand; what waits then waits for the next start."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s, empty = _FIRST_WAIT_S, set[Path]()
        while not self._closing.is_set():
            pause_s = _LOOK_S
            for folder in unsent(path for path in self._waiting() if path not in empty):
                if self._closing.is_set():
                    break
                try:
                    count = send(self._caller, self._name, folder, self._audited)
                except AwayError as error:
                    _log.warning("result %s waits, trying again in %g s: %s", folder.name, wait_s, error)
                    pause_s, wait_s = wait_s, min(2 * wait_s, _LONGEST_WAIT_S)
                    break
                except PacsError as error:
                    _log.error("result %s is not sent: %s", folder.name, error)
                except (WardroundError, OSError) as error:  # such as a full disk
                    _log.error("result %s waits: %s", folder.name, error)
                    pause_s = _LONGEST_WAIT_S
                    break
                else:
                    wait_s = _FIRST_WAIT_S
                    if count:
                        _log.info("result %s: %s at %s", folder.name, counted(count, "object"), self._name)
                    else:
                        empty.add(folder)
            self._closing.wait(pause_s)


def unsent(folders: Iterable[Path]) -> list[Path]:
    """Those of the folders that neither arrived nor were refused."""
    return [one for one in folders if not (one / SENT).exists() and not (one / NOT_SENT).exists()]


def _note(path: Path, **values: object) -> None:
    write_private(path, f"{json.dumps(values | {'at': time.time()})}\n".encode())


__all__ = ["NOT_SENT", "SENT", "Sender", "send", "unsent"]

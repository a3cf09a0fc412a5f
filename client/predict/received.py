"""Studies that were received whole, answered one after the other: each once, and a study of several series as one.

    OUT/STAMP/    as `client.predict.service` writes it; result.json comes last

A folder is answered when every series in it has a result. Where one cannot have any, the folder says why, and results
of the others stay.
"""

import logging
import time
from pathlib import Path

from client.predict.dropfolder import Find
from client.predict.prediction import Read, Segmenter, predict_one
from client.predict.service import RESULT_NAME, finish, stamp_of, told
from common.errors import DataError

_log = logging.getLogger(__name__)


def answer(segmenter: Segmenter, find: Find, read: Read, folder: Path, out: Path) -> str | None:
    """Segment, or classify, what lies in the folder of one study.

    Args:
        segmenter: the model.
        find: finds the series; see `client.predict.prediction.reading`.
        read: reads one.
        folder: of the study, absolute.
        out: receives a folder for each series.

    Returns:
        Why not all of it was answered; None: all was.

    Raises:
        ConfigError: a result cannot be written.
    """
    try:
        references = find(folder, None)
    except DataError as error:
        return f"{error.code}: {error}"
    problems: list[str] = []
    for reference in references:
        stamp = stamp_of(reference.images)
        if (out / stamp / RESULT_NAME).exists():
            _log.info("study %s: its series %s has a result already", folder.name, stamp)
            continue
        try:
            result = predict_one(segmenter, read, reference, out / stamp, "")
        except DataError as error:
            problems.append(f"{error.code}: {error}")
            continue
        finish(out / stamp, result, {"study": folder.name, "at": time.time()})
        _log.info("study %s, series %s: %s", folder.name, stamp, told(result))
    return "; ".join(dict.fromkeys(problems)) or None


__all__ = ["answer"]

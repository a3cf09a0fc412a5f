"""Forget a patient: off to the list of those who take no part, and away with what was made of the patient's images.

That is the preprocessed studies, the patient's places in splits, and headers and pictures of earlier looks at the
data. The images themselves are the hospital's and stay where they are. A patient cannot be taken out of a model that
was trained already; what such a model may tell is what the ledger bounds. Personal models (client/home/kept.py)
stay until a person removes them: the command names those that there are, and the hospital decides.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data.isolate.isolation import Readers
from client.data.keep.cache import drop
from client.data.keep.forgotten import Forgotten
from client.data.keep.split import KeptSplits
from client.home.folder import CACHE_NAME, CHECK_NAME, FORGOTTEN_NAME, INDEX_NAME, SPLITS_NAME
from common.config import SourceConfig


@dataclass(frozen=True)
class Removed:
    """What was taken away, each a number. looks: 1 where reports of `data check` were there, which are all of them."""

    studies: int  # of the patient, left out from now on
    copies: int  # prepared studies
    places: int  # in splits
    looks: int


def forget(
    home: Path, key: bytes, sources: Sequence[SourceConfig], patient: str, *, absent: bool = False
) -> Removed | None:
    """Forget a patient.

    Args:
        home: the site's folder.
        key: of the site.
        sources: of its images.
        patient: the raw id, as the images or their table have it.
        absent: also when no study of the patient is found.

    Returns:
        What was removed. None: no study of the patient is there, and not `absent`; nothing was changed.

    Raises:
        ConfigError: a source is described wrongly, or a file of the home is damaged.
    """
    with Readers(1) as readers:
        found = [readers.find(source, home) for source in sources]
    references = [one for each in found for one in each.references if one.patient == patient]
    if not references and not absent:
        return None
    path = home / FORGOTTEN_NAME
    Forgotten(path, key).add(path, patient)
    copies = drop(home / CACHE_NAME, key, references)
    (home / CACHE_NAME / INDEX_NAME).unlink(missing_ok=True)
    looks = int((home / CHECK_NAME).exists())
    shutil.rmtree(home / CHECK_NAME, ignore_errors=True)
    places = KeptSplits(home / SPLITS_NAME, key).forget(patient)
    return Removed(len(references), copies, places, looks)


__all__ = ["Removed", "forget"]

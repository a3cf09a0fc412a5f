"""Forget a patient: off to the list of those who take no part, and away with what was made of the patient's images.

That is the preprocessed studies, the patient's places in splits, and headers and pictures of earlier looks at the
data. The images themselves are the hospital's and stay where they are. A patient cannot be taken out of a model that
was trained already; what such a model may tell is what the ledger bounds.
"""

import shutil

from client.data.cache import drop
from client.data.checkup import CHECK_NAME
from client.data.forgotten import Forgotten
from client.data.isolation import Readers
from client.data.split import KeptSplits
from client.site import CACHE_NAME, FORGOTTEN_NAME, INDEX_NAME, SPLITS_NAME, Site


def forget(site: Site, patient: str, *, absent: bool = False) -> int:
    """Forget a patient.

    Args:
        site: whose.
        patient: the raw id, as the images or their table have it.
        absent: also when no study of the patient is found.

    Returns:
        How many studies of the patient there are. 0, and not `absent`: nothing was changed.

    Raises:
        ConfigError: a source is described wrongly, or a file of the home is damaged.
    """
    with Readers(1) as readers:
        found = [readers.find(source, site.home) for source in site.config.data]
    references = [one for each in found for one in each.references if one.patient == patient]
    if not references and not absent:
        return 0
    path = site.home / FORGOTTEN_NAME
    Forgotten(path, site.key).add(path, patient)
    drop(site.home / CACHE_NAME, site.key, references)
    (site.home / CACHE_NAME / INDEX_NAME).unlink(missing_ok=True)
    shutil.rmtree(site.home / CHECK_NAME, ignore_errors=True)
    KeptSplits(site.home / SPLITS_NAME, site.key).forget(patient)
    return len(references)


__all__ = ["forget"]

"""What preparing images costs: our data path, MONAI's, and our cache, measured by turns in one process.

The task: uncompressed 512 x 512 CT slices to 256 x 256 float32 in [0, 1]. Ours does more for it: it looks for the
series, checks their geometry and decodes the labels too. MONAI's path is the one its documentation shows: LoadImaged
with PydicomReader, EnsureChannelFirstd, ScaleIntensityRanged, Resized; once slice by slice with anti-aliasing, which is
what ours computes, and once by series without, which is the fastest it can. Ours parses in a process of its own, as at
a hospital; the start of that process and its work count. Times are CPU seconds of all threads and processes, and
medians: on a shared machine the clock on the wall tells about its neighbours.
"""

import resource
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import ScaleIntensityRanged
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.dictionary import Resized
from monai.transforms.utility.dictionary import EnsureChannelFirstd

from client.data.cohort import read_studies
from client.data.isolate.isolation import Job
from client.data.keep.cache import Cache
from client.data.read import sources
from client.data.study.labels import Vocabulary
from common.config import RunConfig, SiteConfig, SourceConfig, validate
from simulations.generators.phantoms import SCANNERS, write_study

OURS = "ours, from DICOM"
MONAI_SMOOTH = "MONAI, slices, anti-aliased"
MONAI_PLAIN = "MONAI, series, not anti-aliased"
SECOND = "ours, second load of the cohort"
CACHE = "ours, cache read alone"

_WINDOW = (-160.0, 240.0)  # HU
_KEY = bytes(32)  # of images that anybody can generate


@dataclass(frozen=True)
class Figure:
    """One way of preparing the same images. cpu_s: median over the repeats."""

    name: str
    images: int
    cpu_s: float

    @property
    def cpu_s_per_1000(self) -> float:
        """CPU seconds for 1000 images."""
        return 1000 * self.cpu_s / self.images

    @property
    def images_per_cpu_s(self) -> float:
        """How many images a CPU second prepares."""
        return self.images / self.cpu_s


def measure(
    folder: Path,
    *,
    series: int,
    slices: int = 50,
    rows: int = 512,
    repeats: int = 3,
    progress: Callable[[int, str], None] = lambda _done, _note: None,
) -> tuple[Figure, ...]:
    """Generate CT series and prepare them in every way, by turns.

    Args:
        folder: empty; receives the images and the cache.
        series: how many, each of a patient of its own.
        slices: of one series.
        rows: and columns of a slice; they are halved.
        repeats: turns; a figure is the median.
        progress: called with (series written + turns done, what is next).

    Returns:
        One figure for each of OURS, MONAI_SMOOTH, MONAI_PLAIN, SECOND and CACHE, in this order.
    """
    for number in range(1, series + 1):
        write_study(
            folder / "ct" / f"{number}", scanner=SCANNERS["a"], seed=0, patient=number, slices=slices, rows=rows
        )
        progress(number, "series written")
    ways = _ways(folder, rows // 2)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1, repeats + 1):
        for name, work in ways.items():
            started = _cpu_s()
            prepared = work()  # kept until the clock is read: freeing it is not preparing
            times[name].append(_cpu_s() - started)
            del prepared
        progress(series + turn, "turns done")
    return tuple(Figure(name, series * slices, statistics.median(seconds)) for name, seconds in times.items())


def _ways(folder: Path, rows: int) -> dict[str, Callable[[], Any]]:
    """Everything that is measured, as functions without arguments that return what they prepared."""
    source = SourceConfig(path="ct", kind="dicom")
    site, run = SiteConfig(name="bench", data=(source,)), _run(rows)
    cache = folder / "cache"
    read_studies(site, run, root=folder, site_key=_KEY, cache=cache)  # the first load fills it
    references = sources.find(source, folder).references
    jobs = [Job(reference, Vocabulary.of_run(run.data, {})) for reference in references]
    images = sorted((folder / "ct").glob("*/series-1/*.dcm"))
    folders = sorted((folder / "ct").glob("*/series-1"))
    smooth = _monai((rows, rows), mode="bilinear", anti_aliasing=True)
    plain = _monai((rows, rows, -1), mode="trilinear")

    def read_cache() -> list[Any]:
        working_set = Cache(cache, _KEY, run)
        entries = [working_set.entry(job) for job in jobs]
        return [working_set.read(entry) for entry in entries if entry is not None]

    return {
        OURS: lambda: read_studies(site, run, root=folder, site_key=_KEY, readers=1),
        MONAI_SMOOTH: lambda: [smooth({"image": str(path)})["image"] for path in images],
        MONAI_PLAIN: lambda: [plain({"image": str(path)})["image"] for path in folders],
        SECOND: lambda: read_studies(site, run, root=folder, site_key=_KEY, cache=cache, readers=1),
        CACHE: read_cache,
    }


def _cpu_s() -> float:
    """CPU seconds of this process and of those it started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _run(rows: int) -> RunConfig:
    return validate(
        RunConfig,
        {
            "name": "bench",
            "data": {"modality": "CT", "classes": ["lesion"]},
            "preprocessing": {"rows": rows, "intensity": "window", "window": _WINDOW},
            "training": {"patch-size": [16, 16]},
            "federation": {"rounds": 1},
        },
    )


def _monai(size: tuple[int, ...], **resizing: Any) -> Callable[[dict[str, str]], Any]:
    """MONAI's path to images (1, *size)."""
    low, high = _WINDOW
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a GPU decoder whatever reader is named, and warns of its absence
        load = LoadImaged("image", reader="PydicomReader", image_only=True)
    return Compose(
        [
            load,
            EnsureChannelFirstd("image"),
            ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=0, b_max=1, clip=True),
            Resized("image", spatial_size=size, **resizing),
        ]
    )

"""Which patients train, validate and test: by patient, from a seed, the same on every machine.

Patients are ranked by SHA-256 of seed and raw id: no order of files, no key and no library version enters.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

Split = Literal["train", "validation", "test"]


def split_patients(
    ids: Iterable[str], *, seed: int, validation_fraction: float, test_fraction: float
) -> dict[str, Split]:
    """Assign each patient to one split.

    Counts are rounded to the nearest patient. A split whose fraction is not 0 gets at least one patient when
    there are enough: training first, then test, then validation.

    Args:
        ids: raw patient ids; repeated ones count once.
        seed: of the run.
        validation_fraction: share of patients, [0, 1).
        test_fraction: share of patients, [0, 1).

    Returns:
        Split of each id, in the order of the ids' rank.
    """
    ranked = sorted(set(ids), key=lambda name: (hashlib.sha256(f"{seed}|{name}".encode()).digest(), name))
    count = len(ranked)
    test = _share(count, test_fraction, available=count - 1)
    validation = _share(count, validation_fraction, available=count - 1 - test)
    sizes: tuple[tuple[Split, int], ...] = (
        ("test", test),
        ("validation", validation),
        ("train", count - test - validation),
    )
    return dict(zip(ranked, (split for split, size in sizes for _ in range(size)), strict=True))


def _share(count: int, fraction: float, available: int) -> int:
    if fraction == 0 or available <= 0:
        return 0
    return min(available, max(1, int(count * fraction + 0.5)))

import hashlib
from collections import Counter

import pytest

from client.data.split import split_patients

IDS = [f"patient-{number}" for number in range(100)]


def split(ids: list[str], seed: int = 0, validation: float = 0.15, test: float = 0.15) -> dict[str, str]:
    return dict(split_patients(ids, seed=seed, validation_fraction=validation, test_fraction=test))


def test_counts_follow_the_fractions() -> None:
    assert Counter(split(IDS).values()) == {"train": 70, "validation": 15, "test": 15}


def test_half_a_patient_is_rounded_up() -> None:
    assert Counter(split(IDS[:10]).values()) == {"train": 6, "validation": 2, "test": 2}


def test_order_and_repetition_of_ids_do_not_matter() -> None:
    assert split(IDS) == split(IDS[::-1] + IDS[:7])


def test_another_seed_gives_another_split() -> None:
    assert split(IDS, seed=1) != split(IDS, seed=2)


def test_lowest_digests_are_the_test_patients() -> None:
    ranked = sorted(IDS, key=lambda name: hashlib.sha256(b"7|" + name.encode()).hexdigest())
    assert {name for name, part in split(IDS, seed=7).items() if part == "test"} == set(ranked[:15])


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"train": 1}),
        (2, {"train": 1, "test": 1}),
        (3, {"train": 1, "test": 1, "validation": 1}),
        (4, {"train": 2, "test": 1, "validation": 1}),
    ],
)
def test_few_patients_go_to_training_then_test_then_validation(count: int, expected: dict[str, int]) -> None:
    assert Counter(split(IDS[:count]).values()) == expected


def test_fraction_zero_takes_nobody() -> None:
    assert Counter(split(IDS[:10], validation=0, test=0).values()) == {"train": 10}


def test_training_keeps_a_patient_when_fractions_are_large() -> None:
    assert Counter(split(IDS[:2], validation=0.49, test=0.5).values()) == {"train": 1, "test": 1}

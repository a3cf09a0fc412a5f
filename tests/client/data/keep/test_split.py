"""A patient has one split, the same everywhere and for good, and every patient is tested once over the folds."""

import hashlib
import hmac
import json
import multiprocessing
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.data.deidentify.pseudonym import pseudonym
from client.data.keep.forgotten import Forgotten
from client.data.keep.split import KeptSplits, Place, assign
from common.config import RunConfig, validate
from common.errors import ConfigError
from tests.client.data.tables import make_table, opened_table

IDS = [f"patient-{number}" for number in range(100)]
KEY = bytes(range(32))

patients = st.lists(st.text(min_size=1, max_size=4), max_size=40, unique=True)


def a_run(  # noqa: PLR0917 - all a test may set
    seed: int = 0,
    validation: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
    split: str | None = None,
) -> RunConfig:
    data = {"validation-fraction": validation, "test-fraction": test, "folds": folds, "fold": fold, "split": split}
    return validate(
        RunConfig,
        {
            "name": "liver",
            "seed": seed,
            "data": {"modality": "CT", "classes": ["lesion"], **data},
            "training": {"patch-size": [64, 64]},
            "federation": {"rounds": 1},
        },
    )


_fractions = st.just(0.0) | st.floats(0.01, 0.49)
_seeds = st.integers(0, 2**32 - 1)
plain_runs = st.builds(a_run, seed=_seeds, validation=_fractions, test=_fractions)
fold_runs = st.builds(a_run, seed=_seeds, validation=_fractions, folds=st.integers(3, 20))
runs = plain_runs | fold_runs
_independent = st.just("independent")
independent_runs = st.builds(
    a_run, seed=_seeds, validation=_fractions, test=_fractions, split=_independent
) | st.builds(a_run, seed=_seeds, validation=_fractions, folds=st.integers(3, 20), split=_independent)


def split(ids: Sequence[str], seed: int = 0, validation: float = 0.15, test: float = 0.15) -> dict[str, str]:
    return dict(KeptSplits(None, KEY).split(a_run(seed, validation, test), [ids]))


def under(places: dict[str, Place], number: int) -> Counter[str]:
    return Counter(place[number] for place in places.values())


@given(patients, st.text(min_size=1, max_size=4), independent_runs)
def test_one_patient_more_moves_nobody_else_where_splits_are_independent(
    ids: list[str], joins: str, run: RunConfig
) -> None:
    assume(joins not in ids)
    without, grown = assign(ids, run, {}), assign([*ids, joins], run, {})
    assert {name: grown[name] for name in without} == without
    assert assign([joins], run, {})[joins] == grown[joins]


@given(patients, independent_runs)
def test_independent_places_have_one_test_fold_and_ask_no_file(ids: list[str], run: RunConfig) -> None:
    training: Place = tuple("train" for _ in range(run.data.folds or 1))
    places = assign(ids, run, dict.fromkeys(ids, training))
    assert places == assign(ids, run, {})
    if run.data.folds is not None:
        assert all(place.count("test") == 1 for place in places.values())


@pytest.mark.parametrize("folds", [None, 5])
def test_independent_shares_are_met_on_average(folds: int | None) -> None:
    many = [f"patient-{number}" for number in range(4000)]
    places = assign(many, a_run(test=0.2, folds=folds, split="independent"), {})
    for number in range(folds or 1):
        counts = under(places, number)
        # Five standard deviations of a binomial share.
        for split, share in (("test", 0.2), ("validation", 0.15)):
            assert abs(counts[split] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5


def test_independent_split_is_where_the_digest_lies() -> None:
    def position(name: str) -> float:
        return int(hashlib.sha256(b"7|" + name.encode()).hexdigest(), 16) / 2**256

    expected = {
        name: "test" if position(name) < 0.15 else "validation" if position(name) < 0.3 else "train" for name in IDS
    }
    assert KeptSplits(None, KEY).split(a_run(7, split="independent"), [IDS]) == expected


def test_independent_splits_keep_and_read_no_places(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    proportional = KeptSplits(path, KEY).split(a_run(), [IDS])
    before = path.read_bytes()
    independent = KeptSplits(path, KEY).split(a_run(split="independent"), [IDS])
    assert independent != proportional
    assert independent == KeptSplits(None, KEY).split(a_run(split="independent"), [IDS])
    assert path.read_bytes() == before


def test_private_runs_split_independently_and_may_not_do_otherwise() -> None:
    values = a_run().model_dump(by_alias=True) | {"privacy": {"target-epsilon": 1.0}}
    private = validate(RunConfig, values)
    assert (private.split, a_run().split) == ("independent", "proportional")
    assert KeptSplits(None, KEY).split(private, [IDS]) == KeptSplits(None, KEY).split(a_run(split="independent"), [IDS])
    with pytest.raises(ConfigError, match="proportional"):
        validate(RunConfig, values | {"data": values["data"] | {"split": "proportional"}})


def test_counts_follow_the_fractions() -> None:
    assert Counter(split(IDS).values()) == {"train": 70, "validation": 15, "test": 15}


def test_half_a_patient_is_rounded_up() -> None:
    assert Counter(split(IDS[:10]).values()) == {"train": 6, "validation": 2, "test": 2}


def test_another_seed_gives_another_split() -> None:
    assert split(IDS, seed=1) != split(IDS, seed=2)


def test_first_split_is_test_then_validation_then_training_by_digest() -> None:
    ranked = sorted(IDS, key=lambda name: hashlib.sha256(b"7|" + name.encode()).hexdigest())
    expected = dict(zip(ranked, ["test"] * 15 + ["validation"] * 15 + ["train"] * 70, strict=True))
    assert split(IDS, seed=7) == expected


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


@given(patients, runs, st.randoms(use_true_random=False))
def test_order_and_repetition_of_ids_do_not_matter(ids: list[str], run: RunConfig, random: Random) -> None:
    shuffled = random.sample(ids, len(ids)) + ids[:3]
    assert assign(ids, run, {}) == assign(shuffled, run, {})


@given(patients, plain_runs)
def test_first_split_is_within_one_patient_of_the_fractions(ids: list[str], run: RunConfig) -> None:
    counts = under(assign(ids, run, {}), 0)
    assert counts.total() == len(ids)
    assert abs(counts["test"] - run.data.test_fraction * len(ids)) <= 1
    # Training comes before validation where there are patients for one of them only.
    assert abs(counts["validation"] - run.data.validation_fraction * len(ids)) <= 1 or counts["train"] == 1
    assert counts["train"] >= 1 or not ids


@given(patients, fold_runs)
def test_first_folds_are_within_one_patient_of_the_fractions(ids: list[str], run: RunConfig) -> None:
    folds = run.data.folds or 0
    places = assign(ids, run, {})
    for number in range(folds):
        counts = under(places, number)
        assert abs(counts["test"] - len(ids) / folds) < 1
        assert abs(counts["validation"] - run.data.validation_fraction * len(ids)) <= 1 or counts["train"] == 1
        assert counts["train"] >= 1 or len(ids) < 2


@given(st.lists(patients, min_size=1, max_size=4), runs)
def test_adding_patients_moves_nobody_and_every_patient_is_tested_once(visits: list[list[str]], run: RunConfig) -> None:
    folds = run.data.folds
    present: list[str] = []
    places: dict[str, Place] = {}
    for arrived in visits:
        present += arrived
        grown = assign(present, run, places)
        assert {name: grown[name] for name in places} == places
        assert set(grown) == set(present)
        places = grown
    assert {len(place) for place in places.values()} <= {folds or 1}
    if folds is not None:
        assert all(place.count("test") == 1 for place in places.values())
        sizes = [under(places, number)["test"] for number in range(folds)]
        assert max(sizes) - min(sizes) <= 1


@given(patients, patients, runs)
def test_patients_who_leave_and_return_find_their_place(ids: list[str], others: list[str], run: RunConfig) -> None:
    kept = assign(ids, run, {})
    without = assign(others, run, kept)
    returned = assign([*ids, *others], run, without | kept)
    assert {name: returned[name] for name in ids} == kept
    assert {name: returned[name] for name in others} == without


@given(patients, patients, plain_runs)
def test_cohort_that_grows_stays_within_one_patient_of_the_fractions(
    first: list[str], later: list[str], run: RunConfig
) -> None:
    assume(len(first) >= 3)
    counts = under(assign([*first, *later], run, assign(first, run, {})), 0)
    assert abs(counts["test"] - run.data.test_fraction * counts.total()) <= 1
    assert abs(counts["validation"] - run.data.validation_fraction * counts.total()) <= 1 or counts["train"] == 1


def test_newcomer_trains_while_nobody_trains() -> None:
    kept: dict[str, Place] = {"a": ("validation",), "b": ("validation",)}
    assert assign(["a", "b", "new"], a_run(test=0.4), kept)["new"] == ("train",)


def test_validation_patients_change_from_fold_to_fold() -> None:
    places = assign(IDS, a_run(folds=5), {})
    turns = Counter(place.count("validation") for place in places.values())
    assert set(turns) == {0, 1}  # 15 of 100 in five folds: nobody needs to validate twice


def test_folds_of_a_tiny_site_may_be_empty_but_hold_each_patient_once() -> None:
    places = assign(["only"], a_run(folds=3), {})
    assert places == {"only": ("test", "train", "train")}


def test_kept_splits_outlive_the_process_and_hold_pseudonyms_only(tmp_path: Path) -> None:
    path = tmp_path / "home" / "splits.sealed"
    first = KeptSplits(path, KEY).split(a_run(), [IDS[:10]])
    both = KeptSplits(path, KEY).split(a_run(), [IDS])
    assert {name: both[name] for name in first} == first
    assert both != split(IDS)  # a first split of all would have moved somebody
    (record,) = opened_table(path, KEY, "splits")["splits"].values()
    assert Counter(record.values()) == Counter(both.values())
    assert set(record) == {hmac.new(KEY, name.encode(), "sha256").hexdigest()[:16] for name in IDS}
    text = json.dumps(record)
    assert "patient" not in text
    assert KEY.hex() not in text


def test_file_shows_nothing_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "splits.sealed"
    KeptSplits(path, KEY).split(a_run(), [IDS])
    content = path.read_bytes()
    assert not any(word in content for word in (b"train", b"seed", b"splits", KEY, pseudonym(KEY, IDS[0]).encode()))
    assert len(content) % 4096 == 8 + 12 + 16  # magic, nonce, tag: of the patients' number it tells the hundreds
    assert [stat.S_IMODE(one.stat().st_mode) for one in sorted(path.parent.iterdir())] == [0o600, 0o600]
    KeptSplits(path, KEY).forget(IDS[0])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_places_do_not_open_as_a_list_of_another_purpose(tmp_path: Path) -> None:
    KeptSplits(tmp_path / "splits.sealed", KEY).split(a_run(), [IDS])
    (tmp_path / "splits.sealed").rename(tmp_path / "forgotten.sealed")
    with pytest.raises(ConfigError, match=r"forgotten\.sealed .* altered"):
        Forgotten(tmp_path / "forgotten.sealed", KEY).add(tmp_path / "forgotten.sealed", "anybody")


def test_plain_file_of_an_earlier_version_is_refused_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text('{"format": 1, "cohort": "", "splits": {}}')
    kept = KeptSplits(tmp_path / "splits.sealed", KEY)
    with pytest.raises(ConfigError, match=r"splits\.json, which an earlier version wrote in the clear"):
        kept.split(a_run(), [IDS])
    with pytest.raises(ConfigError, match=r"splits\.json, which an earlier version wrote in the clear"):
        kept.forget(IDS[0])
    assert not (tmp_path / "splits.sealed").exists()


def test_forgotten_patient_is_taken_out_of_every_split(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    kept = KeptSplits(path, KEY)
    for seed in (0, 1):
        kept.split(a_run(seed), [IDS])
    kept.forget(IDS[7])
    assert [len(record) for record in opened_table(path, KEY, "splits")["splits"].values()] == [99, 99]
    assert not any(pseudonym(KEY, IDS[7]) in record for record in opened_table(path, KEY, "splits")["splits"].values())


def test_patients_who_left_are_still_kept(tmp_path: Path) -> None:
    kept = KeptSplits(tmp_path / "splits.sealed", KEY)
    first = kept.split(a_run(), [IDS[:30]])
    kept.split(a_run(), [IDS[30:60]])
    assert kept.split(a_run(), [IDS[:30]]) == first


def test_one_record_serves_every_fold_and_each_patient_is_tested_once(tmp_path: Path) -> None:
    kept = KeptSplits(tmp_path / "splits.sealed", KEY)
    tested: list[str] = []
    for fold in range(4):  # patients arrive between the folds
        splits = kept.split(a_run(folds=4, fold=fold), [IDS[: 20 + 10 * fold]])
        tested += [name for name in IDS[:20] if splits[name] == "test"]
    assert sorted(tested) == sorted(IDS[:20])
    assert len(opened_table(tmp_path / "splits.sealed", KEY, "splits")["splits"]) == 1


@pytest.mark.parametrize(
    "other", [a_run(seed=1), a_run(test=0.3), a_run(validation=0.3), a_run(folds=2), a_run(folds=3)]
)
def test_another_request_is_another_split(other: RunConfig, tmp_path: Path) -> None:
    kept = KeptSplits(tmp_path / "splits.sealed", KEY)
    first = kept.split(a_run(), [IDS])
    assert kept.split(other, [IDS]) == KeptSplits(None, KEY).split(other, [IDS])
    assert kept.split(a_run(), [IDS]) == first


def test_each_source_is_split_on_its_own_and_the_first_counts(tmp_path: Path) -> None:
    sources = [IDS[:20], IDS[10:40]]
    expected = split(sources[1]) | split(sources[0])
    kept = KeptSplits(tmp_path / "splits.sealed", KEY)
    assert kept.split(a_run(), sources) == expected
    assert kept.split(a_run(), sources) == expected
    assert kept.split(a_run(), sources[::-1]) == expected  # whoever has a place keeps it


def test_nothing_is_written_when_nobody_is_new(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    kept = KeptSplits(path, KEY)
    kept.split(a_run(), [IDS])
    stamp = path.stat().st_ino
    kept.split(a_run(), [IDS[3:]])
    assert path.stat().st_ino == stamp


def test_looking_writes_nothing_and_tells_what_keeping_will_give(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    kept = KeptSplits(path, KEY)
    first = kept.split(a_run(), [IDS], keep=False)
    assert list(tmp_path.iterdir()) == []
    assert kept.split(a_run(), [IDS]) == first


def _damage(change: Callable[[dict[str, object]], object]) -> Callable[[str], str]:
    """A record as only this site could have written it, but not in this version."""

    def damage(text: str) -> str:
        values = json.loads(text)
        change(values)
        return json.dumps(values)

    return damage


def _all_places(text: str) -> Callable[[dict[str, object]], object]:
    def change(values: dict[str, object]) -> None:
        values["splits"] = {
            request: dict.fromkeys(record, text)
            for request, record in values["splits"].items()  # type: ignore[attr-defined]
        }

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:7],
        lambda data: b"X" + data[1:],
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b" ",
        lambda data: data[:8] + data[4104:],
        lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
        lambda data: data[:10] + bytes([data[10] ^ 1]) + data[11:],
        lambda _: b'{"format": 1, "splits": {}}',
    ],
)
def test_altered_file_stops_the_run_and_is_left_as_it_is(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    kept = KeptSplits(path, KEY)
    kept.split(a_run(), [IDS])
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    for keep in (True, False):
        with pytest.raises(ConfigError, match=r"Restore it, and site\.key, from a backup"):
            kept.split(a_run(), [IDS], keep=keep)
    with pytest.raises(ConfigError, match=r"Restore it, and site\.key, from a backup"):
        kept.forget(IDS[0])
    assert path.read_bytes() == broken


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:0],
        lambda text: text[:-20],
        lambda text: f"[{text}]",
        lambda text: text.replace('"', "\xff"),
        _damage(lambda values: values.pop("splits")),
        _damage(lambda values: values.update(format=2)),
        _damage(lambda values: values.update(splits={"seed 0": ["train"]})),
        _damage(_all_places("")),
        _damage(_all_places("tain train test")),
        _damage(_all_places("train test")),
        _damage(_all_places("train train train")),
        _damage(_all_places("test train test")),
    ],
)
def test_record_that_is_not_understood_stops_the_run(damage: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    kept = KeptSplits(path, KEY)
    run = a_run(folds=3)
    kept.split(run, [IDS])
    make_table(path, KEY, "splits", damage(json.dumps(opened_table(path, KEY, "splits"))).encode("latin-1"))
    broken = path.read_bytes()
    with pytest.raises(ConfigError, match=r"Restore it, and site\.key, from a backup") as refused:
        kept.split(run, [IDS])
    assert path.read_bytes() == broken
    assert "patient-" not in str(refused.value)


def test_another_site_key_is_refused_because_it_would_deal_everybody_anew(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    KeptSplits(path, KEY).split(a_run(), [IDS])
    with pytest.raises(ConfigError, match="another site key"):
        KeptSplits(path, bytes(32)).split(a_run(), [IDS])


def _arrive(path: Path, numbers: range) -> None:
    kept = KeptSplits(path, KEY)
    for number in numbers:
        kept.split(a_run(seed=number % 2), [IDS[number : number + 2]])


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "splits.sealed"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_arrive, args=(path, range(start, 60, 3))) for start in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    records = opened_table(path, KEY, "splits")["splits"]
    assert sorted(len(record) for record in records.values()) == [60, 60]
    assert [one.name for one in tmp_path.iterdir() if one.name not in ("splits.sealed", "splits.lock")] == []

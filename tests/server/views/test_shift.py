"""How far sites lie apart by what they tell: against SciPy's tests of the patients themselves, and dealt by chance."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from client.train.statistics import _class_share
from common.audit.entries import bucketed
from common.config.statistics import COUNTED, rounded
from server.views.shift import Shift, labels_unfound, of_foreground, of_intensities, of_labels

SITES = ("north", "south", "west")


def intensities(patients: Mapping[str, np.ndarray], name: str = "intensity-mean") -> Shift:
    told = {
        site: {COUNTED: bucketed(len(values)), f"{name}-1": rounded(values.mean())}
        | {f"{name}-spread-1": rounded(values.std(ddof=1))}
        for site, values in patients.items()
    }
    shift = of_intensities(told, 1)
    assert shift is not None
    return shift


def shares(have: Mapping[str, tuple[int, int]]) -> Shift:
    """Of sites of so many patients who have it, and so many in all."""
    told = {
        site: {COUNTED: bucketed(of), "class-share-lesion": rounded(_class_share(few, of))}
        for site, (few, of) in have.items()
    }
    shift = of_labels(told, ["lesion"])
    assert shift is not None
    return shift


def exactly(values: np.ndarray, mean: float, spread: float) -> np.ndarray:
    """The same, with a mean and a spread that two digits can say."""
    return np.asarray((values - values.mean()) / values.std(ddof=1) * spread + mean)


def test_the_test_of_means_is_the_analysis_of_variance_of_the_patients() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (3, 400))
    middles = dict(zip(SITES, (4.7, 5.0, 4.9), strict=True))
    patients = {site: exactly(one, middles[site], 2.0) for site, one in zip(SITES, draws, strict=True)}
    found = intensities(patients)
    assert (found.lowest[0], found.highest[0], found.what) == ("north", "south", "mean")
    # Each mean may be half a digit nearer to where they are most alike.
    nearer = dict(zip(SITES, (4.75, 4.95, 4.85), strict=True))
    least = stats.f_oneway(*(exactly(one, nearer[site], 2.0) for site, one in zip(SITES, draws, strict=True)))
    assert stats.f_oneway(*patients.values()).pvalue < found.chance
    assert found.chance == pytest.approx(least.pvalue, rel=0.3)


def test_the_test_of_shares_is_the_chi_square_of_the_patients_less_what_steps_of_five_hide() -> None:
    have = {"north": (200, 1000), "south": (240, 1000), "west": (220, 1000)}
    exact = stats.chi2_contingency([[few, of - few] for few, of in have.values()], correction=False)
    found = shares(have)
    assert found.chance == pytest.approx(exact.pvalue, rel=0.15)
    assert found.chance >= exact.pvalue
    assert found.found == pytest.approx(0.04)
    assert (found.lowest[0], found.highest[0]) == ("north", "south")


@pytest.mark.parametrize("of", [15, 40, 150])
def test_sites_that_draw_from_one_pool_are_found_unlike_once_in_a_hundred_times(of: int) -> None:
    rng = np.random.default_rng(of)
    times = 400
    pool = rng.normal(0.3, 0.03, (times, 9, of))
    by_means = [intensities({str(site): values for site, values in enumerate(one)}).chance < 0.01 for one in pool]
    assert sum(by_means) <= 12  # 4 expected; more than 12 of 400 in one of 5000 times
    if of >= 18:
        draws = rng.binomial(of, 0.4, (times, 9))
        by_shares = [shares({str(site): (int(few), of) for site, few in enumerate(one)}).chance < 0.01 for one in draws]
        assert sum(by_shares) <= 12


@pytest.mark.parametrize(
    ("sites", "of", "least"),
    [(3, 20, None), (3, 30, None), (9, 40, 0.4), (2, 50, 0.35), (3, 100, 0.3), (2, 150, 0.2), (3, 300, 0.15)],
)
def test_a_difference_that_is_said_to_be_found_is_and_half_of_it_is_not(
    sites: int, of: int, least: float | None
) -> None:
    """Against patients who are drawn; docs/run.md has these numbers."""
    told = {str(site): {COUNTED: float(of), "class-share-lesion": 0.5} for site in range(sites)}
    assert labels_unfound(told, ["lesion"], limit=0.1, chance=0.01) == ("0", least)
    rng = np.random.default_rng(of)

    def found(apart: float) -> float:
        draws = rng.binomial(of, [0.5 + apart / 2, *[0.5 - apart / 2] * (sites - 1)], (200, sites))
        shifts = [shares({str(site): (int(few), of) for site, few in enumerate(one)}) for one in draws]
        return float(np.mean([one.found >= 0.1 and one.chance < 0.01 for one in shifts]))

    if least is None:
        assert found(1.0) == 0
    else:
        assert found(least) >= 0.5
        assert found(least / 2) <= 0.3


def test_what_is_not_found_is_of_the_site_with_the_fewest_patients_and_of_all_classes_looked_at() -> None:
    told = {
        site: {COUNTED: of, "class-share-lesion": 0.5} for site, of in zip(SITES, (300.0, 50.0, 300.0), strict=True)
    }
    one = labels_unfound(told, ["lesion"], limit=0.1, chance=0.01)
    assert one is not None
    assert one[0] == "south"
    more = {
        site: {**values, **{f"class-share-c{number}": 0.5 for number in range(40)}} for site, values in told.items()
    }
    of_many = labels_unfound(more, ["lesion", *(f"c{number}" for number in range(40))], limit=0.1, chance=0.01)
    assert of_many is not None
    assert of_many[1] is not None
    assert one[1] is not None
    assert of_many[1] > one[1]
    assert (
        labels_unfound({"north": told["north"], "south": {COUNTED: 15.0}}, ["lesion"], limit=0.1, chance=0.01) is None
    )


def test_a_share_told_as_ten_from_all_is_no_shift_between_small_and_large_sites() -> None:
    """All patients of each have the class; told are 0.5, 0.83 and 0.98."""
    found = shares({"north": (20, 20), "south": (60, 60), "west": (400, 400)})
    assert (found.found, found.chance > 0.5) == (0.0, True)
    found = shares({"north": (0, 20), "south": (0, 60), "west": (0, 400)})
    assert (found.found, found.chance > 0.5) == (0.0, True)
    found = shares({"north": (10, 60), "south": (60, 60)})
    assert found.found == pytest.approx(50 / 60 - 10 / 60, abs=0.01)
    assert found.chance < 1e-6


def test_rounding_alone_is_no_shift() -> None:
    """0.1049 and 0.1051 are told as 0.10 and 0.11, far apart against patients who are all alike."""
    rng = np.random.default_rng(0)
    ones = {site: rng.normal(0, 0.001, 100) for site in SITES}
    middle = {"north": 0.1049, "south": 0.1051, "west": 0.1049}
    found = intensities({site: values - values.mean() + middle[site] for site, values in ones.items()})
    assert (found.found, found.chance) == (0.0, 1.0)


def test_a_ten_thousandth_of_an_intensity_is_rounding_too() -> None:
    """Medians of images whose background is black: 0, 0.0001 and 0.0002."""
    told = {
        site: {COUNTED: 200.0, "intensity-p50-1": value, "intensity-p50-spread-1": 0.0001}
        for site, value in zip(SITES, (0.0, 0.0001, 0.0001), strict=True)
    }
    found = of_intensities(told, 1)
    assert found is not None
    assert (found.found, found.chance) == (0.0, 1.0)


def test_images_brought_to_one_mean_say_nothing_by_it() -> None:
    told = {site: {COUNTED: 50.0, "intensity-mean-1": 0.0, "intensity-mean-spread-1": 0.0} for site in SITES}
    assert of_intensities(told, 1) is None


def test_many_quantities_are_counted_against_the_chance() -> None:
    one = intensities({site: np.arange(20.0) + 4 * number for number, site in enumerate(SITES)})
    told = {
        site: {COUNTED: 20.0}
        | {f"intensity-{name}-1": rounded(9.5 + 4 * number) for name in ("mean", "p50")}
        | {f"intensity-{name}-spread-1": rounded(np.arange(20.0).std(ddof=1)) for name in ("mean", "p50")}
        for number, site in enumerate(SITES)
    }
    both = of_intensities(told, 1)
    assert both is not None
    assert both.chance == pytest.approx(2 * one.chance, rel=0.1)


def test_size_is_judged_by_those_who_have_the_class_as_few_as_they_may_be() -> None:
    def told(share: float | None) -> dict[str, dict[str, float]]:
        said = {} if share is None else {"class-share-lesion": share}
        sizes = {"north": 0.010, "south": 0.014}
        return {
            site: {COUNTED: 200.0, "foreground-share-lesion": size, "foreground-spread-lesion": 0.007, **said}
            for site, size in sizes.items()
        }

    chances = []
    for share in (0.95, 0.3, None):
        found = of_foreground(told(share), ["lesion"])
        assert found is not None
        chances.append(found.chance)
    assert chances[0] < chances[1] < chances[2]
    exact = stats.ttest_ind_from_stats(0.0105, 0.007, 60, 0.0135, 0.007, 60)
    assert chances[1] == pytest.approx(exact.pvalue, rel=0.05)


def test_of_one_site_or_none_nothing_is_found() -> None:
    assert of_labels({"north": {COUNTED: 50.0, "class-share-lesion": 0.5}}, ["lesion"]) is None
    assert of_intensities({}, 1) is None
    assert of_foreground({"north": {COUNTED: 50.0}, "south": {COUNTED: 50.0}}, ["lesion"]) is None


def test_values_at_the_ends_of_what_a_site_may_tell_give_finite_numbers() -> None:
    told = {
        site: {COUNTED: 10.0, "foreground-share-x": share, "foreground-spread-x": 1e-160}
        for site, share in (("north", 1.0), ("south", 0.0))
    }
    found = of_foreground(told, ["x"])
    assert found is not None
    assert np.isfinite([found.found, found.chance]).all()

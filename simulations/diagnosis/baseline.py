"""What a network has to beat: features of each marked region, and a classifier of tables.

Every region that the run's labels mark becomes one row (`radiomics`), and a classifier is fitted for each fold of the
run, on the rows of the fold's training and validation patients of all sites together; the rows of its test patients are
answered. So every patient is answered once, by a classifier that never saw them, and in the same folds as a network
that `crossval` trains: all images of a patient are in one fold, both breasts of a woman too.

SMOTE (Chawla et al., JAIR 2002) makes more rows of the rarer class, each between two neighbours of it, and only among
the training rows of a fold: done before the folds it would lay copies of test patients into the training. On features
that is sensible, because between two sizes lies a size. On pixels it is not: half of one image over half of another is
a double exposure of two people, with edges that neither has, and shows nothing that any patient could have.

This is a study on one machine and never a federation: it puts rows of all sites in one table, standardises over
patients and mixes them, so no differential privacy covers it. No run can ask for it.

Convention: of two classes the second is the positive one; a chance is that of the positive class.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from common.config import RunConfig, validate
from common.errors import ConfigError, DataError
from common.measures.intervals import Interval
from common.system.files import write_atomically
from simulations.diagnosis.decisions import Regions, as_data, described, scores, summary_rows
from simulations.diagnosis.radiomics import features
from simulations.studies import tables
from simulations.studies.crossval import fold_runs

if TYPE_CHECKING:
    from client.data.cohort import Case

MAJORITY = "always the larger class"
CLASSIFIERS = ("logistic regression", "logistic regression, SMOTE", "random forest", "random forest, SMOTE")

_NEIGHBOURS = 5
_TREES = 500
# Inverse strength of L2: strong, for some thirty rows of sixty values. Set beforehand, never searched.
_LOGISTIC_C = 0.1


@dataclass(frozen=True, eq=False)
class Row:
    """One region. patient: site and pseudonym; fold: in which the patient is tested; number: of the region in its case.

    values: by the names of `Features`; positive: whether it is of the second class.
    """

    patient: str
    case: str
    number: int
    fold: int
    values: NDArray[np.float64]
    positive: bool


@dataclass(frozen=True, eq=False)
class Features:
    """All regions of all sites, in the order of sites and cases, and the names of their values."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]

    def values(self) -> NDArray[np.float64]:
        """(N, F)."""
        return np.stack([row.values for row in self.rows])

    def positives(self) -> NDArray[np.bool_]:
        """(N,)."""
        return np.array([row.positive for row in self.rows])

    def folds(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.array([row.fold for row in self.rows])

    def patients(self) -> NDArray[np.str_]:
        """(N,)."""
        return np.array([row.patient for row in self.rows])


def check(run: RunConfig) -> list[RunConfig]:
    """The run under each of its fold numbers, if the baseline can be of it.

    Raises:
        ConfigError: it has no folds, not two classes, or volumes.
    """
    if len(run.data.classes) != 2:
        raise ConfigError(
            f"the baseline tells two classes of regions apart; this run has {len(run.data.classes)} in data.classes. "
            "Name two, the one to be found last."
        )
    if run.model.dims != 2:
        raise ConfigError("the baseline is of regions in flat images; this run has model.dims 3. Set dims = 2.")
    return fold_runs(run)


def measure(run: RunConfig, sites: Sequence[Site]) -> Features:
    """Features of every region at every site.

    Args:
        run: with folds and two classes, flat images; its task does not matter.
        sites: the hospitals.

    Raises:
        ConfigError: the run has no folds, not two classes, or volumes.
        DataError: a region is too small.
    """
    runs = [of_maps(one) for one in check(run)]
    names: tuple[str, ...] = ()
    rows = []
    for site in sites:
        tested = {patient: fold for fold, one in enumerate(runs) for patient in site.cohort(one).patients("test")}
        for case in site.cohort(runs[0]).cases:
            for number, (image, region, label) in enumerate(regions(case)):
                found = features(image, region)
                names = names or tuple(found)
                patient = f"{site.config.name} {case.patient}"
                values = np.array([found[name] for name in names])
                rows.append(Row(patient, case.key, number, tested[case.patient], values, label == 2))
    return Features(names, tuple(rows))


def of_maps(run: RunConfig) -> RunConfig:
    """The run on the same patients in the same folds, whose labels are maps and whose images are whole."""
    values = run.model_dump(by_alias=True)
    values |= {"task": {"kind": "segmentation"}, "privacy": None, "model": {"dims": 2}}
    return validate(RunConfig, values, "the baseline")


def regions(case: "Case") -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_], int]]:
    """Image, region and class of whatever hangs together of one class, corners included; in the order of the classes.

    The same regions in the same order as a classification of regions cuts out.
    """
    from scipy import ndimage  # noqa: PLC0415 - heavy

    for image, labels in zip(case.images.numpy(), case.labels.numpy(), strict=True):
        for label in np.unique(labels[labels > 0]).tolist():
            marked, count = ndimage.label(labels == label, np.ones((3, 3)))
            for number in range(1, count + 1):
                yield image.mean(axis=0), marked == number, label


def answer_all(table: Features, seed: int) -> dict[str, NDArray[np.float64]]:
    """The chance of each row by each of CLASSIFIERS.

    Raises:
        ConfigError: scikit-learn or imbalanced-learn is missing.
        DataError: the training rows of a fold have fewer than two of a class.
    """
    return {name: answers(table, classifier(name, seed)) for name in CLASSIFIERS}


def classifier(name: str, seed: int) -> Callable[[int], Any]:
    """What makes one of CLASSIFIERS for training rows of which the rarer class has so many.

    Raises:
        ConfigError: scikit-learn or imbalanced-learn is missing.
    """
    try:
        import imblearn  # noqa: F401, PLC0415 - heavy
    except ImportError as error:
        raise ConfigError(
            "the baseline needs scikit-learn and imbalanced-learn. Install them: pip install 'wardround[simulations]'."
        ) from error
    make = _logistic if name.startswith("logistic") else _forest
    if name.endswith("SMOTE"):
        return lambda rarer: _pipeline(_smote(rarer, seed), make(seed))
    return lambda _: _pipeline(make(seed))


def answers(table: Features, build: Callable[[int], Any]) -> NDArray[np.float64]:
    """The chance of each row, told by the classifier of the fold that tests its patient.

    Raises:
        DataError: the training rows of a fold have fewer than two of a class.
    """
    values, positive, folds = table.values(), table.positives(), table.folds()
    chances = np.full(len(values), np.nan)
    for fold in np.unique(folds).tolist():
        training = folds != fold
        rarer = min(int(positive[training].sum()), int((~positive[training]).sum()))
        if rarer < 2:
            raise DataError(
                f"fold {fold} trains on {rarer} region(s) of one class, and two are needed. Use fewer folds, or give "
                "each class a source of its own: a site deals each of its sources by itself."
            )
        fitted = build(rarer).fit(values[training], positive[training])
        chances[~training] = fitted.predict_proba(values[~training])[:, 1]
    return chances


def study(
    run: RunConfig,
    sites: Sequence[Site],
    out: Path,
    *,
    seeds: Sequence[int],
    finished: Callable[[int], None] = lambda _done: None,
) -> tuple[str, dict[str, dict[str, Interval]]]:
    """Cross-validate every classifier and the rule, and write baseline.json and baseline.md into `out`.

    Args:
        run: see `measure`.
        sites: the hospitals.
        out: receives the results.
        seeds: the whole is repeated for each, with other folds.
        finished: told how many repeats are done.

    Returns:
        What was answered in a sentence, and the scores by classifier.
    """
    collected: dict[str, list[NDArray[np.float64]]] = {}
    for done, seed in enumerate(seeds, start=1):
        table = measure(run.model_copy(update={"seed": seed}), sites)
        for name, chances in ({MAJORITY: majority(table)} | answer_all(table, seed)).items():
            collected.setdefault(name, []).append(chances)
        finished(done)
    truth = Regions(table.patients(), table.positives())
    found = {name: scores(truth, np.stack(chances)) for name, chances in collected.items()}
    facts = described(truth, run.data.classes, run.data.folds or 0, seeds)
    lines = {"facts": facts, "features": table.names, "rows": as_data(found)}
    write_atomically(out / "baseline.json", f"{json.dumps(lines, indent=1)}\n".encode())
    write_atomically(out / "baseline.md", f"{facts}\n\n{tables.markdown(*summary_rows(found))}\n".encode())
    return facts, found


def majority(table: Features) -> NDArray[np.float64]:
    """0 or 1 for every row: what most rows of the fold's training patients are."""
    positive, folds = table.positives(), table.folds()
    return np.array([float(positive[folds != fold].mean() > 0.5) for fold in folds])


def _pipeline(*steps: Any) -> Any:
    """Standardised by the training rows, then resampled, then fitted; answering passes resampling by."""
    from imblearn.pipeline import make_pipeline  # noqa: PLC0415 - heavy
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    return make_pipeline(StandardScaler(), *steps)


def _smote(rarer: int, seed: int) -> Any:
    from imblearn.over_sampling import SMOTE  # noqa: PLC0415 - heavy

    return SMOTE(k_neighbors=min(_NEIGHBOURS, rarer - 1), random_state=seed)


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - heavy

    return LogisticRegression(C=_LOGISTIC_C, max_iter=10_000, random_state=seed)


def _forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - heavy

    return RandomForestClassifier(_TREES, min_samples_leaf=2, random_state=seed)


__all__ = [
    "CLASSIFIERS",
    "MAJORITY",
    "Features",
    "Row",
    "answer_all",
    "answers",
    "check",
    "majority",
    "measure",
    "of_maps",
    "regions",
    "study",
]

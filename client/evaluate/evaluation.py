"""Score a model on a site's labelled studies: which patients, which split, and what is said of those it trained on.

Studies are found, left out, numbered and dealt as for training, and nothing is written to the site's home but what
looking at data writes anyway. Places are those that the site has given; a patient who is new gets the place of a first
look, and keeps none. A model that was trained HERE has seen the patients in training, and its rounds were chosen on
those in validation: whose scores are asked for all the same, that is told.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from client.data.check.checkup import Checkup, check_site
from client.data.deidentify.pseudonym import pseudonym
from client.data.isolate.isolation import Job, Readers, Reading
from client.data.keep.index import Index
from client.data.keep.split import KeptSplits, Split
from client.data.survey import Survey, survey
from client.home.folder import CACHE_NAME, FORGOTTEN_NAME, INDEX_NAME, SPLITS_NAME
from client.site import Site
from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import DataError, ErrorCode, WardroundError

Wanted: TypeAlias = Literal["all", "test", "validation", "train"]
Progress: TypeAlias = Callable[[int, int], None]
T = TypeVar("T")  # what a study amounts to

_MOST_REASONS = 8  # sentences, of which some hold a number that is each study's own


@dataclass(frozen=True, eq=False)
class Case(Generic[T]):
    """A scored study. number: as in `data check`; patient: a pseudonym; place: where its patient was dealt to."""

    number: int
    patient: str
    place: Split
    scored: T


@dataclass(frozen=True, eq=False)
class Cases(Generic[T]):
    """All that was scored at a site.

    took_part: whether the model was trained here. cases: of the split that was asked for. validation: of the validation
    patients, on whom a threshold may be chosen; also where others were asked for. left_out: unusable studies by code.
    reasons: the same in sentences, the most frequent first.
    """

    site: str
    wanted: Wanted
    took_part: bool
    cases: tuple[Case[T], ...]
    validation: tuple[Case[T], ...]
    left_out: Mapping[ErrorCode, int]
    reasons: tuple[str, ...]

    @property
    def patients(self) -> dict[str, list[Case[T]]]:
        """The cases by patient."""
        groups: dict[str, list[Case[T]]] = {}
        for case in self.cases:
            groups.setdefault(case.patient, []).append(case)
        return groups

    @property
    def seen(self) -> dict[Split, int]:
        """Patients scored that the model was trained or chosen on, by split; none where it was trained elsewhere."""
        places = [cases[0].place for cases in self.patients.values()]
        return dict(Counter(place for place in places if place != "test")) if self.took_part else {}


@dataclass(frozen=True)
class _Passed:
    """Stands for a study whose split nobody asked for: it was not opened."""

    digest: str


def score_site(
    site: Site,
    run: RunConfig,
    score: Callable[[Reading], T],
    digest: Callable[[T], str],
    *,
    wanted: Wanted,
    took_part: bool,
    readers: int = 1,
    progress: Progress = lambda _done, _total: None,
) -> Cases[T]:
    """Score the studies of a site, one at a time.

    Args:
        site: whose studies.
        run: of the model; its classes, preparation, seed and fractions count.
        score: what a study amounts to; a DataError sets it aside.
        digest: of the image of what was scored.
        wanted: which patients.
        took_part: whether the model was trained here.
        readers: most processes that parse files; 0: parse them in this one.
        progress: called with (studies done, studies).

    Raises:
        ConfigError: a source is described wrongly.
        DataError: NO_DATA, no patient is left to be scored.
    """
    looked = None if wanted == "all" else check_site(site.home, site.config, site.key, issue(run), readers=readers)
    places = None if looked is None else _places(looked, site)

    def read(parsers: Readers, jobs: Sequence[Job]) -> Iterator[T | _Passed | DataError]:
        names = [tuple(pseudonym(site.key, raw) for raw in (job.reference.patient, job.reference.key)) for job in jobs]
        asked = [places is None or places.get(name) in (wanted, "validation") for name in names]
        outcomes = parsers.read([job for job, is_asked in zip(jobs, asked, strict=True) if is_asked])
        for number, is_asked in enumerate(asked):
            yield _scored(next(outcomes), score) if is_asked else _Passed(f"passed {number}")

    def digest_of(one: T | _Passed) -> str:
        return one.digest if isinstance(one, _Passed) else digest(one)

    found: Survey[T | _Passed] = survey(
        site.config,
        run,
        read,
        digest=digest_of,
        kept=None,
        root=site.home,
        site_key=site.key,
        index=Index(site.home / CACHE_NAME / INDEX_NAME, site.key),
        forgotten=site.home / FORGOTTEN_NAME,
        readers=readers,
        progress=progress,
    )
    if places is None:
        dealt = found.deal(run, KeptSplits(site.home / SPLITS_NAME, site.key), keep=False)
        places = {(study.patient, study.name): dealt[study.reference.patient] for study, _ in found.usable}
    cases = [
        Case(study.number, study.patient, places[study.patient, study.name], result)
        for study, result in found.usable
        if not isinstance(result, _Passed)
    ]
    chosen = tuple(case for case in cases if wanted in ("all", case.place))
    problems = {study.number: problem for study, problem in found.refused}
    left_out = Counter(problem.code for problem in problems.values())
    if not chosen:
        # Of a split nobody is read who cannot be used, so what was looked at before says why.
        problems |= {one.number: one.problem for one in looked.quarantined if one.problem} if looked is not None else {}
        raise DataError(_nobody(site, len(found.studies), wanted, _reasons(problems.values())), ErrorCode.NO_DATA)
    validation = tuple(case for case in cases if case.place == "validation")
    return Cases(site.config.name, wanted, took_part, chosen, validation, left_out, _reasons(problems.values()))


def _places(looked: Checkup, site: Site) -> dict[tuple[str, ...], Split]:
    """Where the patient of each usable study is dealt to, by pseudonyms of patient and study: what `data check` says of
    them and remembers. Nobody is scored yet.
    """
    usable = ((one.patient or pseudonym(site.key, ""), one.name, one.split) for one in looked.usable)
    return {(patient, name): split for patient, name, split in usable if split is not None}


def _scored(outcome: Reading | DataError, score: Callable[[Reading], T]) -> T | DataError:
    if isinstance(outcome, DataError):
        return outcome
    try:
        return score(outcome)
    except DataError as error:
        return error
    except WardroundError:
        raise
    except Exception as error:  # noqa: BLE001 - one study must not stop the others, and its text may quote a header
        return DataError(
            f"the study met an unexpected {type(error).__name__}. Report that, and take the study out.",
            ErrorCode.INTERNAL,
        )


def _reasons(problems: Iterable[DataError]) -> tuple[str, ...]:
    """How many studies were left out for what; of the rare reasons only how many there are."""
    counts = Counter((problem.code, str(problem)) for problem in problems).most_common()
    told = [f"{count} left out: {code}: {why}" for (code, why), count in counts[:_MOST_REASONS]]
    rest = sum(count for _, count in counts[_MOST_REASONS:])
    return (*told, f"{rest} left out for other reasons.") if rest else tuple(told)


def _nobody(site: Site, found: int, wanted: Wanted, reasons: Sequence[str]) -> str:
    if not site.config.data:
        return "the site has no data source. Add one: `wardround-client data add FOLDER`."
    split = "" if wanted == "all" else f" of the {wanted} patients"
    others = () if wanted == "all" else ("Those of all splits: --split all.",)
    return " ".join((f"no study{split} can be scored: {found} found.", *reasons, *others))


__all__ = ["Case", "Cases", "Progress", "Wanted", "score_site"]

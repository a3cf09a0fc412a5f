"""predict --from: the studies of a query, pulled for as long as the model needs them; and results sent to a PACS."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from client.commands.models.listen import audit_sent
from client.commands.options.site import counted_progress, forgotten_of
from client.home.sitekey import check_outside
from client.pacs import pulling
from client.pacs.caller import Caller
from client.pacs.pulling import Estimate, Pulled
from client.pacs.query import LABELS, query_of
from client.pacs.sending import send
from client.pacs.settings import peer_of
from client.trail import audit_trail
from common.console.cli import note, pairs
from common.errors import DataError
from common.text import counted

# Of OUT; hidden, and removed whatever happens: also by the next one, where this one was killed.
_PULLED = ".pulled"


@contextmanager
def pulled(home: Path, name: str, query: Sequence[str] | None, out: Path, patience_s: float) -> Iterator[Pulled]:
    """The studies of a query, in a folder that is there for the body alone.

    Args:
        home: the site's.
        name: of the PACS.
        query: as typed, KEY=VALUE.
        out: where results will lie.
        patience_s: how long to try again while the PACS does not answer.

    Raises:
        ConfigError: there is no such PACS, or nothing is asked for.
        DataError: no study came whole.
    """
    peer, asked = peer_of(home, name), query_of(pairs(query, "--query"))
    folder = folder_in(out)
    check_outside(home, [folder])
    shutil.rmtree(folder, ignore_errors=True)
    try:
        note("Asking the PACS ...")
        with Caller(home, peer) as caller:
            wanted = _images_of(pulling.estimate(caller, asked, folder, forgotten_of(home)))
        if not wanted.studies:
            raise DataError("the PACS has no such study for us. Widen the query; `data pull --dry-run` tells more.")
        staging = pulling.staging_of(folder)
        audit_trail.note(home, "data-pulled", audit_trail.count_fields(wanted.patients))
        with Caller(home, peer, staging) as caller, counted_progress("studies pulled") as advance:
            came = pulling.pull(
                caller,
                wanted,
                folder,
                patience_s=patience_s,
                advance=lambda done: advance(done, len(wanted.studies)),
                tell=note,
            )
        for reason, count in came.failed.items():
            note(f"{counted(count, 'study', 'studies')} did not come whole: {reason}")
        if not came.studies:
            raise DataError("no study came whole, and nothing was segmented.")
        shutil.rmtree(staging)
        yield came
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_in(out: Path) -> Path:
    """Where pulled studies lie meanwhile."""
    return out.expanduser().resolve() / _PULLED


def send_results(home: Path, name: str, folders: Sequence[Path], patience_s: float) -> None:
    """Have a PACS take results; done when it lists them.

    Args:
        home: the site's.
        name: of the PACS.
        folders: of the results.
        patience_s: how long to try again while the PACS does not answer.

    Raises:
        PacsError: it does not take them all.
    """
    peer = peer_of(home, name)
    with Caller(home, peer) as caller:
        count = sum(
            pulling.patiently(partial(send, caller, name, folder, partial(audit_sent, home)), patience_s, note)
            for folder in folders
        )
    note(f"{counted(count, 'object')} at {name}, listed there.")


def _images_of(wanted: Estimate) -> Estimate:
    """Without the labels beside them, which no model looks at."""
    studies = [
        study.model_copy(update={"series": tuple(one for one in study.series if one.modality not in LABELS)})
        for study in wanted.studies
    ]
    return replace(wanted, studies=tuple(study for study in studies if study.series))


__all__ = ["folder_in", "pulled", "send_results"]

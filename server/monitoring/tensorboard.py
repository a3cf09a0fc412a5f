"""A run as TensorBoard's event files: a folder for each site, so that their curves share a chart, and one for all.

    FOLDER/SITE       train/train-loss, train/epsilon, validation/dice ... by round, at the time when the round ended
    FOLDER/overall    the means of the sites, round/seconds, round/sites ...; the settings, for the tab HParams

Written by TensorBoard's own library, as torch does. The numbers are the RunView's.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from common.errors import ConfigError
from server.federation.events import OVERALL, Event
from server.registry.proposals import Proposal
from server.views.progress import summary_of
from server.views.run import RunView, view_of

EXTRA = "pip install 'wardround[tensorboard]'"


class EventFiles:
    """The event files of one run, which may go on; to be closed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet.

        Args:
            folder: a new one; TensorBoard would show what lies in it already as the same curves.

        Raises:
            ConfigError: the folder is not empty, or TensorBoard is not installed.
        """
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401, PLC0415 - an extra
        except ImportError as error:
            raise ConfigError(f"TensorBoard's library is not installed. Install it: {EXTRA}") from error
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} is not empty. Name a new folder for TensorBoard's files.")
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._written: dict[tuple[str, str], dict[int, float]] = {}  # by site and tag; round -> value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_about: object) -> None:
        """Flush all to the disk."""
        for writer in self._writers.values():
            writer.close()

    def write(self, view: RunView) -> None:
        """Write what is not written yet. Rounds that a resumed run has done again take the place of those before."""
        if OVERALL not in self._writers:
            self._say_settings(view)
        for measure in view.measures:
            for site, points in measure.series.items():
                self._write_points(view, site, f"{measure.phase}/{measure.name}", points)
        for writer in self._writers.values():
            writer.flush()

    def _write_points(self, view: RunView, site: str, tag: str, points: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 - an extra
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415 - an extra

        written = self._written.setdefault((site, tag), {})
        for number, value in points:
            step = int(number)
            if written.get(step) == value:
                continue
            at = view.moments.get(step) or max(view.moments.values(), default=0.0)
            if step in written:
                again = SessionLog(status=SessionLog.START)
                self._writer(site).add_event(Event(wall_time=at, step=step, session_log=again))
                self._forget(site, step)
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            self._writer(site).add_event(Event(wall_time=at, step=step, summary=summary))
            written[step] = value

    def _forget(self, site: str, step: int) -> None:
        """TensorBoard drops what a site's file has from this step on."""
        for (name, _), written in self._written.items():
            if name == site:
                for later in [one for one in written if one >= step]:
                    del written[later]

    def _say_settings(self, view: RunView) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415 - an extra
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb  # noqa: PLC0415 - an extra

        summary = hparams_pb({key: _plain(value) for key, value in view.settings})
        self._writer(OVERALL).add_event(Event(wall_time=min(view.moments.values(), default=0.0), summary=summary))

    def _writer(self, site: str) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415 - an extra

        if site not in self._writers:
            self._writers[site] = EventFileWriter(str(self._folder / site))
        return self._writers[site]


@contextmanager
def curves_in(folder: Path, results: Path) -> Iterator[Callable[[Proposal, Sequence[Event]], None]]:
    """What writes a run's curves whenever it is told of its events.

    Args:
        folder: a new one, for the event files.
        results: the run's.

    Raises:
        ConfigError: see `EventFiles`.
    """
    with EventFiles(folder) as files:
        yield lambda proposal, events: files.write(view_of(summary_of(results, proposal), events))


def _plain(text: str) -> float | str | bool:
    """A setting as HParams has it: a number, a truth value, or text."""
    value = json.loads(text)
    return value if isinstance(value, int | float | str) else text


__all__ = ["EXTRA", "EventFiles", "curves_in"]

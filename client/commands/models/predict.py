"""wardround-client predict: studies in, segmentations out; once, or whenever a study arrives in a folder."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options.site import HOME, FirstHome, PersonalFlag, counted_progress, personal_of, site_file
from common.console.cli import JsonFlag, configure_logging, note, show_json, show_table
from common.console.signals import asked_to_stop
from common.errors import ConfigError
from common.text import counted

if TYPE_CHECKING:
    from client.predict.prediction import Prediction, StudyResult


def predict(  # noqa: PLR0917 - one parameter an option
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    study: Annotated[Path, typer.Argument(help="A DICOM folder, a NIfTI file, a picture, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of the same name.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what arrives in the folder, until Ctrl-C.")
    ] = False,
    settle: Annotated[float, typer.Option(min=0, help="--watch: seconds without change until a study is whole.")] = 5.0,
    personal: PersonalFlag = False,
    home: FirstHome = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Apply a trained model to studies: DICOM in, DICOM SEG out, with a picture of the contours; or classes as JSON.

    Several studies go to a folder each, and studies.json says which is which. The exit code is 1 if one failed.

    Example: `wardround-client predict wardround-runs/lesions/model.safetensors ct/ --out result`
    """
    own = personal_of(site_file(home).parent) if personal else None
    if watch:
        if overwrite or as_json:
            raise ConfigError("--watch writes a folder for each study and a log. Leave out --overwrite and --json.")
        _watch(model, study, out, settle, device, own)
        return
    from client.predict.prediction import INDEX_NAME, predict_study  # noqa: PLC0415 - torch

    with counted_progress("studies") as advance:
        result = predict_study(model, study, out, device=device, overwrite=overwrite, personal=own, progress=advance)
    if as_json:
        show_json(_values(result, out))
    else:
        _show(result, out)
    for failure in result.failures:
        note(f"study {failure.number}: {failure.code}: {failure.reason}")
    if result.failures:
        total = len(result.failures) + len(result.studies)
        note(
            f"{len(result.failures)} of {counted(total, 'study', 'studies')} failed. "
            f"{out / INDEX_NAME} says which files they are."
        )
        raise typer.Exit(1)


def _watch(  # noqa: PLR0917 - as they are typed
    model: Path, folder: Path, out: Path, settle_s: float, device: str, personal: Callable[[str], bytes] | None
) -> None:
    from client.predict.service import watch  # noqa: PLC0415 - torch

    stopped = asked_to_stop()
    configure_logging()
    logging.getLogger("client").setLevel(logging.INFO)
    note("Ctrl-C or SIGTERM stops after the study in hand.")
    watch(model, folder, out, settle_s=settle_s, device=device, personal=personal, stopped=stopped)


def _values(result: "Prediction", out: Path) -> dict[str, object]:
    return {
        "studies": [
            {
                "study": done.number,
                "slices": done.slices,
                "voxels": done.voxels,
                "told": None if done.told is None else asdict(done.told),
                "seconds": asdict(done.seconds),
                "files": [file.relative_to(out).as_posix() for file in done.files],
                "notes": list(done.notes),
            }
            for done in result.studies
        ],
        "failures": [asdict(failure) for failure in result.failures],
        "latency-ms": [asdict(row) for row in result.latency],
        "seconds": result.seconds,
    }


def _show(result: "Prediction", out: Path) -> None:
    rows = [
        (
            done.number,
            done.slices,
            _found(done),
            ", ".join(file.relative_to(out).as_posix() for file in done.files),
        )
        for done in result.studies
    ]
    show_table(f"Results in {out}", ("study", "slices", "found", "files"), rows)
    columns = ("ms", "volume: median", "95 %", "slice: median", "95 %")
    latency = [tuple(asdict(row).values()) for row in result.latency]
    show_table("Latency, model loaded and warm", columns, [(row[0], *map(_rounded, row[1:])) for row in latency])
    for text in result.notes:
        note(text)


def _found(done: "StudyResult") -> str:
    """Voxels by class, or the answer with each probability."""
    if done.told is None:
        return ", ".join(f"{name} {count} voxels" for name, count in done.voxels.items())
    chances = ", ".join(f"{name} {chance:.3f}" for name, chance in done.told.chances.items())
    return f"{', '.join(done.told.answer) or 'none of the classes'} ({chances})"


def _rounded(milliseconds: float) -> str:
    return f"{milliseconds:.1f}"

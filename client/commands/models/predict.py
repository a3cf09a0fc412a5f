"""wardround-client predict: studies in, segmentations out; once, or whenever a study arrives in a folder."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.commands.models.listen import listen as _listen
from client.commands.models.pulled import folder_in, pulled, send_results
from client.commands.options.site import HOME, FirstHome, PersonalFlag, counted_progress, personal_of, site_file
from client.pacs.arrivals.settings import listening_at
from common.console.cli import JsonFlag, configure_logging, note, show_json, show_table
from common.console.signals import asked_to_stop
from common.errors import ConfigError
from common.text import counted

if TYPE_CHECKING:
    from client.predict.prediction import Prediction, StudyResult

_PATIENCE_S = 3600.0


def predict(  # noqa: PLR0917 - one parameter an option
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    study: Annotated[
        Path | None, typer.Argument(help="A DICOM folder, a NIfTI file, a picture, or a folder of them.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of the same name.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with what arrives in the folder, until Ctrl-C.")
    ] = False,
    settle: Annotated[
        float, typer.Option(min=0, help="--watch, --listen: seconds without change until a study is whole.")
    ] = 5.0,
    pacs: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="In place of STUDY: a PACS, as in `pacs list`.")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", help="--from: which studies, KEY=VALUE, as for `data pull`; repeatable."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="ADDRESS:PORT", help="In place of STUDY: wait here for what others send by C-STORE."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="--listen: our AE title.  [default: WARDROUND]")] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="--listen: an AE title that may send; repeatable, others are refused.")
    ] = None,
    stow: Annotated[
        bool, typer.Option("--stow", help="--listen: for what is sent by STOW-RS (DICOMweb), not by C-STORE.")
    ] = False,
    token: Annotated[
        Path | None, typer.Option(help="--stow: a file with the bearer token that who sends must show.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="--listen: PEM file of ours: TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="--listen: PEM file with its key, without a passphrase.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="--listen: PEM file; who sends must show a certificate that it has signed.")
    ] = None,
    send_to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="--from, --listen: send each DICOM result to this PACS, until it lists it."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Beside a DICOM result: measurements as a DICOM SR (TID 1500), and the picture as DICOM."
        ),
    ] = False,
    personal: PersonalFlag = False,
    home: FirstHome = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Apply a trained model to studies: DICOM in, DICOM SEG out, with a picture of the contours; or classes as JSON.

    Studies are a path, or what a PACS has (--from), or what others send (--listen).

    Several studies go to a folder each, and studies.json says which is which. The exit code is 1 if one failed.

    Example: `wardround-client predict wardround-runs/lesions/model.safetensors ct/ --out result`
    """
    if [study is not None, pacs is not None, listen is not None].count(True) != 1:
        raise ConfigError("say where the studies are: a path, or --from NAME, or --listen ADDRESS:PORT; one of them.")
    if (watch or listen) and (overwrite or as_json):
        raise ConfigError(
            "--watch and --listen write a folder for each study and a log. Leave out --overwrite and --json."
        )
    if watch and study is None:
        raise ConfigError("--watch needs a folder. Leave it out: --listen goes on by itself, and --from ends.")
    if listen is None and (stow or token):
        raise ConfigError("--stow and --token go with --listen ADDRESS:PORT.")
    if send_to is not None and study is not None:
        raise ConfigError("--send-to goes with --from or --listen.")
    own = personal_of(site_file(home).parent) if personal else None
    site = site_file(home).parent if pacs or send_to else home
    if listen is not None:
        files = {"certificate": tls_certificate, "key": tls_key, "ca": tls_ca, "token": token}
        given: dict[str, Any] = {"title": title, "accept": tuple(accept or ())}
        given |= {what: str(path.expanduser().resolve()) for what, path in files.items() if path is not None}
        where = listening_at(listen, stow=stow, quiet=settle, **given)
        _until_stopped(lambda stopped: _listen(model, out, site, where, send_to, device, own, stopped, reports=report))
    elif watch and study is not None:
        _until_stopped(partial(_watch, model, study, out, settle, device, own, reports=report))
    elif pacs is not None:
        with pulled(site, pacs, query, out, _PATIENCE_S) as came:
            result = _predicted(model, folder_in(out), out, device, own, overwrite=overwrite, reports=report)
        if send_to is not None:
            folders = list(dict.fromkeys(file.parent for file in result.files))
            send_results(site, send_to, folders, _PATIENCE_S)
        _tell(result, out, as_json=as_json)
        if came.failed:
            raise typer.Exit(1)
    elif study is not None:
        _tell(_predicted(model, study, out, device, own, overwrite=overwrite, reports=report), out, as_json=as_json)


def _predicted(
    model: Path,
    study: Path,
    out: Path,
    device: str,
    own: Callable[[str], bytes] | None,
    *,
    overwrite: bool,
    reports: bool,
) -> "Prediction":
    from client.predict.prediction import predict_study  # noqa: PLC0415 - torch

    with counted_progress("studies") as advance:
        return predict_study(
            *(model, study, out),
            device=device,
            overwrite=overwrite,
            personal=own,
            reports=reports,
            progress=advance,
        )


def _tell(result: "Prediction", out: Path, *, as_json: bool) -> None:
    """Show what was done; the exit code is 1 where a study failed."""
    from client.predict.prediction import INDEX_NAME  # noqa: PLC0415 - torch

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


def _until_stopped(serve: Callable[[Callable[[], bool]], None]) -> None:
    stopped = asked_to_stop()
    configure_logging()
    logging.getLogger("client").setLevel(logging.INFO)
    serve(stopped)


def _watch(  # noqa: PLR0917 - as they are typed
    model: Path,
    folder: Path,
    out: Path,
    settle_s: float,
    device: str,
    personal: Callable[[str], bytes] | None,
    stopped: Callable[[], bool],
    *,
    reports: bool,
) -> None:
    from client.predict.service import watch  # noqa: PLC0415 - torch

    note("Ctrl-C or SIGTERM stops after the study in hand.")
    watch(model, folder, out, settle_s=settle_s, device=device, personal=personal, reports=reports, stopped=stopped)


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

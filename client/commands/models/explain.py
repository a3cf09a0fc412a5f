"""wardround-client explain: maps of what a model's answer to a study depends on."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options.site import counted_progress
from common.console.cli import JsonFlag, note, show_json, show_table
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.explain.explanation import Explanation


def explain(  # noqa: PLR0917 - one parameter an option
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    study: Annotated[Path, typer.Argument(help="A DICOM folder of one series, a NIfTI file or a picture.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="grad-cam, occlusion, integrated-gradients, attention, uncertainty-dropout or uncertainty-ensemble; "
            "repeatable.  [default: grad-cam]"
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--class", help="A class of the model; repeatable.")] = None,
    member: Annotated[
        list[Path] | None, typer.Option(help="uncertainty-ensemble: a further model; repeatable.")
    ] = None,
    slices: Annotated[int, typer.Option(min=1, help="A 2D model on a series: most slices to explain.")] = 4,
    layer: Annotated[str, typer.Option(help="grad-cam: deepest or last.")] = "deepest",
    passes: Annotated[int, typer.Option(min=16, help="occlusion: about so many passes in all.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of dropout and of the random weights of the check.")] = 0,
    dicom: Annotated[bool, typer.Option("--dicom", help="Also DICOM Secondary Captures for the study.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of the same name.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a model's answer to a study depends on, and check that the map depends on the model.

    A map shows where the model's number is sensitive, not why. It is for no diagnosis.

    Example: `wardround-client explain wardround-runs/lesions/model.safetensors ct/ --out why --method occlusion`
    """
    from client.explain.explanation import Wanted, explain_study  # noqa: PLC0415 - torch
    from client.explain.files import CAVEATS, encode, report, warnings  # noqa: PLC0415 - torch
    from client.predict.files import write_result  # noqa: PLC0415 - image libraries
    from client.predict.prediction import check_apart  # noqa: PLC0415 - torch

    check_apart(study, out)
    wanted = Wanted(tuple(method or ("grad-cam",)), tuple(only or ()), slices, layer, passes, seed)
    with counted_progress("samples") as advance:
        explanation = explain_study(model, study, wanted, members=member or (), device=device, progress=advance)
    files = encode(explanation, dicom=dicom, created=datetime.datetime.now())
    if not overwrite and (there := sum((out / name).exists() for name in files)):
        raise ConfigError(f"--out holds {there} of these results already. Give another --out, or --overwrite.")
    write_result(out, files)
    if as_json:
        show_json({**report(explanation), "files": sorted(files)})
    else:
        _show(explanation, out)
    for text in warnings(explanation):
        note(text)
    for text in (*CAVEATS, *dict.fromkeys(text for one in explanation.methods for text in one.method.caveats)):
        note(text)


def _show(explanation: "Explanation", out: Path) -> None:
    rows = [
        (
            explained.method.name,
            result.name,
            result.inside,
            result.outside,
            result.sanity.spearman,
            result.sanity.ssim,
            explained.answer.passes,
            explained.seconds,
        )
        for explained in explanation.methods
        for result in explained.maps
    ]
    columns = ("method", "map", "mean inside", "outside", "random: Spearman", "SSIM", "passes", "seconds")
    show_table(f"Maps in {out}", columns, rows)
    numbers = [
        (one.method.name, name, value) for one in explanation.methods for name, value in one.answer.numbers.items()
    ]
    if numbers:
        show_table("Numbers", ("method", "number", "value"), numbers)
    odds = [(name, value, explanation.voxels.get(name)) for name, value in explanation.odds.items()]
    show_table("What is explained", ("class", "log-odds", "voxels"), odds)

"""wardround-client predict: studies in, segmentations out."""

from pathlib import Path
from typing import Annotated

import typer

from client.shell import counted_progress
from common.cli import JsonFlag, note, show_table


def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    study: Annotated[Path, typer.Argument(help="A DICOM folder, a NIfTI file or a picture.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Segment a study with a trained model: DICOM in, DICOM SEG out, with a picture of the contour.

    Example: `wardround-client predict wardround-runs/lesions/model.safetensors ct/ --out result`
    """
    from client.predict import predict_study  # noqa: PLC0415 - torch

    with counted_progress("studies") as advance:
        result = predict_study(model, study, out, device=device, progress=advance)
    rows = [
        (
            done.number,
            done.slices,
            sum(done.voxels.values()),
            round(done.network_seconds, 2),
            ", ".join(f.name for f in done.files),
        )
        for done in result.studies
    ]
    show_table("Prediction", ("study", "slices", "voxels found", "network s", "files"), rows, as_json=as_json)
    for failure in result.failures:
        note(f"study {failure.number}: {failure.reason}")
    if result.failures:
        raise typer.Exit(1)

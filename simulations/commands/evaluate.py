"""wardround-sim evaluate: a model on a folder of labelled images, or on the sites of a scenario."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.commands.evaluate import show
from common.config import SiteConfig, SourceConfig, validate
from common.console.cli import JsonFlag, configure_logging, note, pairs
from common.errors import ConfigError
from simulations.commands.options import DataOption, DeviceOption, OutOption, ThreadsOption, VerboseOption
from simulations.commands.preparation import use_threads

# The site that a folder is taken for.
FOLDER = "folder"


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run's folder, or its model.safetensors.")],
    *,
    out: OutOption,
    data: DataOption = None,
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="Score on the test patients of its sites; --data is its folder.")
    ] = None,
    split: Annotated[
        Literal["all", "test", "validation", "train"] | None,
        typer.Option(help="Which patients; default: test at sites that trained the model, else all."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of the surface Dice, mm; pixels of images without spacing.")
    ] = 1.0,
    kind: Annotated[str | None, typer.Option(help="Of a folder: dicom, nifti, images or mias.")] = None,
    csv: Annotated[str | None, typer.Option(help="Of a folder: CSV with a row per image, relative to it.")] = None,
    image_column: Annotated[str, typer.Option(help="The CSV's column with the image's file.")] = "image",
    mask_column: Annotated[str, typer.Option(help="The CSV's column with the label's file.")] = "mask",
    patient_column: Annotated[str, typer.Option(help="The CSV's column with the patient.")] = "id",
    region_column: Annotated[
        str | None, typer.Option(help="The CSV's column with a mask of the field of view; only what is inside counts.")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="CSV rows to use: COLUMN=VALUE; repeatable.")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group is the patient.")
    ] = None,
    label_map: Annotated[list[str] | None, typer.Option(help="LOCAL=CLASS, such as 1=lesion; repeatable.")] = None,
    empty_labels_are_negative: Annotated[
        bool, typer.Option("--empty-labels-are-negative", help="A label that marks nothing says: nothing there.")
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a model on labelled images: overlap, distances in mm, volumes, probabilities, each patient, the worst site.

    Example: wardround-sim evaluate results/vessels --data images/drive --csv drive.csv --out results/on-drive
    """
    configure_logging(verbose=verbose)
    from client.evaluate import report  # noqa: PLC0415 - torch
    from client.evaluate.model import evaluate as score  # noqa: PLC0415
    from simulations.scenarios.scenario import load_scenario, make_site, prepare  # noqa: PLC0415

    use_threads(threads)
    report.refuse_to_overwrite(out)
    if scenario is not None:
        sites = prepare(load_scenario(scenario), out, data=data, device=device)
    elif data is None:
        raise ConfigError("there is nothing to score. Give a folder with --data, or a scenario with --scenario.")
    else:
        values = {
            "path": str(data.expanduser().absolute()),
            "kind": kind,
            "csv": csv,
            "image_column": image_column,
            "mask_column": mask_column,
            "patient_column": patient_column,
            "region_column": region_column,
            "where": pairs(where, "--where"),
            "patient_pattern": patient_pattern,
            "label_map": pairs(label_map, "--label-map"),
            "empty_labels_are_negative": empty_labels_are_negative,
        }
        source = validate(SourceConfig, values, "evaluate")
        sites = [
            make_site(
                out / "sites",
                SiteConfig(format=SiteConfig.LATEST, name=FOLDER, data=(source,), device=device or "auto"),
            )
        ]
    found = score(
        model,
        sites,
        wanted=split,
        tolerance=tolerance,
        device=device or "auto",
        readers=threads or os.cpu_count() or 1,
        progress=lambda site, done, total: note(f"{site}: {done} of {total}") if verbose else None,
    )
    for one in found.sites if found.together is not None else ():
        report.write(out / one.site, found, one)
    show(out, found, found.together or found.sites[0], as_json=as_json)


__all__ = ["evaluate"]

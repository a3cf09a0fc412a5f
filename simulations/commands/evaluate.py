"""wardround-sim evaluate: a model on a folder of labelled images, or on the sites of a scenario."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from client.commands.models.evaluate import show
from client.commands.options import folder_options
from client.commands.options.folder_options import source_of
from common.config import Device, SiteConfig
from common.console.cli import JsonFlag, configure_logging, note
from common.errors import ConfigError
from simulations.api.preparation import use_threads
from simulations.commands.options import ThreadsOption, VerboseOption

# The site that a folder is taken for.
FOLDER = "folder"


def evaluate(
    model: Annotated[Path, typer.Argument(help="A run's folder, or its model.safetensors.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the scores and the report; one that has them already is refused.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of labelled images; with --scenario, of the scenario's images."),
    ] = None,
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
    kind: folder_options.Kind = None,
    csv: folder_options.Csv = None,
    image_column: folder_options.ImageColumn = "image",
    mask_column: folder_options.MaskColumn = "mask",
    patient_column: folder_options.PatientColumn = "id",
    class_column: folder_options.ClassColumn = None,
    region_column: folder_options.RegionColumn = None,
    class_attribute: folder_options.ClassAttribute = None,
    class_reports: folder_options.ClassReports = False,
    where: folder_options.Where = None,
    images: folder_options.Images = "images",
    labels: folder_options.Labels = "labels",
    patient_pattern: folder_options.PatientPattern = None,
    image_pattern: folder_options.ImagePattern = None,
    label_pattern: folder_options.LabelPattern = None,
    label_map: folder_options.LabelMap = None,
    fractional_threshold: folder_options.FractionalThreshold = 0.5,
    empty_labels_are_negative: folder_options.EmptyLabelsAreNegative = False,
    labels_checked: folder_options.LabelsChecked = False,
    pixel_text_checked: folder_options.PixelTextChecked = False,
    channel: folder_options.Channel = None,
    threads: ThreadsOption = None,
    device: Annotated[
        Device | None, typer.Option("--device", help="Where the model is applied: auto, cpu or cuda; default: auto.")
    ] = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a model on labelled images: overlap, distances in mm, volumes, probabilities, each patient, the worst site.

    Example: wardround-sim evaluate results/vessels --data images/drive --csv drive.csv --out results/on-drive
    """
    configure_logging(verbose=verbose)
    from client.evaluate import report  # noqa: PLC0415 - torch
    from client.evaluate.model import evaluate as score  # noqa: PLC0415
    from simulations.scenarios.homes import make_site  # noqa: PLC0415
    from simulations.scenarios.scenario import load_scenario, prepare  # noqa: PLC0415

    use_threads(threads)
    report.refuse_to_overwrite(out)
    if scenario is not None:
        sites = prepare(load_scenario(scenario), out, data=data, device=device)
    elif data is None:
        raise ConfigError("there is nothing to score. Give a folder with --data, or a scenario with --scenario.")
    else:
        source = source_of(
            "evaluate",
            data.expanduser().absolute(),
            kind=kind,
            csv=csv,
            image_column=image_column,
            mask_column=mask_column,
            patient_column=patient_column,
            class_column=class_column,
            region_column=region_column,
            class_attribute=class_attribute,
            class_reports=class_reports,
            where=where,
            images=images,
            labels=labels,
            patient_pattern=patient_pattern,
            image_pattern=image_pattern,
            label_pattern=label_pattern,
            label_map=label_map,
            fractional_threshold=fractional_threshold,
            empty_labels_are_negative=empty_labels_are_negative,
            labels_checked=labels_checked,
            pixel_text_checked=pixel_text_checked,
            channel=channel,
        )
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

"""wardround-sim new, preview and scenarios: scenario files, drafted from a folder or shipped, before they run.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from client.commands.options import folder_options
from client.commands.options.folder_options import source_of
from client.commands.options.site import counted_progress
from common.console.cli import JsonFlag, note, progress, say, show_json, show_table
from common.errors import ConfigError
from common.system.files import write_atomically
from common.text import counted
from simulations.commands.options import DataOption, ScenarioArgument


def new(  # noqa: PLR0917 - one parameter an option
    folder: Annotated[Path, typer.Argument(help="A folder of DICOM, NIfTI or pictures, with their labels.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. Default: NAME.toml here, NAME being the folder's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    modality: Annotated[
        str | None, typer.Option("--modality", help="CT, MR, CR, DX, MG, US or photo, where the files do not say.")
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Go on without the studies that cannot be used.")
    ] = False,
    kind: folder_options.Kind = None,
    csv: folder_options.Csv = None,
    image_column: folder_options.ImageColumn = "image",
    mask_column: folder_options.MaskColumn = "mask",
    patient_column: folder_options.PatientColumn = "id",
    class_column: folder_options.ClassColumn = None,
    class_attribute: folder_options.ClassAttribute = None,
    where: folder_options.Where = None,
    images: folder_options.Images = "images",
    labels: folder_options.Labels = "labels",
    patient_pattern: folder_options.PatientPattern = None,
    image_pattern: folder_options.ImagePattern = None,
    label_pattern: folder_options.LabelPattern = None,
    label_map: folder_options.LabelMap = None,
    empty_labels_are_negative: folder_options.EmptyLabelsAreNegative = False,
    labels_checked: folder_options.LabelsChecked = False,
    pixel_text_checked: folder_options.PixelTextChecked = False,
    channel: folder_options.Channel = None,
) -> None:
    """Look at a folder of labelled images and write a scenario for it, with what was assumed, that runs as it is.

    Example: wardround-sim new path/to/images --out mine.toml
    """
    from simulations.drafts.text import draft, name_of  # noqa: PLC0415 - image libraries

    if not folder.expanduser().is_dir():
        raise ConfigError(f"{folder} is no folder that is there. Give the folder that holds images and labels.")
    place = out or Path(f"{name_of(folder.expanduser())}.toml")
    if place.suffix != ".toml":
        raise ConfigError(f"--out is {place}, expected the name of a .toml file: a folder is given to `run`.")
    if place.exists() and not force:
        raise ConfigError(f"{place} is there already. Give another name with --out, or --force to write over it.")
    source = source_of(
        "new",
        folder.expanduser().resolve(),
        kind=kind,
        csv=csv,
        image_column=image_column,
        mask_column=mask_column,
        patient_column=patient_column,
        class_column=class_column,
        class_attribute=class_attribute,
        where=where,
        images=images,
        labels=labels,
        patient_pattern=patient_pattern,
        image_pattern=image_pattern,
        label_pattern=label_pattern,
        label_map=label_map,
        empty_labels_are_negative=empty_labels_are_negative,
        labels_checked=labels_checked,
        pixel_text_checked=pixel_text_checked,
        channel=channel,
    )
    with counted_progress("studies") as advance:
        made = draft(
            source,
            name_of(Path(place.stem)),
            modality=modality,
            leave_out=leave_out,
            progress=advance,
        )
    write_atomically(place, made.text.encode())
    sizes = ", ".join(f"{site} {count}" for site, count in made.sizes.items())
    say(f"{place}: {counted(made.studies, 'study', 'studies')}; patients by site: {sizes}")
    for sentence in made.assumed:
        note(f"Assumed: {sentence}")
    for sentence in made.unknown:
        note(f"Not known: {sentence}")
    note(f"What each site gets: wardround-sim preview {shlex.quote(str(place))}")
    note(f"Next: wardround-sim run {shlex.quote(str(place))} --out {Path('out') / made.name}")


def preview(
    scenario: ScenarioArgument,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for a page with pictures; a later `run` there reads less anew.")
    ] = None,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Deal the patients of a scenario and show what each site gets: labels, sizes, intensities. Nothing is trained.

    Example: wardround-sim preview vessels --data images/vessels --out results/preview
    """
    from simulations.scenarios.scenario import load_scenario, prepare  # noqa: PLC0415

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from simulations.studies import preview as views  # noqa: PLC0415

    run = chosen.config.run
    shifts = {name: [one.in_words for one in chosen.config.shifts_at(name)] for name in chosen.config.site_names}
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(TemporaryDirectory()))
        sites = prepare(chosen, folder, data=data)
        with progress("looking at sites", len(sites)) as advance:
            told = views.preview(run, sites, readers=os.cpu_count() or 1, shifts=shifts, progress=advance)
    if as_json:
        show_json(views.as_data(told))
    else:
        show_table(f"{run.name}: patients", *views.patient_rows(told))
        if any(shifts.values()):
            show_table("Shifts", *views.shift_rows(told))
        show_table("Labels", *views.label_rows(told))
        show_table("Images", *views.image_rows(told))
    if out is not None:
        note(f"page {views.write(out, run.name, told)}")


def scenarios(as_json: JsonFlag = False) -> None:
    """List the scenarios that come with Wardround.

    Example: wardround-sim scenarios
    """
    from simulations.scenarios.scenario import shipped  # noqa: PLC0415

    rows = [
        [one.name, one.config.title, f"{one.config.run.model.dims}D", list(one.config.site_names)] for one in shipped()
    ]
    show_table("Scenarios", ["name", "what", "model", "sites"], rows, as_json=as_json)


__all__ = ["new", "preview", "scenarios"]

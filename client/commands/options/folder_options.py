"""How a folder of images is read, as options of a command: what a source of site.toml has, by the same names.

For every command that takes such a folder. What a key means: `common.config.SourceConfig`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from common.config import SourceConfig, validate
from common.console.cli import pairs

Kind: TypeAlias = Annotated[
    str | None, typer.Option("--kind", help="dicom, nifti, images or mias; default: by looking.")
]
Csv: TypeAlias = Annotated[
    str | None, typer.Option("--csv", help="images: CSV with a row per image, relative to the folder.")
]
ImageColumn: TypeAlias = Annotated[str, typer.Option("--image-column", help="The CSV's column with the image's file.")]
MaskColumn: TypeAlias = Annotated[str, typer.Option("--mask-column", help="The CSV's column with the label's file.")]
PatientColumn: TypeAlias = Annotated[str, typer.Option("--patient-column", help="The CSV's column with the patient.")]
ClassColumn: TypeAlias = Annotated[
    str | None, typer.Option("--class-column", help="The CSV's column with the class of the image.")
]
RegionColumn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--region-column", help="The CSV's column with a mask of the field of view; only what is in it is scored."
    ),
]
ClassAttribute: TypeAlias = Annotated[
    str | None, typer.Option("--class-attribute", help="DICOM: keyword or tag with that class.")
]
ClassReports: TypeAlias = Annotated[
    bool, typer.Option("--class-reports", help="DICOM: that class is a coded finding of structured reports.")
]
Where: TypeAlias = Annotated[
    list[str] | None, typer.Option("--where", help="CSV rows to use: COLUMN=VALUE; repeatable.")
]
Images: TypeAlias = Annotated[
    str, typer.Option("--images", help="Sub-folder of the images (NIfTI, pictures without CSV).")
]
Labels: TypeAlias = Annotated[str, typer.Option("--labels", help="Sub-folder of the labels.")]
PatientPattern: TypeAlias = Annotated[
    str | None, typer.Option("--patient-pattern", help="Regular expression; its first group is the patient.")
]
ImagePattern: TypeAlias = Annotated[
    str | None,
    typer.Option("--image-pattern", help="Regular expression of the images' paths; its first group is the case."),
]
LabelPattern: TypeAlias = Annotated[
    str | None, typer.Option("--label-pattern", help="Likewise of the labels, with the same case.")
]
LabelMap: TypeAlias = Annotated[
    list[str] | None, typer.Option("--label-map", help="LOCAL=CLASS, such as 1=lesion; repeatable.")
]
FractionalThreshold: TypeAlias = Annotated[
    float, typer.Option("--fractional-threshold", help="Fractional DICOM SEG: foreground from here on.")
]
EmptyLabelsAreNegative: TypeAlias = Annotated[
    bool, typer.Option("--empty-labels-are-negative", help="A label that marks nothing says: nothing there.")
]
LabelsChecked: TypeAlias = Annotated[
    bool, typer.Option("--labels-checked", help="A person has looked: take labels that are called doubtful.")
]
PixelTextChecked: TypeAlias = Annotated[
    bool, typer.Option("--pixel-text-checked", help="A person has looked: no patient is named in the pixels.")
]
Channel: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--channel", min=0, help="Of NAME_0000, NAME_0001, or of red, green, blue, the one to use; default: all."
    ),
]


def source_of(
    command: str, path: Path, *, where: Sequence[str] | None, label_map: Sequence[str] | None, **keys: Any
) -> SourceConfig:
    """The source that the options describe.

    Args:
        command: named in errors.
        path: of the folder, absolute.
        where: entries COLUMN=VALUE.
        label_map: entries LOCAL=CLASS.
        keys: the other options, by the source's keys.

    Raises:
        ConfigError: an option is wrong.
    """
    given = {"path": str(path), "where": pairs(where, "--where"), "label_map": pairs(label_map, "--label-map")}
    return validate(SourceConfig, {**keys, **given}, command)

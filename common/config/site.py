"""site.toml: what a hospital offers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.document.formats import Since
from common.document.table import Count, Document, Name, Table


class SourceConfig(Table):
    """One folder of images at a site."""

    # Relative paths are relative to the file that names them.
    path: str
    # None: chosen by looking at the files.
    kind: Literal["dicom", "nifti", "images", "mias"] | None = None
    # images: a CSV with one row per image, and its columns.
    csv: str | None = None
    image_column: str = "image"
    mask_column: str = "mask"
    patient_column: str = "id"
    # Its column with the class of the image as a whole, in a site's own words ("a|b" for several): see label-map. The
    # mask column need not be there then.
    class_column: Annotated[str | None, Since(2)] = None
    # Its column with a mask of the field of view, not 0 inside: an evaluation (docs/evaluation.md) counts there alone.
    region_column: Annotated[str | None, Since(2)] = None
    # dicom: the attribute with that class, by keyword or tag, such as "0040,0254"; or whether structured reports tell
    # it by a coded finding.
    class_attribute: Annotated[str | None, Since(2)] = None
    class_reports: Annotated[bool, Since(2)] = False
    # Rows of the CSV to use, such as {site = "drive"}.
    where: dict[str, str] = Field(default_factory=dict)
    # nifti, and images without a CSV: sub-folders; image and label share the file name.
    images: str = "images"
    labels: str = "labels"
    # nifti, and images without a CSV, whose names tell in no other way: regular expressions for the path of a file in
    # the folder, without its ending. The first group is the case: what an image and its label have in common. Several
    # images of a case are its channels, in the order of their names.
    image_pattern: Annotated[str | None, Since(2)] = None
    label_pattern: Annotated[str | None, Since(2)] = None
    # nifti and images: of an image of several files (NAME_0000, NAME_0001, as nnU-Net keeps channels) or of several
    # channels (red, green, blue) the one to use. None: all.
    channel: Annotated[int, Field(ge=0)] | None = None
    # Regular expression whose first group names the patient within a file or CSV name.
    patient_pattern: str | None = None
    # Local label value, class of the whole image, segment label, code of a segment's property type (such as
    # "SCT:10200004") or ROI name -> class of the run. Empty: names and order as in the run.
    label_map: dict[str, Name] = Field(default_factory=dict)
    # dicom: a voxel of a fractional segmentation counts from this share of its maximum on.
    fractional_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    # A label that marks nothing is a finding of its own ("no lesion here"). Without this it is taken for unfinished
    # work, and its study set aside as label-empty.
    empty_labels_are_negative: bool = False
    # A person has looked at the labels that changed on their way or contradict themselves (holes between slices, parts
    # that fall outside of the image, two versions) and wants them as they are. Without this they are label-doubtful.
    labels_checked: bool = False
    # dicom: a person has looked at the images that say they carry text, and at screenshots, and found no patient
    # named. Without this they are set aside.
    pixel_text_checked: bool = False
    # Only these patients (as the source names them). Empty: all. Used to share one archive among simulated sites.
    patients: tuple[str, ...] = ()


Device = Literal["auto", "cpu", "cuda"]


class SiteConfig(Document):
    """site.toml: what a hospital offers. Stays at the hospital."""

    KIND: ClassVar[str] = "site.toml"
    LATEST: ClassVar[int] = 2

    name: Name
    data: tuple[SourceConfig, ...] = ()
    # Publicly declared number of patients: delta and the expected number of patients in a step follow from it.
    # None: the number found for the first private run of a modality, rounded up to a multiple of 5, and kept from then
    # on (state/declared.json): it must not follow the live count.
    cohort_size: Count | None = None
    # None: all cores. 1 for results that must be bit-equal elsewhere.
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    device: Device = "auto"

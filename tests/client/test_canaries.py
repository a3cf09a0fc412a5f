"""Nothing that identifies survives what the product does: canaries go in with the images, and no byte of what is
written, logged, printed, raised or sent holds one.

    in    one usable CT series with its DICOM SEG: every row of PS3.15 Table E.1-1 in six places; 21 studies that are
          broken in as many ways; a NIfTI and a picture source; canaries in file and folder names
    run   data add, data check (headers, and as the run), the cohort with its cache twice, a private training round and
          an evaluation as the worker answers them, all loggers at DEBUG, the exit gate, a real worker process
    out   all files of the home but the key and the TLS folder; stdout and stderr; the log with its tracebacks; errors
          and their causes; frames on the pipe; what the agent sends

`predict` is left out: its DICOM SEG belongs to the patient's record, and names the patient on purpose.
"""

import logging
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from flwr.app import DEFAULT_TTL, Metadata
from flwr.app.message import make_message
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import config
from typer.testing import CliRunner

from client.agent.worker_process import Worker
from client.commands.main import app
from client.data.read import sources
from client.data.study.labels import Vocabulary
from client.home.offer import Offer
from client.rules import approvals, exit_gate
from client.site import open_site
from client.worker import loop, protocol
from client.worker.protocol import Describe, Question, Work
from common.config import sha256_of
from common.config.rundocument import from_toml, issue
from common.errors import DataError
from common.flower.packing import pack_message
from common.learning.checkpoint import pack
from common.learning.network import build_model
from common.wire.messages import EvaluateRequest, Refusal, TrainReply, TrainRequest
from common.wire.records import reply_to_record
from tests.client.canaries import COMMANDS, PLACES, break_studies, canaries, found_in, plant
from tests.client.data.studies import run_config
from tests.patience import PATIENCE_S

ROWS = 621
RUN = run_config(
    model={"channels": [4, 8], "residual-units": 0},
    training={"patch-size": [16, 16], "local-steps": 2, "batch-size": 2},
    data={"modality": "CT", "classes": ["lesion"], "validation-fraction": 0.0, "test-fraction": 0.0},
    privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1},
)
POLICY = "min-patients = 1\nlifetime-epsilon = 100.0\n"
SECRETS = ("site.key", "tls")
# Typed where the table lets terms and labels stay: Segment Label, Segmentation Type, Modality, Photometric
# Interpretation, Specific Character Set, Image Type, Rescale Type. Only the export by the profile trusts these.
KEPT_BY_THE_STANDARD = {f"CANARY900{number}".encode() for number in (20, 21, 24, 25, 26, 27, 28)}


@dataclass
class Scene:
    """A hospital after a day's work: what was planted, and all that came out, by where."""

    home: Path
    planted: set[bytes]
    written: int  # canaries of the table
    broken: int
    out: dict[str, bytes] = field(default_factory=dict)
    offer: Offer | None = None
    trained: TrainReply | None = None

    def survivors(self) -> dict[str, list[bytes]]:
        found = {}
        for name, content in self.out.items():
            kept = KEPT_BY_THE_STANDARD if name.startswith("out/") else set()
            found[name] = sorted((self.planted & found_in(content)) - kept)
        return {name: some for name, some in found.items() if some}


@pytest.fixture(scope="module")
def scene(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("hospital")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
        one = _planted(data / "dicom_standard" / "confidentiality_profile_attributes.json", folder)
    log = _Log()
    root = logging.getLogger()
    level = root.level
    root.addHandler(log)
    root.setLevel(logging.DEBUG)
    try:
        _work(one, folder)
    finally:
        root.removeHandler(log)
        root.setLevel(level)
    one.out["log"] = "\n".join(log.lines).encode()
    for path in sorted(path for path in one.home.rglob("*") if path.is_file()):
        name = path.relative_to(one.home).as_posix()
        if not name.startswith(SECRETS):
            one.out[f"home/{name}"] = name.encode() + b"\n" + path.read_bytes()
    return one


def test_every_row_of_the_table_is_planted_and_the_search_finds_it(scene: Scene, data: Path) -> None:
    wanted = canaries(data / "dicom_standard" / "confidentiality_profile_attributes.json")
    assert len(wanted) == ROWS * len(PLACES)
    assert scene.written == len(wanted) - COMMANDS
    unplanted = [one for one in wanted if one.text not in scene.planted]
    assert {(one.place, one.tag >> 16) for one in unplanted} == {("top level", 0)}
    assert len(unplanted) == COMMANDS


@pytest.mark.parametrize(
    "seen",
    ["text {}", "<b>{}</b>", "{}^Jane", "path/{}.dcm", "lower {}", "\0{}\0", '{{"{}": 1}}', "x{}"],
    ids=lambda form: form,
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16", "utf-16-be"])
def test_search_finds_a_canary_in_any_dress(seen: str, encoding: str) -> None:
    for canary in ("CANARY00042", "1.2.3.4.5.42.777", "10421231"):
        text = seen.format(canary)
        assert canary.encode() in found_in((text.lower() if "lower" in text else text).encode(encoding))


def test_the_day_was_a_real_one(scene: Scene) -> None:
    """The series with all the canaries was read, trained on and charged for; the broken studies were met and told."""
    assert scene.offer is not None
    assert scene.offer.patients >= 1
    assert sum(scene.offer.quarantined.values()) >= scene.broken - 6  # some ways only look broken
    assert scene.trained is not None
    assert b"client.data" in scene.out["log"]
    kinds = {name.split("/")[1] for name in scene.out if name.startswith("home/")}
    assert {"cache", "logs", "proposals", "state", "site.toml"} <= kinds
    assert open_site(scene.home).ledger.entries()


def test_no_canary_survives_anywhere(scene: Scene) -> None:
    assert len(scene.planted) > ROWS * len(PLACES)
    assert scene.survivors() == {}


def test_no_uid_of_an_image_survives(scene: Scene) -> None:
    """Those of the libraries that wrote the images begin so."""
    theirs = re.compile(rb"1\.2\.826\.0\.1\.3680043\.[\d.]{20}")
    assert [name for name, content in scene.out.items() if theirs.search(content)] == []


def test_one_name_in_a_message_of_a_reader_would_be_found(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("client.data.read.dicom")
    monkeypatch.setattr(logger, "disabled", False)  # libraries of other tests may have configured logging anew
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        logger.debug("read %s", "CANARY90201^Jane")
    assert Scene(scene.home, scene.planted, 0, 0, {"log": caplog.text.encode()}).survivors() == {
        "log": [b"CANARY90201"]
    }


class _Log(logging.Handler):
    """All records as a file would hold them, with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(pathname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def _planted(table: Path, folder: Path) -> Scene:
    """The hospital's images."""
    rng = np.random.default_rng(0)
    written = plant(canaries(table), folder / "pacs" / "CANARY90006^A", rng)
    broken = break_studies(folder / "pacs", rng)
    for kind in ("images", "labels"):
        (folder / "nifti" / kind).mkdir(parents=True)
        (folder / "photos" / kind).mkdir(parents=True)
        for name in ("CANARY90060", "CANARY90061"):
            image = nib.Nifti1Image(np.zeros((5, 6, 7), np.uint8) + 9, np.eye(4))
            image.header["descrip"] = name.encode()
            nib.save(image, folder / "nifti" / kind / f"{name}.nii")
            text = PngInfo()
            text.add_text("Comment", name)
            Image.fromarray(np.full((8, 9), 7, np.uint8)).save(folder / "photos" / kind / f"{name}.png", pnginfo=text)
    cut = folder / "nifti" / "images" / "CANARY90061.nii"
    cut.write_bytes(cut.read_bytes()[:100] + b"CANARY90062" * 9)
    (folder / "photos" / "images" / "CANARY90061.png").write_bytes(b"\x89PNG\r\n\x1a\nCANARY90063")
    home = folder / "home"
    home.mkdir()
    (home / "site.toml").write_text('name = "north"\nthreads = 1\ncohort-size = 20\n')
    (home / "policy.toml").write_text(POLICY)
    files = [path for name in ("pacs", "nifti", "photos") for path in (folder / name).rglob("*")]
    planted: set[bytes] = set()
    for path in files:
        planted |= found_in(path.name.encode()) | (found_in(path.read_bytes()) if path.is_file() else set())
    return Scene(home, planted, written, broken)


def _work(one: Scene, folder: Path) -> None:
    """A day at the hospital; what comes out by other ways than files is noted."""
    _commands(one, folder)
    site = open_site(one.home)
    one.out["errors"] = "\n".join(_errors(one)).encode()
    digest = sha256_of(RUN)
    approvals.record(one.home, from_toml(_toml()), is_open=True)
    offer = loop.answer(Describe(issue(RUN)), one.home)
    assert isinstance(offer, Offer), offer
    one.offer = offer
    approvals.note_appraisal(one.home, digest, approvals.Appraisal(offer, None))
    approvals.answer(one.home, digest, approved=True, by="person")
    site.let_go()  # the second time it comes from the cache
    weights = pack(build_model(RUN).state_dict())
    other = run_config(data={"modality": "MR", "classes": ["tumour"]}, name="other")
    questions: list[Question] = [
        Describe(issue(RUN)),
        Work(issue(RUN), TrainRequest(digest, 1, {"weights": weights}), "a.1"),
        Work(issue(RUN), EvaluateRequest(digest, 1, "test", {"weights": weights}), "a.2"),
        Describe(issue(other)),
        Work(issue(RUN), TrainRequest(digest, 2, {"weights": b"no model"}), "a.3"),
    ]
    for number, question in enumerate(questions):
        answer = loop.answer(question, one.home)
        frame = protocol.answer_to_frame(answer)
        one.out[f"frame {number}"] = repr(frame).encode() + b"".join(frame.parts.values())
        if isinstance(question, Work):
            if isinstance(answer, TrainReply):
                one.trained = answer
            assert not isinstance(answer, Offer | protocol.Ready)
            reply = exit_gate.release(answer, question.request, RUN)
            metadata = Metadata(1, "", 1, 2, "", "", 0.0, DEFAULT_TTL, "train")
            head, tree, objects = pack_message(make_message(metadata, reply_to_record(reply)))
            sent = [head.SerializeToString(), tree.SerializeToString(), *objects.values()]
            one.out[f"sent {number}"] = b"\n".join(sent)
        else:
            assert isinstance(answer, Offer | Refusal)
    worker = Worker(one.home, threads=1)
    try:
        assert worker.ask(Describe(issue(RUN)), PATIENCE_S) == offer
        assert isinstance(worker.ask(Describe(issue(other)), PATIENCE_S), Refusal)
    finally:
        worker.stop()


def _commands(one: Scene, folder: Path) -> None:
    (folder / "run.toml").write_text(_toml())
    commands = [
        ["data", "add", str(folder / "pacs"), "--label-map", "Lesion=lesion"],
        ["data", "add", str(folder / "nifti"), "--label-map", "9=lesion"],
        ["data", "add", str(folder / "photos"), "--label-map", "7=lesion"],
        ["data", "check"],
        ["data", "check", "--run", str(folder / "run.toml")],
        ["data", "export", str(folder / "pacs"), "--out", str(folder / "out")],
        ["data", "export", str(folder / "pacs"), "--out", str(folder / "out-minimal"), "--minimal"],
    ]
    for command in commands:
        result = CliRunner().invoke(app, [*command, "--home", str(one.home)])
        # Whether the policy allows the run depends on how many patients this site's key holds out.
        expected = (0, 1) if "--run" in command else (0,)
        assert result.exit_code in expected, result.output
        one.out[" ".join(command[:2]) + f" {len(one.out)}"] = result.output.encode() + result.stderr.encode()
    for out in ("out", "out-minimal"):
        for path in (folder / out).rglob("*.dcm"):
            name = path.relative_to(folder).as_posix()
            one.out[name] = name.encode() + b"\n" + path.read_bytes()


def _errors(one: Scene) -> Iterator[str]:
    """Every error that reading a study raises, as it is printed with all that led to it."""
    for source in open_site(one.home).config.data:
        for reference in sources.find(source, one.home).references:
            for wanted in (None, Vocabulary.of_run(RUN.data, reference.label_map)):
                try:
                    if reference.problem is not None:
                        raise reference.problem
                    sources.read(reference, wanted)
                except DataError as error:
                    yield repr(error)
                    yield from traceback.format_exception(error)
                    cause: BaseException | None = error
                    while (cause := cause.__cause__ if cause is not None else None) is not None:
                        yield repr(cause)


def _toml() -> str:
    return (
        'name = "test"\n'
        "model = { channels = [4, 8], residual-units = 0 }\n"
        'data = { modality = "CT", classes = ["lesion"], validation-fraction = 0.0, test-fraction = 0.0 }\n'
        "training = { patch-size = [16, 16], local-steps = 2, batch-size = 2 }\n"
        "federation = { rounds = 1 }\n"
        "privacy = { target-epsilon = 8.0, sampling-rate = 0.5, crops-per-patient = 1 }\n"
    )

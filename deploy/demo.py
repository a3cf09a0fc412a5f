"""Three hospitals and a coordinator on this machine, each a process of its own, train one U-Net together.

Each hospital has images of its own: generated DICOM CT series of three different scanners, or with --data the three
sources of a folder of real photographs. One study is kept from all of them, and at the end the model segments it.
Everything lies under ./demo, one folder per party.
"""

import argparse
import csv
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.tasks import task_of
from deploy.federation import BIN, CLIENT, SERVER, Hospital, enrol, federate, start_agents, start_coordinator
from deploy.processes import ROOT, Processes, StepError, StoppedError, shown

RUNS = Path(__file__).resolve().parent / "runs"
MARKER = ".wardround-demo"

SCANNERS = ("a", "b", "c")
# Private training needs many patients more than it needs many slices.
PATIENTS, SLICES = 150, 6
SEED = 1


@dataclass(frozen=True)
class Stage:
    """What is played: the run, who takes part, and the study that nobody trains on."""

    run: Path  # its name is the file's
    hospitals: tuple[Hospital, ...]
    unseen: Path
    truth: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo; 0 only if every step succeeded."""
    parser = argparse.ArgumentParser(
        prog="python deploy/demo.py",
        description="Three hospitals train one U-Net on this machine.",
        epilog="Example: python deploy/demo.py --data path/to/vessels",
    )
    parser.add_argument("--data", type=Path, help="folder of real photographs with sites.csv, instead of phantoms")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for everything [default: ./demo]")
    # By this the demo starts itself, to generate the hospitals' images beside each other.
    parser.add_argument("--write-hospital", choices=SCANNERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    if options.write_hospital:
        _write_hospital(options.write_hospital, out)
        return 0
    try:
        fresh_folder(out)
        with Processes(out / "logs") as processes:
            _play(processes, out, options.data)
    except StoppedError as error:
        print(f"\ndemo: stopped by {error}", file=sys.stderr)
        return 130
    except (StepError, OSError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    print("\nEvery process is stopped.")
    return 0


def fresh_folder(out: Path) -> None:
    """Make a folder for a play anew. Nothing is removed that an earlier play did not make.

    Raises:
        StepError: the folder holds something else.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise StepError(f"{out} is not empty and not from an earlier demo. Remove it, or give another --out.")
        shutil.rmtree(out)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _play(processes: Processes, out: Path, data: Path | None) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"== {time.monotonic() - began:4.0f} s  {text}", flush=True)

    say("1/6  images: each hospital gets its own")
    stage = _stage_phantoms(processes, out) if data is None else _stage_photographs(out, data)

    say("2/6  coordinator: a certificate authority, a gateway with mutual TLS, Flower on loopback")
    coordinator = start_coordinator(processes, out / "coordinator")

    say("3/6  enrolment: invitation, key made at the hospital, phrase compared, certificate")
    for site, phrase in enrol(processes, coordinator, stage.hospitals).items():
        print(f"{'':10}{site}: {phrase}")

    for hospital in stage.hospitals:
        _let_exact_scores_go(hospital.home / "policy.toml")

    say("4/6  hospitals: images offered, agents started; they open no port")
    for site, found in start_agents(processes, stage.hospitals).items():
        print(f"{'':10}{site}: {found}")

    say("5/6  run: proposed by the coordinator, approved at each hospital by its hash")
    print(f"{'':10}each command for a hospital in the next lines takes --home {shown(out)}/NAME here")
    folder = federate(processes, coordinator, stage.hospitals, stage.run, stage.run.stem)

    say("6/6  prediction: a study that no hospital has seen")
    model, result = out / "model", out / "prediction"
    processes.run("export", SERVER, "export", stage.run.stem, "--out", model, "--home", coordinator.home)
    processes.run("predict", CLIENT, "predict", model, stage.unseen, "--out", result)

    _show_results(folder, time.monotonic() - began)
    _show_files(folder, model, result, stage)


def _stage_phantoms(processes: Processes, out: Path) -> Stage:
    """Generated CT series of three scanners; the unseen study is of the first one."""
    images = out / "images"
    writers = {
        scanner: processes.start(
            f"images-{scanner}", sys.executable, __file__, "--write-hospital", scanner, "--out", images
        )
        for scanner in SCANNERS
    }
    for scanner, writer in writers.items():
        processes.finish(f"images-{scanner}", writer)
    # A short series may pass the lesions by, and its truth says so.
    offer = ("--empty-labels-are-negative",)
    hospitals = [Hospital(f"hospital-{one}", out / f"hospital-{one}", images / one, offer) for one in SCANNERS]
    unseen = images / "unseen"
    return Stage(RUNS / "demo-phantoms.toml", tuple(hospitals), unseen / "study", unseen / "truth.dcm")


def _write_hospital(scanner: str, images: Path) -> None:
    from simulations.generators import phantoms  # noqa: PLC0415 - heavy, and only this child needs it

    machine, unseen = phantoms.SCANNERS[scanner], images / "unseen"
    phantoms.write_hospital(images / scanner, scanner=machine, patients=PATIENTS, slices=SLICES, seed=SEED)
    if scanner == SCANNERS[0]:
        beyond = PATIENTS + 1
        phantoms.write_study(
            unseen / "study", scanner=machine, seed=SEED, patient=beyond, labelled=False, truth=unseen / "truth.dcm"
        )


def _stage_photographs(out: Path, data: Path) -> Stage:
    """One hospital per value of the column `site`; the unseen picture comes from the largest one."""
    index = data / "sites.csv"
    if not index.is_file():
        raise StepError(f"{index} does not exist. Give the folder of photographs that holds sites.csv.")
    by_site: dict[str, list[dict[str, str]]] = {}
    with index.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            by_site.setdefault(row["site"], []).append(row)
    unseen = max(by_site.values(), key=len).pop()
    hospitals = []
    for site, rows in by_site.items():
        folder = out / "images" / site
        folder.mkdir(parents=True)
        with (folder / "images.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["patient", "image", "mask"])
            for row in rows:
                # L and R after a number are the two eyes of one person.
                patient = re.sub(r"(?<=\d)[LR]$", "", row["id"])
                writer.writerow([patient, (data / row["image"]).resolve(), (data / row["mask"]).resolve()])
        offer = ("--csv", "images.csv", "--patient-column", "patient")
        hospitals.append(Hospital(site, out / site, folder, offer))
    return Stage(RUNS / "demo-vessels.toml", tuple(hospitals), data / unseen["image"], data / unseen["mask"])


def _let_exact_scores_go(path: Path) -> None:
    """Nobody needs protection here, and noise would hide what the model has learned: there are few held-out images."""
    text = path.read_text(encoding="utf-8")
    for key, value in (("scores", '"exact"'), ("min-held-out", "1")):
        text, count = re.subn(rf"^{key} = \S+", f"{key} = {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise StepError(
                f"{shown(path)} has no line {key!r}. The policy that `join` writes has changed; mend the demo."
            )
    path.write_text(text, encoding="utf-8")


def _show_results(folder: Path, seconds: float) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scored = [event for event in events if event["event"] == "evaluate" and event["phase"] == "validation"]
    rounds = sorted({event["round"] for event in scored})
    headline = task_of(summary["settings"]).headline
    found = {(event["site"], event["round"]): event.get(headline) for event in scored}
    test, stated = summary["scores"]["test"], summary["guarantee"]["sites"]

    table = Table(
        title=f"\n{summary['name']}: {headline.capitalize()} of the shared model, by hospital and round",
        title_justify="left",
    )
    table.add_column("hospital")
    for heading in [*(f"round {number}" for number in rounds), "test", "epsilon", "delta"]:
        table.add_column(heading, justify="right")
    for site in sorted(test["sites"]):
        scores = [found.get((site, number)) for number in rounds] + [test["sites"][site].get(headline)]
        spent = stated[site]
        table.add_row(site, *map(_number, scores), f"{spent['epsilon']:.2f}", f"{spent['delta']:.1e}")
    means = [found.get(("overall", number)) for number in rounds] + [test["mean-of-sites"].get(headline)]
    table.add_row("mean", *map(_number, means), style="bold")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(
        f"{summary['rounds']} rounds in {summary['seconds']:.0f} s; {summary['bytes-down'] / 1e6:.1f} MB to the "
        f"hospitals, {summary['bytes-up'] / 1e6:.1f} MB back; the whole demo {seconds:.0f} s.\n"
        "Epsilon and delta hold for a patient with all their images at that hospital. The scores carry no noise:\n"
        'these images are generated or published, so each policy.toml here says scores = "exact". As shipped it says\n'
        '"noised".'
    )


def _show_files(folder: Path, model: Path, result: Path, stage: Stage) -> None:
    print("\nOpen:")
    print(f"  report      {shown(folder / 'report.html')}")
    for path in sorted(result.rglob("*.*")):
        print(f"  prediction  {shown(path)}")
    print(f"  study       {shown(stage.unseen)}")
    print(f"  truth       {shown(stage.truth)}")
    print(f"  model       {shown(model / 'model.safetensors')}")
    print(f"  ledger      {shown(BIN / 'wardround-client')} ledger --home {shown(stage.hospitals[0].home)}")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


if __name__ == "__main__":
    sys.exit(main())

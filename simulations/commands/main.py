"""wardround-sim: federations on one machine, for research.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from common.config import Device, RunConfig, validate
from common.config.rundocument import issue
from common.console.cli import Advance, JsonFlag, configure_logging, new_app, note, progress, show_json, show_table
from common.errors import ConfigError
from common.system.files import write_atomically
from common.text import counted

if TYPE_CHECKING:
    from client.site import Site
    from common.config import SourceConfig
    from common.tasks import Task
    from simulations.scenarios.pretraining import PretrainingConfig
    from simulations.scenarios.scenario import Scenario

app = new_app("Simulate a federation of hospitals on one machine.")
bench_app = new_app("Measure on this machine what the parts cost.")
app.add_typer(bench_app, name="bench")

ScenarioArgument = Annotated[str, typer.Argument(help="Name of a shipped scenario, or path of a scenario file.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for results. A run found there goes on.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the images. Default: WARDROUND_DATA/<scenario>.")
]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Instead of the scenario's.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads for computing; 1 for results that are equal elsewhere.")
]
DeviceOption = Annotated[
    Device | None,
    typer.Option("--device", help="Where all sites train: auto, cpu or cuda. Without it as the scenario says."),
]
BackendOption = Annotated[
    str | None, typer.Option("--backend", help="Where the sites work, see `wardround-sim list backends`.")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Tell more on stderr.")]


def main() -> None:
    """Entry point of `wardround-sim`."""
    app()


@app.command()
def run(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    data: DataOption = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the scenario's.")] = None,
    rounds: RoundsOption = None,
    private: Annotated[
        bool, typer.Option("--privacy/--no-privacy", help="Train with differential privacy, where the scenario has it.")
    ] = True,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-equal results, slower.")] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a scenario: train one model across its sites, then score and report it.

    Example: wardround-sim run phantoms --out results/phantoms
    """
    configure_logging(verbose=verbose)
    from server.federation.events import not_scored  # noqa: PLC0415
    from server.federation.rounds import federate  # noqa: PLC0415
    from server.views.report import write_report  # noqa: PLC0415
    from simulations.backends import opened  # noqa: PLC0415
    from simulations.scenarios.scenario import EXACT_SCORES, load_scenario, published  # noqa: PLC0415
    from simulations.studies.overlays import draw_overlays  # noqa: PLC0415

    _use_threads(threads)
    chosen = load_scenario(scenario)
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if deterministic:
        changes["deterministic"] = True
    if rounds is not None:
        changes["federation"] = {"rounds": rounds}
    if not private:
        changes["privacy"] = None
    config = _changed(chosen.config.run, changes)
    sites = _prepare(chosen, config, out, data, device)
    if chosen.config.pretraining is not None:
        config = _pretrained(config, chosen.config.pretraining, out, published(chosen, data=data), device or "auto")
    document = issue(config)
    with progress("round", config.federation.rounds) as advance, opened(sites, document, backend) as grid:
        summary = federate(grid, document, out, observe=_teller(advance, config.task))
    draw_overlays(out, sites)
    report = write_report(out)
    scores = summary.scores["test"]
    metrics = [name for name in config.task.SHOWN if name in scores["mean-of-sites"]]
    rows = [[site, *(values.get(name) for name in metrics)] for site, values in scores["sites"].items()]
    rows.append(["mean of sites", *(scores["mean-of-sites"][name] for name in metrics)])
    columns = ["site", *metrics]
    if summary.guarantee is not None:
        columns += ["epsilon", "delta"]
        for row in rows:
            stated = summary.guarantee["sites"].get(row[0], {})
            row += [stated.get("epsilon"), stated.get("delta")]
    show_table(f"{config.name}: test patients after {counted(summary.rounds, 'round')}", columns, rows, as_json=as_json)
    if lacking := not_scored(scores["sites"], config.task):
        note(lacking)
    if config.privacy is not None:
        note(EXACT_SCORES)
    note(f"model  {out / 'model.safetensors'} ({summary.model_sha256})")
    note(f"report {report}")


@app.command()
def compare(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    data: DataOption = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One model of each kind for each seed, such as 0,1,2.")] = "0",
    rounds: RoundsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare each site alone, pooled, federated, and federated with privacy, on the same test patients.

    Example: wardround-sim compare vessels --data images/vessels --out results/vessels --seeds 0,1
    """
    configure_logging(verbose=verbose)
    from simulations.scenarios.scenario import EXACT_SCORES, load_scenario, published  # noqa: PLC0415
    from simulations.studies import compare as comparison  # noqa: PLC0415

    _use_threads(threads)
    numbers = _seeds(seeds)
    chosen = load_scenario(scenario)
    base = chosen.config.run
    config = _changed(base, {"federation": {"rounds": rounds}} if rounds else {})
    wanted = chosen.config.compare
    if wanted.privacy is None and base.privacy is not None:
        wanted = wanted.model_copy(update={"privacy": base.privacy})
    if rounds:
        wanted = wanted.model_copy(update={"rounds": rounds})
    sites = _prepare(chosen, config, out, data, device)
    pretraining = chosen.config.pretraining
    private = len(wanted.private_runs(config)) * (1 + wanted.private_pooled)
    total = len(numbers) * (len(sites) * wanted.alone + 2 + private + (pretraining is not None))
    with progress("models", total) as advance:
        done = 0

        def finished(count: int, last: str) -> None:
            nonlocal done
            done = count
            advance(done, last)

        results = comparison.compare(
            config,
            sites,
            out,
            seeds=numbers,
            config=wanted,
            pretraining=pretraining,
            published=published(chosen, data=data),
            backend=backend,
            tell=lambda text: advance(done, text),
            finished=finished,
        )
    if as_json:
        show_json(comparison.as_data(results, config.task))
    else:
        show_table(f"{config.name}: seeds {seeds}", *comparison.summary_rows(results, config.task))
    for name, value in comparison.verdict(results, config.task).items():
        note(f"{name}: {value:.3f}")
    if private:
        note(EXACT_SCORES)
    note(f"report {out / 'report.html'}")


@app.command()
def crossval(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    folds: Annotated[int, typer.Option("--folds", min=2, max=20, help="Models to train.")] = 5,
    data: DataOption = None,
    rounds: RoundsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Cross-validate: one federation per fold, so that every patient is tested once; mean and spread of the scores.

    Example: wardround-sim crossval vessels --folds 5 --data images/vessels --out results/crossval
    """
    configure_logging(verbose=verbose)
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415
    from simulations.studies.crossval import cross_validate, summary_rows  # noqa: PLC0415

    _use_threads(threads)
    chosen = load_scenario(scenario)
    if chosen.config.pretraining is not None:
        raise ConfigError("crossval starts each fold from random weights. Take [pretraining] out of the scenario.")
    changes: dict[str, Any] = {"data": {"folds": folds, "fold": 0}}
    if rounds is not None:
        changes["federation"] = {"rounds": rounds}
    config = _changed(chosen.config.run, changes)
    sites = _prepare(chosen, config, out, data, device)
    per_fold = config.federation.rounds
    with progress("round", folds * per_fold) as advance:
        results = cross_validate(
            config,
            sites,
            out,
            backend=backend,
            observe=lambda fold: _teller(
                lambda done, text: advance(fold * per_fold + done, f"fold {fold}: {text}"), config.task
            ),
            finished=lambda done, text: advance(done * per_fold, text),
        )
    columns, rows = summary_rows(results, config.task)
    show_table(f"{config.name}: test patients of {folds} folds", columns, rows, as_json=as_json)
    note(f"report {out / 'report.html'}")


@app.command()
def audit(
    *,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the report.")] = None,
    canaries: Annotated[int, typer.Option("--canaries", min=40, help="Patients of the one-run audit.")] = 800,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Audit the privacy of this installation: noise, clipping, sampling, ledger, and a lower bound of epsilon.

    Example: wardround-sim audit --out results/audit
    """
    configure_logging(verbose=verbose)
    import tempfile  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from simulations.audit import privacy_audit  # noqa: PLC0415

    _use_threads(threads)
    with progress("part", privacy_audit.PARTS) as advance, tempfile.TemporaryDirectory() as folder:
        findings = privacy_audit.audit(Path(folder), np.random.default_rng(), canaries=canaries, progress=advance)
    columns, rows = privacy_audit.summary_rows(findings)
    show_table("Privacy audit", columns, rows, as_json=as_json)
    note(privacy_audit.LIMITS)
    if out is not None:
        note(f"report {privacy_audit.write_report(out, findings)}")
    if not all(one.passed for one in findings):
        raise typer.Exit(1)


@app.command()
def scenarios(as_json: JsonFlag = False) -> None:
    """List the scenarios that come with Wardround.

    Example: wardround-sim scenarios
    """
    from simulations.scenarios.scenario import shipped  # noqa: PLC0415

    rows = [
        [one.name, one.config.title, f"{one.config.run.model.dims}D", list(one.config.site_names)] for one in shipped()
    ]
    show_table("Scenarios", ["name", "what", "model", "sites"], rows, as_json=as_json)


@app.command("list")
def list_members(
    what: Annotated[
        Literal["networks", "tasks", "strategies", "steps", "partitions", "backends"],
        typer.Argument(help="Which table."),
    ],
    as_json: JsonFlag = False,
) -> None:
    """List what a run or a scenario may choose from.

    Example: wardround-sim list networks --json
    """
    from simulations.commands import listing  # noqa: PLC0415 - torch, to count weights

    show_table(what.capitalize(), *listing.rows(what), as_json=as_json)


@bench_app.command("data")
def bench_data(
    series: Annotated[int, typer.Option("--series", min=1, help="CT series of 50 slices to generate.")] = 20,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the figures are medians.")] = 3,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Prepare generated CT slices with Wardround, with MONAI and from the cache, by turns.

    Example: wardround-sim bench data --series 4
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import reading as bench  # noqa: PLC0415

    _use_threads(threads)
    with progress("series and turns", series + repeats) as advance, tempfile.TemporaryDirectory() as folder:
        figures = bench.measure(Path(folder), series=series, repeats=repeats, progress=advance)
    ours = figures[0]
    rows = [[one.name, one.cpu_s_per_1000, one.images_per_cpu_s, one.cpu_s / ours.cpu_s] for one in figures]
    columns = ["way", "CPU s per 1000 images", "images per CPU s", f"times {ours.name}"]
    show_table(f"{ours.images} CT slices, 512 x 512 to 256 x 256", columns, rows, as_json=as_json)


@bench_app.command("privacy")
def bench_privacy(
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the times are medians.")] = 5,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Make plain steps, Opacus' and our private ones, in 2D and 3D, by turns.

    Example: wardround-sim bench privacy --repeats 9
    """
    configure_logging()
    from simulations.bench import private_steps as bench  # noqa: PLC0415

    _use_threads(threads)
    rows = []
    for case in bench.CASES:
        with progress(case.name, repeats) as advance:
            figures = bench.measure(case, repeats=repeats, progress=advance)
        plain = figures[0]
        rows += [
            [
                case.name,
                one.way,
                one.cpu_s,
                one.cpu_s / plain.cpu_s,
                one.memory / 2**20,
                one.memory / plain.memory,
                one.noise_s / one.cpu_s,
            ]
            for one in figures
        ]
    columns = ["step", "way", "CPU s", f"times {plain.way}", "memory MiB", "times its memory", "noise share"]
    show_table("One step, its memory, and the share of noise", columns, rows, as_json=as_json)


def _use_threads(threads: int | None) -> None:
    import torch  # noqa: PLC0415

    if threads is not None:
        torch.set_num_threads(threads)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds is {text!r}, expected whole numbers with commas between, such as 0,1,2.") from error


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with some values replaced, checked again as a whole."""
    values = config.model_dump(by_alias=True)
    for key, value in changes.items():
        values[key] = {**(values[key] or {}), **value} if isinstance(value, dict) else value
    return validate(RunConfig, values, "the command's options")


def _prepare(
    scenario: "Scenario", config: RunConfig, out: Path, data: Path | None, device: Device | None
) -> "list[Site]":
    """Site homes with their images read, so that a fault in the data shows before the first round."""
    import torch  # noqa: PLC0415

    from simulations.scenarios.scenario import prepare  # noqa: PLC0415

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here. Leave --device out, or say --device cpu.")
    phantoms = scenario.config.phantoms
    patients = phantoms.patients * len(phantoms.scanners) if phantoms else 0
    with progress("phantom patients", patients) as advance:
        sites = prepare(scenario, out, data=data, device=device, progress=lambda done, _: advance(done, ""))
    with progress("reading sites", len(sites)) as advance:
        for number, site in enumerate(sites, start=1):
            cohort = site.cohort(config)
            left_out = (
                f", {counted(len(cohort.quarantined), 'study', 'studies')} left out" if cohort.quarantined else ""
            )
            advance(number, f"{site.config.name}: {counted(cohort.size, 'patient')}{left_out}")
    return sites


def _pretrained(
    config: RunConfig, pretraining: "PretrainingConfig", out: Path, published: "SourceConfig | None", device: Device
) -> RunConfig:
    """The run that starts from weights trained on generated images; they lie where `federate` looks for them."""
    from server.federation.events import INITIAL_NAME  # noqa: PLC0415
    from simulations.scenarios.pretraining import pretrain  # noqa: PLC0415

    with progress("pretraining round", pretraining.rounds) as advance:
        weights, initial = pretrain(
            config,
            pretraining,
            out / "pretraining",
            published=published,
            device=device,
            observe=_teller(advance, config.task),
        )
    write_atomically(out / INITIAL_NAME, weights)
    return _changed(config, {"initial": initial.model_dump(by_alias=True)})


def _teller(advance: Advance, task: "Task") -> Callable[[dict[str, Any]], None]:
    """Turn the journal's events into progress."""
    done = 0

    def observe(event: dict[str, Any]) -> None:
        nonlocal done
        match event:
            case {"event": "round", "round": number, "seconds": seconds, "sites": sites}:
                done = number
                advance(done, f"{counted(len(sites), 'site')}, {seconds:.1f} s")
            case {"event": "train", "site": site}:
                advance(done, f"{site} has trained")
            case {"event": "evaluate", "site": "overall", "phase": phase} if task.headline in event:
                advance(done, f"{phase} {task.headline} {event[task.headline]:.3f}")
            case _:
                pass

    return observe


if __name__ == "__main__":
    main()

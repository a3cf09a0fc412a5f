"""wardround-sim baseline and diagnosis: are two classes of regions told apart, and does it take a network?

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from typing import Annotated, Any

import typer

from common.console.cli import JsonFlag, configure_logging, note, progress, show_json, show_table
from common.errors import ConfigError
from simulations.api.preparation import changed, prepare_sites, tells, use_threads
from simulations.commands.options import (
    AddressOption,
    BackendOption,
    DataOption,
    DeviceOption,
    GpusOption,
    OutOption,
    RoundsOption,
    ScenarioArgument,
    ThreadsOption,
    VerboseOption,
    WorkersOption,
)
from simulations.commands.preparation import parse_seeds, use_backend

FoldsOption = Annotated[
    int | None, typer.Option("--folds", min=2, max=20, help="Groups of patients, each tested once; else the run's.")
]
SeedsOption = Annotated[str, typer.Option("--seeds", help="Repeat the whole for each, such as 0,1,2.")]


def baseline(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    folds: FoldsOption = None,
    seeds: SeedsOption = "0",
    data: DataOption = None,
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell two classes of marked regions apart without a network: features, classifiers, SMOTE, cross-validated.

    Example: wardround-sim baseline mini-mias --data images/mini_mias --out results/baseline
    """
    configure_logging(verbose=verbose)
    from simulations.diagnosis import baseline as study  # noqa: PLC0415
    from simulations.diagnosis.decisions import as_data, summary_rows  # noqa: PLC0415
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415

    use_threads(threads)
    numbers = parse_seeds(seeds)
    chosen = load_scenario(scenario)
    config = changed(chosen.config.run, {"data": {"folds": folds, "fold": 0}} if folds else {})
    study.check(config)
    sites = prepare_sites(chosen, study.of_maps(config), out, data, "cpu", progress=progress)
    with progress("repeat", len(numbers)) as advance:
        facts, found = study.study(
            config, sites, out, seeds=numbers, finished=lambda done: advance(done, "features and classifiers")
        )
    if as_json:
        show_json(as_data(found))
    else:
        show_table(f"{config.name}: every region answered once", *summary_rows(found))
    note(facts)
    note(f"results {out / 'baseline.json'}")


def diagnosis(
    scenarios: Annotated[list[str], typer.Argument(help="Scenarios with other networks on the same sites.")],
    *,
    out: OutOption,
    folds: FoldsOption = None,
    seeds: SeedsOption = "0",
    rounds: RoundsOption = None,
    data: DataOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_site: GpusOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell two classes of marked regions apart by networks (alone, pooled, federated) and without, with intervals.

    Example: wardround-sim diagnosis mini-mias mini-mias-cnn --data images/mini_mias --out results/diagnosis
    """
    configure_logging(verbose=verbose)
    from simulations.diagnosis import diagnosis as study  # noqa: PLC0415
    from simulations.diagnosis.decisions import as_data, summary_rows, told  # noqa: PLC0415
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415

    use_threads(threads)
    numbers = parse_seeds(seeds)
    chosen = [load_scenario(name) for name in scenarios]
    if any(one.config.made_of != chosen[0].config.made_of for one in chosen):
        raise ConfigError("the scenarios have other sites, and a diagnosis is of the same patients. Give one of them.")
    changes: dict[str, Any] = {"data": {"folds": folds, "fold": 0}} if folds else {}
    if rounds is not None:
        changes["federation"] = {"rounds": rounds, "evaluate-every": rounds}
    runs = {one.name: (changed(one.config.run, changes), one.config.pretraining) for one in chosen}
    for run, _ in runs.values():
        study.check(run)
    working = use_backend(backend, len(chosen[0].config.site_names), workers, threads, device, address, gpus_per_site)
    sites = prepare_sites(chosen[0], next(iter(runs.values()))[0], out, data, device, progress=progress)
    with progress("row", len(numbers) * study.rows_of(runs, len(sites))) as advance:
        tell, finished = tells(advance)
        result = study.diagnose(
            runs,
            sites,
            out,
            seeds=numbers,
            backend=working,
            tell=tell,
            finished=finished,
        )
    found = result.scores()
    if as_json:
        show_json(as_data(found))
    else:
        show_table(f"{' or '.join(result.classes)}: every region answered once", *summary_rows(found))
    note(result.facts())
    for name, one in result.differences().items():
        note(f"AUROC of {name}: {told(one)}")
    note(f"report {out / 'report.html'}")


__all__ = ["baseline", "diagnosis"]

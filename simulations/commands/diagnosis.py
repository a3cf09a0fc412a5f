"""wardround-sim baseline and diagnosis: are two classes of regions told apart, and does it take a network?

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from typing import Annotated

import typer

from common.console.cli import JsonFlag, configure_logging, note, progress, show_json, show_table
from simulations.commands.options import DataOption, OutOption, ScenarioArgument, ThreadsOption, VerboseOption
from simulations.commands.preparation import changed, parse_seeds, prepare_sites, use_threads

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
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415
    from simulations.studies import baseline as study  # noqa: PLC0415
    from simulations.studies.decisions import as_data, summary_rows  # noqa: PLC0415

    use_threads(threads)
    numbers = parse_seeds(seeds)
    chosen = load_scenario(scenario)
    config = changed(chosen.config.run, {"data": {"folds": folds, "fold": 0}} if folds else {})
    sites = prepare_sites(chosen, study.of_maps(config), out, data, "cpu")
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


__all__ = ["baseline"]

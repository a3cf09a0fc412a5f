"""wardround-sim sweep: a search for settings.

Heavy modules are imported inside the command: see common/console/cli.py.
"""

from typing import Annotated, Literal

import typer

from common.console.cli import JsonFlag, configure_logging, note, progress, show_json, show_table
from common.errors import ConfigError
from common.text import counted
from simulations.api.preparation import changed, prepare_sites, teller, tells, use_threads
from simulations.commands.options import (
    AddressOption,
    BackendOption,
    DataOption,
    DeviceOption,
    GpusOption,
    OutOption,
    ParquetOption,
    RoundsOption,
    ScenarioArgument,
    ThreadsOption,
    VerboseOption,
    WorkersOption,
)
from simulations.commands.preparation import goes_on, use_backend, wanted_tables


def sweep(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    settings: Annotated[
        list[str],
        typer.Option("--set", help="KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE; repeatable."),
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Runs to try; of a grid at most.")] = 20,
    sampler: Annotated[
        Literal["tpe", "random", "grid"], typer.Option("--sampler", help="How settings are drawn.")
    ] = "tpe",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the drawing; the runs keep the scenario's.")] = 0,
    test: Annotated[bool, typer.Option("--test", help="At the end score the best on the test patients, once.")] = False,
    data: DataOption = None,
    rounds: RoundsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_site: GpusOption = None,
    parquet: ParquetOption = False,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Search for settings: many runs, of which the best on the validation patients is named. Found in --out it goes on.

    Example: wardround-sim sweep phantoms --out results/sweep --trials 12 --set training.learning-rate=1e-4..1e-2:log
    """
    configure_logging(verbose=verbose)
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415
    from simulations.studies.axes import axis_of, check, in_grid  # noqa: PLC0415
    from simulations.studies.sweep import counts, table  # noqa: PLC0415
    from simulations.studies.sweep import sweep as search  # noqa: PLC0415

    chosen = load_scenario(scenario)
    long_tables = wanted_tables(out, parquet=parquet)
    if chosen.config.pretraining is not None:
        raise ConfigError("sweep starts each trial from the run's own weights. Take [pretraining] out of the scenario.")
    config = changed(chosen.config.run, {"federation": {"rounds": rounds}}) if rounds else chosen.config.run
    axes = [axis_of(text) for text in settings]
    check(config, in_grid(axes) if sampler == "grid" else axes)
    use_threads(threads)
    working = use_backend(backend, len(chosen.config.site_names), workers, threads, device, address, gpus_per_site)
    sites = prepare_sites(chosen, config, out, data, device, progress=progress)
    with goes_on(), long_tables, progress("trial", trials) as advance:
        tell, finished = tells(advance)

        def of_trial(_round: int, text: str, *, result: bool = False) -> None:
            tell(text, result=result)

        found = search(
            config,
            sites,
            out,
            axes,
            trials=trials,
            sampler=sampler,
            seed=seed,
            test=test,
            backend=working,
            observe=teller(of_trial, config.task),
            finished=finished,
        )
    tried = counts(found.rows)
    columns, rows = table(found, axes, config.task.headline)
    if as_json:
        show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show_table(f"{config.name}: {counted(len(found.rows), 'trial')}", columns, rows)
    note(f"Tried: {tried['complete']} to the end, {tried['pruned']} given up early, {tried['failed']} failed.")
    if found.best is None:
        raise ConfigError(f"no trial came to its end. The reasons stand in {out / 'sweep.csv'}.")
    settings_said = ", ".join(f"{key} = {value}" for key, value in found.best.values.items())
    note(f"Best on the validation patients: trial {found.best.trial}, {settings_said}.")
    if found.test is None:
        note(
            "The best of many is better on validation than it is. With --test it is scored on the test patients, once."
        )
    else:
        score = found.test["mean-of-sites"].get(config.task.headline)
        note(
            f"The best on the test patients: {config.task.headline} {score:.3f}; report {out / 'best' / 'report.html'}"
        )


__all__ = ["sweep"]

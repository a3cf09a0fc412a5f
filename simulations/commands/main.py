"""wardround-sim: federations on one machine, for research.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from common.config import RunConfig
from common.console.cli import JsonFlag, configure_logging, new_app, note, progress, show_json, show_table
from common.console.signals import end_in_order
from common.errors import ConfigError
from common.text import counted
from simulations.api.preparation import changed, prepare_sites, pretrained, teller, use_threads, with_patients
from simulations.commands.bench import bench_app
from simulations.commands.diagnosis import baseline, diagnosis
from simulations.commands.evaluate import evaluate
from simulations.commands.exchange import export, import_bundle
from simulations.commands.networks import compare_networks
from simulations.commands.options import (
    AddressOption,
    BackendOption,
    DataOption,
    DeviceOption,
    GpusOption,
    Listed,
    OutOption,
    ParquetOption,
    RoundsOption,
    ScenarioArgument,
    ThreadsOption,
    VerboseOption,
    WorkersOption,
)
from simulations.commands.preparation import goes_on, parse_seeds, use_backend, wanted_tables
from simulations.commands.reference import reference
from simulations.commands.scenarios import new, preview, scenarios
from simulations.commands.strategies import compare_strategies
from simulations.commands.sweep import sweep

if TYPE_CHECKING:
    from server.federation.events import Summary

app = new_app("Simulate a federation of hospitals on one machine.")
app.add_typer(bench_app, name="bench")
app.command()(baseline)
app.command()(diagnosis)
app.command()(evaluate)
app.command()(export)
app.command()(new)
app.command()(preview)
app.command()(reference)
app.command()(scenarios)
app.command()(sweep)
app.command("import-bundle")(import_bundle)


def main() -> None:
    """Entry point of `wardround-sim`."""
    end_in_order()
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
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Ask for statistics of labels and intensities; not with privacy.")
    ] = False,
    patients: Annotated[
        int | None, typer.Option("--patients", min=1, help="At each hospital, where the scenario generates them.")
    ] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Bit-equal results, slower.")] = False,
    initial: Annotated[
        Path | None, typer.Option("--initial", help="Folder of the model that [run.initial] of the scenario names.")
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_site: GpusOption = None,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a scenario: train one model across its sites, then score and report it.

    Example: wardround-sim run phantoms --out results/phantoms
    """
    configure_logging(verbose=verbose)
    from simulations.scenarios.scenario import EXACT_SCORES, load_scenario  # noqa: PLC0415

    chosen = with_patients(load_scenario(scenario), patients)  # before what is heavy, so that a fault shows at once
    from server.federation.events import summary_as_dict  # noqa: PLC0415
    from server.federation.selection import in_words  # noqa: PLC0415
    from simulations.api.runs import changes_of, federate_scenario  # noqa: PLC0415

    use_threads(threads)
    working = use_backend(backend, len(chosen.config.site_names), workers, threads, device, address, gpus_per_site)
    changes = changes_of(seed=seed, rounds=rounds, private=private, deterministic=deterministic, statistics=statistics)
    for sentence in changed(chosen.config.run, changes).idle:
        note(f"Note: {sentence}.")
    with goes_on():
        done = federate_scenario(
            chosen, changes, out, data=data, device=device, initial=initial, backend=working, progress=progress
        )
    config, summary = done.run, done.summary
    _show(config, summary, out, as_json=as_json)
    for sentence in in_words(summary_as_dict(summary)):
        note(sentence)
    if config.privacy is not None:
        note(EXACT_SCORES)
    note(f"model  {out / 'model.safetensors'} ({summary.model_sha256})")
    note(f"report {done.report}")


def _show(config: RunConfig, summary: "Summary", out: Path, *, as_json: bool) -> None:
    """The test scores of a run by site, what each site gains where the run compares, and how unlike the sites are."""
    from server.federation.events import (  # noqa: PLC0415 - heavy
        JOURNAL_NAME,
        not_scored,
        read_events,
        summary_as_dict,
        worst_told,
    )
    from server.views import heterogeneity  # noqa: PLC0415 - heavy
    from server.views.cross_site import as_columns, cross_site_of  # noqa: PLC0415 - heavy

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
    events = read_events(out / JOURNAL_NAME)
    gains = cross_site_of(summary_as_dict(summary), events)
    unlike = heterogeneity.heterogeneity_of(summary_as_dict(summary), events)
    if as_json:
        further = as_columns(gains) | heterogeneity.as_columns(unlike, events, of_all="mean of sites")
        columns += further
        for row in rows:
            row += [values.get(str(row[0])) for values in further.values()]
    show_table(
        f"{config.name}: test patients after {counted(summary.model_round or summary.rounds, 'round')}",
        columns,
        rows,
        as_json=as_json,
    )
    for one in () if as_json else gains:
        show_table(f"What each hospital gains: {one.score}, {one.phase}", one.columns, one.rows)
        for sentence in one.notes:
            note(sentence)
    if unlike and not as_json:
        show_table("How unlike the hospitals are", heterogeneity.COLUMNS, [one.row for one in unlike])
    for told in filter(None, (tell(scores["sites"], config.task) for tell in (worst_told, not_scored))):
        note(told)


@app.command()
def compare(
    scenario: ScenarioArgument,
    *,
    out: OutOption,
    data: DataOption = None,
    seeds: Annotated[str, typer.Option("--seeds", help="One model of each kind for each seed, such as 0,1,2.")] = "0",
    networks: Annotated[
        bool,
        typer.Option("--networks", help="The networks of the scenario's [compare], pooled, federated and private."),
    ] = False,
    strategies: Annotated[
        bool,
        typer.Option("--strategies", help="The strategies of the scenario's [compare], without and with its faults."),
    ] = False,
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
    """Compare each site alone, pooled, federated, and federated with privacy, on the same test patients.

    Example: wardround-sim compare vessels --data images/vessels --out results/vessels --seeds 0,1
    """
    configure_logging(verbose=verbose)
    if networks and strategies:
        raise ConfigError("--networks and --strategies are two comparisons. Give one of them.")
    long_tables = wanted_tables(out, parquet=parquet)
    from simulations.scenarios.scenario import EXACT_SCORES, load_scenario  # noqa: PLC0415

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from simulations.api.runs import compare_scenario, wanted_of  # noqa: PLC0415
    from simulations.studies import comparison  # noqa: PLC0415

    use_threads(threads)
    working = use_backend(backend, len(chosen.config.site_names), workers, threads, device, address, gpus_per_site)
    numbers = parse_seeds(seeds)
    if networks or strategies:
        config, wanted = wanted_of(chosen, rounds)
        sites = prepare_sites(chosen, config, out, data, device, progress=progress)
        tables = compare_networks if networks else compare_strategies
        with goes_on(), long_tables:
            tables(config, wanted, sites, out, seeds=numbers, backend=working, as_json=as_json)
        return
    with goes_on(), long_tables:
        done = compare_scenario(
            chosen, out, seeds=numbers, rounds=rounds, data=data, device=device, backend=working, progress=progress
        )
    config, results = done.run, done.results
    if as_json:
        show_json(comparison.as_data(results, config.task))
    else:
        show_table(f"{config.name}: seeds {seeds}", *comparison.summary_rows(results, config.task))
        columns, gains = comparison.benefit_rows(results, config.task)
        if gains:
            show_table(f"{config.name}: what each site gains", columns, gains)
    for name, value in comparison.verdict(results, config.task).items():
        note(f"{name}: {value:.3f}")
    if done.wanted.private_runs(config):
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
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_site: GpusOption = None,
    parquet: ParquetOption = False,
    as_json: JsonFlag = False,
    verbose: VerboseOption = False,
) -> None:
    """Cross-validate: one federation per fold, so that every patient is tested once; mean and spread of the scores.

    Example: wardround-sim crossval vessels --folds 5 --data images/vessels --out results/crossval
    """
    configure_logging(verbose=verbose)
    from simulations.scenarios.scenario import load_scenario, published  # noqa: PLC0415

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from simulations.studies.crossval import cross_validate, summary_rows  # noqa: PLC0415

    long_tables = wanted_tables(out, parquet=parquet)
    use_threads(threads)
    working = use_backend(backend, len(chosen.config.site_names), workers, threads, device, address, gpus_per_site)
    changes: dict[str, Any] = {"data": {"folds": folds, "fold": 0}}
    if rounds is not None:
        changes["federation"] = {"rounds": rounds}
    config = changed(chosen.config.run, changes)
    sites = prepare_sites(chosen, config, out, data, device, progress=progress)
    if chosen.config.pretraining is not None:
        public = published(chosen, data=data)
        config = pretrained(config, chosen.config.pretraining, out, public, device or "auto", progress=progress)
    per_fold = config.federation.rounds
    with goes_on(), long_tables, progress("round", folds * per_fold) as advance:
        results = cross_validate(
            config,
            sites,
            out,
            backend=working,
            observe=lambda fold: teller(advance, config.task, before=fold * per_fold, of=f"fold {fold}: "),
            finished=lambda done, text: advance(done * per_fold, text, result=True),
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

    use_threads(threads)
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
def gallery(
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures; the page lies beside it.")],
) -> None:
    """Draw the pictures of the documentation: what a run may ask for, on generated images.

    Example: wardround-sim gallery --out docs/gallery
    """
    from simulations.gallery import SECTIONS  # noqa: PLC0415 - torch
    from simulations.gallery.page import write_gallery  # noqa: PLC0415

    with progress("section", len(SECTIONS)) as advance:
        page = write_gallery(out, SECTIONS, progress=advance)
    note(f"page {page}")


@app.command("list")
def list_members(
    what: Annotated[
        Listed | None,
        typer.Argument(help="Which table; without it, what tables there are."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List what a run or a scenario may choose from.

    Example: wardround-sim list networks --json
    """
    if what is None:
        show_table("What can be listed", ["what"], [[one] for one in get_args(Listed)], as_json=as_json)
        return
    from simulations.commands import listing  # noqa: PLC0415 - torch, to count weights

    show_table(what.capitalize(), *listing.rows(what), as_json=as_json)


if __name__ == "__main__":
    main()

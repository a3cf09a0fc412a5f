"""wardround-sim: federations on one machine, for research.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from common.config.rundocument import issue
from common.console.cli import JsonFlag, configure_logging, new_app, note, progress, show_json, show_table
from common.text import counted
from simulations.commands.bench import bench_app
from simulations.commands.diagnosis import baseline, diagnosis
from simulations.commands.evaluate import evaluate
from simulations.commands.exchange import export, import_bundle
from simulations.commands.networks import compare_networks
from simulations.commands.options import (
    BackendOption,
    DataOption,
    DeviceOption,
    Listed,
    OutOption,
    RoundsOption,
    ScenarioArgument,
    ThreadsOption,
    VerboseOption,
)
from simulations.commands.preparation import (
    changed,
    parse_seeds,
    prepare_sites,
    pretrained,
    take_initial,
    teller,
    tells,
    use_threads,
)
from simulations.commands.reference import reference
from simulations.commands.sweep import sweep

app = new_app("Simulate a federation of hospitals on one machine.")
app.add_typer(bench_app, name="bench")
app.command()(baseline)
app.command()(diagnosis)
app.command()(evaluate)
app.command()(export)
app.command()(reference)
app.command()(sweep)
app.command("import-bundle")(import_bundle)


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
    initial: Annotated[
        Path | None, typer.Option("--initial", help="Folder of the model that [run.initial] of the scenario names.")
    ] = None,
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
    from simulations.scenarios.scenario import EXACT_SCORES, load_scenario, published  # noqa: PLC0415

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from server.federation.events import not_scored, summary_as_dict, worst_told  # noqa: PLC0415
    from server.federation.rounds import federate  # noqa: PLC0415
    from server.federation.selection import in_words  # noqa: PLC0415
    from server.views.report import write_report  # noqa: PLC0415
    from simulations.backends import opened  # noqa: PLC0415
    from simulations.studies.overlays import draw_overlays  # noqa: PLC0415

    use_threads(threads)
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if deterministic:
        changes["deterministic"] = True
    if rounds is not None:
        changes["federation"] = {"rounds": rounds}
    if not private:
        changes["privacy"] = None
    config = changed(chosen.config.run, changes)
    sites = prepare_sites(chosen, config, out, data, device)
    if chosen.config.pretraining is not None:
        config = pretrained(config, chosen.config.pretraining, out, published(chosen, data=data), device or "auto")
    for sentence in config.idle:
        note(f"Note: {sentence}.")
    if initial is not None:
        take_initial(config, initial, out)
    document = issue(config)
    with progress("round", config.federation.rounds) as advance, opened(sites, document, backend) as grid:
        summary = federate(grid, document, out, observe=teller(advance, config.task))
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
    show_table(
        f"{config.name}: test patients after {counted(summary.model_round or summary.rounds, 'round')}",
        columns,
        rows,
        as_json=as_json,
    )
    for told in filter(None, (tell(scores["sites"], config.task) for tell in (worst_told, not_scored))):
        note(told)
    for sentence in in_words(summary_as_dict(summary)):
        note(sentence)
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
    networks: Annotated[
        bool,
        typer.Option("--networks", help="The networks of the scenario's [compare], pooled, federated and private."),
    ] = False,
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

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from simulations.studies import comparison  # noqa: PLC0415
    from simulations.studies.compare import compare as compare_models  # noqa: PLC0415

    use_threads(threads)
    numbers = parse_seeds(seeds)
    base = chosen.config.run
    config = changed(base, {"federation": {"rounds": rounds}} if rounds else {})
    wanted = chosen.config.compare
    if wanted.privacy is None and base.privacy is not None:
        wanted = wanted.model_copy(update={"privacy": base.privacy})
    if rounds:
        wanted = wanted.model_copy(update={"rounds": rounds})
    sites = prepare_sites(chosen, config, out, data, device)
    if networks:
        compare_networks(config, wanted, sites, out, seeds=numbers, backend=backend, as_json=as_json)
        return
    pretraining = chosen.config.pretraining
    private = len(wanted.private_runs(config)) * (1 + wanted.private_pooled)
    total = len(numbers) * (len(sites) * wanted.alone + 2 + private + (pretraining is not None))
    with progress("models", total) as advance:
        tell, finished = tells(advance)
        results = compare_models(
            config,
            sites,
            out,
            seeds=numbers,
            config=wanted,
            pretraining=pretraining,
            published=published(chosen, data=data),
            backend=backend,
            tell=tell,
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
    from simulations.scenarios.scenario import load_scenario, published  # noqa: PLC0415

    chosen = load_scenario(scenario)  # before what is heavy, so that a fault in it shows at once
    from simulations.studies.crossval import cross_validate, summary_rows  # noqa: PLC0415

    use_threads(threads)
    changes: dict[str, Any] = {"data": {"folds": folds, "fold": 0}}
    if rounds is not None:
        changes["federation"] = {"rounds": rounds}
    config = changed(chosen.config.run, changes)
    sites = prepare_sites(chosen, config, out, data, device)
    if chosen.config.pretraining is not None:
        config = pretrained(config, chosen.config.pretraining, out, published(chosen, data=data), device or "auto")
    per_fold = config.federation.rounds
    with progress("round", folds * per_fold) as advance:
        results = cross_validate(
            config,
            sites,
            out,
            backend=backend,
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
def scenarios(as_json: JsonFlag = False) -> None:
    """List the scenarios that come with Wardround.

    Example: wardround-sim scenarios
    """
    from simulations.scenarios.scenario import shipped  # noqa: PLC0415

    rows = [
        [one.name, one.config.title, f"{one.config.run.model.dims}D", list(one.config.site_names)] for one in shipped()
    ]
    show_table("Scenarios", ["name", "what", "model", "sites"], rows, as_json=as_json)


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

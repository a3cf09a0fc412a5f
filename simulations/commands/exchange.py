"""wardround-sim export and import-bundle: models to and from others.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from common.config import RunConfig, load, read_text
from common.console.cli import JsonFlag, configure_logging, note, say, show_json
from common.errors import ConfigError
from common.text import counted


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a simulated run or an exported model.")],
    *,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="A new folder: a MONAI bundle.")] = None,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="A file: the network as ONNX.")] = None,
    all_: Annotated[
        Path | None, typer.Option("--all", help="A new folder: the model, its bundle and ONNX, with their hashes.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a finished model for others, once what was written has said what the model says.

    A MONAI bundle is run in a process without Wardround, ONNX by ONNX Runtime, on images made up for it. Of a
    coordinator's run: `wardround-server export` first, then this.

    --all writes what can be written here; what is left out it names, with the command that makes it.

    Example: wardround-sim export results/phantoms --bundle lesions-bundle --onnx lesions.onnx
    """
    configure_logging()
    if bundle is None and onnx is None and all_ is None:
        raise ConfigError("nothing to write: give --bundle FOLDER, --onnx FILE, both, or --all FOLDER.")
    told: dict[str, object] = {}
    if all_ is not None:
        from simulations.exchange.forms import export_forms  # noqa: PLC0415 - torch

        note("Writing each form, and running it without Wardround ...")
        forms = export_forms(model, all_)
        told |= forms.forms
        if not as_json:
            say(f"Forms: {forms.path}")
            for name, form in forms.left_out.items():
                say(f"Left out: {name}. {form['left-out']}")
                say(f"It is made by: {form['command']}")
    if bundle is not None:
        from simulations.exchange.bundle import export_bundle  # noqa: PLC0415 - torch

        note("Writing the bundle, and running it without Wardround ...")
        done = export_bundle(model, bundle)
        found = {
            "outputs": done.agreement.outputs,
            "prepared": done.agreement.prepared,
            "labels": done.agreement.labels,
        }
        told["bundle"] = {"path": str(done.path), "largest-difference": found, "differences": list(done.differences)}
        if not as_json:
            say(f"Bundle: {done.path}")
            say(
                f"Largest difference from ours: {_shown(done.agreement.outputs)} of an output, "
                f"{_shown(done.agreement.prepared)} of a prepared value, {_shown(done.agreement.labels)} of the labels"
            )
            for sentence in done.differences:
                say(f"Otherwise than here: {sentence}.")
    if onnx is not None:
        from simulations.exchange.onnx_file import export_onnx  # noqa: PLC0415 - torch

        note("Writing ONNX, and running it by ONNX Runtime ...")
        graph = export_onnx(model, onnx)
        told["onnx"] = {"path": str(graph.path), "largest-difference": graph.outputs, "fixed-edges": graph.fixed}
        if not as_json:
            say(f"ONNX: {graph.path}")
            say(f"Largest difference from ours: {_shown(graph.outputs)} of an output")
            if graph.fixed is not None:
                say(f"It takes images of the run's patch-size alone, because torch's exporter says: {graph.fixed}")
    if as_json:
        show_json(told)


def import_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A MONAI bundle's folder, or a file of weights.")],
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run or scenario whose network it shall be.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model to start from.")],
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Draw the last block anew where its outputs are others.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take weights from a MONAI bundle, for a run to start from. Nothing of the bundle is executed.

    Example: wardround-sim import-bundle spleen_ct run.toml --out start --new-head
    """
    configure_logging()
    from simulations.exchange.weights import import_bundle as imported  # noqa: PLC0415 - torch

    done = imported(bundle, _run_of(run), out, new_head=new_head)
    if as_json:
        show_json(
            {
                "path": str(done.path),
                "sha256": done.sha256,
                "tensors": done.tensors,
                "drawn": list(done.fresh),
                "neutral": done.neutral,
                "renamed": done.renamed,
                "largest-difference": done.apart,
                "not-compared": done.not_compared,
            }
        )
        return
    say(f"Model: {done.path}, {counted(done.tensors, 'tensor')}")
    for name in done.fresh:
        say(f"Drawn anew: {name}")
    if done.neutral:
        say(f"Normalisations without weights in the bundle, begun at 1 and 0: {counted(done.neutral, 'tensor')}")
    if done.renamed:
        say(f"Named otherwise in the bundle, by what stands before all names: {counted(done.renamed, 'tensor')}")
    compared = "what the last block is given" if done.fresh else "an output"
    if done.apart is None:
        say(f"Matched by name; not compared with the bundle's own network: {done.not_compared}")
    else:
        say(f"Largest difference from the bundle's own network: {_shown(done.apart)} of {compared}")
    say(f'In run.toml:  [initial]  sha256 = "{done.sha256}"')
    note('Add public = "..." there only where you know which images made these weights. Then, with --initial')
    note(f"{done.path}: `wardround-sim run`, or `wardround-server run`.")


def _run_of(path: Path) -> RunConfig:
    """The run of a run.toml or of a scenario's file."""
    try:
        is_scenario = "run" in tomllib.loads(read_text(path))
    except ValueError:
        is_scenario = False  # and `load` says what is wrong
    if not is_scenario:
        return load(RunConfig, path)
    from simulations.scenarios.scenario import load_scenario  # noqa: PLC0415

    return load_scenario(str(path)).config.run


def _shown(value: float | None) -> str:
    return "not compared" if value is None else f"{value:.1g}"


__all__ = ["export", "import_bundle"]

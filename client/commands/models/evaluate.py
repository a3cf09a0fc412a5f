"""wardround-client evaluate: how good a model is on this site's own labelled patients."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from client.commands.options.site import HOME, Home, PersonalFlag, counted_progress, personal_of
from client.site import open_site
from common.console.cli import JsonFlag, note, say, show_json, show_table

if TYPE_CHECKING:
    from client.evaluate.model import Evaluated, Evaluation


def evaluate(  # noqa: PLR0917 - one parameter an option
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results, which stay here.")],
    home: Home = HOME,
    split: Annotated[
        Literal["all", "test", "validation", "train"] | None,
        typer.Option(help="all, test, validation or train; default: test where the model was trained here, else all."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of the surface Dice, mm; pixels of images without spacing.")
    ] = 1.0,
    personal: PersonalFlag = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation in --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Score a model on the labelled studies in site.toml. Nothing of it leaves the site.

    With --personal the site's own model, and the scores of the shared one beside it.

    Writes patients.csv (pseudonyms), summary.json and report.html, for their owner only.

    Example: `wardround-client evaluate wardround-runs/lesions --out evaluation --split test`
    """
    from client.evaluate import report  # noqa: PLC0415 - torch
    from client.evaluate.model import beside  # noqa: PLC0415
    from client.evaluate.model import evaluate as score  # noqa: PLC0415
    from client.predict.prediction import check_apart  # noqa: PLC0415

    site = open_site(home)
    for source in site.config.data:
        check_apart(site.home / Path(source.path).expanduser(), out)
    if not overwrite:
        report.refuse_to_overwrite(out)

    def scored(own: Callable[[str], bytes] | None) -> "Evaluation":
        with counted_progress("studies") as advance:
            return score(
                model,
                [site],
                wanted=split,
                tolerance=tolerance,
                device=device,
                readers=site.config.threads or os.cpu_count() or 1,
                personal=own,
                progress=lambda _site, done, total: advance(done, total),
            )

    found = scored(personal_of(home) if personal else None)
    (one,) = found.sites
    if personal:
        (shared,) = scored(None).sites
        one = beside(one, shared, found.run.task)
    show(out, found, one, as_json=as_json)
    note("It shows patients, under pseudonyms, and stays here.")


def show(out: Path, found: "Evaluation", one: "Evaluated", *, as_json: bool) -> None:
    """Write the files of one site, or of all together, and show what stands in them."""
    from client.evaluate import report  # noqa: PLC0415 - torch

    page = report.write(out, found, one)
    if as_json:
        show_json(report.summary(found, one))
    else:
        for table in one.findings.tables:
            show_table(table.title, table.columns, table.rows)
        say(f"Report: {page}")
    if text := report.warning(one):
        note(text)
    for reason in one.reasons:
        note(reason)


__all__ = ["evaluate", "show"]

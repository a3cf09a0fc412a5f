"""wardround-client personal: the models of the site's own, from runs that leave one here."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options.site import HOME, Home, personal_of
from client.home import kept
from client.rules import approvals
from client.site import open_site
from common.console.cli import Digest, JsonFlag, confirm, new_app, note, say, show_table
from common.errors import ConfigError
from common.text import counted, meant

personal_app = new_app("Models of this hospital's own, from runs that leave one here.")


@personal_app.command("list")
def personal_list(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """The personal models that are kept here, sealed, until they are removed.

    Example: `wardround-client personal list`
    """
    names = {one.run_hash: one.run.name for one in approvals.load_all(home)}
    rows = [
        (
            names.get(held.run_hash),
            Digest(held.run_hash),
            held.round,
            held.size,
            datetime.datetime.fromtimestamp(held.at, datetime.UTC),
        )
        for held in kept.personal_models(home)
    ]
    show_table("Personal models", ("run", "hash", "round", "bytes", "trained"), rows, as_json=as_json)


@personal_app.command("remove")
def personal_remove(
    run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")],
    home: Home = HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Remove the personal model of a run. A run that still trains begins a new one from the model that is sent.

    Example: `wardround-client personal remove lesions-2026 --yes`
    """
    held = _one_of(home, run)
    confirm(f"Remove the personal model of run {held.run_hash[:8]}? It cannot be made again.", yes=yes)
    kept.remove(kept.personal_folder(home, held.run_hash))
    say(f"Removed the personal model of run {held.run_hash[:8]}.")
    note("Copies that were exported, and predictions, stay where they are.")


@personal_app.command("export")
def personal_export(
    model: Annotated[Path, typer.Argument(help="The run's model.safetensors or its folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the personal model.")],
    home: Home = HOME,
) -> None:
    """Write a personal model as files, for explain, serve and others. It may reveal patients: it stays here.

    Example: `wardround-client personal export wardround-runs/lesions --out ours`
    """
    from client.predict.personal import export  # noqa: PLC0415 - torch

    export(model, personal_of(home), open_site(home).config.name, out)
    say(f"Written to {out}, for its owner only.")
    note("No guarantee of the run covers it: treat it as the images that it was trained on.")


def _one_of(home: Path, wanted: str) -> kept.Held:
    names = {one.run_hash: one.run.name for one in approvals.load_all(home)}
    found = [
        held
        for held in kept.personal_models(home)
        if held.run_hash.startswith(wanted) or names.get(held.run_hash) == wanted
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{counted(len(found), 'personal model')} kept here are of a run {wanted!r}, expected one."
            f"{meant(wanted, names.values())} See `wardround-client personal list`."
        )
    return found[0]

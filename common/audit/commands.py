"""The `audit` commands that both programs have: verify one's own log, alone or with others, and export it."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.audit import verify
from common.audit.log import AuditLog
from common.console.cli import note, say, show_table
from common.errors import ConfigError
from common.system.files import write_atomically

LogsArgument: TypeAlias = Annotated[
    list[Path] | None, typer.Argument(metavar="OTHER_LOG...", help="Logs of other sides, as files or exports.")
]
KeyOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--key", help="Public key of another side: ORIGIN=HEX, such as site/north=9f86...")
]
CheckpointOption: TypeAlias = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="A signed checkpoint that you kept; repeatable.")
]
OutOption: TypeAlias = Annotated[Path, typer.Option("--out", help="The file to write.")]


def verify_logs(
    own: Path,
    keys: Mapping[str, tuple[bytes, ...]],
    others: Sequence[Path],
    given: Sequence[str],
    checkpoints: Sequence[Path],
    *,
    as_json: bool,
) -> None:
    """Verify, print what was found, and end with exit code 1 if anything is wrong.

    Args:
        own: this side's log.
        keys: that this side knows, by origin.
        others: logs of other sides.
        given: keys on the command line, ORIGIN=HEX.
        checkpoints: files with one checkpoint each.
        as_json: the findings as JSON.
    """
    trusted = dict(keys)
    for text in given:
        origin, key = verify.parse_key(text)
        trusted[origin] = (*trusted.get(origin, ()), key)
    verdict = verify.verify([own, *others], trusted, checkpoints)
    if as_json:
        rows = [(one.severity, one.log, one.text) for one in verdict.findings]
        show_table("Findings", ("severity", "log", "finding"), rows, as_json=True)
    else:
        for line in verify.report(verdict).splitlines():
            say(line)
    if not verdict.is_well:
        raise typer.Exit(1)


def export_log(log: AuditLog, out: Path) -> None:
    """Write the whole log for an auditor; the export itself is the log's last entry but not in the file."""
    if out.exists():
        raise ConfigError(f"{out} is there already. Give another file.")
    text = log.export()
    write_atomically(out, text)
    log.append("export", {"what": "audit", "hash": sha256(text).hexdigest()})
    say(out)
    note(f"Its keys: {log.origin}={log.public_key.hex()}. An auditor takes them from you, not from the file.")

"""wardround-server audit: the coordinator's log of what was done, and whether it fits the hospitals'."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from common.audit.commands import CheckpointOption, KeyOption, LogsArgument, OutOption, export_log, verify_logs
from common.audit.entries import COORDINATOR
from common.audit.history import Keys
from common.audit.log import AuditLog
from common.console.cli import JsonFlag, new_app
from server.commands.options import AsOption, HomeOption, asked
from server.registry import operators
from server.registry.audit_trail import AUDIT_NAME, open_log
from server.registry.registry import Registry

# Not --key, which gives the public keys to verify with.
OperatorKeyOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--operator-key", envvar="WARDROUND_OPERATOR_KEY", help="The operator's key, when it lies elsewhere."),
]

audit_app = new_app("The coordinator's audit log: what was done, in whose name, and proof that nothing was changed.")


@audit_app.command("verify")
def audit_verify(
    logs: LogsArgument = None,
    *,
    home: HomeOption = None,
    key: KeyOption = None,
    checkpoint: CheckpointOption = None,
    json: JsonFlag = False,
    by: AsOption = operators.FIRST,
    operator_key: OperatorKeyOption = None,
) -> None:
    """Check the coordinator's log, alone or with hospitals'. The exit code is 0 only if all fits.

    Example: `wardround-server audit verify north.jsonl south.jsonl`
    """
    opened, registry, _ = asked(home, "audit-verify", by, operator_key)
    keys = _keys(open_log(opened), registry)
    verify_logs(opened.path / AUDIT_NAME, keys, logs or (), key or (), checkpoint or (), as_json=json)


@audit_app.command("export")
def audit_export(
    out: OutOption,
    home: HomeOption = None,
    by: AsOption = operators.FIRST,
    operator_key: OperatorKeyOption = None,
) -> None:
    """Write the whole log to one text file, for an auditor.

    Example: `wardround-server audit export --out coordinator.jsonl`
    """
    opened, _, signer = asked(home, "audit-export", by, operator_key)
    log = open_log(opened)
    operators.carry_out(opened, signer, (log.public_key.hex(),), lambda _act: export_log(log, out))


def _keys(log: AuditLog, registry: Registry) -> Keys:
    """Our own key, and the sites': those of the registry, and earlier ones, which our own log names."""
    found: dict[str, set[bytes]] = {}
    for site in registry.sites():
        if site.receipt_key is not None:
            found.setdefault(f"site/{site.name}", set()).add(site.receipt_key)
    with log.transaction() as transaction:
        for entry in transaction.latest("enrolled", count=transaction.size):
            found.setdefault(f"site/{entry.fields['site']}", set()).add(bytes.fromhex(entry.fields["key"]))
    return {COORDINATOR: (log.public_key,)} | {origin: tuple(sorted(keys)) for origin, keys in found.items()}

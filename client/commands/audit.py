"""wardround-client audit: this hospital's log of what was done, and whether it fits the coordinator's."""

from client.commands.options.site import HOME, Home
from client.trail.audit_trail import AUDIT_NAME, open_log
from common.audit.commands import CheckpointOption, KeyOption, LogsArgument, OutOption, export_log, verify_logs
from common.audit.entries import COORDINATOR
from common.console.cli import JsonFlag, new_app

audit_app = new_app("This hospital's audit log: what was done, in whose name, and proof that nothing was changed.")


@audit_app.command("verify")
def audit_verify(
    logs: LogsArgument = None,
    home: Home = HOME,
    key: KeyOption = None,
    checkpoint: CheckpointOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this hospital's log, alone or with others'. The exit code is 0 only if all fits.

    Example: `wardround-client audit verify coordinator.jsonl`
    """
    log = open_log(home)
    keys = {log.origin: (log.public_key,), COORDINATOR: (log.coordinator_key or b"",)}
    verify_logs(home / AUDIT_NAME, keys, logs or (), key or (), checkpoint or (), as_json=as_json)


@audit_app.command("export")
def audit_export(out: OutOption, home: Home = HOME) -> None:
    """Write the whole log to one text file, for an auditor.

    Example: `wardround-client audit export --out north.jsonl`
    """
    export_log(open_log(home), out)

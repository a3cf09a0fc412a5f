"""What a backup of a coordinator holds: all but logs, invitations, which are void in a day, and what is disposable.

The audit log comes last: an operator's act is entered before what it causes, so whatever is in the registry or in a
run's folder has its entry; what the log has beyond them is done again from the last checkpoint. Of a run's folder the
checkpoints come before the journal, which a run that goes on cuts to its checkpoint.
"""

from common.rescue.members import Side
from common.rescue.migration import VERSION_NAME
from common.rescue.restored import MARK_NAME
from server.archive.record import ARCHIVE
from server.home.folder import KEY_NAME
from server.registry.audit_trail import AUDIT_NAME

REGISTRY_NAME = "registry.sqlite"

SIDE = Side(
    name="coordinator",
    program="wardround-server",
    mark="server.toml",
    kept=(
        REGISTRY_NAME,
        "runs",
        ARCHIVE,
        "operators",
        "pki",
        KEY_NAME,
        MARK_NAME,
        VERSION_NAME,
        "server.toml",
        AUDIT_NAME,
    ),
    databases=(REGISTRY_NAME, AUDIT_NAME),
    at_once=("operators", "pki"),
    folders=("pki", "operators", "invitations", "runs", "logs", "flower"),
    left_out={
        "invitations": "secrets that are void a day after they were made: invite again",
        "flower": "Flower's state, which is made anew",
        "wake": "sockets, which are made anew",
        "logs": "logs of processes",
        "work.json": "what the sites are at just now",
        "seen.json": "when the sites last called",
        "nodes.json": "Flower's numbers of the sites, which are given anew",
        "processes.json": "which processes run",
        "serving": "when the gateway last answered",
        "*.sock": "sockets, which are made anew",
        "forms": "models in other forms, while they are made",
        "before-version-*": "what a step from an earlier version changed",
    },
)

__all__ = ["REGISTRY_NAME", "SIDE"]

"""The coordinator's memory, in one file: sites (server/sites.py), proposed runs (server/proposals.py), operators."""

from dataclasses import dataclass

from common.errors import EnrolmentError
from server import proposals, sites
from server.proposals import Proposals
from server.sites import Sites

_SCHEMA = """
CREATE TABLE IF NOT EXISTS operators (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    certificate BLOB NOT NULL,
    active INTEGER NOT NULL DEFAULT 1
);
"""


@dataclass(frozen=True)
class Member:
    """An operator as the registry knows them."""

    name: str
    role: str
    certificate: bytes  # PEM
    active: bool


class Registry(Sites, Proposals):
    """The registry file. It is one, so that what a process remembers of it has one version."""

    schema = sites.SCHEMA + proposals.SCHEMA + _SCHEMA

    def operators(self) -> list[Member]:
        """All operators by name."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM operators ORDER BY name").fetchall()
        return [Member(row["name"], row["role"], row["certificate"], bool(row["active"])) for row in rows]

    def put_operator(self, name: str, role: str, certificate_pem: bytes) -> None:
        """Add an operator, or give one a new certificate or role."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO operators VALUES (?, ?, ?, 1)", (name, role, certificate_pem))

    def remove_operator(self, name: str) -> None:
        """An operator may do nothing any more.

        Raises:
            EnrolmentError: unknown.
        """
        with self._writing() as database:
            if not database.execute("UPDATE operators SET active = 0 WHERE name = ?", (name,)).rowcount:
                raise EnrolmentError(f"no operator is called {name!r}. See `wardround-server operators`.")


__all__ = ["Member", "Registry"]

"""The coordinator's memory, in one file: sites (sites.py), proposed runs (proposals.py), operators (operators.py)."""

from dataclasses import dataclass

from common.errors import EnrolmentError
from common.identity.operators import Act
from server.registry import proposals, sites
from server.registry.acts import act_to_text
from server.registry.proposals import Proposal, Proposals
from server.registry.sites import Sites

_SCHEMA = """
CREATE TABLE IF NOT EXISTS operators (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    certificate BLOB NOT NULL,
    active INTEGER NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS clocks (
    site TEXT PRIMARY KEY,
    ahead_s REAL
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

    def active(self) -> set[str]:
        """The sites that are members."""
        return {site.name for site in self.sites() if site.state == "active"}

    def willing(self, proposal: Proposal) -> set[str]:
        """The members that have approved a run; who was removed since does not count."""
        return self.active() & proposal.approved

    def clocks(self) -> dict[str, float]:
        """How far the clocks of active sites were ahead of ours when they last connected; seconds."""
        query = (
            "SELECT site, ahead_s FROM clocks JOIN sites ON site = name WHERE state = 'active' AND ahead_s IS NOT NULL"
        )
        with self._reading() as database:
            return {row["site"]: row["ahead_s"] for row in database.execute(query).fetchall()}

    def set_clock(self, site: str, ahead_s: float | None) -> None:
        """Note how far a site's clock is ahead of ours; None: it did not say."""
        known = self.clocks().get(site)
        if known is not None and ahead_s is not None and abs(known - ahead_s) < 1.0:
            return  # each write wakes the calls that are held
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO clocks VALUES (?, ?)", (site, ahead_s))

    def operators(self) -> list[Member]:
        """All operators by name."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM operators ORDER BY name").fetchall()
        return [Member(row["name"], row["role"], row["certificate"], bool(row["active"])) for row in rows]

    def put_operator(self, name: str, role: str, certificate_pem: bytes) -> None:
        """Add an operator, or give one a new certificate or role."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO operators VALUES (?, ?, ?, 1)", (name, role, certificate_pem))

    def remove_operator(self, name: str, act: Act | None = None) -> None:
        """An operator may do nothing any more.

        Args:
            name: the operator's.
            act: by which an admin did so; the hospitals believe that alone.

        Raises:
            EnrolmentError: unknown.
        """
        with self._writing() as database:
            if act is not None:
                database.execute(
                    "INSERT OR IGNORE INTO removals SELECT certificate, ? FROM operators WHERE name = ? AND active",
                    (act_to_text(act), name),
                )
            if not database.execute("UPDATE operators SET active = 0 WHERE name = ?", (name,)).rowcount:
                raise EnrolmentError(f"no operator is called {name!r}. See `wardround-server operator list`.")


__all__ = ["Member", "Registry"]

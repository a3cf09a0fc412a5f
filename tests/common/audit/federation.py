"""A coordinator and hospitals with audit logs, and hands that forge them.

`rewrite` is a capable forger: it replaces the entries and makes the stored tree fit them. `tamper` runs plain SQL.
"""

import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit import merkle, notes, receipts, witness
from common.audit.log import AuditLog

RUN, POLICY, MODEL = "1f" * 32, "2e" * 32, "3d" * 32


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, now=1_790_000_000):
        self.now = now

    def __call__(self):
        self.now += 1
        return self.now


class Federation:
    """Logs in `folder`: coordinator.sqlite, and SITE.sqlite for each site."""

    def __init__(self, folder, *sites):
        self.folder, self.clock = Path(folder), Clock()
        self.private = {name: Ed25519PrivateKey.generate() for name in ("coordinator", *sites)}
        self.public = {name: notes.public_bytes(key) for name, key in self.private.items()}
        self.logs = {name: self.open(name) for name in self.private}
        for site in sites:
            fields = {
                "site": site,
                "certificate": "4c" * 32,
                "key": self.public[site].hex(),
                "coordinator-key": self.public["coordinator"].hex(),
            }
            self.logs["coordinator"].append("enrolled", fields)
            self.logs[site].append("enrolled", fields)

    def open(self, name, path=None):
        origin = name if name == "coordinator" else f"site/{name}"
        known = None if name == "coordinator" else self.public["coordinator"]
        path = path or self.path(name)
        return AuditLog(path, origin, self.private[name], coordinator_key=known, clock=self.clock)

    def path(self, name):
        return self.folder / f"{name}.sqlite"

    def keys(self, *names):
        return {
            name if name == "coordinator" else f"site/{name}": (self.public[name],) for name in names or self.private
        }

    def receipt(self, site, number, **changes):
        values = {
            "run": RUN, "round_": number, "site": site, "received": sha256(b"model").hexdigest(),
            "update": sha256(f"{site} {number}".encode()).hexdigest(), "size": len(f"{site} {number}"),
            "policy": POLICY, "time": self.clock(), "patients": 35, "spent": ("0.25", "0.00001"),
        }  # fmt: skip
        return receipts.receipt_for(**(values | changes))

    def round(self, site, number, coordinator=None):
        """A round of one site, and the exchange of checkpoints after it."""
        coordinator, hospital = coordinator or self.logs["coordinator"], self.logs[site]
        receipt = self.receipt(site, number)
        hospital.append("spend", {"run": RUN, "round": number, "epsilon": "0.25", "delta": "0.00001"})
        signature = receipts.sign(receipt, self.private[site])
        hospital.append("round", receipts.entry_fields(receipt, signature))
        counter = receipts.countersign(receipt, signature, self.public[site], self.private["coordinator"])
        coordinator.append("arrived", update_of(receipt))
        coordinator.append("round", receipts.entry_fields(receipt, signature, counter))
        hospital.append("countersigned", receipts.countersigned_fields(receipt, counter))
        show(hospital, coordinator)
        show(coordinator, hospital)

    def rounds(self, count, *sites):
        for number in range(1, count + 1):
            for site in sites:
                self.round(site, number)
            self.aggregate(number, *sites)

    def aggregate(self, number, *sites):
        """The coordinator makes a model of these sites' updates."""
        coordinator = self.logs["coordinator"]
        for site in sites:
            coordinator.append("entered", update_of(self.receipt(site, number)))
        coordinator.append("aggregated", {"run": RUN, "round": number, "model": MODEL, "updates": len(sites)})


def update_of(receipt):
    """The fields of entries about its update."""
    return {"run": receipt.run, "round": receipt.round, "site": receipt.site, "update": receipt.update}


def show(log, observer):
    """Give the log's checkpoint, with its proof, to the observer."""
    known = witness.last_seen(observer, log.public_key)
    note = log.checkpoint()
    proof = log.prove(known.size if known else 0, notes.peek(note).size)
    return witness.observe(observer, note, proof, log.public_key, origin=log.origin)


def lines_of(path):
    with closing(sqlite3.connect(path)) as database:
        return [text.encode() for (text,) in database.execute("SELECT entry FROM entries ORDER BY seq")]


def tamper(path, *statements):
    """Run statements as somebody who has the file: the triggers go first."""
    with closing(sqlite3.connect(path)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        for statement, *values in statements:
            database.execute(statement, values)
        database.commit()


def rewrite(path, lines):
    """Other entries, with a stored tree that fits them."""
    nodes = merkle.perfect_subtrees(merkle.leaf_hash(line) for line in lines)
    tamper(
        path,
        ("DELETE FROM entries",),
        ("DELETE FROM nodes",),
        *(("INSERT INTO entries VALUES (?, ?)", seq, line.decode()) for seq, line in enumerate(lines)),
        *(("INSERT INTO nodes VALUES (?, ?, ?)", *place, node) for place, node in nodes.items()),
    )

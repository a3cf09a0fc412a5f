"""What operators signed, as the coordinator's log tells it: taken in entry by entry, oldest first.

An act stands before the entry of what it causes. It counts if an operator whom the log knows, and who was not removed
before, signed it, if the role allows it, and if its nonce is new. Admitting a site, and opening a closed run again,
need one; a site that was shut out without one stays out. The keys here are those of the entries `operator-added`; a
running coordinator checks the certificates with the root as well (server/registry/acts.py).
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.audit.entries import Entry
from common.audit.notes import is_signed
from common.identity.operators import RIGHTS, act_statement, subject_of

# The kinds of entries that are of use here.
KINDS = ("operator-added", "operator-removed", "act", "enrolled", "renewed", "revoked", "proposed", "closed")


@dataclass
class SignedActs:
    """See the module. Grows with `take`; entries are kept by what they are about."""

    acts: dict[str, Entry] = field(default_factory=dict)  # by nonce; the first of each
    operators: dict[str, Entry] = field(default_factory=dict)  # `operator-added`, by certificate
    removed: dict[str, int] = field(default_factory=dict)  # certificate -> number of the entry
    enrolled: dict[str, Entry] = field(default_factory=dict)  # by site; none after a revocation
    certificates: dict[str, set[str]] = field(default_factory=dict)  # of a site, since it was enrolled
    settled: dict[str, int] = field(default_factory=dict)  # site -> last time that it was let in or shut out
    revoked: dict[str, int] = field(default_factory=dict)  # site -> last time that it was shut out
    closed: dict[str, int] = field(default_factory=dict)  # run -> last time that it was closed
    _signed: dict[tuple[str, str], int] = field(default_factory=dict)  # action and subject -> last act that counts

    def take(self, entry: Entry) -> Iterator[tuple[bool, str]]:
        """Take in the next entry, and tell what is wrong with it: whether that is an error, and a sentence."""
        fields = entry.fields
        match entry.kind:
            case "act":
                wrong = self._wrong(entry)
                if wrong:
                    yield True, wrong
                else:
                    self._signed[fields["action"], fields["subject"]] = entry.seq
                self.acts.setdefault(fields["nonce"], entry)
            case "operator-added":
                # The first is made with the root; whoever came later by the root alone is worth a look.
                subject = subject_of(fields["operator"], fields["certificate"])
                if self.operators and not self._is_signed("operator-add", subject):
                    yield False, f"operator {fields['operator']} was added with the root key alone, by no operator"
                self.operators[fields["certificate"]] = entry
            case "operator-removed":
                self.removed.setdefault(fields["certificate"], entry.seq)
            case "enrolled" | "renewed" | "revoked":
                yield from self._take_site(entry)
            case "proposed":
                run, after = fields["run"], self.closed.get(fields["run"], -1)
                if after >= 0 and self.operators and not self._is_signed("resume", subject_of(run), after):
                    yield True, f"run {run[:12]} was opened again without an operator's signature"
            case "closed":
                self.closed[fields["run"]] = entry.seq

    def _take_site(self, entry: Entry) -> Iterator[tuple[bool, str]]:
        site, certificate = entry.fields["site"], entry.fields.get("certificate", "")
        if entry.kind == "renewed":
            self.certificates.setdefault(site, set()).add(certificate)
            return
        if entry.kind == "enrolled":
            subject = subject_of(site, certificate, entry.fields["key"])
            if self.operators and not self._is_signed("approve", subject, self.revoked.get(site, -1)):
                yield True, f"site {site} was let in without an operator's signature"
            self.enrolled[site], self.certificates[site] = entry, {certificate}
        else:
            if self.operators and not self._is_signed("revoke", subject_of(site), self.settled.get(site, -1)):
                yield False, f"site {site} was shut out without an operator's signature; it stays out"
            self.revoked[site] = entry.seq
            self.enrolled.pop(site, None)
            self.certificates.pop(site, None)
        self.settled[site] = entry.seq

    def _is_signed(self, action: str, subject: str, after: int = -1) -> bool:
        return self._signed.get((action, subject), -1) > after

    def _wrong(self, entry: Entry) -> str:
        """Why an act does not count; empty if it does."""
        fields = entry.fields
        operator, action = fields["operator"], fields["action"]
        known = self.operators.get(fields["certificate"])
        statement = act_statement(action, fields["subject"], operator, fields["signed-at"], fields["nonce"])
        what = f"the act {action} of {operator}"
        if known is None or known.fields["operator"] != operator:
            return f"{what} is of an operator whom the log does not know"
        if fields["certificate"] in self.removed:
            return f"{what} came after the operator was removed"
        if known.fields["role"] not in RIGHTS[action]:
            return f"{what}, who is {known.fields['role']}, is not one that this role may do"
        if fields["nonce"] in self.acts:
            return f"{what} repeats the one in entry {self.acts[fields['nonce']].seq}"
        if not is_signed(statement, base64.b64decode(fields["signature"]), bytes.fromhex(known.fields["key"])):
            return f"{what} is not signed with the operator's key"
        return ""

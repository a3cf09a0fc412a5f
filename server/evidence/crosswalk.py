"""Which controls a run gives evidence for, and which it does not: HIPAA 45 CFR 164.312, ISO/IEC 27001:2022 Annex A."""

from collections.abc import Sequence

from server.evidence.document import Blank, Cell, Document, Part, heading
from server.evidence.privacy import aimed_at
from server.views.facts import Fact, RunFacts, count, entered

_SECURITY = "the security officer"
_COLUMNS = ("control", "what the program does", "evidence of this coordinator", "gap: what it does not do")


def document(facts: RunFacts) -> Document:
    """The crosswalk of one run."""
    return Document(
        "crosswalk",
        "Crosswalk: HIPAA 164.312 and ISO/IEC 27001:2022 Annex A",
        "for each safeguard what the program contributes, what was seen in this run, and the gap that is left.",
        "a statement of applicability, nor an audit. The gaps of a hospital's own site stand in its policies.",
        [_hipaa(facts), _iso(facts), _open()],
        heading(facts),
    )


def _counted(facts: RunFacts, *kinds: str) -> Fact:
    return count([entered(entry, "seq") for entry in facts.audited(*kinds)])


def _members(facts: RunFacts, *kinds: str) -> Fact:
    return count([entered(entry, "seq") for entry in facts.of_members(*kinds)])


def _hipaa(facts: RunFacts) -> Part:
    key, network = facts.key("key"), facts.at_server("private-network")
    rows: Sequence[Sequence[Cell]] = [
        [
            "(a)(1) access control",
            "roles of operators, certificates of sites; acts refused:",
            _members(facts, "act-refused"),
            "accounts of the hosts are the organisation's",
        ],
        [
            "(a)(2)(i) unique user identification",
            "an operator's key signs each act; acts:",
            _counted(facts, "act"),
            "who holds a key is the organisation's to know",
        ],
        [
            "(a)(2)(ii) emergency access",
            "none",
            "",
            "no break-glass procedure: the organisation's",
        ],
        [
            "(a)(2)(iii) automatic logoff",
            "none: commands end by themselves",
            "",
            "sessions of the hosts are the organisation's",
        ],
        [
            "(a)(2)(iv) encryption at rest",
            "keys, checkpoints and models are sealed; under a passphrase:",
            key,
            "images, and metrics and logs at the coordinator, are not encrypted by the program",
        ],
        [
            "(b) audit controls",
            "an audit log that only grows, signed; entries:",
            _counted(facts),
            "nobody is told to read it; retention is the organisation's",
        ],
        [
            "(c)(1) integrity",
            "hashes of documents, updates and models; models:",
            _counted(facts, "aggregated"),
            "images are not protected against change by the hospital itself",
        ],
        [
            "(c)(2) authenticate what is stored",
            "authenticated encryption; receipts of both sides; updates that entered:",
            _counted(facts, "round"),
            "labels may be wrong and are believed",
        ],
        [
            "(d) person or entity authentication",
            "TLS with certificates of both sides; sites enrolled:",
            _members(facts, "enrolled"),
            "who stands behind a certificate was confirmed by people",
        ],
        [
            "(e)(1) transmission security",
            "TLS on every connection; Flower in a network of its own:",
            network,
            "networks beyond the two ports are the organisation's",
        ],
        [
            "(e)(2)(i) integrity controls",
            "hash of each update in a receipt; updates that arrived:",
            _counted(facts, "arrived"),
            "none known",
        ],
        [
            "(e)(2)(ii) encryption",
            "TLS",
            "",
            "how long a message took stays visible",
        ],
    ]
    return Part("HIPAA 45 CFR 164.312, technical safeguards", (), _COLUMNS, rows)


def _iso(facts: RunFacts) -> Part:
    rows: Sequence[Sequence[Cell]] = [
        [
            "A.5.15 access control",
            "a table of rights, checked before each command; acts refused:",
            _members(facts, "act-refused"),
            "rights on the hosts",
        ],
        [
            "A.5.16 identity management",
            "operators and sites have certificates of one root; operators added:",
            _members(facts, "operator-added"),
            "joiners and leavers: nobody tells the program",
        ],
        [
            "A.5.17 authentication information",
            "keys are sealed; the root's under a passphrase:",
            facts.key("root"),
            "strength of passphrases is not enforced",
        ],
        [
            "A.5.18 access rights",
            "operators can be removed, sites revoked; removed or revoked:",
            _members(facts, "operator-removed", "revoked"),
            "no review at intervals",
        ],
        [
            "A.5.19 supplier relationships",
            "none",
            "",
            "contracts between hospitals and coordinator",
        ],
        [
            "A.5.21 supply chain",
            "list of components: see sbom; version:",
            facts.program("wardround"),
            "no monitoring for vulnerabilities",
        ],
        [
            "A.5.23 cloud services",
            "none",
            "",
            "where the coordinator runs",
        ],
        [
            "A.5.24 to A.5.27 incidents",
            "refusals and conflicts are logged; refusals:",
            _counted(facts, "refusal"),
            "plan, response and notice",
        ],
        [
            "A.5.28 collection of evidence",
            "audit log, receipts, this folder; entries:",
            _counted(facts),
            "none known for this run",
        ],
        [
            "A.5.33 protection of records",
            "records of a run that is done do not change unnoticed; runs closed:",
            _counted(facts, "closed"),
            "retention and backup",
        ],
        [
            "A.5.34 privacy and personal data",
            "images stay; see impact; epsilon aimed at:",
            aimed_at(facts),
            "legal basis, information of patients",
        ],
        [
            "A.8.2 privileged access",
            "an admin's acts are signed; acts:",
            _members(facts, "act"),
            "administrators of the hosts see what the program sees",
        ],
        [
            "A.8.3 information access restriction",
            "a hospital's policy refuses what it does not allow; denials:",
            _counted(facts, "denied"),
            "access to images within the hospital",
        ],
        [
            "A.8.5 secure authentication",
            "certificates, signatures; sites enrolled:",
            _members(facts, "enrolled"),
            "no second factor",
        ],
        [
            "A.8.9 configuration management",
            "the run is one document with a hash; its format:",
            facts.setting("format"),
            "settings of the hosts",
        ],
        [
            "A.8.10 information deletion",
            "`data forget` at a hospital",
            "",
            "a trained model does not forget; images are the hospital's",
        ],
        [
            "A.8.11 data masking",
            "pseudonyms; copies by the DICOM standard's profile",
            "",
            "faces in head scans are not removed",
        ],
        [
            "A.8.12 data leakage prevention",
            "an exit gate at the hospital; updates that entered:",
            _counted(facts, "round"),
            "a worker that is taken over may hide data in weights",
        ],
        [
            "A.8.13 backup",
            "docs/operations.md says what to back up",
            "",
            "backups are the organisation's",
        ],
        [
            "A.8.15 logging",
            "audit log; entries:",
            _counted(facts),
            "logs of the hosts",
        ],
        [
            "A.8.16 monitoring",
            "logs and reports",
            "",
            "nobody is alarmed by the program itself",
        ],
        [
            "A.8.17 clock synchronisation",
            "times are by the writer's clock; the order is proved",
            "",
            "clocks are the organisation's",
        ],
        [
            "A.8.20 to A.8.22 networks",
            "two ports; Flower in a network of its own:",
            facts.at_server("private-network"),
            "firewalls",
        ],
        [
            "A.8.24 cryptography",
            "TLS, AES, Ed25519, SHA-2",
            "",
            "no certified module",
        ],
        [
            "A.8.25 to A.8.29 development",
            "tests and threat table in docs/security.md",
            "",
            "no outside test of this version is known to the program",
        ],
    ]
    text = "Controls of Annex A that are not named here are not touched by the program."
    return Part("ISO/IEC 27001:2022, Annex A", (text,), _COLUMNS, rows)


def _open() -> Part:
    rows: Sequence[Sequence[Cell]] = [
        [
            "administrative and physical safeguards",
            Blank(_SECURITY, "45 CFR 164.308 and 164.310"),
        ],
        [
            "statement of applicability",
            Blank(_SECURITY, "which controls apply, and why"),
        ],
        [
            "who closes each gap, by when",
            Blank(_SECURITY, "owner and date"),
        ],
    ]
    return Part("What only people can say", (), ("what", "value"), rows)


__all__ = ["document"]

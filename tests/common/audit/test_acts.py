"""What `audit verify` makes of operators' acts. The statements are spelled out here, as the documentation has them."""

import base64
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import cryptography
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit.verify import verify
from tests import ROOT
from tests.common.audit.federation import RUN, Federation, lines_of, rewrite

SITE, RECEIPTS = "4c" * 32, "5e" * 32


def digest(*lines):
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


class Coordinator:
    """A log, and operators by name."""

    def __init__(self, folder):
        self.federation = Federation(folder)
        self.log = self.federation.logs["coordinator"]
        self.keys, self.certificates, self.nonces = {}, {}, 0
        self.add("ada", "admin")

    def add(self, name, role, by=None):
        self.keys[name] = Ed25519PrivateKey.generate()
        self.certificates[name] = hashlib.sha256(name.encode()).hexdigest()
        if by:
            self.act(by, "operator-add", digest(name, self.certificates[name]))
        fields = {"operator": name, "certificate": self.certificates[name], "role": role}
        self.log.append("operator-added", fields | {"key": self.keys[name].public_key().public_bytes_raw().hex()})

    def act(self, name, action, subject, /, **changes):
        self.nonces += 1
        nonce, at = f"{self.nonces:032x}", 1_790_000_000
        statement = f"wardround act 1\n{action}\n{subject}\n{name}\n{at}\n{nonce}\n".encode()
        fields = {
            "operator": name, "action": action, "subject": subject, "certificate": self.certificates[name],
            "signed-at": at, "nonce": nonce, "signature": base64.b64encode(self.keys[name].sign(statement)).decode(),
        }  # fmt: skip
        self.log.append("act", fields | changes)

    def enrolled(self, site="north", certificate=SITE):
        own = self.federation.public["coordinator"].hex()
        fields = {"site": site, "certificate": certificate, "key": RECEIPTS, "coordinator-key": own}
        self.log.append("enrolled", fields)

    def found(self):
        """What is wrong, as (severity, text without the entry's number)."""
        verdict = verify([self.federation.path("coordinator")], self.federation.keys("coordinator"))
        assert verdict.is_well == all(one.severity != "error" for one in verdict.findings)
        return [(one.severity, one.text.partition(": ")[2]) for one in verdict.findings if "no key of" not in one.text]


@pytest.fixture
def coordinator(tmp_path):
    return Coordinator(tmp_path)


def test_a_whole_history_signed_by_those_who_may_is_well(coordinator):
    coordinator.add("otto", "operator", by="ada")
    coordinator.act("ada", "approve", digest("north", SITE, RECEIPTS))
    coordinator.enrolled()
    coordinator.log.append("proposed", {"run": RUN})
    coordinator.act("otto", "stop", digest(RUN))
    coordinator.log.append("closed", {"run": RUN})
    coordinator.act("otto", "resume", digest(RUN))
    coordinator.log.append("proposed", {"run": RUN})
    coordinator.act("ada", "revoke", digest("north"))
    coordinator.log.append("revoked", {"site": "north"})
    assert coordinator.found() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": base64.b64encode(bytes(64)).decode()}, {"subject": digest("south")}, {"action": "approve"},
        {"signed-at": 1}, {"nonce": "f" * 32},
    ],
)  # fmt: skip
def test_a_changed_act_is_an_error(coordinator, changes):
    coordinator.act("ada", "revoke", digest("north"), **changes)
    action = changes.get("action", "revoke")
    assert coordinator.found() == [("error", f"the act {action} of ada is not signed with the operator's key")]


def test_an_act_changed_in_the_file_is_an_error_even_with_a_tree_that_fits(coordinator):
    coordinator.act("ada", "revoke", digest("north"))
    path = coordinator.federation.path("coordinator")
    rewrite(path, [line.replace(b'"action":"revoke"', b'"action":"invite"') for line in lines_of(path)])
    assert ("error", "the act invite of ada is not signed with the operator's key") in coordinator.found()


@pytest.mark.parametrize(
    ("role", "action", "well"),
    [
        ("operator", "approve", False), ("operator", "stop", True), ("auditor", "stop", False),
        ("auditor", "audit-export", True), ("operator", "audit-export", False), ("auditor", "export", False),
    ],
)  # fmt: skip
def test_an_act_beyond_the_role_is_an_error(coordinator, role, action, well):
    coordinator.add("otto", role, by="ada")
    coordinator.act("otto", action, digest(RUN))
    told = [("error", f"the act {action} of otto, who is {role}, is not one that this role may do")]
    assert coordinator.found() == ([] if well else told)


def test_an_act_of_nobody_known_or_in_anothers_name_is_an_error(coordinator):
    coordinator.act("ada", "invite", digest("north"), certificate="00" * 32)
    coordinator.act("ada", "invite", digest("north"), operator="eve")
    unknown = "is of an operator whom the log does not know"
    assert coordinator.found() == [
        ("error", f"the act invite of ada {unknown}"),
        ("error", f"the act invite of eve {unknown}"),
    ]


def test_an_act_after_the_removal_is_an_error_and_one_before_is_not(coordinator):
    coordinator.add("otto", "operator", by="ada")
    coordinator.act("otto", "stop", digest(RUN))
    coordinator.log.append("operator-removed", {"certificate": coordinator.certificates["otto"]})
    coordinator.act("otto", "resume", digest(RUN))
    assert coordinator.found() == [("error", "the act resume of otto came after the operator was removed")]


def test_a_repeated_act_is_an_error(coordinator):
    coordinator.act("ada", "stop", digest(RUN))
    again = next(entry for entry in coordinator.log.entries() if entry.kind == "act")
    coordinator.log.append("act", again.fields)
    assert coordinator.found() == [("error", f"the act stop of ada repeats the one in entry {again.seq}")]


@pytest.mark.parametrize(
    "approved", [None, ("south", SITE, RECEIPTS), ("north", "00" * 32, RECEIPTS), ("north", SITE, "00" * 32)]
)
def test_a_site_let_in_without_an_approval_of_just_that_is_an_error(coordinator, approved):
    if approved:
        coordinator.act("ada", "approve", digest(*approved))
    coordinator.enrolled()
    assert coordinator.found() == [("error", "site north was let in without an operator's signature")]


def test_an_approval_by_somebody_who_may_not_lets_nobody_in(coordinator):
    coordinator.add("otto", "operator", by="ada")
    coordinator.act("otto", "approve", digest("north", SITE, RECEIPTS))
    coordinator.enrolled()
    assert coordinator.found() == [
        ("error", "the act approve of otto, who is operator, is not one that this role may do"),
        ("error", "site north was let in without an operator's signature"),
    ]


def test_an_approval_from_before_a_revocation_does_not_let_in_again(coordinator):
    coordinator.act("ada", "approve", digest("north", SITE, RECEIPTS))
    coordinator.enrolled()
    coordinator.log.append("revoked", {"site": "north"})
    coordinator.enrolled()
    assert coordinator.found() == [
        ("warning", "site north was shut out without an operator's signature; it stays out"),
        ("error", "site north was let in without an operator's signature"),
    ]


def test_a_run_opened_again_without_a_resumption_is_an_error(coordinator):
    for _ in range(2):
        coordinator.log.append("proposed", {"run": RUN})
        coordinator.log.append("closed", {"run": RUN})
    told = ("error", f"run {RUN[:12]} was opened again without an operator's signature")
    assert coordinator.found() == [told]
    coordinator.act("ada", "resume", digest(RUN))
    for _ in range(2):
        coordinator.log.append("proposed", {"run": RUN})
        coordinator.log.append("closed", {"run": RUN})
    assert coordinator.found() == [told, told]


def test_an_operator_whom_nobody_added_is_told(coordinator):
    coordinator.add("eve", "admin")
    assert coordinator.found() == [("warning", "operator eve was added with the root key alone, by no operator")]


def test_acts_are_verified_with_only_cryptography_installed(coordinator, tmp_path):
    libraries = Path(cryptography.__file__).parent.parent
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copytree(ROOT / "common", alone / "common")
    for library in (*libraries.glob("cryptography"), *libraries.glob("_cffi_backend*")):
        (alone / library.name).symlink_to(library)
    key = f"coordinator={coordinator.federation.public['coordinator'].hex()}"
    command = [sys.executable, "-I", "-S", "-c"]
    program = f"import sys; sys.path.insert(0, {str(alone)!r}); from common.audit.verify import main; sys.exit(main())"
    words = [str(coordinator.federation.path("coordinator")), "--key", key]
    coordinator.act("ada", "stop", digest(RUN))
    well = subprocess.run([*command, program, *words], capture_output=True, text=True, check=False)
    assert (well.returncode, "All is well." in well.stdout) == (0, True), well.stderr
    coordinator.act("ada", "stop", digest(RUN), subject="00" * 32)
    ill = subprocess.run([*command, program, *words], capture_output=True, text=True, check=False)
    assert (ill.returncode, "is not signed with the operator's key" in ill.stdout) == (1, True), ill.stderr

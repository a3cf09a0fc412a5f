"""Hospitals are invited, ask, are approved and revoked."""

import datetime
import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.identity import certificates
from common.identity.invitation import Invitation
from common.identity.phrase import as_phrase
from common.identity.receipt_keys import request_digest
from server.coordinator import supervisor
from server.home.folder import Home
from server.home.seen import read_seen, write_seen
from server.registry.registry import Registry
from server.registry.sites import Presence
from tests.server.commands.calls import fails, invoke, succeeds
from tests.server.coordinators import asked, enrol


def test_a_site_is_invited_asks_and_is_approved_and_revoked(home, registry):
    path = Path(succeeds("invite", "st-mary").strip())
    invitation = Invitation.from_text(path.read_text())
    csr = certificates.csr_for("st-mary", certificates.new_key())
    csr_pem, receipt_key, proof = asked("st-mary", csr)
    registry.redeem("st-mary", invitation.token, csr_pem, receipt_key, proof)
    rows = json.loads(succeeds("requests", "--json"))
    phrase = as_phrase(request_digest(csr, receipt_key))
    assert rows == [{"site": "st-mary", "wish": "joins", "phrase": phrase}]
    assert "st-mary is active until 20" in succeeds("approve", "st-mary")
    assert [row["state"] for row in json.loads(succeeds("sites", "--json"))] == ["active"]
    succeeds("revoke", "st-mary")
    assert [row["state"] for row in json.loads(succeeds("sites", "--json"))] == ["revoked"]


def test_an_invitation_can_be_written_elsewhere(home, tmp_path):
    out = tmp_path / "usb" / "st-mary.json"
    assert succeeds("invite", "st-mary", "--out", str(out.parent)).strip() == str(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert Invitation.from_text(out.read_text()).site == "st-mary"


def test_approve_waits_for_an_invited_site_only_when_it_is_told_to(home, registry, monkeypatch):
    succeeds("invite", "st-mary")
    assert "it has not used its invitation yet" in fails("approve", "st-mary")
    token = json.loads(home.invitation("st-mary").read_text())["token"]
    # It asks while it is waited for.
    asks = SimpleNamespace(sleep=lambda _: registry.redeem("st-mary", token, *asked("st-mary")))
    monkeypatch.setattr("server.gateway.enrolment.time", asks)
    result = invoke("approve", "st-mary", "--wait")
    assert result.exit_code == 0, result.output
    assert "Waiting for st-mary" in result.stderr
    phrase = as_phrase(registry.site("st-mary").request_sha256)
    assert f"Phrase: {phrase}" in result.stdout
    assert registry.site("st-mary").state == "active"
    assert "it is active already" in fails("approve", "st-mary")
    succeeds("revoke", "st-mary")
    assert "it is revoked" in fails("approve", "st-mary")


def test_where_no_coordinator_runs_nobody_is_connected_and_it_is_said_who_was_last_seen_when(
    home: Home, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the registry has is of a coordinator that was killed."""
    for name in ("st-anna", "st-mary"):
        enrol(home, registry, name)
    registry.set_presence("st-mary", Presence.HERE)
    write_seen(home.path, {"st-mary": 1e9})
    anna, mary = json.loads(succeeds("sites", "--json"))
    assert (anna["connected"], anna["last-seen"]) == (False, None)
    assert mary["connected"] is False
    assert datetime.datetime.fromisoformat(mary["last-seen"]).timestamp() == 1e9
    assert supervisor.IDLE in invoke("sites").stderr
    shown = {row["what"]: row for row in json.loads(invoke("status", "--json").stdout)}
    assert shown["site st-anna"] == {"what": "site st-anna", "state": "away", "detail": None}
    assert shown["site st-mary"]["detail"] == "last seen 2001-09-09 01:46 UTC"
    monkeypatch.setattr(supervisor, "is_running", lambda _: True)
    assert [row["connected"] for row in json.loads(succeeds("sites", "--json"))] == [False, True]
    assert supervisor.IDLE not in invoke("sites").stderr


@pytest.mark.parametrize("text", [None, b"", b"not JSON"])
def test_a_note_of_who_was_seen_that_cannot_be_read_costs_the_note_alone(home: Home, text: bytes | None) -> None:
    if text is not None:
        (home.path / "seen.json").write_bytes(text)
    assert read_seen(home.path) == {}
    succeeds("sites")

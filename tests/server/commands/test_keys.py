"""The coordinator's key goes under a passphrase; a next root is made, and takes over."""

from common.identity.certificates import is_signed_by_any, load_certificate
from server.home.folder import KEY_PASSPHRASE
from server.registry.audit_trail import open_log
from tests.server.commands.calls import fails, succeeds


def test_coordinators_key_goes_under_a_passphrase_and_out_again(home, monkeypatch):
    key = home.key_file.path.read_bytes()
    assert "no passphrase was given" in fails("key", "protect")
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    succeeds("key", "protect")
    assert key not in home.key_file.path.read_bytes()
    assert "already" in fails("key", "protect")
    succeeds("invite", "st-mary")
    monkeypatch.delenv(KEY_PASSPHRASE)
    assert f"Set {KEY_PASSPHRASE}" in fails("invite", "st-john")
    assert f"Set {KEY_PASSPHRASE}" in fails("key", "unprotect", "--yes")
    monkeypatch.setenv(KEY_PASSPHRASE, "five random words would do")
    succeeds("key", "unprotect", "--yes")
    assert home.key_file.path.read_bytes() == key
    assert "not under a passphrase" in fails("key", "unprotect", "--yes")


def test_the_next_root_is_made_and_takes_over_and_both_acts_are_signed(home, registry):
    before = home.root_pem
    succeeds("root", "rotate")
    following = home.successor_pem
    assert following
    assert home.root_pem == before
    succeeds("root", "finish")
    assert home.successor_pem == b""
    assert home.root_pem != before
    assert load_certificate(home.root_pem).public_key() == load_certificate(following).public_key()
    entries = list(open_log(home).entries())
    acts = [entry.fields["action"] for entry in entries if entry.kind == "act"]
    assert acts.index("root-rotate") < acts.index("root-finish")
    assert "root-rotated" in [entry.kind for entry in entries]
    # The operator is the new root's now, and goes on.
    assert [is_signed_by_any(load_certificate(one.certificate), home.root_pem) for one in registry.operators()] == [
        True
    ]
    succeeds("invite", "st-mary")

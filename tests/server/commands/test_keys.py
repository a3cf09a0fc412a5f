"""The coordinator's key goes under a passphrase."""

from server.home.folder import KEY_PASSPHRASE
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

"""The verifier against forged files. The forger has the file, knows the format, and makes the stored tree fit.

What can only be seen by comparing is tried with one file too, to show what one file cannot tell.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import cryptography
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit import merkle, notes, receipts, verify, witness
from common.audit.entries import Entry
from common.audit.notes import Checkpoint
from tests import ROOT
from tests.common.audit.federation import MODEL, POLICY, RUN, Federation, lines_of, rewrite, show, tamper, update_of
from tests.patience import PATIENCE_S


@pytest.fixture
def federation(tmp_path):
    """Three rounds with one hospital, everything in order."""
    made = Federation(tmp_path, "north")
    made.rounds(3, "north")
    return made


def errors(federation, *names, checkpoints=(), keys=None):
    """The errors found in these logs, as (file, text)."""
    paths = [name if isinstance(name, Path) else federation.path(name) for name in names]
    verdict = verify.verify(paths, keys or federation.keys(), checkpoints)
    found = [(finding.log, finding.text) for finding in verdict.findings if finding.severity == "error"]
    assert verdict.is_well == (found == [])
    return found


def assert_finds(federation, *names, where, what, **options):
    found = errors(federation, *names, **options)
    assert any(where in log and what in text for log, text in found), found


def exported(federation, name):
    path = federation.folder / f"{name}.jsonl"
    path.write_bytes(federation.logs[name].export())
    return path


def position(federation, name, kind, occurrence=0):
    places = [entry.seq for entry in federation.logs[name].entries() if entry.kind == kind]
    return places[occurrence]


# In order


@pytest.mark.parametrize("names", [["coordinator"], ["north"], ["coordinator", "north"], ["north", "coordinator"]])
def test_logs_in_order_are_found_in_order(federation, names):
    verdict = verify.verify([federation.path(name) for name in names], federation.keys())
    assert verdict.findings == ()
    assert [len(history.receipts) for history in verdict.histories] == [3] * len(names)


def test_exports_say_the_same_as_the_files(federation):
    paths = [exported(federation, name) for name in ("coordinator", "north")]
    assert verify.verify(paths, federation.keys()).findings == ()
    assert verify.verify([paths[0], federation.path("north")], federation.keys()).findings == ()


def test_an_export_that_is_older_than_the_log_beside_it_is_said_before_its_errors(federation):
    old = exported(federation, "coordinator")
    federation.clock.now += 60
    federation.round("north", 4)
    first, *more = verify.verify([old, federation.path("north")], federation.keys()).findings
    assert (first.severity, first.log) == ("warning", old.name)
    assert "Export it anew" in first.text
    assert {finding.severity for finding in more} == {"error"}
    assert any("for round 4" in finding.text for finding in more)
    new = exported(federation, "coordinator")
    assert verify.verify([new, federation.path("north")], federation.keys()).findings == ()


def test_an_export_is_lines_of_json_with_the_stored_entries(federation):
    head, *lines = exported(federation, "north").read_bytes().splitlines()
    assert json.loads(head) == {
        "wardround-audit": 1, "origin": "site/north", "key": federation.public["north"].hex(),
    }  # fmt: skip
    entries = [line for line in lines if b"kind" in line]
    assert entries == lines_of(federation.path("north"))
    checkpoints = [json.loads(line)["checkpoint"] for line in lines[len(entries) :]]
    assert notes.peek(checkpoints[-1]).size == len(entries)


@pytest.mark.parametrize("seed", range(25))
def test_no_generated_history_raises_a_false_alarm(tmp_path, seed):
    made = generated(tmp_path, seed)
    verdict = verify.verify([made.path(name) for name in made.logs], made.keys())
    assert [finding for finding in verdict.findings if "never acknowledged" not in finding.text] == []
    assert verdict.is_well


def test_a_round_that_was_never_acknowledged_is_a_warning(federation):
    receipt = federation.receipt("north", 4)
    fields = receipts.entry_fields(receipt, receipts.sign(receipt, federation.private["north"]))
    federation.logs["north"].append("round", fields)
    verdict = verify.verify([federation.path("coordinator"), federation.path("north")], federation.keys())
    assert verdict.is_well
    assert [finding.text for finding in verdict.findings] == [
        f"the receipt of site north for round 4 of run {RUN[:12]} was never acknowledged by the coordinator"
    ]


def test_a_clock_that_goes_back_is_a_warning(federation):
    federation.clock.now -= 1000
    federation.logs["north"].append("data-forgotten")
    (finding,) = verify.verify([federation.path("north")], federation.keys()).findings
    assert finding.severity == "warning"
    assert "clock went backwards 1 time," in finding.text


# Entries


def test_a_changed_byte_is_found_and_its_entry_named(federation):
    place = position(federation, "north", "spend", 1)
    tamper(
        federation.path("north"),
        ("""UPDATE entries SET entry = replace(entry, '"0.25"', '"0.15"') WHERE seq = ?""", place),
    )
    assert_finds(federation, "north", where="north", what=f"entry {place} is not the one whose hash was stored")


def test_a_changed_byte_is_found_though_the_stored_tree_fits_it(federation):
    lines = lines_of(federation.path("north"))
    place = position(federation, "north", "spend", 1)
    lines[place] = lines[place].replace(b'"0.25"', b'"0.15"')
    rewrite(federation.path("north"), lines)
    assert_finds(federation, "north", where="north", what="are not those that were signed")
    assert_finds(federation, "coordinator", "north", where="north", what="known to coordinator.sqlite")


@pytest.mark.parametrize("name", ["north", "coordinator"])
def test_every_changed_byte_of_an_export_is_found(federation, name):
    path = exported(federation, name)
    content = path.read_bytes()
    randomness = random.Random(7)  # noqa: S311 - which bytes
    start = content.index(b"\n") + 1  # the header is a label; who wrote the log is entry 0
    for place in randomness.sample(range(start, len(content)), 150):
        bit = randomness.choice([1, 2, 4, 8, 16, 32])
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        assert errors(federation, path), place


def test_a_deleted_entry_is_found_and_named(federation):
    tamper(federation.path("north"), ("DELETE FROM entries WHERE seq IN (5, 6)",))
    assert_finds(federation, "north", where="north", what="entries 5 to 6 are missing")


@pytest.mark.parametrize("smooth", ["removed", "inserted", "swapped", "copied"])
def test_entries_removed_inserted_or_reordered_are_found_though_numbers_and_tree_fit(federation, smooth):
    entries = list(federation.logs["north"].entries())
    match smooth:
        case "removed":
            del entries[5]
        case "inserted":
            entries.insert(5, Entry(5, entries[4].time, "policy-changed", {"policy": POLICY}))
        case "swapped":
            entries[4], entries[5] = entries[5], entries[4]
        case "copied":
            entries.insert(5, entries[4])
    renumbered = [Entry(seq, one.time, one.kind, one.fields).to_bytes() for seq, one in enumerate(entries)]
    rewrite(federation.path("north"), renumbered)
    assert_finds(federation, "north", where="north", what="are not those that were signed")
    tamper(federation.path("north"), ("DELETE FROM checkpoints",))
    assert_finds(federation, "coordinator", "north", where="north", what="known to coordinator.sqlite")


def test_reordered_rows_are_found(federation):
    tamper(
        federation.path("north"),
        ("UPDATE entries SET seq = -1 WHERE seq = 4",),
        ("UPDATE entries SET seq = 4 WHERE seq = 5",),
        ("UPDATE entries SET seq = 5 WHERE seq = -1",),
    )
    assert_finds(federation, "north", where="north", what="entry 4 calls itself 5")


def test_a_kind_that_does_not_exist_is_found(federation):
    lines = lines_of(federation.path("north"))
    lines.append(b'{"kind":"remark","seq":%d,"text":"x","time":1790000999}' % len(lines))
    rewrite(federation.path("north"), lines)
    assert_finds(federation, "north", where="north", what="was changed")


def test_a_changed_stored_tree_is_found(federation):
    tamper(federation.path("north"), ("UPDATE nodes SET hash = zeroblob(32) WHERE level = 2 AND position = 0",))
    assert_finds(federation, "north", where="north", what="level 2, position 0")


def test_a_hidden_index_is_found(federation):
    """A forger who drops rows of the index makes the log forget what it has seen of the other side."""
    tamper(
        federation.path("north"),
        ("PRAGMA writable_schema = ON",),
        ("UPDATE sqlite_master SET sql = replace(sql, 'checkpoint-received', 'checkpoint-forgotten') "
         "WHERE name = 'received'",),
    )  # fmt: skip
    assert_finds(federation, "north", where="north", what="SQLite finds the file damaged")


# The end


def test_a_truncated_end_is_found_by_the_other_side(federation):
    path = federation.path("north")
    rewrite(path, lines_of(path)[:-4])
    assert_finds(federation, "north", where="north", what="the end is missing")
    tamper(path, ("DELETE FROM checkpoints WHERE size > ?", len(lines_of(path))))
    assert errors(federation, "north") == []  # one file cannot tell
    assert_finds(federation, "coordinator", "north", where="north", what="the end is missing (known to coordinator")


def test_a_truncated_end_is_found_by_a_checkpoint_that_was_kept(federation):
    path, kept = federation.path("coordinator"), federation.folder / "kept.txt"
    kept.write_text(federation.logs["coordinator"].checkpoint(), encoding="utf-8")
    rewrite(path, lines_of(path)[:-1])
    tamper(path, ("DELETE FROM checkpoints WHERE size > ?", len(lines_of(path))))
    assert_finds(federation, "coordinator", where="coordinator", what="kept.txt", checkpoints=[kept])


def test_a_truncated_export_is_found(federation):
    path = exported(federation, "north")
    lines = path.read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:count]))
        assert errors(federation, path), count


def test_a_whole_log_replaced_with_a_backup_is_found(federation):
    backup = federation.path("coordinator").read_bytes()
    federation.rounds(2, "north")
    federation.path("coordinator").write_bytes(backup)
    assert errors(federation, "coordinator") == []
    assert_finds(federation, "coordinator", "north", where="coordinator", what="known to north.sqlite")


def test_a_backup_that_went_on_is_found(federation):
    backup = federation.path("north").read_bytes()
    federation.round("north", 4)
    federation.path("north").write_bytes(backup)
    for _ in range(20):
        federation.logs["north"].append("data-forgotten")
    federation.logs["north"].checkpoint()
    assert_finds(federation, "coordinator", "north", where="north", what="are not those that were signed")
    assert_finds(federation, "coordinator", "north", where="north", what="is missing, which the site signed")


# Two histories


def two_histories(federation):
    """The coordinator's log forked: north has seen the true one, the file is the other."""
    path = federation.path("coordinator")
    before = path.read_bytes()
    federation.logs["coordinator"].append("proposed", {"run": RUN})
    show(federation.logs["coordinator"], federation.logs["north"])
    path.write_bytes(before)
    federation.logs["coordinator"].append("proposed", {"run": "00" * 32})
    federation.logs["coordinator"].checkpoint()


def test_a_fork_is_found_by_who_saw_the_other_history(federation):
    two_histories(federation)
    assert errors(federation, "coordinator") == []
    assert_finds(
        federation, "coordinator", "north", where="coordinator", what="there are two histories (known to north.sqlite)"
    )


def test_two_hospitals_find_a_fork_without_the_coordinators_log(tmp_path):
    made = Federation(tmp_path, "north", "south")
    made.rounds(1, "north", "south")
    before = made.path("coordinator").read_bytes()
    made.logs["coordinator"].append("proposed", {"run": RUN})
    show(made.logs["coordinator"], made.logs["north"])
    made.path("coordinator").write_bytes(before)
    made.logs["coordinator"].append("proposed", {"run": "00" * 32})
    show(made.logs["coordinator"], made.logs["south"])
    assert_finds(made, "north", "south", where="north.sqlite and south.sqlite", what="coordinator forked its log")


def test_a_coordinator_that_rewrites_all_it_can_is_given_away_by_its_own_file(federation):
    """It holds hospitals' checkpoints, and they say what the hospitals saw of it."""
    path = federation.path("coordinator")
    lines = lines_of(path)
    place = position(federation, "coordinator", "enrolled")
    lines[place] = lines[place].replace(b"4c4c", b"4d4d")
    rewrite(path, lines)
    tamper(path, ("DELETE FROM checkpoints",))
    federation.logs["coordinator"].checkpoint()
    assert_finds(federation, "coordinator", where="coordinator", what="known to site/north")


def test_evidence_that_a_log_keeps_is_reported(federation):
    two_histories(federation)
    with pytest.raises(witness.ConflictError):
        show(federation.logs["coordinator"], federation.logs["north"])
    assert_finds(federation, "north", where="north", what="keeps evidence")


# Receipts


def test_a_receipt_missing_at_the_coordinator_is_found_and_named(tmp_path):
    made = Federation(tmp_path, "north")
    receipt = made.receipt("north", 1)
    signature = receipts.sign(receipt, made.private["north"])
    counter = receipts.countersign(receipt, signature, made.public["north"], made.private["coordinator"])
    made.logs["north"].append("round", receipts.entry_fields(receipt, signature))
    made.logs["north"].append("countersigned", receipts.countersigned_fields(receipt, counter))
    assert_finds(
        made, "coordinator", "north", where="coordinator", what="site north for round 1 of run 1f1f1f1f1f1f is missing"
    )


def test_a_receipt_missing_at_the_hospital_is_found_and_named(tmp_path):
    made = Federation(tmp_path, "north")
    receipt = made.receipt("north", 1)
    signature = receipts.sign(receipt, made.private["north"])
    counter = receipts.countersign(receipt, signature, made.public["north"], made.private["coordinator"])
    made.logs["coordinator"].append("round", receipts.entry_fields(receipt, signature, counter))
    assert_finds(
        made, "coordinator", "north", where="north", what="site north for round 1 of run 1f1f1f1f1f1f is missing"
    )


def test_a_receipt_that_differs_is_found_with_its_fields(tmp_path):
    made = Federation(tmp_path, "north")
    for name, changes in (
        ("coordinator", {}),
        ("north", {"spent": ("0.1", "0.00001"), "update": "ef" * 32, "size": 8}),
    ):
        receipt = made.receipt("north", 1, time=1_790_000_000, **changes)
        signature = receipts.sign(receipt, made.private["north"])
        counter = receipts.countersign(receipt, signature, made.public["north"], made.private["coordinator"])
        if name == "coordinator":
            made.logs[name].append("arrived", update_of(receipt))
        made.logs[name].append("round", receipts.entry_fields(receipt, signature, counter))
    (found,) = errors(made, "coordinator", "north")
    assert found[0] == "north.sqlite"
    assert found[1].endswith("round 1 of run 1f1f1f1f1f1f differs from coordinator.sqlite's in epsilon, size, update")


@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("entered", {"update": "00" * 32}, "names another update than the one in the model"),
        ("entered", {"site": "south"}, "its update is not in the model, and was not refused"),
        ("arrived", {"update": "00" * 32}, "is signed for an update that is not noted as arrived"),
        ("aggregated", {"updates": 2}, "counts 2 updates, named are 1"),
    ],
)
def test_a_receipt_whose_update_went_elsewhere_is_found(tmp_path, kind, change, what):
    made = Federation(tmp_path, "north")
    log = made.logs["coordinator"]
    made.logs["coordinator"] = Altering(log, kind, change)
    made.round("north", 1)
    made.aggregate(1, "north")
    made.logs["coordinator"] = log
    assert_finds(made, "coordinator", where="coordinator", what=what)


def test_an_update_that_was_refused_by_name_is_in_order(federation):
    federation.round("north", 4)
    about = {"run": RUN, "round": 4}
    federation.logs["coordinator"].append("refusal", {**about, "site": "north", "code": "not-finite"})
    federation.logs["coordinator"].append("aggregated", {**about, "model": MODEL, "updates": 0})
    assert errors(federation, "coordinator", "north") == []


def again(made: Federation, round_: int, *sites: str) -> None:
    """The run was stopped before the round's model was kept, and goes on."""
    made.logs["coordinator"].append("proposed", {"run": RUN})
    made.aggregate(round_, *sites)


def test_update_that_a_round_done_again_is_without_is_told_and_no_error(tmp_path):
    made = Federation(tmp_path, "north", "south")
    made.round("north", 1)
    made.round("south", 1)
    again(made, 1, "north")
    verdict = verify.verify([made.path(one) for one in ("coordinator", "north", "south")], made.keys())
    assert verdict.is_well
    (told,) = [one.text for one in verdict.findings if "south" in one.text]
    assert "its update is in no model, as the round was done again without it, after entry" in told


def test_update_that_came_to_the_round_that_was_done_again_is_missed(tmp_path):
    made = Federation(tmp_path, "north", "south")
    made.round("north", 1)
    made.logs["coordinator"].append("proposed", {"run": RUN})
    made.round("south", 1)
    made.aggregate(1, "north")
    assert_finds(made, "coordinator", where="coordinator", what="its update is not in the model, and was not refused")


def test_a_model_with_an_update_that_nobody_signed_for_is_a_warning(federation):
    federation.aggregate(4, "north")
    verdict = verify.verify([federation.path("coordinator")], federation.keys())
    assert [finding.severity for finding in verdict.findings] == ["warning"]
    assert "site north for round 4 of run 1f1f1f1f1f1f has no receipt" in verdict.findings[0].text


class Altering:
    """A coordinator's log that writes one kind of entry with other values."""

    def __init__(self, log, kind, change):
        self._log, self._kind, self._change = log, kind, change

    def append(self, kind, fields):
        self._log.append(kind, {**fields, **self._change} if kind == self._kind else fields)

    def __getattr__(self, name):
        return getattr(self._log, name)


def test_a_countersignature_for_a_receipt_that_is_gone_is_found(federation):
    federation.logs["north"].append("countersigned", {"receipt-hash": RUN, "countersignature": "A" * 86 + "=="})
    assert_finds(federation, "north", where="north", what="countersigns a receipt that is not in the log")


@pytest.mark.parametrize("signer", ["north", "coordinator"])
def test_a_wrong_signature_under_a_receipt_is_found(federation, signer):
    receipt = federation.receipt("north", 4)
    other = Ed25519PrivateKey.generate()
    signature = receipts.sign(receipt, other if signer == "north" else federation.private["north"])
    public = notes.public_bytes(other) if signer == "north" else federation.public["north"]
    counter = receipts.countersign(
        receipt, signature, public, other if signer == "coordinator" else federation.private["coordinator"]
    )
    federation.logs["coordinator"].append("round", receipts.entry_fields(receipt, signature, counter))
    what = "is not signed by the site" if signer == "north" else "is not signed by the coordinator"
    assert_finds(federation, "coordinator", where="coordinator", what=what)


# Keys


def test_a_log_signed_anew_with_another_key_is_found(federation):
    """The forger writes the whole log again, with a key of his own in it."""
    (federation.folder / "forged").mkdir()
    forger = Federation(federation.folder / "forged", "north")
    forger.rounds(3, "north")
    assert errors(forger, "north") == []
    assert_finds(federation, forger.path("north"), where="north", what="with another key")


def test_a_checkpoint_signed_with_another_key_is_found(federation):
    path, log = federation.path("north"), federation.logs["north"]
    size, lines = len(log.entries()), lines_of(path)
    nodes = merkle.perfect_subtrees(merkle.leaf_hash(line) for line in lines)
    root = merkle.root(size, lambda *place: nodes[place])
    note = notes.sign(Checkpoint("site/north", size, root, 1_790_000_999), Ed25519PrivateKey.generate())
    tamper(
        path, ("DELETE FROM checkpoints WHERE size = ?", size), ("INSERT INTO checkpoints VALUES (?, ?)", size, note)
    )
    assert_finds(federation, "north", where="north", what="not to be trusted")


def test_without_a_key_a_log_proves_nothing(federation):
    assert_finds(federation, "north", where="north", what="no key", keys=federation.keys("coordinator"))


def test_a_key_that_was_not_given_is_said(federation):
    verdict = verify.verify([federation.path("north")], federation.keys("north"))
    assert verdict.is_well
    assert [(finding.severity, finding.text) for finding in verdict.findings] == [
        ("warning", "no key of coordinator was given: for its signatures the key in the log's own entries was used")
    ]


def test_the_coordinators_log_names_the_keys_of_its_sites_but_a_given_key_overrules_it(federation):
    wrong = federation.keys("coordinator") | {"site/north": (bytes(32),)}
    assert_finds(federation, "coordinator", where="coordinator", what="is not signed by the site", keys=wrong)
    assert_finds(federation, "coordinator", where="coordinator", what="key that is not site/north's", keys=wrong)


def test_a_site_that_enrolled_again_has_two_keys(federation):
    old = federation.public["north"]
    federation.private["north"] = Ed25519PrivateKey.generate()
    federation.public["north"] = notes.public_bytes(federation.private["north"])
    federation.logs["north"] = federation.open("north", federation.folder / "north-2.sqlite")
    federation.round("north", 4)
    keys = federation.keys() | {"site/north": (old, federation.public["north"])}
    assert errors(federation, "coordinator", keys=keys) == []
    assert errors(federation, federation.folder / "north-2.sqlite", keys=keys) == []


# The command


def run(*arguments, **options):
    command = [sys.executable, "-m", "common.audit.verify", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options)


def key_options(federation):
    return [part for origin, (key,) in federation.keys().items() for part in ("--key", f"{origin}={key.hex()}")]


def test_the_command_prints_a_table_and_ends_well(federation):
    result = run(federation.path("coordinator"), federation.path("north"), *key_options(federation))
    assert (result.returncode, result.stderr) == (0, "")
    head, first, second, *_, last = result.stdout.splitlines()
    assert head.split()[:3] == ["log", "of", "entries"]
    assert first.split()[:2] == ["coordinator.sqlite", "coordinator"]
    assert second.split()[:2] == ["north.sqlite", "site/north"]
    assert last == "All is well."


def test_the_command_fails_on_an_error(federation):
    tamper(federation.path("north"), ("DELETE FROM entries WHERE seq = 3",))
    result = run(federation.path("north"), *key_options(federation))
    assert result.returncode == 1
    assert "error: north.sqlite: entries 3 to 3 are missing" in result.stdout
    assert "All is well" not in result.stdout


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"SQLite format 3\0" + b"x" * 4096, b'{"key":\n[[[\n{"checkpoint":7}\n\xff\n']
)
def test_a_file_that_is_no_log_is_an_error_without_a_traceback(tmp_path, content):
    path = tmp_path / "audit.sqlite"
    path.write_bytes(content)
    result = run(path, "--key", f"site/a={RUN}")
    assert result.returncode == 1
    assert "error" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("key", ["north", "site/north=12", f"north={RUN}", f"site/north={RUN.upper()}"])
def test_a_key_of_another_form_is_refused(tmp_path, key):
    result = run(tmp_path, "--key", key)
    assert result.returncode == 1
    assert "is not ORIGIN=HEX" in result.stderr


def test_the_command_runs_with_only_cryptography_installed(federation):
    """No site-packages: the folder of our code, and one that holds cryptography and its C interface."""
    libraries = Path(cryptography.__file__).parent.parent
    allowed = federation.folder / "allowed"
    allowed.mkdir()
    (allowed / "common").symlink_to(ROOT / "common")
    for library in (*libraries.glob("cryptography"), *libraries.glob("_cffi_backend*")):
        (allowed / library.name).symlink_to(library)
    command = [sys.executable, "-S", "-P", "-m", "common.audit.verify", str(federation.path("north"))]
    result = subprocess.run(
        [*command, *key_options(federation)],
        cwd=federation.folder,
        env={"PYTHONPATH": str(allowed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_log_left_in_the_middle_of_a_write_is_read(federation):
    """A small cache makes SQLite write into the file before the commit: the kill leaves a journal to roll back."""
    path = federation.path("north")
    before = lines_of(path)
    code = (
        "import os, signal, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "database.execute('PRAGMA cache_size = 2')\n"
        "database.execute('BEGIN IMMEDIATE')\n"
        "for seq in range(1000, 3000):\n"
        "    database.execute('INSERT INTO entries VALUES (?, ?)', (seq, '{}' + ' ' * 100))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=PATIENCE_S)
    journal = path.with_name("north.sqlite-journal")
    assert journal.stat().st_size > 0
    content = path.read_bytes()
    assert errors(federation, "north") == []
    assert (path.read_bytes(), journal.exists()) == (content, True)  # the verifier changes nothing
    federation.logs["north"].append("data-forgotten")
    assert lines_of(path)[:-1] == before
    assert errors(federation, "coordinator", "north") == []


def generated(folder, seed):
    """A random but honest history."""
    randomness = random.Random(seed)  # noqa: S311 - a history, not a key
    sites = ["north", "south", "west"][: randomness.randint(1, 3)]
    made = Federation(folder, *sites)
    number = 0
    for _ in range(randomness.randint(1, 12)):
        site = randomness.choice(sites)
        match randomness.randrange(8):
            case 0:
                made.logs[site].append("policy-changed", {"policy": POLICY})
            case 1:
                made.logs["coordinator"].append("refusal", {"code": "no-data", "site": site, "run": RUN, "round": 1})
            case 2:
                made.logs[site].append("data-added", {"patients": 20})
                made.logs[site].checkpoint()
            case 3:
                made.logs[site] = made.open(site)
                made.logs[site].append("started", {"program": "agent", "version": "0.1.0"})
            case 4:  # killed before the coordinator had it
                number += 1
                receipt = made.receipt(site, number)
                signature = receipts.sign(receipt, made.private[site])
                made.logs[site].append("round", receipts.entry_fields(receipt, signature))
            case 5:  # two rounds, the second without this site, or refused
                number += 1
                made.round(site, number)
                made.logs["coordinator"].append(
                    "refusal", {"code": "wrong-tensors", "site": site, "run": RUN, "round": number}
                )
                made.aggregate(number, *(name for name in sites if name != site and not made.round(name, number)))
            case _:
                number += 1
                made.round(site, number)
                made.aggregate(number, site)
    return made

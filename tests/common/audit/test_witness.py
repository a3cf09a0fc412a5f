"""Remembering the other side's checkpoints: what continues is accepted, what does not is kept as evidence."""

import shutil

import pytest

from common.audit import notes, witness
from common.audit.witness import ConflictError
from common.errors import AuditError
from tests.common.audit.federation import RUN, Federation, show


@pytest.fixture
def federation(tmp_path):
    return Federation(tmp_path, "north", "south")


@pytest.fixture
def north(federation):
    return federation.logs["north"]


@pytest.fixture
def coordinator(federation):
    return federation.logs["coordinator"]


def fork(federation):
    """A second history of the coordinator's log, with its key, from here on."""
    path = federation.folder / "second.sqlite"
    shutil.copy(federation.path("coordinator"), path)
    return federation.open("coordinator", path)


def kinds(log):
    return [entry.kind for entry in log.entries()]


def test_nothing_is_known_at_first(north, coordinator):
    assert witness.last_seen(north, coordinator.public_key) is None


def test_a_log_that_grows_is_accepted_and_remembered(north, coordinator):
    for number in range(1, 10):
        coordinator.append("proposed", {"run": RUN})
        seen = show(coordinator, north)
        assert seen.size == coordinator.entries()[-1].seq + 1 == 3 + number
        assert witness.last_seen(north, coordinator.public_key) == seen
    assert kinds(north).count("checkpoint-received") == 9


def test_the_same_state_twice_is_written_once(north, coordinator):
    assert show(coordinator, north) == show(coordinator, north)
    assert kinds(north).count("checkpoint-received") == 1


def test_a_fork_of_one_size_is_proved_by_two_signatures(federation, north, coordinator):
    second = fork(federation)
    coordinator.append("proposed", {"run": RUN})
    second.append("proposed", {"run": "00" * 32})
    show(coordinator, north)
    with pytest.raises(ConflictError, match="forked") as caught:
        witness.observe(north, second.checkpoint(), [], second.public_key, origin="coordinator")
    pair = [notes.read(note, coordinator.public_key) for note in (caught.value.first, caught.value.second)]
    assert pair[0].size == pair[1].size
    assert pair[0].root != pair[1].root
    kept = north.entries()[-1]
    assert kept.kind == "conflict"
    assert (kept.fields["first"], kept.fields["second"]) == (caught.value.first, caught.value.second)


def test_a_fork_that_has_grown_cannot_be_shown_to_continue(federation, north, coordinator):
    second = fork(federation)
    coordinator.append("proposed", {"run": RUN})
    show(coordinator, north)
    for _ in range(5):
        second.append("proposed", {"run": "00" * 32})
    with pytest.raises(ConflictError, match="was not shown"):
        show(second, north)
    assert kinds(north)[-1] == "conflict"
    assert last_size(north, coordinator) == 4


def test_a_log_that_is_rolled_back_is_refused(federation, north, coordinator):
    old = coordinator.checkpoint()
    coordinator.append("proposed", {"run": RUN})
    show(coordinator, north)
    with pytest.raises(ConflictError, match="rolled back"):
        witness.observe(north, old, [], coordinator.public_key, origin="coordinator")
    assert "conflict" not in kinds(north)  # an old checkpoint alone proves nothing against its owner


def test_a_wrong_proof_is_refused(north, coordinator):
    show(coordinator, north)
    coordinator.append("proposed", {"run": RUN})
    with pytest.raises(ConflictError):
        witness.observe(north, coordinator.checkpoint(), [bytes(32)], coordinator.public_key, origin="coordinator")


def test_another_key_or_origin_is_refused_and_nothing_is_written(federation, north, coordinator):
    before = kinds(north)
    with pytest.raises(AuditError, match="not signed"):
        witness.observe(north, coordinator.checkpoint(), [], federation.public["south"], origin="coordinator")
    with pytest.raises(AuditError, match="expected coordinator"):
        witness.observe(
            north, federation.logs["south"].checkpoint(), [], federation.public["south"], origin="coordinator"
        )
    assert kinds(north) == before


def test_a_hospitals_checkpoint_says_what_it_saw(federation, north, coordinator):
    assert notes.peek(north.checkpoint()).seen is None
    seen = show(coordinator, north)
    assert notes.peek(north.checkpoint()).seen == notes.Head(seen.size, seen.root)


def test_the_coordinator_does_not_accept_a_view_of_its_log_that_is_not_its_log(federation, north, coordinator):
    second = fork(federation)
    coordinator.append("proposed", {"run": RUN})
    second.append("proposed", {"run": "00" * 32})
    show(second, north)
    with pytest.raises(ConflictError, match="not here"):
        show(north, coordinator)
    assert "checkpoint-received" not in kinds(coordinator)


def last_size(log, coordinator):
    seen = witness.last_seen(log, coordinator.public_key)
    assert seen is not None
    return seen.size


def relay(federation, source, target, coordinator=None):
    """What one hospital signed, handed to another by the coordinator with the proof between the two views."""
    coordinator = coordinator or federation.logs["coordinator"]
    note = federation.logs[source].checkpoint()
    seen = notes.peek(note).seen
    assert seen is not None
    sizes = [seen.size, last_size(federation.logs[target], coordinator)]
    return witness.heard(
        federation.logs[target],
        note,
        coordinator.prove(*sorted(sizes)),
        site=source,
        site_key=federation.public[source],
        coordinator_key=coordinator.public_key,
    )


@pytest.mark.parametrize(("to_north", "to_south"), [(3, 3), (2, 5), (5, 2), (0, 4)])
def test_hospitals_that_saw_one_history_agree_whoever_saw_more(federation, coordinator, to_north, to_south):
    for count in range(6):
        for site, last in (("north", to_north), ("south", to_south)):
            if count <= last:
                show(coordinator, federation.logs[site])
        coordinator.append("proposed", {"run": RUN})
    before = kinds(federation.logs["south"])
    assert relay(federation, "north", "south").seen.size == 3 + to_north
    assert relay(federation, "south", "north").seen.size == 3 + to_south
    assert kinds(federation.logs["south"]) == before


@pytest.mark.parametrize("extra", [0, 3])
def test_hospitals_that_were_shown_two_histories_find_out(federation, coordinator, extra):
    second = fork(federation)
    coordinator.append("proposed", {"run": RUN})
    for _ in range(1 + extra):
        second.append("proposed", {"run": "00" * 32})
    show(coordinator, federation.logs["north"])
    show(second, federation.logs["south"])
    for liar in (coordinator, second):
        if extra == 0 or liar is second:
            with pytest.raises(ConflictError, match="another history"):
                relay(federation, "north", "south", liar)
    assert kinds(federation.logs["south"])[-1] == "conflict"


def test_a_relayed_checkpoint_must_be_the_sites_own(federation, coordinator):
    for site in ("north", "south"):
        show(coordinator, federation.logs[site])
    about = {"site_key": federation.public["north"], "coordinator_key": coordinator.public_key}
    with pytest.raises(AuditError, match="not signed"):
        witness.heard(federation.logs["south"], federation.logs["south"].checkpoint(), [], site="north", **about)
    with pytest.raises(AuditError, match="expected site/west"):
        witness.heard(federation.logs["south"], federation.logs["north"].checkpoint(), [], site="west", **about)


def test_a_hospital_that_saw_nothing_yet_says_nothing(federation, coordinator):
    show(coordinator, federation.logs["south"])
    about = {"site_key": federation.public["north"], "coordinator_key": coordinator.public_key}
    note = federation.logs["north"].checkpoint()
    assert witness.heard(federation.logs["south"], note, [], site="north", **about).seen is None


def test_ones_own_view_comes_first(federation, coordinator):
    show(coordinator, federation.logs["north"])
    about = {"site_key": federation.public["north"], "coordinator_key": coordinator.public_key}
    with pytest.raises(AuditError, match="observed before"):
        witness.heard(federation.logs["south"], federation.logs["north"].checkpoint(), [], site="north", **about)

"""A site does what it is asked only within the run, its policy and its budget, and lets out codes, never texts."""

import errno
import hashlib
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp

from client.app import app
from client.data.deidentify.pseudonym import pseudonym
from client.data.keep.split import KeptSplits
from client.home.offer import Offer
from client.site import Site, open_site
from client.train import answer as answering
from client.train import training
from client.train.answer import answer
from client.worker import loop
from client.worker.protocol import Describe
from common.config import RunConfig, canonical, sha256_of
from common.config.rundocument import issue
from common.errors import ConfigError, ErrorCode, PolicyError, PrivacyError, UpdateError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model
from common.privacy.accountant import epsilon
from common.privacy.guarantee import charge_round, plan
from common.privacy.journal import Rows
from common.wire.messages import EvaluateReply, EvaluateRequest, Refusal, Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_from_record, request_to_record
from simulations.scenarios.homes import make_site
from tests.client.data.tables import opened_table
from tests.patience import PATIENCE_S
from tests.simulations.tiny import tiny_run, tiny_site

RUN = tiny_run()
PRIVATE = tiny_run(privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, tiny_site(tmp_path / "data", "north", patients=10))


def train_request(run: RunConfig, round_: int = 1) -> TrainRequest:
    return TrainRequest(sha256_of(run), round_, {"weights": pack(build_model(run).state_dict())})


def message_of(record: RecordDict, kind: str = "train") -> Message:
    metadata = Metadata(
        run_id=1,
        message_id="one",
        src_node_id=0,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="1",
        created_at=time.time(),
        ttl=60,
        message_type=kind,
    )
    return make_message(metadata, record)


def ask_app(request: Request | RecordDict, run: RunConfig, home: Path) -> Reply:
    record = request if isinstance(request, RecordDict) else request_to_record(request)
    kind = "evaluate" if isinstance(request, EvaluateRequest) else "train"
    context = Context(1, 1, {"home": str(home)}, RecordDict(), {"run": canonical(run)})
    return reply_from_record(app(message_of(record, kind), context).content)


def test_patient_alone_in_training_shows_in_no_code_and_no_charge(tmp_path: Path) -> None:
    """Names follow the pictures' files: seed and fractions can be chosen so that one of them is all who trains."""
    described, target, least = tiny_site(tmp_path / "data", "north", patients=20), "north-7", 0.97
    (source,), names = described.data, [f"north-{number}" for number in range(20)]

    def trains(seed: int, name: str) -> bool:
        return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "big") / 2**64 >= least

    seed = next(one for one in range(10_000) if [name for name in names if trains(one, name)] == [target])
    data = {"validation-fraction": least, "test-fraction": 0.0}
    run = tiny_run(data=data, privacy={"target-epsilon": 0.1, "sampling-rate": 1.0}).model_copy(update={"seed": seed})
    for where, left_out in (("with", set()), ("without", {target})):
        patients = tuple(name for name in names if name not in left_out)
        config = described.model_copy(
            update={"cohort_size": 20, "data": (source.model_copy(update={"patients": patients}),)}
        )
        site = make_site(tmp_path / where, config)
        assert len(site.cohort(run).patients("train")) == 1 - len(left_out)
        reply = ask_app(train_request(run), run, site.home)
        assert isinstance(reply, TrainReply)
        assert set(reply.metrics) == {"steps", "seconds", "epsilon", "delta"}
        assert len(site.ledger.entries()) == 1


def test_app_trains_as_the_bare_loop_does(site: Site) -> None:
    request = train_request(RUN)
    reply = ask_app(request, RUN, site.home)
    assert isinstance(reply, TrainReply)
    model = build_model(RUN)
    model.load_state_dict(unpack(request.parts["weights"]))
    training.train_round(model, site.cohort(RUN), issue(RUN), round_=1, site="north", device="cpu")
    assert reply.parts["weights"] == pack(model.state_dict())
    assert reply.parts["weights"] != request.parts["weights"]
    assert (reply.patients, reply.round, reply.run_hash) == (10, 1, sha256_of(RUN))
    assert "train-loss" in reply.metrics


def test_app_scores_held_out_patients(site: Site) -> None:
    reply = ask_app(
        EvaluateRequest(sha256_of(RUN), 1, "test", {"weights": train_request(RUN).parts["weights"]}), RUN, site.home
    )
    assert isinstance(reply, EvaluateReply)
    assert reply.patients == 10
    assert 0 <= reply.metrics["dice"] <= 1


def test_request_of_another_run_is_refused(site: Site) -> None:
    other = tiny_run(training={"local-steps": 3})
    assert ask_app(train_request(other), RUN, site.home) == Refusal(sha256_of(other), 1, ErrorCode.WRONG_RUN)


def test_weights_that_do_not_fit_are_refused(site: Site) -> None:
    for weights in (b"nonsense", pack({"x": torch.zeros(1)})):
        with pytest.raises(UpdateError) as caught:
            answer(TrainRequest(sha256_of(RUN), 1, {"weights": weights}), issue(RUN), site, "a")
        assert caught.value.code is ErrorCode.WRONG_TENSORS


def test_first_round_starts_from_the_weights_that_the_approved_run_names_and_no_others(site: Site) -> None:
    named = pack(build_model(tiny_run(training={"local-steps": 1})).state_dict())
    others = pack(build_model(RUN.model_copy(update={"seed": 99})).state_dict())
    run = tiny_run(initial={"sha256": hashlib.sha256(named).hexdigest()})
    refusal = Refusal(sha256_of(run), 1, ErrorCode.WRONG_RUN)
    assert ask_app(TrainRequest(sha256_of(run), 1, {"weights": others}), run, site.home) == refusal
    assert isinstance(ask_app(TrainRequest(sha256_of(run), 1, {"weights": named}), run, site.home), TrainReply)
    assert isinstance(ask_app(TrainRequest(sha256_of(run), 2, {"weights": others}), run, site.home), TrainReply)


def test_record_that_is_no_request_is_refused(site: Site) -> None:
    reply = ask_app(RecordDict(), RUN, site.home)
    assert isinstance(reply, Refusal)
    assert reply.code is ErrorCode.BAD_REQUEST


def test_site_without_usable_data_says_no_data(tmp_path: Path) -> None:
    empty = tmp_path / "data"
    empty.mkdir()
    home = make_site(tmp_path, tiny_site(empty, "bare", patients=0).model_copy(update={"data": ()})).home
    reply = ask_app(train_request(RUN), RUN, home)
    assert isinstance(reply, Refusal)
    assert reply.code is ErrorCode.NO_DATA


def test_part_of_the_split_without_patients_says_no_data(tmp_path: Path) -> None:
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "small", patients=1))
    reply = ask_app(
        EvaluateRequest(sha256_of(RUN), 1, "test", {"weights": train_request(RUN).parts["weights"]}), RUN, site.home
    )
    assert isinstance(reply, Refusal)
    assert reply.code is ErrorCode.NO_DATA


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("/data/DOE^JANE/1.dcm"), ErrorCode.INTERNAL),
        (MemoryError("DOE^JANE"), ErrorCode.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("DOE^JANE"), ErrorCode.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device", "/data/DOE^JANE"), ErrorCode.DISK_FULL),
        (OSError(errno.EIO, "bad disk", "/data/DOE^JANE"), ErrorCode.INTERNAL),
        (KeyError("DOE^JANE"), ErrorCode.INTERNAL),
    ],
)
def test_text_of_an_exception_never_leaves(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, code: ErrorCode
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(training, "train_round", fails)
    context = Context(1, 1, {"home": str(site.home)}, RecordDict(), {"run": canonical(RUN)})
    reply = app(message_of(request_to_record(train_request(RUN))), context)
    assert reply_from_record(reply.content) == Refusal(sha256_of(RUN), 1, code)
    assert "DOE" not in repr(reply)


def test_strict_policy_is_the_default_and_is_held(tmp_path: Path) -> None:
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "north", patients=5))
    (site.home / "policy.toml").unlink()
    strict = open_site(site.home)
    assert strict.policy.require_privacy
    with pytest.raises(PolicyError) as caught:
        answer(train_request(RUN), issue(RUN), strict, "a")
    assert caught.value.code is ErrorCode.POLICY_REFUSED
    with pytest.raises(PolicyError) as caught:
        answer(train_request(PRIVATE), issue(PRIVATE), strict, "a")
    assert caught.value.code is ErrorCode.TOO_FEW_PATIENTS


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ("participate = false", ErrorCode.POLICY_REFUSED),
        ("min-clipping = 2.0", ErrorCode.POLICY_REFUSED),
        ("min-noise-multiplier = 500.0", ErrorCode.POLICY_REFUSED),
        ("min-patients = 11", ErrorCode.TOO_FEW_PATIENTS),
    ],
)
def test_a_worker_and_a_simulated_site_charge_and_train_nothing_that_the_policy_refuses(
    site: Site, rules: str, code: ErrorCode
) -> None:
    policy = site.home / "policy.toml"
    lines = [line for line in policy.read_text().splitlines() if not line.startswith(rules.split(maxsplit=1)[0])]
    policy.write_text("\n".join([*lines, rules, ""]))
    evaluation = EvaluateRequest(sha256_of(PRIVATE), 1, "validation", train_request(PRIVATE).parts)
    for request in (train_request(PRIVATE), evaluation):
        assert ask_app(request, PRIVATE, site.home) == Refusal(sha256_of(PRIVATE), 1, code)
    assert site.ledger.entries() == ()


@pytest.mark.parametrize("scores", ["exact", "noised"])
def test_scores_of_fewer_held_out_patients_than_the_policy_wants_are_not_made(site: Site, scores: str) -> None:
    last = PRIVATE.federation.rounds
    (site.home / "policy.toml").write_text(f'scores = "{scores}"\nmin-held-out = 10\n')
    evaluation = EvaluateRequest(sha256_of(PRIVATE), last, "test", train_request(PRIVATE).parts)
    refusal = Refusal(sha256_of(PRIVATE), last, ErrorCode.TOO_FEW_PATIENTS)
    assert ask_app(evaluation, PRIVATE, site.home) == refusal
    assert site.ledger.entries() == ()


def test_declared_size_is_set_by_the_first_private_run_and_stays(tmp_path: Path) -> None:
    """40 patients or 41: delta, the noise and the denominators of what leaves are the same."""
    site = make_site(tmp_path, tiny_site(tmp_path / "data", "north", patients=10))
    first = answer(train_request(PRIVATE), issue(PRIVATE), site, "a")
    tiny_site(tmp_path / "data", "north", patients=11)
    grown = make_site(tmp_path, site.config)
    grown.let_go()
    assert grown.cohort(PRIVATE).size == 11
    second = answer(train_request(PRIVATE, 2), issue(PRIVATE), grown, "b")
    assert isinstance(first, TrainReply)
    assert isinstance(second, TrainReply)
    assert first.metrics["delta"] == second.metrics["delta"] == pytest.approx(1 / 100)
    assert len({(one.noise_multiplier, one.delta) for one in grown.ledger.entries()}) == 1


def test_run_without_privacy_declares_nothing(site: Site) -> None:
    answer(train_request(RUN), issue(RUN), site, "a")
    assert not (site.home / "state" / "declared.json").exists()


def test_private_reply_states_the_spend_of_the_ledger_and_no_count_or_loss(site: Site) -> None:
    reply = answer(train_request(PRIVATE), issue(PRIVATE), site, "attempt-1")
    assert isinstance(reply, TrainReply)
    assert reply.patients == 0
    assert "train-loss" not in reply.metrics
    budget = plan(PRIVATE, 10)
    history = ((budget.noise_multiplier, 0.5, PRIVATE.training.local_steps),)
    assert reply.metrics["epsilon"] == pytest.approx(epsilon(history, budget.delta))
    assert reply.metrics["delta"] == pytest.approx(1 / 100)


def test_same_attempt_is_charged_and_trained_once_and_a_new_one_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answer(train_request(PRIVATE), issue(PRIVATE), site, "x")
    with monkeypatch.context() as patched:
        patched.setattr(training, "train_round", lambda *_, **__: pytest.fail("trained again for one charge"))
        with pytest.raises(PrivacyError, match="new attempt") as caught:
            answer(train_request(PRIVATE), issue(PRIVATE), site, "x")
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert len(site.ledger.entries()) == 1
    new = answer(train_request(PRIVATE), issue(PRIVATE), site, "y")
    assert isinstance(first, TrainReply)
    assert isinstance(new, TrainReply)
    assert first.metrics["epsilon"] < new.metrics["epsilon"]
    assert len(site.ledger.entries()) == 2


def test_message_that_is_delivered_twice_is_trained_once(site: Site) -> None:
    """A stock SuperNode gives the message's id as the attempt."""
    assert isinstance(ask_app(train_request(PRIVATE), PRIVATE, site.home), TrainReply)
    again = ask_app(train_request(PRIVATE), PRIVATE, site.home)
    assert again == Refusal(sha256_of(PRIVATE), 1, ErrorCode.BAD_REQUEST)
    assert len(site.ledger.entries()) == 1


def test_of_requests_for_one_attempt_that_come_at_once_one_is_trained(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    together = threading.Barrier(4)
    charge = charge_round

    def charged(*values: object, **named: object) -> object:
        together.wait(timeout=PATIENCE_S)  # all ask at once
        return charge(*values, **named)  # type: ignore[arg-type]

    def train(*_: object, **__: object) -> dict[str, float]:
        trained.append("once")
        return {"steps": 2.0}

    def ask(_: int) -> str:
        try:
            answer(train_request(PRIVATE), issue(PRIVATE), site, "x")
        except PrivacyError as error:
            return error.code
        return "done"

    site.cohort(PRIVATE)
    monkeypatch.setattr(answering, "charge_round", charged)
    monkeypatch.setattr(training, "train_round", train)
    with ThreadPoolExecutor(4) as pool:
        said = sorted(pool.map(ask, range(4)))
    assert said == ["bad-request", "bad-request", "bad-request", "done"]
    assert trained == ["once"]
    assert len(site.ledger.entries()) == 1


def test_ledger_is_charged_and_the_attempt_taken_before_the_first_step(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(*_: object, **__: object) -> None:
        assert len(site.ledger.entries()) == 1
        with pytest.raises(PrivacyError, match="used up"):
            site.ledger.begin(site.cohort(PRIVATE).cohort_id, sha256_of(PRIVATE), 1, "x")
        raise RuntimeError

    monkeypatch.setattr(training, "train_round", crashes)
    with pytest.raises(RuntimeError):
        answer(train_request(PRIVATE), issue(PRIVATE), site, "x")


def test_private_round_reads_the_ledger_once_where_it_is_trained(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cohort(PRIVATE)
    answer(train_request(PRIVATE, 1), issue(PRIVATE), site, "a")
    read = Rows._read
    readings: list[Rows] = []

    def counted(rows: Rows) -> None:
        readings.append(rows)
        read(rows)

    monkeypatch.setattr(Rows, "_read", counted)
    reply = answer(train_request(PRIVATE, 2), issue(PRIVATE), site, "b")
    assert len(readings) == 1
    assert isinstance(reply, TrainReply)
    assert reply.metrics["epsilon"] == site.ledger.spent(
        site.cohort(PRIVATE).cohort_id, reply.metrics["delta"], sha256_of(PRIVATE)
    )


def test_altered_ledger_stops_training(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(train_request(PRIVATE, 1), issue(PRIVATE), site, "a")
    path = site.home / "state" / "ledger.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM rows WHERE number = 1")
    database.close()
    monkeypatch.setattr(training, "train_round", lambda *_, **__: pytest.fail("trained on an altered ledger"))
    assert ask_app(train_request(PRIVATE, 2), PRIVATE, site.home) == Refusal(sha256_of(PRIVATE), 2, ErrorCode.INTERNAL)


def test_spent_budget_stops_training(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = Site(site.home, site.config, site.policy.model_copy(update={"lifetime_epsilon": 8.0}), site.key)
    answer(train_request(PRIVATE, 1), issue(PRIVATE), poor, "a")
    answer(train_request(PRIVATE, 2), issue(PRIVATE), poor, "b")
    monkeypatch.setattr(training, "train_round", lambda *_, **__: pytest.fail("trained beyond the budget"))
    with pytest.raises(PrivacyError) as caught:
        answer(train_request(PRIVATE, 2), issue(PRIVATE), poor, "c")
    assert caught.value.code is ErrorCode.BUDGET_SPENT


def test_key_is_made_once_for_its_owner_alone(site: Site) -> None:
    path = site.home / "site.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(site.key) == 32
    assert open_site(site.home).key == site.key == path.read_bytes()
    assert site.key.hex() not in repr(site)
    assert str(site.key) not in repr(site)


def test_damaged_key_is_refused_not_replaced(site: Site) -> None:
    (site.home / "site.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="Restore it from a backup"):
        open_site(site.home)


def test_site_is_opened_anew_when_its_rules_change(site: Site) -> None:
    assert open_site(site.home) is site
    (site.home / "policy.toml").write_text("max-rounds = 7\n")
    assert open_site(site.home).policy.max_rounds == 7


def test_cohort_is_read_once_for_a_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site.cohort(RUN)
    assert site.cohort(tiny_run(training={"local-steps": 9})) is first
    assert site.cohort(tiny_run(data={"test-fraction": 0.4})) is not first


def test_nobodys_place_is_kept_for_a_run_before_it_trains(site: Site) -> None:
    """Who trains and who tests follows from what was approved, and not from what was only proposed."""
    splits, looked_at = site.home / "state" / "splits.sealed", issue(RUN)
    assert isinstance(loop.answer(Describe(looked_at), site.home), Offer)
    first = {case.patient: case.split for case in site.cohort(RUN, keep=False).cases}
    assert [path.name for path in splits.parent.glob("splits*")] == []
    # Meanwhile a run that was approved has dealt some of them their places, alone.
    alone = ["north-3", "north-7"]
    dealt = {
        pseudonym(site.key, name): split for name, split in KeptSplits(splits, site.key).split(RUN, [alone]).items()
    }
    before = {case.patient: case.split for case in site.cohort(RUN, keep=False).cases}
    assert dealt.items() <= before.items()
    assert not dealt.items() <= first.items()
    kept = splits.read_bytes()
    assert isinstance(loop.answer(Describe(looked_at), site.home), Offer)
    assert splits.read_bytes() == kept
    assert isinstance(answer(train_request(RUN), looked_at, site, "a"), TrainReply)
    assert {case.patient: case.split for case in site.cohort(RUN).cases} == before
    (places,) = opened_table(splits, site.key, "splits")["splits"].values()
    assert places == before


def test_nobodys_place_is_kept_for_a_run_that_the_policy_refuses(site: Site) -> None:
    (site.home / "policy.toml").write_text("require-privacy = false\nmin-patients = 11\n")
    with pytest.raises(PolicyError, match="min-patients 11"):
        answer(train_request(RUN), issue(RUN), open_site(site.home), "a")
    assert [path.name for path in (site.home / "state").glob("splits*")] == []


def test_module_offers_a_stock_flower_app() -> None:
    assert isinstance(app, ClientApp)

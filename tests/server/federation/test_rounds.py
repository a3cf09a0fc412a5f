"""A run averages what may enter, names what may not, fails below the quorum, and goes on from where it was."""

import html
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Error, RecordDict

from common.config import RunConfig
from common.config.rundocument import issue
from common.errors import ErrorCode, FederationError
from common.learning.checkpoint import load_model, pack, unpack
from common.learning.network import build_model
from common.tasks.segmentation import Segmentation
from common.wire.messages import EvaluateReply, Reply, Request, TrainReply, TrainRequest
from common.wire.records import reply_from_record
from server.federation import broadcast, rounds
from server.federation.broadcast import LONGEST_WAIT_S, SHORTEST_WAIT_S
from server.federation.events import OVERALL, Summary, read_events
from server.federation.rounds import federate
from server.federation.strategies.blocks import weighted_mean
from server.views.report import write_report
from server.views.watch import event_line
from tests.server.fakes import FakeGrid, FakeSite, Said, a_run, refuses, reply_message, trains
from tests.server.fakes import price as cost_of


def moves(seed: int, patients: int = 10, dice: float = 0.5) -> FakeSite:
    """A site that adds its own fixed noise to what it gets."""

    def change(request: TrainRequest) -> bytes:
        return pack(
            {name: tensor + shift(seed, name, tensor) for name, tensor in unpack(request.parts["weights"]).items()}
        )

    return trains(change, patients, dice)


def shift(seed: int, name: str, tensor: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed * 1000 + len(name))
    return torch.randn(tensor.shape, generator=generator)


def sends(change: Callable[[TrainReply], Said]) -> FakeSite:
    """A site that answers training with whatever `change` makes of a good reply."""
    good = moves(9)

    def site(request: Request) -> Said:
        reply = good(request)
        return change(reply) if isinstance(reply, TrainReply) else reply

    return site


def with_tensor(reply: TrainReply, edit: Callable[[torch.Tensor], torch.Tensor]) -> TrainReply:
    state = unpack(reply.parts["weights"])
    name = max(state, key=lambda key: state[key].ndim)
    state[name] = edit(state[name])
    return TrainReply(reply.run_hash, reply.round, {"weights": pack(state)}, reply.patients, reply.metrics)


def run_it(grid: FakeGrid, run: RunConfig, out: Path) -> Summary:
    return federate(grid, issue(run), out, wake=lambda _: None)


def of_kind(out: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(out / "metrics.jsonl") if event["event"] == kind]


def test_average_equals_a_hand_computed_weighted_mean(tmp_path: Path) -> None:
    run = a_run(rounds=1)
    patients = {"a": 3, "b": 19, "c": 22}
    grid = FakeGrid({name: moves(seed, patients[name]) for seed, name in enumerate("abc")})
    run_it(grid, run, tmp_path)
    _, got, _ = load_model(tmp_path)
    for name, start in build_model(run).state_dict().items():
        updates = {
            site: (start + shift(seed, name, start)).numpy().astype(np.float64) for seed, site in enumerate("abc")
        }
        expected = sum(patients[site] / 44 * updates[site] for site in "abc")
        np.testing.assert_allclose(got[name].numpy(), expected, rtol=3e-7, atol=1e-8)


def test_equal_weighting_ignores_counts(tmp_path: Path) -> None:
    run = a_run(rounds=1, federation={"weighting": "equal"})
    grid = FakeGrid({"a": moves(1, patients=0), "b": moves(2, patients=1_000_000)})
    run_it(grid, run, tmp_path)
    _, got, _ = load_model(tmp_path)
    for name, start in build_model(run).state_dict().items():
        expected = start + (shift(1, name, start) + shift(2, name, start)) / 2
        torch.testing.assert_close(got[name], expected, rtol=1e-6, atol=1e-6)


def test_result_is_bit_equal_in_any_order_even_where_addition_is_not_associative(tmp_path: Path) -> None:
    """In float64, (1 + 2**-60) - 1 is 0, but (1 - 1) + 2**-60 is 2**-60, which float32 has too."""

    def becomes(value: float) -> FakeSite:
        def change(request: TrainRequest) -> bytes:
            return pack({name: torch.full_like(one, value) for name, one in unpack(request.parts["weights"]).items()})

        return trains(change)

    sites = {"a": becomes(1.0), "b": becomes(2.0**-60), "c": becomes(-1.0)}
    for number, order in enumerate(itertools.permutations("abc")):
        run_it(FakeGrid(sites, order=order), a_run(rounds=1), tmp_path / str(number))
        _, got, _ = load_model(tmp_path / str(number))
        assert all(not one.any() for one in got.values())


def test_mean_is_of_the_tensors_own_types() -> None:
    mean = weighted_mean([{"x": torch.zeros(2)}, {"x": torch.ones(2)}], [3, 1])
    assert mean["x"].dtype == torch.float32
    assert torch.equal(mean["x"], torch.full((2,), 0.25))


BAD_UPDATES: dict[str, tuple[Callable[[TrainReply], Said], str]] = {
    "nan": (lambda reply: with_tensor(reply, lambda t: t * float("nan")), "not-finite"),
    "infinite": (lambda reply: with_tensor(reply, lambda t: t + float("inf")), "not-finite"),
    "broadcast": (lambda reply: with_tensor(reply, lambda t: t[..., :1].clone()), "wrong-tensors"),
    "huge": (lambda reply: with_tensor(reply, lambda t: t + 1e6), "update-too-large"),
    "no-patients": (
        lambda reply: TrainReply(reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, 0),
        "bad-count",
    ),
    "negative": (
        lambda reply: TrainReply(reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, -5),
        "bad-count",
    ),
    "other-run": (lambda reply: TrainReply("0" * 64, reply.round, {"weights": reply.parts["weights"]}, 5), "wrong-run"),
    "other-round": (
        lambda reply: TrainReply(reply.run_hash, reply.round + 1, {"weights": reply.parts["weights"]}, 5),
        "bad-request",
    ),
    "no-model": (lambda reply: TrainReply(reply.run_hash, reply.round, {"weights": b""}, 5), "wrong-tensors"),
    "nan-metric": (
        lambda reply: TrainReply(
            reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, 5, {"dice": float("nan")}
        ),
        "not-finite",
    ),
    "empty-records": (lambda _: RecordDict(), "bad-request"),
    "flower-error": (lambda _: Error(0, "/data/DOE^JANE/1.dcm"), "worker-failed"),
}


@pytest.mark.parametrize("fault", BAD_UPDATES)
def test_bad_update_is_refused_by_name_and_the_others_go_on(fault: str, tmp_path: Path) -> None:
    change, code = BAD_UPDATES[fault]
    good = {"a": moves(1), "b": moves(2)}
    summary = run_it(FakeGrid({**good, "c": sends(change)}), a_run(rounds=1), tmp_path / "with")
    without = run_it(FakeGrid(good), a_run(rounds=1), tmp_path / "without")
    (first,) = summary.sites_by_round
    assert (first["sites"], first["refused"], first["missing"]) == (["a", "b"], {"c": code}, [])
    assert first["refused-by-coordinator"] == ([] if code == "worker-failed" else ["c"])  # Flower's error is the site's
    assert summary.model_sha256 == without.model_sha256
    assert "DOE" not in (tmp_path / "with" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "price", [{"delta": 5e-324}, {"delta": 1e-308}, {"delta": 1e-9}, {"train-loss": -1.7e308}], ids=str
)
def test_number_with_which_nothing_can_be_computed_is_refused_by_name_and_ends_no_run(
    price: dict[str, float], tmp_path: Path
) -> None:
    run = a_run(rounds=1, privacy={"target-epsilon": 4.0}, training={"learning-rate": 10.0})
    stated = cost_of(run, rounds=1)

    def states(more: dict[str, float]) -> FakeSite:
        return sends(
            lambda reply: TrainReply(
                reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, 0, {**stated, **more}
            )
        )

    summary = run_it(FakeGrid({"a": states({}), "b": states({}), "m": states(price)}), run, tmp_path)
    assert (summary.status, summary.sites_by_round[0]["sites"]) == ("completed", ["a", "b"])
    write_report(tmp_path)


@pytest.mark.parametrize("dice", [1e308, -1e308])
def test_score_whose_sum_is_infinite_is_refused_by_name_and_ends_no_run(dice: float, tmp_path: Path) -> None:
    grid = FakeGrid({"a": moves(1), "b": moves(2), "m": moves(3, 1_000_000, dice)})
    summary = run_it(grid, a_run(rounds=1), tmp_path)
    assert (summary.status, sorted(summary.scores["test"]["sites"])) == ("completed", ["a", "b"])
    overall = [event for event in of_kind(tmp_path, "evaluate") if event["site"] == OVERALL]
    assert [event["refused"] for event in overall] == [{"m": "not-finite"}] * 2
    write_report(tmp_path)


@pytest.mark.parametrize("name", ["round", "site", "event", "time", "refused", "moves"])
def test_metric_named_like_a_field_of_the_journal_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    lying = sends(
        lambda reply: TrainReply(reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, 5, {name: 9.0})
    )
    good = {"a": moves(1), "b": moves(2)}
    summary = run_it(FakeGrid({**good, "c": lying}), a_run(rounds=1), tmp_path / "with")
    assert summary.model_sha256 == run_it(FakeGrid(good), a_run(rounds=1), tmp_path / "without").model_sha256
    assert [(event["site"], event["round"]) for event in of_kind(tmp_path / "with", "train")] == [("a", 1), ("b", 1)]
    (told,) = of_kind(tmp_path / "with", "round")
    assert (told["sites"], told["refused"]) == (["a", "b"], {"c": "bad-request"})


def test_refusal_and_silence_are_told_apart(tmp_path: Path) -> None:
    sites = {"a": moves(1), "b": moves(2), "c": refuses(ErrorCode.NOT_APPROVED), "d": lambda _: None, "e": moves(3)}
    run = a_run(rounds=1, federation={"round-timeout-s": 0.05})
    summary = run_it(FakeGrid(sites, unreachable=["e"]), run, tmp_path)
    (first,) = summary.sites_by_round
    refused: dict[str, object] = {"refused": {"c": "not-approved"}, "refused-by-coordinator": []}
    assert first == {"round": 1, "sites": ["a", "b"], **refused, "missing": ["d", "e"]}


def test_whether_a_site_refused_or_the_coordinator_its_answer_is_told_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nan, _ = BAD_UPDATES["nan"]
    other = sends(lambda reply: EvaluateReply(reply.run_hash, reply.round, "test", 3, {}))
    sites = {"a": moves(1), "b": sends(nan), "c": refuses(ErrorCode.NOT_FINITE), "d": other}
    run_it(FakeGrid(sites), a_run(rounds=1, quorum=1), tmp_path / "done")
    (event,) = of_kind(tmp_path / "done", "round")
    assert (event["refused"], event["refused-by-coordinator"]) == (
        {"b": "not-finite", "c": "not-finite", "d": "bad-request"},
        ["b", "d"],
    )
    told = [
        "the coordinator refused b's answer (not-finite)",
        "c refused (not-finite)",
        "the coordinator refused d's answer (bad-request)",
    ]
    line = event_line(event, Segmentation())
    page = html.unescape(write_report(tmp_path / "done").read_text())
    with pytest.raises(FederationError) as failed:
        run_it(FakeGrid(sites), a_run(rounds=1, quorum=2), tmp_path / "failed")
    for text in (line, page, str(failed.value)):
        assert all(one in text for one in told), text
        assert "b refused" not in text
    logged = [record.getMessage() for record in caplog.records]
    assert any(one.startswith("round 1: the coordinator refuses the update of b (not-finite): ") for one in logged)
    assert "round 1: c refused (not-finite)" in logged
    assert any(one.startswith("the coordinator refuses the answer of d (bad-request): ") for one in logged)


def test_reply_of_an_earlier_round_is_ignored(tmp_path: Path) -> None:
    run = a_run(rounds=2)
    grid = FakeGrid({"a": moves(1), "b": moves(2)})
    clean = run_it(FakeGrid({"a": moves(1), "b": moves(2)}), run, tmp_path / "clean")
    late = RecordDict()

    def b_is_late(request: Request) -> Said:
        if isinstance(request, TrainRequest) and request.round == 2:
            message = grid.create_message(late, "train", 101, "1")
            message.metadata.__dict__["_message_id"] = "from-round-1"
            old = TrainReply(request.run_hash, 1, {"weights": request.parts["weights"]}, 10**6)
            stale = reply_message(old, message)
            assert stale is not None
            grid.stale.append(stale)
        return moves(2)(request)

    grid.sites["b"] = b_is_late
    assert run_it(grid, run, tmp_path / "late").model_sha256 == clean.model_sha256


def test_below_the_quorum_the_run_fails_and_keeps_the_last_model(tmp_path: Path) -> None:
    def b_breaks(request: Request) -> Said:
        if isinstance(request, TrainRequest) and request.round == 2:
            return None
        return moves(2)(request)

    run = a_run(rounds=3, federation={"round-timeout-s": 0.02})
    with pytest.raises(FederationError, match=r"1 update could enter round 2, the quorum is 2: b did not answer\."):
        run_it(FakeGrid({"a": moves(1), "b": b_breaks}), run, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["rounds"] == 1
    assert summary["model-sha256"] is None
    assert "b did not answer" in summary["reason"]
    assert summary["code"] == "too-few-updates"
    assert of_kind(tmp_path, "run-failed")
    assert not (tmp_path / "model.safetensors").exists()
    assert load_model(tmp_path / "checkpoint" / "round-00001")[2].round == 1


def test_run_without_enough_sites_fails_after_the_join_timeout(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="1 site connected within"):
        run_it(FakeGrid({"a": moves(1)}), a_run(), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["code"]) == ("failed", "too-few-sites")


def test_interrupted_run_resumes_to_the_same_model(tmp_path: Path) -> None:
    run = a_run(rounds=4)
    whole = run_it(FakeGrid({"a": moves(1), "b": moves(2)}), run, tmp_path / "whole")

    def stops_in_round_3(request: Request) -> Said:
        if isinstance(request, TrainRequest) and request.round == 3:
            raise KeyboardInterrupt
        return moves(2)(request)

    with pytest.raises(KeyboardInterrupt):
        run_it(FakeGrid({"a": moves(1), "b": stops_in_round_3}), run, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()  # it did not end
    assert of_kind(tmp_path / "cut", "run-interrupted")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "rou')  # a line cut off by the crash
    grid = FakeGrid({"a": moves(1), "b": moves(2)})
    resumed = run_it(grid, run, tmp_path / "cut")
    assert resumed.model_sha256 == whole.model_sha256
    assert resumed.sites_by_round == whole.sites_by_round
    assert resumed.scores == whole.scores
    assert {request.round for _, request in grid.requests if isinstance(request, TrainRequest)} == {3, 4}


def test_scores_are_averaged_by_site_and_by_patient(tmp_path: Path) -> None:
    grid = FakeGrid({"a": moves(1, patients=1, dice=0.9), "b": moves(2, patients=3, dice=0.5)})
    summary = run_it(grid, a_run(rounds=1), tmp_path)
    assert summary.scores["test"]["mean-of-sites"] == {"dice": pytest.approx(0.7)}
    assert summary.scores["test"]["mean-of-patients"] == {"dice": pytest.approx(0.6)}
    assert summary.scores["test"]["sites"] == {"a": {"dice": 0.9}, "b": {"dice": 0.5}}


def test_a_class_that_a_site_lacks_is_neither_a_score_of_it_nor_lifts_the_mean(tmp_path: Path) -> None:
    def site(seed: int, patients: int, **scores: float) -> FakeSite:
        def answer(request: Request) -> Said:
            if isinstance(request, TrainRequest):
                return moves(seed, patients=patients)(request)
            metrics = {name.replace("_", "-"): value for name, value in scores.items()}
            return EvaluateReply(request.run_hash, request.round, request.phase, patients, metrics)

        return answer

    grid = FakeGrid(
        {
            "a": site(1, 1, dice=0.5, dice_liver=0.8, dice_tumour=0.2),
            "b": site(2, 3, dice=0.9, dice_liver=0.9),
            "c": site(3, 2, specificity=0.5),
        }
    )
    summary = run_it(grid, a_run(rounds=1), tmp_path)
    scores = summary.scores["test"]
    assert scores["mean-of-sites"] == pytest.approx(
        {"dice": 0.7, "dice-liver": 0.85, "dice-tumour": 0.2, "specificity": 0.5}
    )
    assert scores["mean-of-patients"]["dice"] == pytest.approx((0.5 + 3 * 0.9) / 4)
    assert scores["mean-of-patients"]["dice-tumour"] == pytest.approx(0.2)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Not scored: b dice-tumour; c dice-liver, dice-tumour." in text


def test_site_without_held_out_patients_is_no_failure(tmp_path: Path) -> None:
    def only_trains(request: Request) -> Said:
        said = refuses(ErrorCode.NO_DATA)
        return moves(2)(request) if isinstance(request, TrainRequest) else said(request)

    summary = run_it(FakeGrid({"a": moves(1), "b": only_trains}), a_run(rounds=1), tmp_path)
    assert summary.status == "completed"
    assert list(summary.scores["test"]["sites"]) == ["a"]
    assert all(event["refused"] == {} for event in of_kind(tmp_path, "evaluate") if event["site"] == "overall")


def test_empty_cross_site_results_name_every_site_and_why(tmp_path: Path) -> None:
    def only_trains(evaluates: FakeSite) -> FakeSite:
        return lambda request: (moves(1) if isinstance(request, TrainRequest) else evaluates)(request)

    sites = {"a": only_trains(refuses(ErrorCode.POLICY_REFUSED)), "b": only_trains(lambda _: None)}
    run = a_run(rounds=1, federation={"round-timeout-s": 0.05})
    summary = run_it(FakeGrid(sites), run, tmp_path)
    assert summary.status == "completed"
    told = [event for event in of_kind(tmp_path, "evaluate") if event["site"] == "overall"]
    assert [event["phase"] for event in told] == ["validation", "test"]
    assert all((one["refused"], one["missing"]) == ({"a": "policy-refused"}, ["b"]) for one in told)
    assert not any("dice" in event for event in told)


def test_evaluation_follows_its_period_and_always_the_last_round(tmp_path: Path) -> None:
    run = a_run(rounds=5, federation={"evaluate-every": 2})
    run_it(FakeGrid({"a": moves(1), "b": moves(2)}), run, tmp_path)
    asked = [(event["round"], event["phase"]) for event in of_kind(tmp_path, "evaluate") if event["site"] == "overall"]
    assert asked == [(2, "validation"), (4, "validation"), (5, "validation"), (5, "test")]


def test_sites_get_the_same_bytes_in_a_round(tmp_path: Path) -> None:
    grid = FakeGrid({"a": moves(1), "b": moves(2)})
    run_it(grid, a_run(rounds=2), tmp_path)
    for number in (1, 2):
        sent = {id(r.parts["weights"]) for _, r in grid.requests if isinstance(r, TrainRequest) and r.round == number}
        assert len(sent) == 1


def test_looks_come_often_at_first_and_never_rarer_than_four_a_second(tmp_path: Path) -> None:
    waits: list[float] = []
    run = a_run(rounds=1, federation={"round-timeout-s": 0.2, "quorum": 1})
    federate(FakeGrid({"a": moves(1), "b": lambda _: None}), issue(run), tmp_path, wake=waits.append)
    assert waits[0] == 0  # the hint to the gateway, before the first look
    assert min(one for one in waits if one) == SHORTEST_WAIT_S
    assert max(waits) <= LONGEST_WAIT_S


def test_two_nodes_of_one_name_stop_the_run(tmp_path: Path) -> None:
    grid = FakeGrid({"a": moves(1), "b": moves(2)})
    grid.nodes = {100: "a", 101: "a"}
    with pytest.raises(FederationError, match="same site name"):
        federate(grid, issue(a_run()), tmp_path, wake=lambda _: None)


def test_guarantee_is_what_each_sites_ledger_states(tmp_path: Path) -> None:
    run = a_run(rounds=2, privacy={"target-epsilon": 8.0}, training={"learning-rate": 30.0})

    def private(patients: int) -> FakeSite:
        def site(request: Request) -> Said:
            reply = moves(1, patients=0)(request)
            if isinstance(reply, TrainReply):
                spent = cost_of(run, reply.round, patients)
                return TrainReply(reply.run_hash, reply.round, {"weights": reply.parts["weights"]}, 0, spent)
            return reply

        return site

    summary = run_it(FakeGrid({"a": private(10), "b": private(20)}), run, tmp_path)
    assert summary.guarantee is not None
    assert summary.guarantee["unit"] == "patient"
    stated = {site: (one["epsilon"], one["delta"], one["steps"]) for site, one in summary.guarantee["sites"].items()}
    spent = {site: cost_of(run, 2, patients)["epsilon"] for site, patients in (("a", 10), ("b", 20))}
    assert stated == {"a": (spent["a"], 0.01, 2), "b": (spent["b"], 0.005, 2)}
    assert summary.scores["test"]["mean-of-patients"] is None
    kept = load_model(tmp_path)[2].guarantee
    assert kept is not None
    assert kept["sites"]["b"]["epsilon"] == spent["b"]


@pytest.mark.parametrize("check", ["check_update", "check_scores"])
def test_a_check_that_breaks_on_one_reply_refuses_that_reply_and_the_round_goes_on(
    check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound = getattr(rounds, check)

    def breaks_on_thirteen(reply: TrainReply | EvaluateReply, *others: object, **more: object) -> object:
        if reply.patients == 13:
            raise ZeroDivisionError("a fault that nobody thought of")
        return sound(reply, *others, **more)

    monkeypatch.setattr(rounds, check, breaks_on_thirteen)
    grid = FakeGrid({"a": moves(1), "b": moves(2), "c": moves(3, patients=13)})
    summary = run_it(grid, a_run(rounds=2), tmp_path)
    assert summary.status == "completed"
    events = of_kind(tmp_path, "round" if check == "check_update" else "evaluate")
    refused = [event["refused"] for event in events if event.get("site", OVERALL) == OVERALL]
    assert refused
    assert all(one == {"c": "internal"} for one in refused)
    assert "ZeroDivisionError: a fault that nobody thought of" in caplog.text  # the traceback, for the coordinator
    assert " of c (internal): it cannot be checked" in caplog.text


def test_a_check_that_breaks_on_every_update_fails_the_run_by_its_quorum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(rounds, "check_update", breaks)
    said = r"the quorum is 2: the coordinator refused a's answer \(internal\), the coordinator refused b's"
    with pytest.raises(FederationError, match=said):
        run_it(FakeGrid({"a": moves(1), "b": moves(2)}), a_run(rounds=1), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_reply_that_breaks_its_reader_is_refused_and_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = reply_from_record

    def breaks(record: RecordDict) -> Reply:
        reply = sound(record)
        if isinstance(reply, TrainReply) and reply.patients == 13:
            raise OverflowError
        return reply

    monkeypatch.setattr(broadcast, "reply_from_record", breaks)
    grid = FakeGrid({"a": moves(1), "b": moves(2), "c": moves(3, patients=13)})
    summary = run_it(grid, a_run(rounds=1), tmp_path)
    (first,) = summary.sites_by_round
    assert (first["refused"], first["refused-by-coordinator"]) == ({"c": "internal"}, ["c"])

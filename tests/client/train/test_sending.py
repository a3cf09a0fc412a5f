"""Rounded updates: what rounding takes is kept, sealed, and comes with the next one; it is made of what is released."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.home.folder import RESIDUALS_NAME
from client.site import Site
from client.train import answer as answering
from client.train.memory import recall_from
from client.train.sending import model_part
from client.train.strategies import Kept, local_of
from common.config import RunConfig, SiteConfig
from common.config.rundocument import RunDocument, issue
from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack, unpack
from common.learning.network import build_model, norms_of, weights_of
from common.privacy import engine
from common.privacy.guarantee import guarantee
from common.wire.encoding import Encoding, decode
from common.wire.messages import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from server.federation.checks import check_update
from server.federation.strategies import aggregation_of
from simulations.scenarios.homes import make_site
from tests.client.train.test_strategies import a_run
from tests.simulations.tiny import tiny_run_of_format, tiny_site

ENCODINGS: tuple[Encoding, ...] = ("bfloat16", "int8")
PRIVATE = {"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1}
State = Mapping[str, Tensor]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(tmp_path, tiny_site(tmp_path / "data", "north", patients=10))


def rounded_run(precision: str, rounds: int = 3, **tables: Mapping[str, object]) -> RunConfig:
    training = {"optimizer": "sgd", "learning-rate": 0.05}
    federation = {"rounds": rounds, "update-precision": precision}
    return tiny_run_of_format(2, training=training, federation=federation, **tables)


def request_of(run: RunConfig, round_: int = 1, seed: int | None = None) -> TrainRequest:
    start = weights_of(build_model(run if seed is None else run.model_copy(update={"seed": seed})))
    return TrainRequest(issue(run).hash, round_, {"weights": pack(start)})


def trained(site: Site, run: RunConfig, request: TrainRequest, attempt: str = "one") -> TrainReply:
    reply = answering.answer(request, issue(run), site, attempt)
    assert isinstance(reply, TrainReply)
    return reply


def moves_in(reply: TrainReply, run: RunConfig) -> dict[str, Tensor]:
    shapes = {name: tuple(one.shape) for name, one in weights_of(build_model(run)).items()}
    precision = run.federation.update_precision
    assert precision != "float32"
    return {name: torch.from_numpy(one) for name, one in decode(reply.parts["weights"], shapes, precision).items()}


def read_of(reply: TrainReply, run: RunConfig, start: State) -> State:
    """The weights that the coordinator has of it."""
    return check_update(reply, run, issue(run).hash, reply.round, start).parts["weights"]


def folder(site: Site, run: RunConfig) -> Path:
    return site.home / RESIDUALS_NAME / issue(run).hash


def residual(site: Site, run: RunConfig, round_: int) -> State:
    kept = recall_from(folder(site, run), site, round_ + 1)
    assert kept is not None
    assert kept.round == round_
    return kept.states["residual"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_sent_and_what_is_kept_are_what_would_have_left_as_float32(site: Site, encoding: Encoding) -> None:
    """In the next round, too, where what is kept comes on top."""
    run, plain = rounded_run(encoding), rounded_run("float32")
    earlier: State = {}
    for number in (1, 2):
        request, same = request_of(run, number, seed=number), request_of(plain, number, seed=number)
        start, whole = unpack(request.parts["weights"]), unpack(trained(site, plain, same).parts["weights"])
        read = read_of(trained(site, run, request), run, start)
        kept = residual(site, run, number)
        assert any(bool(one.any()) for one in kept.values())
        for name, one in whole.items():
            wanted = one - start[name] + (earlier[name] if earlier else 0)
            assert torch.equal(wanted - (read[name] - start[name]), kept[name])
        earlier = {name: one.clone() for name, one in kept.items()}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_round_that_is_trained_again_gives_the_same_bytes(site: Site, encoding: Encoding) -> None:
    run = rounded_run(encoding)
    first = trained(site, run, request_of(run, 1))
    second = trained(site, run, request_of(run, 2))
    assert trained(site, run, request_of(run, 2), "again").parts == second.parts
    (site.home / RESIDUALS_NAME / issue(run).hash / "2.sealed").unlink()  # killed before it was written
    assert trained(site, run, request_of(run, 2), "after a kill").parts == second.parts
    assert trained(site, run, request_of(run, 1), "the coordinator went back").parts == first.parts
    assert trained(site, run, request_of(run, 2), "and on").parts == second.parts


def test_a_round_without_this_site_leaves_what_is_kept_for_its_next_one(site: Site) -> None:
    run = rounded_run("int8", rounds=9)
    trained(site, run, request_of(run, 1))
    kept = {name: one.clone() for name, one in residual(site, run, 1).items()}
    whole = unpack(trained(site, plain := rounded_run("float32", rounds=9), request_of(plain, 7)).parts["weights"])
    start = unpack(request_of(run, 7).parts["weights"])
    read = read_of(trained(site, run, request_of(run, 7)), run, start)
    for name, one in residual(site, run, 7).items():
        assert torch.equal(whole[name] - start[name] + kept[name] - (read[name] - start[name]), one)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_it_is_sealed_only_for_this_site_and_gone_once_the_last_model_is_scored(site: Site, encoding: Encoding) -> None:
    run = rounded_run(encoding, rounds=2)
    trained(site, run, request_of(run, 1))
    (path,) = folder(site, run).glob("*")
    assert path.stat().st_mode & 0o077 == 0
    assert b"conv" not in path.read_bytes()
    trained(site, run, request_of(run, 2))
    assert [one.name for one in folder(site, run).glob("*")] == ["1.sealed"]  # no round comes that needs the second
    asked = EvaluateRequest(issue(run).hash, 2, "validation", {"weights": request_of(run).parts["weights"]})
    assert isinstance(answering.answer(asked, issue(run), site, "two"), EvaluateReply)
    assert not folder(site, run).exists()


def test_as_float32_nothing_is_kept(site: Site) -> None:
    run = rounded_run("float32")
    trained(site, run, request_of(run))
    assert not (site.home / RESIDUALS_NAME).exists()


def test_where_a_site_goes_on_from_weights_of_its_own_nothing_is_kept(site: Site) -> None:
    """Its next update says anew where these are."""
    run = rounded_run("int8", strategy={"kind": "mr-mtl"})
    trained(site, run, request_of(run))
    assert not (site.home / RESIDUALS_NAME).exists()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_weights_that_stay_at_the_site_are_sent_and_kept_as_no_move(site: Site, encoding: Encoding) -> None:
    run = rounded_run(encoding, strategy={"kind": "fedbn"}, model={"norm": "instance"})
    own = norms_of(build_model(run))
    assert own
    for number in (1, 2):
        request = request_of(run, number)
        reply = trained(site, run, request)
        assert not any(bool(one.any()) for name, one in moves_in(reply, run).items() if name in own)
        assert not any(bool(one.any()) for name, one in residual(site, run, number).items() if name in own)
        check_update(reply, run, issue(run).hash, number, unpack(request.parts["weights"]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_in_a_private_run_what_leaves_and_what_is_kept_follow_from_the_noised_sum_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: Encoding
) -> None:
    """With the noised sums of every step held fixed, other patients give the same bytes; with sums as they are, others.

    So rounding and what it keeps are computed from what private steps release, and add no look at the patients.
    """
    run = rounded_run(encoding, privacy=PRIVATE)
    pictures = [tiny_site(tmp_path / f"data-{seed}", "north", patients=10, seed=seed) for seed in (0, 1)]

    def after_two_rounds(where: str) -> list[tuple[bytes, State]]:
        found: list[tuple[bytes, State]] = []
        for number, config in enumerate(pictures):
            site = make_site(tmp_path / f"{where}-{number}", config)
            first, second = (trained(site, run, request_of(run, round_, seed=round_), str(round_)) for round_ in (1, 2))
            assert first.parts != second.parts
            found.append((bytes(second.parts["weights"]), residual(site, run, 2)))
        return found

    noise = torch.Generator().manual_seed(5)
    fixed: dict[int, Tensor] = {}

    def released(sums: list[Tensor], **_: Any) -> list[Tensor]:
        for place, one in enumerate(sums):
            fixed.setdefault(place, torch.randn(one.shape, generator=noise, dtype=torch.float64).to(one.dtype))
        return [fixed[place].reshape(one.shape) for place, one in enumerate(sums)]

    monkeypatch.setattr(engine, "noised", released)
    (part, kept), (other, kept_there) = after_two_rounds("fixed")
    assert part == other
    assert kept.keys() == kept_there.keys()
    assert all(torch.equal(one, kept_there[name]) for name, one in kept.items())
    assert any(bool(one.any()) for one in kept.values())
    monkeypatch.setattr(engine, "noised", lambda sums, **_: list(sums))
    (part, _), (other, _) = after_two_rounds("not")
    assert part != other


def test_what_a_private_run_costs_and_guarantees_is_the_same(tmp_path: Path) -> None:
    told = []
    for precision in ("float32", *ENCODINGS):
        run = rounded_run(precision, privacy=PRIVATE)
        site = make_site(tmp_path / precision, tiny_site(tmp_path / f"{precision}-data", "north", patients=10))
        replies = [trained(site, run, request_of(run, number), str(number)) for number in (1, 2)]
        costs = [(reply.metrics["epsilon"], reply.metrics["delta"], reply.metrics["steps"]) for reply in replies]
        epsilon, delta, _ = costs[-1]
        rows = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in site.ledger.entries()]
        told.append((costs, rows, guarantee(run, epsilon=epsilon, delta=delta, steps=4)))
    assert told[0] == told[1] == told[2]


# Two sites on 1/2 (u - c)^2 + 1/2 (v - b)^2, c = 254 at one and -254 at the other: each moves u by 254 times the rate,
# so a step of int8 is twice the rate, and v = b - 0.9 moves by 0.9 of the rate, which is less than half a step.
PULL, OFF, ROUNDS = 254.0, 0.9, 100


def descended(tmp_path: Path, encoding: str, *, feedback: bool) -> list[float]:
    """How far v is from its optimum, 0, after each round of one step; the rate falls from 0.2 to 0.002."""
    base = a_run("fedavg", privacy=None)
    federation = base.federation.model_copy(update={"rounds": ROUNDS, "update_precision": encoding})
    run = base.model_copy(update={"federation": federation})
    document = RunDocument("", run, "ab" * 32)
    server = aggregation_of(run)
    server.start({"weights": {"w": torch.tensor([0.0, -OFF])}})
    sites = [make_site(tmp_path, SiteConfig(name=name)) for name in ("north", "south")]
    found = []
    for number in range(1, ROUNDS + 1):
        rate = 0.2 - (0.2 - 0.002) * (number - 1) / (ROUNDS - 1)
        start = server.held["weights"]["w"]
        request = TrainRequest(document.hash, number, {"weights": pack({"w": start})})
        for site, centre in zip(sites, (PULL, -PULL), strict=True):
            if not feedback:
                shutil.rmtree(site.home / RESIDUALS_NAME, ignore_errors=True)
            stepped = start - rate * (start - torch.tensor([centre, 0.0]))
            part = model_part({"w": stepped}, request, document, site)
            reply = TrainReply(document.hash, number, {"weights": part}, 10)
            server.add(check_update(reply, run, document.hash, number, {"w": start}).parts, 1.0)
        server.finish(number)
        assert abs(float(server.held["weights"]["w"][0])) < 1e-3  # the sites' pulls cancel out
        found.append(float(server.held["weights"]["w"][1]))
    return found


class Unlike(nn.Module):
    """a / 2 ||w - b||^2, whose second weight moves a thousandth of the first: less than half a step of int8."""

    def __init__(self, a: float, b: float, start: Tensor) -> None:
        super().__init__()
        self.w, self.a, self.b = nn.Parameter(start.clone()), a, torch.tensor([b, b / 1000])

    def forward(self) -> Tensor:
        return self.a / 2 * (self.w - self.b).square().sum()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("kind", "keys"), [("scaffold", {}), ("feddyn", {"alpha": 1.0})])
def test_corrections_of_a_strategy_lead_to_the_optimum_of_all(
    tmp_path: Path, kind: str, keys: dict[str, float], encoding: str
) -> None:
    """Of (w - 0)^2 / 2 and 4 (w - 10)^2 / 2 it is 8, and where plain rounds settle 6.15; of a thousandth likewise."""
    base = a_run(kind, privacy=None, **keys)
    training = base.training.model_copy(update={"local_steps": 10, "momentum": 0.5, "schedule": "constant"})
    federation = base.federation.model_copy(update={"rounds": 60, "update_precision": encoding})
    run = base.model_copy(update={"training": training, "federation": federation})
    document, server = RunDocument("", run, "ab" * 32), aggregation_of(run)
    server.start({"weights": {"w": torch.tensor([5.0, 0.005])}})
    sites = [make_site(tmp_path, SiteConfig(name=name)) for name in ("north", "south")]
    kept: dict[int, Kept] = {}
    for number in range(1, 61):
        start = server.held["weights"]["w"]
        request = TrainRequest(document.hash, number, {"weights": pack({"w": start})})
        for place, (a, b) in enumerate([(1.0, 0.0), (4.0, 10.0)]):
            model = Unlike(a, b, start)
            local = local_of(run.strategy, model, {})
            local.remember(run, number, kept.get(place))
            optimizer = torch.optim.SGD(model.parameters(), training.learning_rate, momentum=training.momentum)
            for _ in range(training.local_steps):
                model.zero_grad()
                model().backward()
                local.steer()
                optimizer.step()
            part = model_part(weights_of(model), request, document, sites[place])
            reply = TrainReply(document.hash, number, {"weights": part}, 10)
            server.add(check_update(reply, run, document.hash, number, {"w": start}).parts, 1.0)
            kept[place] = Kept(number, local.kept())
        server.finish(number)
    assert server.held["weights"]["w"].tolist() == pytest.approx([8.0, 0.008], rel=1e-3)


def test_by_rounding_alone_small_moves_are_lost_for_good(tmp_path: Path) -> None:
    assert descended(tmp_path, "int8", feedback=False) == pytest.approx([-OFF] * ROUNDS, abs=1e-7)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_with_what_rounding_took_they_add_up_to_the_optimum(tmp_path: Path, encoding: str) -> None:
    """In the last tenth the rate is 0.02 at most, and a step of int8 0.04."""
    assert max(map(abs, descended(tmp_path, encoding, feedback=True)[-10:])) < 0.04


ULP = 2.0**-23  # the last place of a weight from 1 to 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_moves_as_small_as_a_weights_last_place_arrive_in_full(tmp_path: Path, encoding: Encoding) -> None:
    """A weight of 1 moves by one last place a round, in steps of .9 of it: what the coordinator's sum rounds counts."""
    federation = {"rounds": 300, "update_precision": encoding}
    base = a_run("fedavg", privacy=None)
    run = base.model_copy(update={"federation": base.federation.model_copy(update=federation)})
    document = RunDocument("", run, "ab" * 32)
    site, held = make_site(tmp_path, SiteConfig(name="north")), torch.tensor([1.0, 0.0])
    for number in range(1, 300):
        request = TrainRequest(document.hash, number, {"weights": pack({"w": held})})
        part = model_part({"w": held + torch.tensor([ULP, 0.9 * 127 * ULP])}, request, document, site)
        reply = TrainReply(document.hash, number, {"weights": part}, 10)
        held = check_update(reply, run, document.hash, number, {"w": held}).parts["weights"]["w"].clone()
        assert abs((float(held[0]) - 1) / ULP - number) <= 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_model_may_have_scalars_and_empty_tensors(tmp_path: Path, encoding: Encoding) -> None:
    run = rounded_run(encoding)
    document, site = issue(run), make_site(tmp_path, SiteConfig(name="north"))
    start = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "w": torch.ones(257)}
    for number in (1, 2):
        request = TrainRequest(document.hash, number, {"weights": pack(start)})
        part = model_part({name: one + 0.5 for name, one in start.items()}, request, document, site)
        moves = decode(part, {name: one.shape for name, one in start.items()}, encoding)
        assert moves["scalar"].shape == ()
        assert float(moves["scalar"]) == pytest.approx(0.5)
        assert residual(site, run, number).keys() == start.keys()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_of_an_update_that_is_infinite_where_it_is_read_nothing_is_sent_or_kept(
    tmp_path: Path, encoding: Encoding
) -> None:
    """The weight itself is finite, and so is its move; rounded up the move leads beyond."""
    run = rounded_run(encoding)
    document, site = issue(run), make_site(tmp_path, SiteConfig(name="north"))
    largest, second = torch.finfo(torch.float32).max, 1.27e36
    start = torch.tensor([largest - 1.0166e36, 0.0])
    request = TrainRequest(document.hash, 1, {"weights": pack({"w": start})})
    with pytest.raises(UpdateError) as caught:
        model_part({"w": torch.tensor([largest, second])}, request, document, site)
    assert caught.value.code is ErrorCode.NOT_FINITE
    assert not (site.home / RESIDUALS_NAME).exists()

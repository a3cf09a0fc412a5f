"""What a person reads before an approval is true: counted against the document, the ledger and dp-accounting."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import pld
from safetensors.numpy import save

from client.home.declared import declare
from client.home.offer import Offer
from client.home.statistics import Told, keep
from client.proposals.budget import beyond
from client.proposals.consequences import consequences, tensor_rows
from client.rules import approvals
from client.rules.approvals import Appraisal, Proposal
from client.site import Site, open_site
from common.config import RunConfig, sha256_of, validate
from common.config.rundocument import issue
from common.errors import PrivacyError
from common.identity.operators import Signer
from common.privacy.accountant import noise_multiplier_for
from common.privacy.guarantee import charge_round, plan
from tests.documents import carried

OFFER = Offer(
    43, 45, "cohort", 50, {"no-label": 2}, {"weights": {"conv.weight": (8, 1, 3, 3), "conv.bias": (8,)}}, training=31
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "site.toml").write_text('name = "north"\n')
    return open_site(tmp_path)


def a_run(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "name": "lesions",
        "data": {"modality": "CT", "classes": ["lesion", "organ"]},
        "training": {"patch-size": [32, 32], "local-steps": 10},
        "federation": {"rounds": 6},
        "privacy": {"target-epsilon": 3.0, "sampling-rate": 0.1},
    }
    return validate(RunConfig, values | changes)


def proposed(site: Site, run: RunConfig, offer: Offer | None = OFFER) -> Proposal:
    proposal = approvals.record(site.home, carried(run), is_open=True, keys=[Signer("maria", "ab" * 32)])
    if offer is not None:
        approvals.note_appraisal(site.home, proposal.run_hash, Appraisal(offer, None))
    return approvals.load(site.home, proposal.run_hash)


def shown(site: Site, proposal: Proposal) -> dict[str, str]:
    return dict(consequences(proposal, site, approvals.load_all(site.home)))


def pld_epsilon(rows: list[tuple[float, float, int]], delta: float) -> float:
    parts = [
        pld.privacy_loss_distribution.from_gaussian_mechanism(noise, sampling_prob=rate).self_compose(steps)
        for noise, rate, steps in rows
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


def part_bytes() -> int:
    """Of the offer's tensors, as the safetensors library writes them."""
    return len(save({name: np.zeros(shape, np.float32) for name, shape in OFFER.tensors}))


def test_patients_studies_tensors_bytes_and_the_asker_are_shown(site: Site) -> None:
    rows = shown(site, proposed(site, a_run()))
    assert rows["on"] == "43 of our patients, 50 studies"
    assert rows["set aside"] == "2 no-label (see data check)"
    assert rows["asked by"].startswith("maria ")
    assert rows["leaves each round"] == (
        f"2 tensors in {part_bytes():,} bytes, as its receipt counts them (320 of weights, the others of names and "
        "shapes), clipped and noised"
    )
    assert tensor_rows(OFFER, a_run()) == [("conv.weight", "8 x 1 x 3 x 3", 288), ("conv.bias", "8", 32)]
    assert rows["how often"].startswith("6 rounds of 10 steps")


@pytest.mark.parametrize(("precision", "sizes"), [("bfloat16", (144, 16)), ("int8", (76, 12))])
def test_a_rounded_update_is_shown_with_its_bytes_and_what_is_kept(
    site: Site, precision: str, sizes: tuple[int, int]
) -> None:
    """72 and 8 values: two bytes each; or one, with 4 for the scale of each block."""
    run = a_run(format=2, federation={"rounds": 6, "update-precision": precision})
    assert [size for _, _, size in tensor_rows(OFFER, run)] == list(sizes)
    said = shown(site, proposed(site, run))["leaves each round"]
    assert said.startswith("2 tensors in ")
    assert f"({sum(sizes)} of weights, the others of names and shapes), clipped and noised, as what each moved" in said
    assert f"rounded to {precision}; what rounding takes is KEPT here, sealed" in said


@pytest.mark.parametrize(
    ("kind", "privacy", "told", "not_told"),
    [
        ("fedavg", True, ["fedavg"], ["steps", "KEEPS"]),
        ("multi-krum", False, ["multi-krum"], ["steps", "KEEPS"]),
        ("fedprox", True, ["changes our steps after the noise"], ["KEEPS"]),
        ("feddyn", True, ["changes our steps after the noise", "KEEPS here", "noised as that is"], ["reveal"]),
        (
            "scaffold",
            False,
            ["changes our steps;", "KEEPS here", "NOT noised", "may reveal single patients"],
            ["after"],
        ),
        ("ditto", False, ["KEEPS here", "until we remove it", "as long again", "NOT noised"], ["steps", "covers"]),
        ("ditto", True, ["NOT noised", "this run's noise does not cover it", "nothing of it leaves"], ["as that is"]),
        ("mr-mtl", True, ["changes our steps after the noise", "KEEPS here", "noised as our updates are"], ["NOT"]),
        ("fedbn", False, ["KEEPS here", "our own normalisations", "NOT noised"], ["steps"]),
    ],
)
def test_what_the_strategy_does_and_keeps_here_is_told(
    site: Site, kind: str, privacy: bool, told: list[str], not_told: list[str]
) -> None:
    changes: dict[str, object] = {"format": 2, "strategy": {"kind": kind}, "federation": {"rounds": 6, "quorum": 5}}
    changes["training"] = {"patch-size": [32, 32], "optimizer": "sgd"}
    said = shown(site, proposed(site, a_run(**changes, **({} if privacy else {"privacy": None}))))[
        "updates become a model by"
    ]
    assert said.startswith(kind)
    assert all(one in said for one in told)
    assert not any(one in said for one in not_told)


@pytest.mark.parametrize(("privacy", "leaves"), [(True, "nothing of it leaves"), (False, "the score alone leaves")])
def test_a_hospital_is_told_that_it_trains_a_model_alone(site: Site, privacy: bool, leaves: str) -> None:
    plain = {} if privacy else {"privacy": None}
    assert "compared with" not in shown(site, proposed(site, a_run(**plain)))
    run = a_run(format=2, federation={"rounds": 6, "cross-site": True}, **plain)
    rows = shown(site, proposed(site, run))
    assert all(one in rows["compared with"] for one in ("as long again", "NOT noised", "KEPT here", leaves))
    assert ("local-dice" in rows["scalars that leave"]) is not privacy


def test_a_hospital_is_told_which_statistics_of_its_patients_would_leave(site: Site) -> None:
    run = a_run(format=2, federation={"rounds": 6, "statistics": True}, privacy=None)
    assert "statistics of our patients" not in shown(site, proposed(site, a_run(privacy=None)))
    rows = shown(site, proposed(site, run))
    assert rows["statistics of our patients"].startswith("none leave")
    assert "class-share" not in rows["scalars that leave"]
    (site.home / "policy.toml").write_text('metrics = ["intensity", "class-share"]\n')
    rows = shown(open_site(site.home), proposed(site, run))
    said = rows["statistics of our patients"]
    assert said.startswith("class-share, intensity, means over the patients in training")
    assert all(one in said for one in ("NOT noised", "of two runs", "KEPT here", "from 10 patients on"))
    assert {"class-share-organ", "counted-patients", "intensity-p95-1"} <= set(rows["scalars that leave"].split(", "))
    assert "other run" not in said
    proposal = proposed(site, run)
    keep(site.home, site.key, proposal.run_hash, Told(patients=31, values={}))  # its own
    for number, words in ((1, "(1 other run here told of them before)"), (2, "(2 other runs here told")):
        keep(site.home, site.key, str(number) * 64, Told(patients=31, values={}))
        assert words in shown(open_site(site.home), proposal)["statistics of our patients"]
    (site.home / "policy.toml").write_text('metrics = ["intensity"]\nmin-patients = 32\n')
    rows = shown(open_site(site.home), proposed(site, run))
    assert rows["statistics of our patients"].endswith("but none will leave: 31 patients train")


def test_scalars_are_those_that_the_gate_lets_go(site: Site) -> None:
    private = shown(site, proposed(site, a_run()))["scalars that leave"].split(", ")
    assert {"dice", "dice-lesion", "dice-organ", "epsilon", "steps"} <= set(private)
    assert not {"train-loss", "seconds"} & set(private)
    (site.home / "policy.toml").write_text('metrics = ["iou"]\n')
    few = shown(open_site(site.home), proposed(site, a_run()))
    assert few["scalars that leave"] == "delta, epsilon, steps"  # noised scores are Dice alone
    assert few["scores"] == "none leave"
    (site.home / "policy.toml").write_text('metrics = ["iou"]\nscores = "exact"\n')
    exact = shown(open_site(site.home), proposed(site, a_run()))
    assert exact["scalars that leave"] == "delta, epsilon, iou, steps"
    assert exact["scores"].startswith("EXACT")


def test_a_hospital_whose_scores_stay_is_told_that_others_choose_the_model(site: Site) -> None:
    chooses = {"keep": "best", "evaluate-every": 1}
    run = a_run(format=2, federation={"rounds": 6, **chooses}, task={"kind": "classification"})
    assert shown(site, proposed(site, run))["scores"] == (
        "none leave; which round's model is kept, or when the run stops, is decided without ours"
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            "",
            "none will leave: 7 patients for test and 7 patients for validation are held out, fewer than",
        ),
        ('scores = "exact"\n', "EXACT, means over our held-out patients"),
        ("min-held-out = 7\n", "noised by"),
        ('scores = "exact"\nmin-held-out = 6\n', "EXACT, means over our held-out patients"),
    ],
)
def test_small_site_is_told_that_no_score_will_leave(site: Site, policy: str, said: str) -> None:
    (site.home / "policy.toml").write_text(policy)
    few = open_site(site.home)
    shown_scores = shown(few, proposed(few, a_run()))["scores"]
    assert shown_scores.startswith(said)
    assert ("fewer than min-held-out 10" in shown_scores) == ("min-held-out" not in policy)
    if policy == 'scores = "exact"\n':
        assert "but none is likely to leave: about 6 patients for test and 6 patients for validation" in shown_scores


def test_scores_of_the_one_split_that_is_large_enough_are_shown_and_the_other_named(site: Site) -> None:
    run = a_run(data={"modality": "CT", "classes": ["lesion", "organ"], "test-fraction": 0.3})
    said = shown(site, proposed(site, run))["scores"]
    assert "for a class in the test" in said
    assert said.endswith(
        "; but none of the validation will leave: 7 patients for validation are held out, fewer than min-held-out 10 "
        "in policy.toml"
    )


def test_time_limit_that_the_run_sets_is_shown(site: Site) -> None:
    run = a_run(federation={"rounds": 6, "round-timeout-s": 7.5})
    assert shown(site, proposed(site, run))["how often"].startswith("6 rounds of 10 steps, each within 7.5 s;")


@pytest.mark.parametrize(
    ("every", "said"), [(1, "each round"), (2, "every 2 rounds"), (6, "at the end"), (9, "at the end")]
)
def test_how_often_scores_are_asked_for_is_said_as_people_say_it(site: Site, every: int, said: str) -> None:
    run = a_run(federation={"rounds": 6, "evaluate-every": every})
    assert any(value.endswith(f"; scores {said}") for value in shown(site, proposed(site, run)).values())


def test_noise_of_scores_and_what_they_cost_are_shown(site: Site) -> None:
    (site.home / "policy.toml").write_text("min-held-out = 7\n")
    site = open_site(site.home)
    said = shown(site, proposed(site, a_run()))["scores"]
    # 45 declared, 15 % tested: 7 patients. Two classes: one patient moves the sum by at most sqrt(2) / 2.
    noise = noise_multiplier_for(1.0, 1 / 450, 1.0, 2) * math.sqrt(2) / 2 / 7
    assert said.startswith(f"noised by {noise:.2f} for a class in the test; 1 time in validation, once in the test")
    assert said.endswith("Epsilon 1 of a held-out patient for this run, of 10 in all")


def test_outgrown_declaration_is_said_to_who_decides(site: Site) -> None:
    first = shown(site, proposed(site, a_run()))["number told to others"]
    assert first.startswith("45 patients, and from now on so many for every private CT run, whoever comes")
    declare(site.config, a_run(), 45, site.home)
    assert (
        shown(site, proposed(site, a_run()))["number told to others"]
        == "45 patients, as declared, and no other count of them"
    )
    grown = dataclasses.replace(OFFER, patients=61)
    said = shown(site, proposed(site, a_run(name="later"), grown))["number told to others"]
    assert said.startswith("61 patients are usable, and this site has declared 45.")


def test_epsilon_goes_from_what_is_spent_to_what_will_be(site: Site) -> None:
    first, second = a_run(name="first"), a_run(name="second")
    for number in range(1, 7):
        charge_round(
            site.ledger,
            issue(first),
            cohort="cohort",
            cohort_size=45,
            round_=number,
            attempt=str(number),
            lifetime_epsilon=9,
        )
    text = shown(site, proposed(site, second))["privacy"]
    cost = plan(second, 45)
    one_run = [(cost.noise_multiplier, 0.1, 60)]
    before, after = (float(word) for word in text.split() if word.replace(".", "").isdigit() and "." in word)
    assert before == pytest.approx(pld_epsilon(one_run, cost.delta), abs=0.02)
    assert after == pytest.approx(pld_epsilon(one_run * 2, cost.delta), abs=0.02)
    assert text.endswith("the budget is 10")
    assert site.ledger.history("cohort", sha256_of(second)) == ()


def test_a_run_beyond_the_budget_is_told_as_one_that_its_first_round_ends(site: Site) -> None:
    """The ledger refuses it whatever is approved: so it is said before."""
    first, second = a_run(name="first"), a_run(name="second")
    rules = site.policy.model_copy(update={"lifetime_epsilon": 4.0})
    narrow = dataclasses.replace(site, policy=rules)
    for number in range(1, 7):
        charge_round(
            site.ledger, issue(first), cohort="cohort", cohort_size=45, round_=number, attempt=str(number),
            lifetime_epsilon=9,
        )  # fmt: skip
    told = shown(narrow, proposed(narrow, second))["privacy"]
    assert "; beyond the budget: of 6 rounds like its own " in told
    assert beyond(narrow, carried(second), OFFER) == told.partition("; ")[2].partition("; ")[2]  # what `approve` says
    with pytest.raises(PrivacyError, match="the privacy budget does not last"):
        charge_round(
            site.ledger, issue(second), cohort="cohort", cohort_size=45, round_=1, attempt="1", lifetime_epsilon=4
        )
    charge_round(
        site.ledger, issue(second), cohort="cohort", cohort_size=45, round_=1, attempt="1", lifetime_epsilon=10
    )


def test_what_other_runs_still_want_is_told_too(site: Site) -> None:
    started, new = a_run(name="started"), a_run(name="new")
    charge_round(
        site.ledger, issue(started), cohort="cohort", cohort_size=45, round_=1, attempt="1", lifetime_epsilon=9
    )
    text = shown(site, proposed(site, new))["privacy"]
    cost = plan(new, 45)
    before, after, beside = (
        float(word.strip(",")) for word in text.split() if word.strip(",").replace(".", "").isdigit() and "." in word
    )
    expected = [pld_epsilon([(cost.noise_multiplier, 0.1, steps)], cost.delta) for steps in (10, 70, 120)]
    assert (before, after, beside) == pytest.approx(expected, abs=0.02)
    assert f"to {after:.2f}, and to {beside:.2f} with what other runs still want (delta" in text
    between = dataclasses.replace(
        site, policy=site.policy.model_copy(update={"lifetime_epsilon": (after + beside) / 2})
    )
    assert text + "; beyond the budget for now: of 6 rounds like its own " in shown(between, proposed(between, new))[
        "privacy"
    ].replace(f"the budget is {between.policy.lifetime_epsilon:g}", "the budget is 10")
    own = shown(site, proposed(site, started))["privacy"]
    assert "other runs" not in own  # what it has reserved itself is in its own end
    site.ledger.release(sha256_of(started))
    assert "other runs" not in shown(site, proposed(site, new))["privacy"]


def test_epsilon_is_told_at_the_delta_at_which_the_budget_is_measured(site: Site) -> None:
    strict = a_run(name="strict", privacy={"target-epsilon": 3.0, "sampling-rate": 0.1, "delta": 1e-6})
    charge_round(site.ledger, issue(strict), cohort="cohort", cohort_size=45, round_=1, attempt="1", lifetime_epsilon=9)
    site.ledger.release(sha256_of(strict))
    text = shown(site, proposed(site, a_run()))["privacy"]
    assert "(delta 1.0e-06" in text
    words = text.split()
    before = float(words[words.index("from") + 1])
    assert before == pytest.approx(pld_epsilon([(plan(strict, 45).noise_multiplier, 0.1, 10)], 1e-6), abs=0.02)


def test_rounds_already_charged_are_not_counted_twice(site: Site) -> None:
    run = a_run()
    fresh = shown(site, proposed(site, run))["privacy"].split(" to ")[1]
    for number in (1, 2, 3):
        charge_round(
            site.ledger,
            issue(run),
            cohort="cohort",
            cohort_size=45,
            round_=number,
            attempt=str(number),
            lifetime_epsilon=9,
        )
    assert shown(site, proposed(site, run))["privacy"].split(" to ")[1] == fresh


def test_missing_privacy_is_said_loudly(site: Site) -> None:
    rows = shown(site, proposed(site, a_run(privacy=None)))
    assert rows["privacy"].startswith("NONE")
    assert rows["leaves each round"].endswith("NOT noised")
    assert "in steps of 5" in rows["number told to others"]
    assert not [what for what in rows if "count" in what]  # one row says it


def test_changes_since_the_last_approved_run_are_listed(site: Site) -> None:
    old = proposed(site, a_run())
    assert shown(site, old)["since the last approval"] == "this is the first"
    approvals.answer(site.home, old.run_hash, approved=True, by="person")
    denied = proposed(site, a_run(name="denied"))
    approvals.answer(site.home, denied.run_hash, approved=False, by="person")
    new = proposed(site, a_run(federation={"rounds": 60}, privacy={"target-epsilon": 9.0, "sampling-rate": 0.1}))
    changes = [value for what, value in consequences(new, site, approvals.load_all(site.home)) if "since" in what]
    assert changes == ["federation.rounds: 6 -> 60", "privacy.target-epsilon: 3.0 -> 9.0"]


def test_dropped_privacy_table_is_among_the_changes(site: Site) -> None:
    old = proposed(site, a_run())
    approvals.answer(site.home, old.run_hash, approved=True, by="person")
    new = proposed(site, a_run(privacy=None))
    changes = [value for what, value in consequences(new, site, approvals.load_all(site.home)) if "since" in what]
    assert "privacy.target-epsilon: 3.0 -> not there" in changes


def test_what_is_not_known_yet_is_said(site: Site) -> None:
    rows = shown(site, proposed(site, a_run(), offer=None))
    assert "not counted yet" in rows["on"]
    assert rows["policy"] == "not checked yet: the agent has not run"
    refused = dataclasses.replace(proposed(site, a_run()), appraisal=Appraisal(OFFER, "too many rounds"))
    assert shown(site, refused)["policy"] == "too many rounds"


def test_that_a_clock_ends_a_round_and_whose_patients_count_for_more_is_said(site: Site) -> None:
    training = {"patch-size": [32, 32], "local-steps": 10, "local-seconds": 30.0}
    plain = shown(site, proposed(site, a_run(format=2, privacy=None, training=training)))
    assert plain["how often"].startswith("6 rounds of at most 10 steps, as many as end in 30 s, each within")
    assert plain["updates become a model by"] == (
        "fedavg; who makes more steps in the time counts for more: a fast site's patients more than a slow one's"
    )
    nova = shown(site, proposed(site, a_run(format=2, privacy=None, training=training, strategy={"kind": "fednova"})))
    assert nova["updates become a model by"] == "fednova, by which all count alike whatever steps they make"

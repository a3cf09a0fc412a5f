"""A hospital's pages in a browser: what is proposed and what it would mean, yes or no, the ledger, what has left.

What is shown is what `status`, `runs`, `approve`, `ledger`, `audit` and `data check` show. An answer goes the way of
the commands (client/agent/decision.py), with one thing more: the form carries the digest of what the person saw, and
where that has changed meanwhile, nothing is approved. Text of the coordinator's is shown and never obeyed. There is no
patient's name here, no path of an image and no picture.
"""

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from client.agent import decision
from client.home.folder import FORGOTTEN_NAME, LEDGER_NAME, POLICY_NAME, SITE_NAME, advice
from client.proposals.consequences import tensor_rows
from client.proposals.ended import how_in_words, next_in_words
from client.proposals.opinion import against
from client.rules import approvals
from client.rules.approvals import Proposal
from client.site import Site, changed, current_site, open_site
from client.trail.audit_trail import AUDIT_NAME
from client.views.checked import checked
from client.views.ledger import Charged, charged_as_of
from client.views.status import as_of, is_well, last_ended, remedy, status_of, told_of_error
from client.views.trail import UPDATE, trail
from common.errors import ConfigError, PolicyError, WardroundError
from common.pages.html import fragment
from common.privacy.scores import short_cohort
from common.text import counted
from common.web.pages import Dashboard, Page, Visit

MOST_LEFT = 200

_SHOWN = (
    ("coordinator", "coordinator"),
    ("network", "the worker's network"),
    ("worker", "worker"),
    ("clock", "clock"),
    ("disk", "disk"),
    ("audit", "audit logs"),
    ("certificate-days-left", "days until the certificate ends"),
)


def dashboard_of(home: Path) -> Dashboard:
    """What a site shows.

    Args:
        home: the site's, whose key has been opened.
    """
    site = open_site(home)
    return Dashboard(
        name=f"Wardround at {site.config.name}",
        advice=advice(home),
        menu=(("Overview", "/"), ("Runs", "/runs"), ("Ledger", "/ledger"), ("What left", "/left"), ("Data", "/data")),
        pages={
            "/": partial(_overview, home),
            "/runs": partial(_runs, home),
            "/runs/{run}": partial(_run, home),
            "/ledger": partial(_ledger, home),
            "/left": partial(_left, home),
            "/data": partial(_data, home),
        },
        acts={"/runs/{run}/approve": partial(_approve, home)},
        at_once={"/runs/{run}/deny": partial(_deny, home)},
        stamp=partial(_stamp, home),
    )


def _overview(home: Path, visit: Visit) -> Page:
    values, proposals = told_of_error(status_of(home)), approvals.load_all(home)
    error: Mapping[str, Any] | None = values.get("last-error")
    waiting = [one for one in proposals if one.open and one.answer is None]
    body = fragment(
        "client/views/dashboard_overview.html",
        base=visit.base,
        state=values["state"],
        well=is_well(values),
        problem=values.get("problem"),
        facts=[(said, values[name]) for name, said in _SHOWN if name in values],
        since=_moment(values.get("since")),
        waiting=[_card(home, one) for one in waiting],
        working=[_card(home, one) for one in proposals if one.approved],
        ended=last_ended(home).get("last-ended"),
        last=_work(values.get("last-round"), proposals),
        error=_work(error, proposals),
        remedy=None if error is None else remedy(str(error.get("code", ""))),
    )
    waits = (
        f"{counted(len(waiting), 'run waits', 'runs wait')} for an answer" if waiting else "no run waits for an answer"
    )
    return Page("Overview", body, f"The agent is {values['state']}; {waits}.")


def _runs(home: Path, visit: Visit) -> Page:
    cards = [_card(home, one) for one in approvals.load_all(home)]
    body = fragment("client/views/dashboard_runs.html", base=visit.base, runs=cards, as_of=as_of(home))
    return Page("Runs", body, f"{counted(len(cards), 'run')} proposed so far.")


def _run(home: Path, visit: Visit) -> Page:
    proposal = approvals.load(home, visit.path["run"])
    asked = decision.question(current_site(home), proposal)
    offer = asked.proposal.appraisal.offer if asked.proposal.appraisal else None
    refusal = _refusal(asked)
    body = fragment(
        "client/views/dashboard_run.html",
        base=visit.base,
        csrf=visit.csrf,
        run=_card(home, proposal),
        as_of=as_of(home),
        rows=asked.rows,
        digest=asked.digest,
        refusal=refusal,
        next=next_in_words(proposal, against(home, proposal)),
        counted=proposal.appraisal is not None,
        may_approve=proposal.open and not proposal.approved and refusal is None,
        may_deny=proposal.answer is None or proposal.answer.approved,
        tensors=[] if offer is None else tensor_rows(offer, proposal.run),
    )
    return Page(f"Run {proposal.run.name}", body, f"{_answer(proposal).capitalize()}.")


def _refusal(asked: decision.Question) -> str | None:
    try:
        decision.check(asked)
    except WardroundError as error:
        return str(error)
    return None


def _approve(home: Path, visit: Visit, form: Mapping[str, str]) -> str:
    proposal = approvals.load(home, visit.path["run"])
    if not proposal.open:
        raise ConfigError(f"the run {proposal.run.name!r} is closed at the coordinator: there is nothing to approve.")
    if proposal.approved:  # what is shown of it says so since: the form of before fits no more
        return f"The run {proposal.run.name!r} is approved already. Nothing was changed."
    asked = decision.question(current_site(home), proposal)
    decision.check(asked)
    if form.get("seen") != asked.digest:
        raise PolicyError(
            "what this run would mean here has changed since the page was shown. Nothing was approved. Go back, reload "
            "the page and read it again."
        )
    return decision.approve(asked)


def _deny(home: Path, visit: Visit, _form: Mapping[str, str]) -> str:
    return decision.deny(home, approvals.load(home, visit.path["run"]))


def _ledger(home: Path, visit: Visit) -> Page:
    site = current_site(home)
    rows = charged_as_of(home, changed(home, LEDGER_NAME))
    totals = [one for one in rows if one.run_hash is None]
    body = fragment(
        "client/views/dashboard_ledger.html",
        base=visit.base,
        gauges=[_gauge(one, site) for one in totals],
        rows=[
            (
                short_cohort(one.cohort),
                one.name or ("all runs" if one.run_hash is None else one.run_hash[:12]),
                one.charges,
                one.epsilon,
                one.delta,
                one.reserved_steps,
            )
            for one in rows
        ],
    )
    trained = [one.epsilon for one in totals if not one.held_out]
    said = (
        f"Epsilon {max(trained):.2f} of {site.policy.lifetime_epsilon:g} is spent." if trained else "Nothing is spent."
    )
    return Page("Privacy ledger", body, said)


def _gauge(one: Charged, site: Site) -> dict[str, object]:
    budget = site.policy.lifetime_scores_epsilon if one.held_out else site.policy.lifetime_epsilon
    who = "held-out patients" if one.held_out else "patients trained on"
    return {
        "label": f"{who}, cohort {short_cohort(one.cohort)}",
        "value": min(one.epsilon, budget),
        "most": budget,
        "text": f"epsilon {one.epsilon:.2f} of {budget:g} over the life of the cohort, at delta {one.delta:.1e}",
    }


def _left(home: Path, _visit: Visit) -> Page:
    found = trail(home, MOST_LEFT)
    body = fragment(
        "client/views/dashboard_left.html",
        rows=[(f"{one.at:%Y-%m-%d %H:%M:%S} UTC", one.what, one.run, one.round, one.detail) for one in found.left],
        entries=found.entries,
        conflicts=found.conflicts,
        most=MOST_LEFT,
    )
    updates = counted(sum(one.what == UPDATE for one in found.left), "update")
    return Page("What left", body, f"{updates} among the latest {counted(len(found.left), 'entry', 'entries')}.")


def _data(home: Path, _visit: Visit) -> Page:
    site, found = current_site(home), checked(home)
    sources = len(site.config.data)
    body = fragment(
        "client/views/dashboard_data.html",
        found=found,
        when=None if found is None else f"{found.at:%Y-%m-%d %H:%M} UTC",
        aside=[] if found is None else sorted(found.set_aside.items()),
    )
    said = f"{counted(sources, 'source')} offered. "
    said += "Not checked yet." if found is None else f"{found.counts.get('usable', 0)} studies were usable."
    return Page("Data", body, said)


def _card(home: Path, proposal: Proposal) -> dict[str, object]:
    run, appraisal = proposal.run, proposal.appraisal
    return {
        "name": run.name,
        "hash": proposal.run_hash,
        "state": _answer(proposal),
        "kind": "" if proposal.answer is None else "good" if proposal.answer.approved else "bad",
        "rounds": counted(run.federation.rounds, "round"),
        "privacy": "no differential privacy" if run.privacy is None else f"epsilon {run.privacy.target_epsilon:g}",
        "patients": "not counted yet"
        if appraisal is None or appraisal.offer is None
        else counted(appraisal.offer.patients, "patient"),
        "refusal": against(home, proposal),
    }


def _answer(proposal: Proposal) -> str:
    given = proposal.answer
    said = "waits for an answer" if given is None else f"{given.in_words} by {given.by}"
    ended = how_in_words(proposal)
    return said if ended is None else f"{ended}; {said if given else 'not answered'}"


def _work(entry: Mapping[str, Any] | None, proposals: Sequence[Proposal]) -> dict[str, object] | None:
    """A message that was worked on; the run's hash by its name."""
    if entry is None:
        return None
    names = {one.run_hash: one.run.name for one in proposals}
    run = entry.get("run")
    return {
        "run": None if run is None else names.get(str(run), str(run)[:12]),
        "round": entry.get("round"),
        "kind": entry.get("kind"),
        "seconds": entry.get("seconds"),
        "code": entry.get("code"),
        "at": _moment(entry.get("at")),
    }


def _moment(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float):
        return None
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _stamp(home: Path) -> str:
    files = ("status.json", LEDGER_NAME, AUDIT_NAME, POLICY_NAME, SITE_NAME, FORGOTTEN_NAME, "check/report.json")
    values = status_of(home)
    return f"{changed(home, *files)} {values['state']} {values['disk']} {approvals.answers_stamp(home)}"


__all__ = ["MOST_LEFT", "dashboard_of"]

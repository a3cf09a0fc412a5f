"""wardround-client: what a person at a hospital types.

The home folder (site.toml, policy.toml, keys, ledger, logs) is --home, or WARDROUND_HOME, or ./wardround-site.
Only commands that read images import torch, inside; `start` never does: its worker does.
"""

import datetime
import logging
import logging.handlers
import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Annotated, Any

import typer

from client.agent import decision, spending
from client.agent.loop import Agent
from client.agent.status import is_running, only_one
from client.agent.worker_process import Worker
from client.commands import diagnosis
from client.commands.audit import audit_app
from client.commands.data import data_app
from client.commands.key import key_app
from client.commands.models.evaluate import evaluate
from client.commands.models.explain import explain
from client.commands.models.personal import personal_app
from client.commands.models.predict import predict
from client.commands.models.serve import serve
from client.commands.options.site import HOME, Home, NewHome
from client.commands.pacs import pacs_app
from client.commands.rescue import backup, purge, restore
from client.commands.sources import check_data, data_add
from client.commands.verdict import policy_verdict
from client.commands.views import dashboard, metrics
from client.home import enrolment
from client.home.folder import POLICY_NAME, SITE_NAME, check_private
from client.home.gains import gains as kept_gains
from client.home.identity import load_identity
from client.home.statistics import kept as kept_statistics
from client.proposals.consequences import tensor_rows
from client.proposals.ended import how_in_words, next_in_words
from client.proposals.opinion import against, opinion_on
from client.rules import approvals
from client.rules.approvals import Proposal
from client.site import open_site, policy_of
from client.views.gains import COLUMNS, gains_of, in_words
from client.views.ledger import charged, charged_runs
from client.views.status import as_of, is_well, last_ended, status_of, told_of_error, why_no_runs
from common.config.statistics import statistic_names
from common.console.cli import (
    TAKES_NO_RUN,
    Digest,
    JsonFlag,
    advice_in_hand,
    confirm,
    new_app,
    no_run,
    note,
    say,
    show_json,
    show_table,
)
from common.console.doctor import tell
from common.console.logs import log_to, on_screen
from common.errors import ConfigError, EnrolmentError, ErrorCode, PrivacyError
from common.identity.invitation import Invitation
from common.privacy.scores import short_cohort
from common.system.files import write_private
from common.text import counted

_RUN_COLUMNS = (
    *("run", "hash", "state", "ended", "code", "done", "answer", "by", "rounds", "epsilon", "patients", "policy"),
)
LOG_BYTES, LOG_FILES = 10 << 20, 5
SIGNAL_POLL_S = 0.2

app = new_app(
    "Take part in a federation as a hospital. Images never leave; what leaves passes your policy and the gate."
)
policy_app = new_app("The hospital's own rules.")
app.add_typer(data_app, name="data")
app.add_typer(pacs_app, name="pacs")
app.add_typer(key_app, name="key")
app.add_typer(policy_app, name="policy")
app.add_typer(audit_app, name="audit")
app.add_typer(personal_app, name="personal")
for command in (predict, evaluate, explain, serve, dashboard, metrics, backup, restore, purge):
    app.command()(command)


@app.command()
def join(  # noqa: PLR0917 - one parameter an option
    invitation: Annotated[Path, typer.Argument(help="The file the coordinator sent.")],
    home: NewHome = HOME,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the coordinator's approval.")] = 3600.0,
    request: Annotated[Path | None, typer.Option(help="Send nothing: write the request here, to be mailed.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The certificate that came back by mail.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Then offer this folder of images; repeatable.")] = None,
    start_now: Annotated[bool, typer.Option("--start", help="Then run the agent.")] = False,
) -> None:
    """Join a federation: make keys here, show a phrase, wait for the certificate.

    Example: `wardround-client join st-anna.json`
    """
    enrolment.check_new(home)
    check_data(home, data or (), needed=start_now)  # now, and not when somebody has approved
    opened = Invitation.from_text(_read(invitation))
    if request is not None:
        phrase, text = enrolment.request_by_file(home, opened)
        write_private(request, text.encode())
        say(f"Phrase: {phrase}")
        note(f"Send {request} to the coordinator (it is a secret), and tell them the phrase.")
        note(f"Then: `wardround-client join {invitation} --certificate FILE`")
        return

    def show_phrase(phrase: str) -> None:
        say(f"Phrase: {phrase}")
        note("Tell it to the coordinator, who must see the same under `wardround-server requests`. Waiting ...")

    if certificate is not None:
        identity = enrolment.accept_certificate(home, _read(certificate).encode())
    else:
        identity = enrolment.join(home, opened, timeout_s=timeout, show_phrase=show_phrase)
    say(f"Joined as {identity.site}. The certificate is valid for {counted(identity.days_left, 'day')}.")
    for folder in data or ():
        data_add(folder, home)
    if start_now:
        start(home)
    elif not data:
        note(f"Next: `wardround-client data add PATH`, look at {home / POLICY_NAME}, then `wardround-client start`")


@app.command()
def renew(home: Home = HOME) -> None:
    """Get the next certificate now. A running agent does it by itself when two thirds of the time are over.

    Example: `wardround-client renew`
    """
    if is_running(home):
        raise ConfigError("the agent is running, and renews by itself. Stop it first to renew by hand.")
    identity = enrolment.renew(home, load_identity(home))
    say(f"The certificate of {identity.site} is valid for {counted(identity.days_left, 'day')}.")


@app.command()
def start(home: Home = HOME) -> None:
    """Run the agent until Ctrl-C or SIGTERM. It opens no port.

    Example: `wardround-client start --home /srv/wardround`
    """
    os.umask(0o077)
    check_private(home)
    identity = load_identity(home)
    site = open_site(home).config
    if site.name != identity.site:
        raise ConfigError(
            f"{home / SITE_NAME} is of site {site.name!r}, the certificate of {identity.site!r}. "
            f'Set name = "{identity.site}".'
        )
    if not site.data:
        raise ConfigError("this site has no data yet. Add a folder with `wardround-client data add PATH`.")

    with only_one(home):
        _log_to(home / "logs" / "agent.log")
        agent = Agent(home.resolve(), identity, Worker(home.resolve(), site.threads))
        signals: list[int] = []  # a handler may only do what cannot block
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _frame: signals.append(received))
        note(f"Site {identity.site}, coordinator {identity.gateway}. Logs in {home / 'logs'}. Ctrl-C stops.")
        with ThreadPoolExecutor(1, thread_name_prefix="agent") as pool:
            running = pool.submit(agent.run)
            while not wait([running], timeout=SIGNAL_POLL_S).done:
                if signals:
                    agent.stop()
            running.result()


@app.command(context_settings=TAKES_NO_RUN)
def status(context: typer.Context, home: Home = HOME, as_json: JsonFlag = False) -> None:
    """How the agent is. The exit code is 0 only if it is connected and can work, and nothing is told as a problem.

    Example: `wardround-client status`
    """
    no_run(context, "`wardround-client show RUN`")
    found = told_of_error(status_of(home)) | last_ended(home)
    values = {name: _typed(name, value) for name, value in found.items()}
    show_json(values) if as_json else show_table("Site", ("what", "value"), list(values.items()))
    if not is_well(found):
        raise typer.Exit(1)


@app.command()
def doctor(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Check what a site needs, and say what to do about what is missing.

    Example: `wardround-client doctor`
    """
    tell(diagnosis.examine(home), as_json=as_json)


@app.command()
def runs(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Runs proposed to this hospital.

    Example: `wardround-client runs`
    """
    found = approvals.load_all(home)
    show_table("Runs", _RUN_COLUMNS, [_run_row(home, proposal) for proposal in found], as_json=as_json)
    if any(not proposal.open for proposal in found):
        note("What can be done about a run that has ended: `wardround-client show RUN`")
    if (said := as_of(home) if found else why_no_runs(home)) is not None:
        note(said)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")],
    home: Home = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Show a run, what this hospital gains (the global model beside the one it trained alone) and what it tells of us.

    Example: `wardround-client show lesions-2026`
    """
    site, proposal = open_site(home), approvals.find(home, run)
    gains = gains_of(kept_gains(site.home, site.key, proposal.run_hash))
    statistics = kept_statistics(site.home, site.key, proposal.run_hash)
    if (since := as_of(home)) is not None:
        note(since)
    told = {} if statistics is None else statistics.values
    if as_json:
        about = dict(zip(_RUN_COLUMNS, _run_row(home, proposal), strict=True))
        compared = [dict(zip(COLUMNS, one.row, strict=True)) for one in gains]
        show_json({"run": about, "gains": compared, "statistics": told})
        return
    show_table("Run", _RUN_COLUMNS, [_run_row(home, proposal)])
    if (how := how_in_words(proposal)) is not None:
        say(f"{proposal.run.name} {proposal.run_hash[:8]}: {how}. {next_in_words(proposal, against(home, proposal))}")
    if gains:
        show_table("What we gain", COLUMNS, [one.row for one in gains])
    say(in_words(gains))
    if told:
        leave = statistic_names(proposal.run, site.policy.metrics)
        rows = [(name, value, name in leave) for name, value in told.items()]
        show_table("Statistics of our training patients", ("statistic", "value", "may leave"), rows)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")],
    home: Home = HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor that leaves.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for the proposal, and for the agent's count.  [default: 300]"),
    ] = None,
) -> None:
    """Let a run train here, after showing what that means. Refused where the policy refuses.

    Example: `wardround-client approve lesions-2026`
    """

    def is_counting(one: Proposal | None) -> bool:  # what the policy refuses is not counted
        return is_running(home) and (one is None or opinion_on(home, one) is None)

    proposal = approvals.await_appraisal(home, run, timeout_s=timeout, is_counting=is_counting, tell=note)
    asked = decision.question(open_site(home), proposal)
    decision.check(asked)
    show_table("What you approve", ("what", "value"), asked.rows)
    offer = asked.proposal.appraisal.offer if asked.proposal.appraisal else None
    if tensors and offer is not None:
        show_table("Tensors", ("tensor", "shape", "bytes of weights"), tensor_rows(offer, asked.proposal.run))
    confirm("Approve?", yes=yes)
    say(decision.approve(asked))
    if not is_running(home):
        note("The agent is not running; it tells the coordinator when it starts.")


@app.command()
def deny(run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")], home: Home = HOME) -> None:
    """Deny a run, also one approved before: its next round is refused.

    Example: `wardround-client deny lesions-2026`
    """
    say(decision.deny(home, approvals.find(home, run)))


@policy_app.command("check")
def policy_check(
    run: Annotated[str | None, typer.Argument(help="A run.toml, or the name or hash of a proposed run.")] = None,
    home: Home = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Check policy.toml, and a run against it: first the verdict, then the run's hash, then the rules.

    Example: `wardround-client policy check run.toml`
    """
    rules = policy_of(home)
    verdict = None if run is None else policy_verdict(home, run, rules)
    values = rules.model_dump(mode="json", by_alias=True)
    if as_json:
        show_json({"run": None if verdict is None else verdict.as_data(), "policy": values})
    else:
        if verdict is not None:
            verdict.show()
        show_table("Policy", ("rule", "value"), list(values.items()))
    if verdict is not None:
        verdict.enforce()


@app.command()
def ledger(
    release: Annotated[
        str | None, typer.Option("--release", metavar="RUN", help="Give back what this ended run has reserved.")
    ] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Enter what the audit log says was spent and the ledger lacks.")
    ] = False,
    home: Home = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Privacy spent and reserved, by cohort and run, over the site's life.

    Example: `wardround-client ledger`
    """
    site = open_site(home)
    if restore:
        say(f"{spending.restore(site)} charges of the audit log are in the ledger again.")
    if release is not None:
        site.ledger.release(_one_run(release, charged_runs(site)))
    rows = [
        (short_cohort(one.cohort), Digest(one.run_hash) if one.run_hash else "all", *one[2:]) for one in charged(site)
    ]
    columns = ("cohort", "run", "name", "charges", "epsilon", "delta", "reserved-steps")
    show_table("Privacy ledger", columns, rows, as_json=as_json)
    note(
        f"Lifetime budgets: epsilon {site.policy.lifetime_epsilon:g} of those trained on (lifetime-epsilon in "
        f"policy.toml), {site.policy.lifetime_scores_epsilon:g} of held-out patients (lifetime-scores-epsilon)."
    )
    spending.check_home(site)


def _one_run(name: str, known: Iterable[str]) -> str:
    found = [run_hash for run_hash in known if run_hash.startswith(name)]
    if len(found) != 1:
        raise PrivacyError(
            f"{counted(len(found), 'run')} of the ledger begin with {name!r}, expected one. "
            "See `wardround-client ledger`.",
            ErrorCode.BAD_REQUEST,
        )
    return found[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnrolmentError(f"{path} cannot be read ({error}). Give the file that the coordinator sent.") from error


def _run_row(home: Path, proposal: Proposal) -> tuple[Any, ...]:
    given, appraisal, run, ending = proposal.answer, proposal.appraisal, proposal.run, proposal.ending
    return (
        run.name,
        Digest(proposal.run_hash),
        "open" if proposal.open else "closed",
        ending and ending.how,
        ending and ending.code,
        ending and ending.rounds,
        "waiting" if given is None else given.in_words,
        given.by if given else None,
        run.federation.rounds,
        run.privacy.target_epsilon if run.privacy else None,
        appraisal.offer.patients if appraisal and appraisal.offer else None,
        opinion_on(home, proposal),
    )


def _typed(name: str, value: Any) -> Any:
    """A value of status.json as what it is: a moment, a hash, a table of such."""
    if name in ("since", "started", "at") and isinstance(value, int | float):
        return datetime.datetime.fromtimestamp(value, datetime.UTC)
    if name == "run" and isinstance(value, str):
        return Digest(value)
    return {key: _typed(key, entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _log_to(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    log_to(logging.INFO, [handler, on_screen()], advice=advice_in_hand())


if __name__ == "__main__":
    app()

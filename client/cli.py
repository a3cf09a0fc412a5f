"""wardround-client: what a person at a hospital types.

The home folder (site.toml, policy.toml, keys, ledger, logs) is --home, or WARDROUND_HOME, or ./wardround-site.
Only commands that read images import torch, inside; `start` never does: its worker does.
"""

import json
import logging
import logging.handlers
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from client import approvals, diagnosis, enrol, policy
from client.agent import Agent
from client.approvals import Proposal
from client.keeper import Worker
from client.site import LEDGER_NAME, POLICY_NAME, SITE_NAME, open_site
from client.sitefile import add_source
from client.status import is_running, only_one, read_status
from common.cli import Advance, JsonFlag, new_app, note, progress, show_table
from common.config import PolicyConfig, RunConfig, SiteConfig, SourceConfig, load, validate
from common.errors import ConfigError, DataError, EnrolmentError
from common.pki import Invitation

LOG_BYTES, LOG_FILES = 10 << 20, 5
SIGNAL_POLL_S = 0.2

Home: TypeAlias = Annotated[
    Path, typer.Option("--home", envvar="WARDROUND_HOME", help="The site's folder: settings, keys, ledger, logs.")
]
Pairs: TypeAlias = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE")]
HOME = Path("wardround-site")

app = new_app(
    "Take part in a federation as a hospital. Images never leave; what leaves passes your policy and the gate."
)
data_app = new_app("The images this hospital offers.")
policy_app = new_app("The hospital's own rules.")
app.add_typer(data_app, name="data")
app.add_typer(policy_app, name="policy")


@app.command()
def join(
    invitation: Annotated[Path, typer.Argument(help="The file the coordinator sent.")],
    home: Home = HOME,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the coordinator's approval.")] = 3600.0,
) -> None:
    """Join a federation: make a key here, show a phrase, wait for the certificate.

    Example: `wardround-client join st-anna.invitation`
    """
    try:
        text = invitation.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnrolmentError(
            f"{invitation} cannot be read ({error}). Give the invitation file the coordinator sent."
        ) from error

    def show_phrase(phrase: str) -> None:
        typer.echo(f"Phrase: {phrase}")
        note("Tell it to the coordinator, who must see the same under 'wardround-server requests'. Waiting ...")

    identity = enrol.join(home, Invitation.from_text(text), timeout_s=timeout, show_phrase=show_phrase)
    typer.echo(f"Joined as {identity.site}. The certificate is valid for {identity.days_left} days.")
    note(f"Next: wardround-client data add PATH, look at {home / POLICY_NAME}, then wardround-client start")


@app.command()
def start(home: Home = HOME) -> None:
    """Run the agent until Ctrl-C or SIGTERM. It opens no port.

    Example: `wardround-client start --home /srv/wardround`
    """
    identity = enrol.load_identity(home)
    site = open_site(home).config
    if site.name != identity.site:
        raise ConfigError(
            f"{home / SITE_NAME} is of site {site.name!r}, the certificate of {identity.site!r}. "
            f'Set name = "{identity.site}".'
        )
    if not site.data:
        raise ConfigError("this site has no data yet. Add a folder with 'wardround-client data add PATH'.")

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


@app.command()
def status(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """How the agent is. The exit code is 0 only if it is connected.

    Example: `wardround-client status`
    """
    values = read_status(home)
    if not is_running(home):
        values["state"] = "not running"
    try:
        values["certificate-days-left"] = enrol.load_identity(home).days_left
    except EnrolmentError as error:
        values |= {"state": "no certificate", "certificate-days-left": None, "problem": str(error)}
    if as_json:
        typer.echo(json.dumps(values, indent=2))
    else:
        show_table("Site", ("what", "value"), [(name, _text(name, value)) for name, value in values.items()])
    if values["state"] != "connected":
        raise typer.Exit(1)


@app.command()
def doctor(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Check what a site needs, and say what to do about what is missing.

    Example: `wardround-client doctor`
    """
    findings = diagnosis.examine(home)
    rows = [(finding.what, "ok" if finding.good else "PROBLEM", finding.detail) for finding in findings]
    show_table("Doctor", ("check", "result", "detail"), rows, as_json=as_json)
    if not all(finding.good for finding in findings):
        raise typer.Exit(1)


@data_app.command("add")
def data_add(  # noqa: PLR0917 - one parameter an option
    path: Annotated[Path, typer.Argument(help="A folder of DICOM, NIfTI or pictures.")],
    home: Home = HOME,
    kind: Annotated[str | None, typer.Option(help="dicom, nifti, images or mias; default: by looking.")] = None,
    csv: Annotated[str | None, typer.Option(help="images: CSV with a row per image, relative to the folder.")] = None,
    image_column: str = "image",
    mask_column: str = "mask",
    patient_column: str = "id",
    where: Annotated[list[str] | None, typer.Option(help="CSV rows to use: COLUMN=VALUE; repeatable.")] = None,
    images: Annotated[str, typer.Option(help="Sub-folder of the images (NIfTI, pictures without CSV).")] = "images",
    labels: Annotated[str, typer.Option(help="Sub-folder of the labels.")] = "labels",
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group is the patient.")
    ] = None,
    label_map: Annotated[list[str] | None, typer.Option(help="LOCAL=CLASS, such as 1=lesion; repeatable.")] = None,
) -> None:
    """Offer a folder of images to runs. Nothing is copied or changed.

    Example: `wardround-client data add /data/ct --label-map 1=lesion`
    """
    from client.data import sources  # noqa: PLC0415 - image libraries

    values = {
        "path": str(path.expanduser().resolve()),
        "kind": kind,
        "csv": csv,
        "image_column": image_column,
        "mask_column": mask_column,
        "patient_column": patient_column,
        "where": _pairs(where, "--where"),
        "images": images,
        "labels": labels,
        "patient_pattern": patient_pattern,
        "label_map": _pairs(label_map, "--label-map"),
    }
    source = validate(SourceConfig, values, "data add")
    found = sources.find(source, home)
    if not found.references:
        raise DataError(
            f"no study was found in {path} ({found.ignored} other files). Expected DICOM series with DICOM SEG, "
            "NIfTI in images/ and labels/, or pictures with --csv or in images/ and labels/. Nothing was added."
        )
    site = add_source(_site_file(home), source)
    patients = len({reference.patient for reference in found.references})
    typer.echo(f"Added: {len(found.references)} studies of {patients} patients. Sources: {len(site.data)}.")
    note("Next: wardround-client data check")


@data_app.command("list")
def data_list(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """The sources in site.toml.

    Example: `wardround-client data list`
    """
    site = load(SiteConfig, _site_file(home))
    rows = [
        (number, source.path, source.kind or "by looking", source.csv, ", ".join(source.label_map) or None)
        for number, source in enumerate(site.data, start=1)
    ]
    show_table("Data", ("source", "path", "kind", "csv", "labels mapped"), rows, as_json=as_json)


@data_app.command("check")
def data_check(
    home: Home = HOME,
    run: Annotated[str | None, typer.Option(help="A run.toml, or the name or hash of a proposed run.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What is usable. With --run every study is read as that run would; without, only headers are looked at.

    Example: `wardround-client data check --run run.toml`
    """
    site = open_site(home)
    if not site.config.data:
        raise ConfigError("this site has no data yet. Add a folder with 'wardround-client data add PATH'.")
    if run is None:
        _check_headers(home, site.config, as_json=as_json)
    else:
        _check_studies(home, _run_of(home, run), as_json=as_json)


@data_app.command("export")
def data_export(  # noqa: PLR0917 - one parameter an option
    study: Annotated[Path, typer.Argument(help="A DICOM file, or a folder with DICOM files in it.")],
    out: Annotated[Path, typer.Option("--out", help="A new or empty folder for the copies.")],
    home: Home = HOME,
    profile: Annotated[
        list[str] | None, typer.Option(help="What may stay beyond the basic profile, such as retain-uids; repeatable.")
    ] = None,
    safe_private: Annotated[
        list[str] | None, typer.Option(help="Private attribute that may stay: GGGG,CREATOR,EE in hex; repeatable.")
    ] = None,
    allow_burned_in: Annotated[bool, typer.Option("--allow-burned-in", help="Images said to show text.")] = False,
    allow_captures: Annotated[bool, typer.Option("--allow-captures", help="Secondary captures, screenshots.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write pseudonymised copies of DICOM files by PS3.15's Basic Profile. Faces in head scans are not removed.

    Example: `wardround-client data export ct/ --out shared --profile retain-long-modified-dates`
    """
    from client.data import deidentify  # noqa: PLC0415 - image libraries

    options = deidentify.options_of(profile or (), safe_private or ())
    with _progress("files") as advance:
        done = deidentify.export(
            study,
            out,
            open_site(home).key,
            options,
            allow_burned_in=allow_burned_in,
            allow_captures=allow_captures,
            progress=advance,
        )
    rows = [("written", done.files), ("patients", done.patients), ("ignored: not DICOM", done.ignored)]
    rows += [(f"skipped: {code}", count) for code, count in sorted(done.skipped.items())]
    show_table("Export", ("what", "count"), rows, as_json=as_json)
    if not done.files:
        raise DataError("no file was written. Expected readable DICOM images; see what was skipped above.")
    note("Pseudonymised, not anonymised: this site's key links the copies to the patients.")


@app.command()
def runs(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Runs proposed to this hospital.

    Example: `wardround-client runs`
    """
    columns = ("run", "hash", "state", "answer", "by", "rounds", "epsilon", "patients", "policy")
    rows = [_run_row(proposal) for proposal in approvals.load_all(home)]
    show_table("Runs", columns, rows, as_json=as_json)


@app.command()
def approve(
    run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")],
    home: Home = HOME,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
) -> None:
    """Let a run train here, after showing what that means. Refused where the policy refuses.

    Example: `wardround-client approve lesions-2026`
    """
    proposal = approvals.find(home, run)
    offer = proposal.appraisal.offer if proposal.appraisal else None
    policy.check(proposal.run, open_site(home).policy, offer)
    show_table("What you approve", ("what", "value"), _consequences(proposal))
    if not yes and sys.stdin.isatty():
        typer.confirm("Approve?", abort=True)
    approvals.answer(home, proposal.run_hash, approved=True, by="person")
    typer.echo(f"Approved {proposal.run.name} ({proposal.run_hash}).")
    if not is_running(home):
        note("The agent is not running; it tells the coordinator when it starts.")


@app.command()
def deny(run: Annotated[str, typer.Argument(help="Name, hash, or start of the hash.")], home: Home = HOME) -> None:
    """Refuse a run, also one approved before: its next round is refused.

    Example: `wardround-client deny lesions-2026`
    """
    proposal = approvals.find(home, run)
    approvals.answer(home, proposal.run_hash, approved=False, by="person")
    typer.echo(f"Denied {proposal.run.name} ({proposal.run_hash}).")


@policy_app.command("check")
def policy_check(
    run: Annotated[str | None, typer.Argument(help="A run.toml, or the name or hash of a proposed run.")] = None,
    home: Home = HOME,
    as_json: JsonFlag = False,
) -> None:
    """Check policy.toml, and a run against it.

    Example: `wardround-client policy check run.toml`
    """
    path = home / POLICY_NAME
    rules = load(PolicyConfig, path) if path.exists() else PolicyConfig()
    if run is not None:
        policy.check(_run_of(home, run), rules)
        note("The policy allows this run, as far as it can be said without reading the data.")
    rows = list(rules.model_dump(mode="json", by_alias=True).items())
    show_table("Policy", ("rule", "value"), rows, as_json=as_json)


@app.command()
def ledger(home: Home = HOME, as_json: JsonFlag = False) -> None:
    """Privacy spent, by cohort and run, over the site's life.

    Example: `wardround-client ledger`
    """
    site = open_site(home)
    entries = site.ledger.entries() if (home / LEDGER_NAME).exists() else ()
    rounds = Counter((entry.cohort, entry.run_hash) for entry in entries)
    delta = {(entry.cohort, entry.run_hash): entry.delta for entry in entries}
    rows = [
        (
            cohort[:12],
            run_hash[:12],
            count,
            site.ledger.spent(cohort, delta[cohort, run_hash], run_hash),
            delta[cohort, run_hash],
        )
        for (cohort, run_hash), count in rounds.items()
    ]
    for cohort in dict.fromkeys(entry.cohort for entry in entries):
        largest = max(entry.delta for entry in entries if entry.cohort == cohort)
        total = sum(count for (name, _), count in rounds.items() if name == cohort)
        rows.append((cohort[:12], "all", total, site.ledger.spent(cohort, largest), largest))
    show_table("Privacy ledger", ("cohort", "run", "charges", "epsilon", "delta"), rows, as_json=as_json)
    note(f"Lifetime budget of a cohort: epsilon {site.policy.lifetime_epsilon:g} (lifetime-epsilon in policy.toml).")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors or its folder.")],
    study: Annotated[Path, typer.Argument(help="A DICOM folder, a NIfTI file or a picture.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Segment a study with a trained model: DICOM in, DICOM SEG out, with a picture of the contour.

    Example: `wardround-client predict wardround-runs/lesions/model.safetensors ct/ --out result`
    """
    from client.predict import predict_study  # noqa: PLC0415 - torch

    with _progress("studies") as advance:
        result = predict_study(model, study, out, device=device, progress=advance)
    rows = [
        (
            done.number,
            done.slices,
            sum(done.voxels.values()),
            round(done.network_seconds, 2),
            ", ".join(f.name for f in done.files),
        )
        for done in result.studies
    ]
    show_table("Prediction", ("study", "slices", "voxels found", "network s", "files"), rows, as_json=as_json)
    for failure in result.failures:
        note(f"study {failure.number}: {failure.reason}")
    if result.failures:
        raise typer.Exit(1)


def _site_file(home: Path) -> Path:
    path = home / SITE_NAME
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist. Join first with 'wardround-client join INVITATION', or name the site's folder "
            "with --home or WARDROUND_HOME."
        )
    return path


def _pairs(entries: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in entries or ()]
    if bad := [key for key, equals, value in pairs if not (key and equals and value)]:
        raise ConfigError(f"{option} {bad[0]!r} is not of the form KEY=VALUE. Write for example {option} 1=lesion.")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _run_of(home: Path, run: str) -> RunConfig:
    """A run given as a file, or a proposed one."""
    return load(RunConfig, Path(run)) if Path(run).is_file() else approvals.find(home, run).run


def _check_headers(home: Path, site: SiteConfig, *, as_json: bool) -> None:
    from client.data import sources  # noqa: PLC0415 - image libraries

    rows = []
    for number, source in enumerate(site.data, start=1):
        found = sources.find(source, home)
        problems = Counter(str(one.problem.code) for one in found.references if one.problem is not None)
        patients = len({one.patient for one in found.references if one.problem is None})
        kinds = ", ".join(sorted({one.kind for one in found.references})) or None
        usable = len(found.references) - sum(problems.values())
        rows.append((number, kinds, patients, usable, _counts(problems), found.ignored))
    show_table("Data", ("source", "kind", "patients", "studies", "problems", "files ignored"), rows, as_json=as_json)
    if not any(row[3] for row in rows):
        raise DataError("no usable study was found. See the problems above.")


def _check_studies(home: Path, run: RunConfig, *, as_json: bool) -> None:
    from client.data.cohort import load_cohort  # noqa: PLC0415 - torch

    site = open_site(home)
    with _progress("studies") as advance:
        cohort = load_cohort(site.config, run, root=home, site_key=site.key, progress=advance)
    rows: list[tuple[str, int | None, int]] = [
        (split, len(cohort.patients(split)), sum(case.split == split for case in cohort.cases))
        for split in ("train", "validation", "test")
    ]
    quarantined = Counter(str(study.code) for study in cohort.quarantined)
    rows += [(f"quarantined: {code}", None, count) for code, count in sorted(quarantined.items())]
    show_table(f"Data for {run.name}", ("part", "patients", "studies"), rows, as_json=as_json)
    for study in cohort.quarantined:
        note(f"{study.code}: {study.reason}")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress over things whose number is known with the first."""
    with ExitStack() as stack:
        advance: Advance | None = None

        def step(done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress(label, total))
            advance(done, "")

        yield step


def _run_row(proposal: Proposal) -> tuple[Any, ...]:
    given, appraisal, run = proposal.answer, proposal.appraisal, proposal.run
    said = "waiting" if given is None else "approved" if given.approved else "denied"
    opinion = None if appraisal is None else appraisal.refusal or "allows"
    return (
        run.name,
        proposal.run_hash[:12],
        "open" if proposal.open else "closed",
        said,
        given.by if given else None,
        run.federation.rounds,
        run.privacy.target_epsilon if run.privacy else None,
        appraisal.offer.patients if appraisal and appraisal.offer else None,
        opinion,
    )


def _consequences(proposal: Proposal) -> list[tuple[str, object]]:
    run, offer = proposal.run, proposal.appraisal.offer if proposal.appraisal else None
    private = f"epsilon {run.privacy.target_epsilon:g} per patient" if run.privacy else "no differential privacy"
    leaves = f"{4 * offer.parameters:,} bytes of weights" if offer else "the model's weights"
    return [
        ("run", f"{run.name} ({proposal.run_hash})"),
        ("trains", f"{run.model.dims}D {run.model.architecture}, {run.data.modality}: {', '.join(run.data.classes)}"),
        (
            "on",
            f"{offer.patients} patients, {offer.usable} studies" if offer else "not counted yet: the agent has not run",
        ),
        ("how often", f"{run.federation.rounds} rounds of {run.training.local_steps} steps"),
        ("leaves each round", f"{leaves}, mean scores{'' if run.weighting == 'equal' else ', number of patients'}"),
        ("privacy", private),
        ("policy", "allows"),
    ]


def _counts(counter: Counter[str]) -> str | None:
    return ", ".join(f"{code} {count}" for code, count in sorted(counter.items())) or None


def _text(name: str, value: Any) -> Any:
    if name in ("since", "started") and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, dict):
        shown = {key: entry[:12] if key == "run" else entry for key, entry in value.items() if key != "at"}
        return ", ".join(f"{key} {entry}" for key, entry in shown.items())
    return value


def _log_to(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    screen = logging.StreamHandler()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler, screen],
        force=True,
    )


if __name__ == "__main__":
    app()

"""The certificate of a patient who was forgotten: what was removed, in which runs the patient may be, what stays.

    home/certificates/PSEUDONYM-TIME.json     0600; by the pseudonym, so that what was forgotten is not kept by its name

It stays at the site. Who asks later with the patient's id finds it by the pseudonym, which only this site's key makes.
A copy that names the patient is written only where a person asks for one, to be handed over.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.home.folder import RESIDUALS_NAME, STRATEGIES_NAME
from client.home.kept import personal_models
from client.trail.outbox import FOLDER
from client.trail.usage import Use
from common.identity.certificates import now
from common.system.files import write_private
from common.text import as_json, counted, shown

CERTIFICATES = "certificates"
FORMAT = 1

# What no program at the site can take back.
_STAYS = (
    "the images themselves, which are the hospital's, and backups of them",
    "copies that `data export` wrote, predictions, and backups of the site's folder",
    "updates that left, and models made of them: a trained model does not forget",
    "what the privacy ledger and the audit log say was spent and sent; neither names a patient",
)


def certificate(
    home: Path, pseudonym: str, removed: Mapping[str, int], uses: Sequence[Use], *, site: str | None
) -> dict[str, Any]:
    """What happened, without the patient's name.

    Args:
        home: the site's.
        pseudonym: of the patient at this site.
        removed: what was taken away -> how many.
        uses: the runs that the patient may have been used in.
        site: its name in the federation; None: it has joined none.
    """
    left = len(list((home / FOLDER).glob("*"))) if (home / FOLDER).is_dir() else 0
    kept = len({one.name for folder in (STRATEGIES_NAME, RESIDUALS_NAME) for one in (home / folder).glob("*")})
    return {
        "wardround-forgotten": FORMAT,
        "site": site,
        "patient": pseudonym,
        "time": now().replace(microsecond=0).isoformat(),
        "removed": dict(removed),
        "runs": [one.as_data for one in uses],
        "not-removed": list(_STAYS),
        "personal-models": [one.run_hash for one in personal_models(home)],
        "still-here-of-open-runs": {"last-updates": left, "kept-by-strategies": kept},
    }


def keep(home: Path, told: Mapping[str, Any]) -> Path:
    """Write the certificate into the site's folder."""
    moment = datetime.datetime.fromisoformat(told["time"])
    path = home / CERTIFICATES / f"{told['patient']}-{moment:%Y%m%dT%H%M%SZ}.json"
    write_private(path, f"{as_json(told)}\n".encode())
    return path


def hand_over(path: Path, patient: str, told: Mapping[str, Any]) -> None:
    """Write the certificate for the patient, by the id that the site has: text, for this person's eyes (0600)."""
    write_private(path, "\n".join([*_lines(patient, told), ""]).encode())


def _lines(patient: str, told: Mapping[str, Any]) -> list[str]:
    lines = [
        "Certificate: a patient was forgotten",
        "",
        f"Patient: {shown(patient)}",
        f"Site: {told['site'] or 'in no federation'}",
        f"Time: {told['time']}",
        "",
        "Removed:",
        *(f"  {name}: {number}" for name, number in told["removed"].items()),
        "  The patient takes no part in anything from then on.",
        "",
        "Runs of which this site cannot say that the patient was not used:",
        *(line for run in told["runs"] for line in _of_run(run)),
        *([] if told["runs"] else ["  none: no update and no scores left this site that the patient can be in."]),
        "",
        "Not removed:",
        *(f"  {one}" for one in told["not-removed"]),
        *(
            f"  here, sealed, until a person removes it: this site's own model of run {one[:8]}, which may have been "
            "trained on the patient"
            for one in told["personal-models"]
        ),
    ]
    last, kept = told["still-here-of-open-runs"].values()
    if last or kept:
        lines += [
            f"  here, sealed: {counted(last, 'last update')}, and what {counted(kept, 'run')} keep between updates;"
        ]
        lines += ["  they go when these runs end."]
    return lines


def _of_run(run: Mapping[str, Any]) -> list[str]:
    name = shown(run["name"]) if run["name"] else "its document is gone"
    place = {"train": "for training", "validation": "for validation", "test": "for testing"}.get(
        run["place"], "not known"
    )
    how = "as the site has noted" if run["place-kept"] else "if the patient was there then"
    private = {True: "with differential privacy", False: "without differential privacy"}.get(
        run["differential-privacy"], "privacy not known"
    )
    lines = [f"  {name} ({run['run']}), {private}, {place}, {how}"]
    if run["place"] in ("train", None) and run["rounds"]:
        lines.append(f"    updates left in rounds {', '.join(map(str, run['rounds']))}")
    if run["models-scored"]:
        lines.append(f"    last model of it that came here: {run['models-scored'][-1]}")
    return lines


__all__ = ["CERTIFICATES", "certificate", "hand_over", "keep"]

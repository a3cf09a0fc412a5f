"""What each command with --json prints: the form of its value, field by field, and what no value of it may be.

A form is a type, a tuple of alternatives, [form of the entries], {key: form}, or {str: form} for names that are data.
`moment` is a time in ISO 8601 with its offset from UTC, `digest` a whole SHA-256.
"""

import datetime
import re
from typing import Any

Form = Any


def moment(value: object) -> bool:
    """ISO 8601 with an offset."""
    return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None


def digest(value: object) -> bool:
    """64 hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


NUMBER = (int, float)
MAYBE = (int, float, None)
TEXT = (str, None)
SCORES = {str: MAYBE}
FINDINGS = [{"check": str, "result": str, "detail": str}]
VERDICT = {
    "name": str,
    "sha256": digest,
    "allowed": bool,
    "refusals": [str],
    "patients": (int, None),
    "too-few-held-out": ({str: int}, None),
}
AUDIT = [{"severity": str, "log": str, "finding": str}]
LAST = ({"run": str, "round": int, "kind": str, "seconds": NUMBER, "at": moment, "code": str, "what-to-do": str}, None)
BINS = ({"value": NUMBER, "low": MAYBE, "high": MAYBE, "bins": {"low": NUMBER, "high": NUMBER}}, None)
VALUE = (*NUMBER, bool, *TEXT, [(*NUMBER, bool, str)])
# Of a key of a run; one that holds tables holds each as it is written.
SETTING = (*NUMBER, bool, *TEXT, [(*NUMBER, bool, str, {str: VALUE})])
PLAIN = (*NUMBER, str, None, [str], [NUMBER], [[int]], SCORES, BINS)
MEASURES = (
    [{"metric": str, "labels": {str: str}, "value": NUMBER}],
    {"address": str, "token": str},
    {"file": str, "every-s": NUMBER},
)
BACKUP = {
    "file": str, "side": str, "name": TEXT, "made": moment, "program": str, "home-version": int, "bytes": int,
    "members": [{"file": str, "bytes": int}],
    "left-out": [{"name": str, "why": str, "files": int, "bytes": int}],
}  # fmt: skip
PURGE = {
    "run": digest, "name": str, "removed": [{"what": str, "files": int, "bytes": int}],
    "stays": [{"what": str, "why": str}],
}  # fmt: skip
EVALUATION = {
    "format": int, "run": str, "run-hash": digest, "model-sha256": digest, "task": str, "classes": [str], "site": str,
    "split": str, "patients": int, "studies": int, "left-out": {str: int}, "trained-here": bool,
    "trained-on": {str: int}, "intervals": {"level": NUMBER, "resamples": int, "seed": int, "drawn": str},
    str: ({str: (PLAIN, {str: PLAIN})}, str),
}  # fmt: skip

FORMS: dict[str, Form] = {
    "wardround-client backup": BACKUP,
    "wardround-client restore": BACKUP,
    "wardround-client purge": PURGE,
    "wardround-server backup": BACKUP,
    "wardround-server restore": BACKUP,
    "wardround-server purge": PURGE,
    "wardround-client status": {str: (str, *NUMBER, None, moment, LAST[0])},
    "wardround-client doctor": FINDINGS,
    "wardround-client runs": [
        {
            "run": str, "hash": digest, "state": str, "ended": TEXT, "code": TEXT, "done": (int, None), "answer": str,
            "by": TEXT, "rounds": int, "epsilon": MAYBE,
            "patients": (int, None), "policy": TEXT,
        }
    ],
    "wardround-client show": {
        "run": {
            "run": str, "hash": digest, "state": str, "ended": TEXT, "code": TEXT, "done": (int, None), "answer": str,
            "by": TEXT, "rounds": int, "epsilon": MAYBE,
            "patients": (int, None), "policy": TEXT,
        },
        "gains": [
            {
                "round": int, "phase": str, "score": str, "global-before": MAYBE, "global": MAYBE, "own": MAYBE,
                "gain": MAYBE,
            }
        ],
        "statistics": {str: NUMBER},
    },
    "wardround-client policy check": {"run": (VERDICT, None), "policy": {str: (str, *NUMBER, bool, None, [str])}},
    "wardround-client ledger": [
        {
            "cohort": str, "run": str, "name": TEXT, "charges": int, "epsilon": NUMBER, "delta": NUMBER,
            "reserved-steps": int,
        }
    ],
    "wardround-client data list": [{"source": int, "path": str, "kind": str, "csv": TEXT, "labels-mapped": {str: str}}],
    "wardround-client data pull": {
        "folder": str,
        "found": {
            "studies": int, "patients": int, "labelled": int, "image-series": int, "label-series": int,
            "objects": (int, None), "bytes": (int, None), "here": int,
        },
        "left-out": {str: int},
        "pulled": {"studies": int, "files": int, "bytes": int, "repeated": int},
        "failed": {str: int},
    },
    "wardround-client pacs list": [{"name": str, "protocol": str, "address": str, "encrypted": bool}],
    "wardround-client pacs test": FINDINGS,
    "wardround-client data forget": {
        "wardround-forgotten": int, "site": TEXT, "patient": str, "time": moment, "removed": {str: int},
        "runs": [
            {
                "run": digest, "name": TEXT, "place": TEXT, "place-kept": bool, "differential-privacy": (bool, None),
                "rounds": [int], "updates": [digest], "models-scored": [digest],
            }
        ],
        "not-removed": [str], "personal-models": [digest], "still-here-of-open-runs": {str: int},
    },
    "wardround-client personal list": [{"run": TEXT, "hash": digest, "round": int, "bytes": int, "trained": moment}],
    "wardround-client data check": {
        "site": str, "program": str, "checked": moment, "run": ({"name": str, "sha256": digest}, None),
        "counts": {str: int},
        "sources": [{str: (int, [str], {str: int})}],
        "studies": [
            {
                str: (
                    str, *NUMBER, bool, None, [NUMBER], [str], {str: NUMBER},
                )
            }
        ],
        "classes": [{"class": str, "studies": int, "share": MAYBE}],
        "findings": [{"class": str, "studies": int}],
        "images": [
            {
                "modality": TEXT, "studies": int, "size": [[NUMBER]], "spacing-mm": ([[NUMBER]], None),
                "intensities": {str: NUMBER},
            }
        ],
        "labels": [{"what": str, "studies": int, "most": NUMBER}],
        "policy": (VERDICT, None),
    },
    "wardround-client data preview": [
        {
            "study": int, "step": str, "place": str, "size": [int], "lowest": MAYBE, "highest": MAYBE, "mean": MAYBE,
            "changed": MAYBE,
        }
    ],
    "wardround-client data export": [{"what": str, "count": int}],
    "wardround-client audit verify": AUDIT,
    "wardround-client predict": {
        "studies": [
            {
                "study": int, "slices": int, "voxels": {str: int}, "seconds": {str: NUMBER}, "files": [str],
                "notes": [str], "told": ({"chances": {str: NUMBER}, "none": MAYBE, "answer": [str]}, None),
            }
        ],
        "failures": [{"number": int, "code": str, "reason": str}],
        "latency-ms": [{str: (str, *NUMBER)}],
        "seconds": NUMBER,
    },
    "wardround-client explain": {
        "model": digest, "explained": str, "log-odds": {str: MAYBE}, "voxels": {str: int},
        "samples": {"explained": int, "of": int}, "caveats": [str], "files": [str],
        "methods": [
            {
                "method": str, "source": str, "means": str, "settings": {str: (str, *NUMBER, bool, None, [[int]])},
                "passes": int, "seconds": NUMBER, "numbers": {str: MAYBE}, "caveats": [str],
                "maps": [
                    {
                        "map": str, "mean-inside": MAYBE, "mean-outside": MAYBE,
                        "random-weights": {str: (str, *NUMBER, None, bool)},
                    }
                ],
            }
        ],
    },
    "wardround-client serve": {"addresses": [str], "token": str},
    "wardround-client dashboard": {"address": str, "link": str},
    "wardround-client metrics": MEASURES,
    "wardround-client evaluate": EVALUATION,
    "wardround-server requests": [{"site": str, "wish": str, "phrase": TEXT}],
    "wardround-server sites": [
        {
            "site": str, "state": str, "connected": bool, "last-seen": (moment, None),
            "certificate-until": (moment, None),
        }
    ],
    "wardround-server status": [{"what": str, "state": str, "detail": TEXT}],
    "wardround-server dashboard": {"address": str, "link": str},
    "wardround-server metrics": MEASURES,
    "wardround-server doctor": FINDINGS,
    "wardround-server runs": [
        {
            "run": str, "hash": digest, "state": str, "round": int, "rounds": int, "headline": str,
            "score": MAYBE, "score-noise": MAYBE, "seconds-left": MAYBE, "waiting-for": [str],
            "approved": [str], "denied": [str], "refused": {str: str}, "reason": TEXT,
        }
    ],
    "wardround-server runs compare": [
        {
            "what": str, "site": TEXT, "a": SETTING, "b": SETTING, "b-less-a": MAYBE, "low": MAYBE, "high": MAYBE,
            "warning": TEXT,
        }
    ],
    "wardround-server runs diff": [{"key": str, "a": SETTING, "b": SETTING}],
    "wardround-server report": [
        {
            "site": str, "dice": MAYBE, "score-noise": MAYBE, "epsilon": MAYBE, "delta": MAYBE,
            str: (*NUMBER, bool, None),  # test-gain and so on, of a run that compares; how unlike the sites are
        }
    ],
    "wardround-server operator list": [
        {"operator": str, "role": str, "state": str, "certificate-until": moment},
    ],
    "wardround-server audit verify": AUDIT,
    "wardround-sim run": [{"site": str, str: (*NUMBER, bool, None)}],
    "wardround-sim compare": {
        "models": [
            {
                "column": str, "seed": int, "run-hash": digest, "scores": {str: SCORES}, "steps": int, "images": int,
                "seconds": NUMBER, "epsilon": MAYBE, "model-sha256": digest,
            }
        ],
        "ratios": {str: NUMBER},
    },
    "wardround-sim crossval": [{"site": str, "fold": (int, str), str: MAYBE}],
    "wardround-sim reference": [
        {
            "document": str, "key": str, "kind": TEXT, "type": str, "format": int, "meaning": TEXT, "needed": bool,
            "default": (*NUMBER, bool, str, None, [NUMBER], [str], {str: str}),
        }
    ],
    "wardround-sim sweep": [
        {"trial": int, "state": str, "rounds": int, "reason": TEXT, str: (*NUMBER, str, None, [NUMBER], [str])}
    ],
    "wardround-sim export": {
        str: (
            {"path": str, "largest-difference": (NUMBER, {str: MAYBE}), str: ([str], TEXT)},
            {"left-out": str, "command": str},
        )
    },
    "wardround-sim import-bundle": {
        "path": str, "sha256": digest, "tensors": int, "drawn": [str], "neutral": int, "renamed": int,
        "largest-difference": MAYBE, "not-compared": TEXT,
    },
    "wardround-sim baseline": [{"model": str, str: {"value": MAYBE, "low": MAYBE, "high": MAYBE}}],
    "wardround-sim diagnosis": [{"model": str, str: {"value": MAYBE, "low": MAYBE, "high": MAYBE}}],
    "wardround-sim audit": [
        {"check": str, "result": str, "figure": (str, *NUMBER), "limit": (str, *NUMBER), "p-value": MAYBE}
    ],
    "wardround-sim evaluate": EVALUATION,
    "wardround-sim scenarios": [{"name": str, "what": str, "model": str, "sites": [str]}],
    "wardround-sim preview": [
        {
            "site": str, "studies": int, "patients": {str: int}, "set-aside": {str: int},
            "classes": {str: {"studies": int, "share": MAYBE}},
            "images": [
                {
                    "modality": TEXT, "studies": int, "size": [[NUMBER]], "spacing-mm": ([[NUMBER]], None),
                    "intensities": {str: NUMBER},
                }
            ],
            "shifts": [str], "marked": [NUMBER], "medians": [NUMBER],
        }
    ],
    "wardround-sim list": [{"what": str, str: (str, bool, int, [str])}],
    "wardround-sim bench data": [{"way": str, str: NUMBER}],
    "wardround-sim bench privacy": [{"step": str, "way": str, str: MAYBE}],
    "wardround-sim bench training": [{"way": str, str: NUMBER}],
    "wardround-sim bench aggregation": [{"updates": int, "way": str, str: NUMBER}],
    "wardround-sim bench round": [{"clients": int, "way": str, str: NUMBER}],
    "wardround-sim bench wire": [{"message": str, "step": str, "way": str, str: MAYBE}],
    "wardround-sim bench scaling": [{str: NUMBER}],
    "wardround-sim bench sites": [{"figure": str, "value": NUMBER, "unit": str}],
}  # fmt: skip

# A number, a truth value, a list or nothing, written as text.
_DISGUISED = re.compile(r"-?\d+(\.\d+)?( ?%)?|yes|no|true|false|none|nan|-||\d+(\.\d+)?( x \d+.*)+", re.IGNORECASE)


def conforms(command: str, value: object) -> None:
    """Assert that what a command printed has its form, and that nothing in it is data in disguise."""
    _check(FORMS[command], value, command)
    _bare(value, command)


def _check(form: Form, value: object, where: str) -> None:
    assert _fits(form, value, where), f"{where}: {value!r} is not {form}"


def _fits(form: Form, value: object, where: str) -> bool:  # noqa: PLR0911 - one a kind of form
    if isinstance(form, tuple):
        return any(_fits(one, value, where) for one in form)
    if form is None:
        return value is None
    if form in (moment, digest):
        try:
            return bool(form(value))
        except ValueError:
            return False
    if isinstance(form, type):
        return type(value) is form
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(form[0], one, where) for one in value)
    if not isinstance(value, dict):
        return False
    named = {key: one for key, one in form.items() if isinstance(key, str)}
    if str not in form and set(value) - set(named):
        return False
    missing = set(named) - set(value) - {"code"}  # of a refusal only
    return not missing and all(_fits(named.get(key, form.get(str)), one, where) for key, one in value.items())


def _bare(value: object, where: str) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            assert isinstance(key, str)
            _bare(one, f"{where}.{key}")
    elif isinstance(value, list):
        for one in value:
            _bare(one, where)
    elif isinstance(value, str):
        assert not _DISGUISED.fullmatch(value), f"{where}: {value!r} is data written as text"

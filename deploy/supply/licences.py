"""Licences of what requirements.lock names, held to a policy; and the page that lists them.

    python -m deploy.supply.licences [--page docs/project/licences.md]

A licence is what the package says of itself, as an SPDX expression (https://spdx.org/licenses): in `License-Expression`
(PEP 639), else in `License` where that is a name, else in its classifiers. What else lies in a wheel is its maker's to
list.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from deploy.wheelhouse import EXTRAS, NAME, ROOT, locked, needed

POLICY = Path(__file__).with_name("licences.toml")
# How packages write what SPDX has a name for, in `License` and behind `License :: ` in classifiers.
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Public Domain": "Public-Domain",
    "Python Software Foundation License": "PSF-2.0",
}
HEAD = """# Licences

Wardround is under Apache-2.0. What it stands on, as `requirements.lock` names it for hospitals, coordinators,
simulations and checks, with torch, under the licence that each package states. Those that are allowed stand in
`deploy/supply/licences.toml`; a package under another licence, or with none, fails a test.
`python -m deploy.supply.licences --page docs/project/licences.md` writes this page.

torch's builds for GPUs bring libraries of NVIDIA's, under NVIDIA's terms: who installs such a build accepts them.
Libraries inside a wheel are listed by its maker, in the wheel.

| licence | packages |
|---|---|
"""


@dataclass(frozen=True)
class Policy:
    """licences.toml."""

    allowed: frozenset[str]
    stated: Mapping[str, str]
    for_checks: Mapping[str, str]  # not allowed, in the developer's environment alone

    def permits(self, expression: str) -> bool:
        """Whether an SPDX expression without parentheses can be met by licences that are allowed."""
        ways = (way.split(" AND ") for way in expression.split(" OR "))
        return any(all(term in self.allowed for term in way) for way in ways)


def policy() -> Policy:
    """As it is written."""
    written = tomllib.loads(POLICY.read_text(encoding="utf-8"))
    return Policy(frozenset(written["allowed"]), written["stated"], written["for-checks-alone"])


def stated_by(package: metadata.PackageMetadata) -> str:
    """What a package says of itself; "" where it says nothing that can be read."""
    values = {name: package.get_all(name) or [] for name in ("License-Expression", "License", "Classifier")}
    if values["License-Expression"]:
        return str(values["License-Expression"][0])
    for text in values["License"]:
        named = NAMES.get(text, text)
        if named in NAMES.values() or set(named.split(" AND ")) <= policy().allowed:
            return str(named)
    classifiers = [str(one).rpartition(" :: ")[2] for one in values["Classifier"] if one.startswith("License :: ")]
    return " AND ".join(sorted({NAMES[one] for one in classifiers if one in NAMES}))


def listed() -> dict[str, str]:
    """Package of the lock, and torch -> its licence; "" where none is known."""
    lock = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    told = {str(canonicalize_name(one.metadata["Name"])): one.metadata for one in metadata.distributions()}
    known = policy().stated
    found = {name: (stated_by(told[name]) if name in told else "") or known.get(name, "") for name in sorted(lock)}
    return found | {"torch": known["torch"]}


def complaints(licences: Mapping[str, str], rules: Policy, shipped: Iterable[str]) -> list[str]:
    """What is against the policy, a sentence each.

    Args:
        licences: package -> licence, "" where none is known.
        rules: the policy.
        shipped: packages that are installed at hospitals and coordinators.
    """
    found = []
    for name, licence in licences.items():
        if not licence:
            found.append(f"{name} does not say its licence: read it there, and write it under [stated].")
        elif not rules.permits(licence) and rules.for_checks.get(name) != licence:
            found.append(f"{name} is under {licence}, which is not allowed.")
    found += [
        f"{name} is shipped, and allowed for checks alone." for name in sorted(set(shipped) & set(rules.for_checks))
    ]
    stale = (set(rules.stated) | set(rules.for_checks)) - set(licences)
    return found + [f"{name} is not in the lock any more: take it out of the policy." for name in sorted(stale)]


def page(licences: Mapping[str, str]) -> str:
    """The page that lists them."""
    by_licence: dict[str, list[str]] = {}
    for name, licence in sorted(licences.items()):
        by_licence.setdefault(licence, []).append(f"`{name}`")
    return HEAD + "".join(f"| {licence} | {', '.join(by_licence[licence])} |\n" for licence in sorted(by_licence))


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what is against the policy; 0 only where nothing is."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supply.licences", description="Licences against a policy.")
    parser.add_argument("--page", type=Path, help="write the page that lists them")
    options = parser.parse_args(arguments)
    licences = listed()
    if options.page:
        options.page.write_text(page(licences), encoding="utf-8")
    wrong = complaints(licences, policy(), needed(NAME, EXTRAS))
    print(*(wrong or [f"{len(licences)} packages, all under licences that are allowed."]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""What boards and alerts of deploy/monitoring ask for, by a parser of Prometheus' language; and a real scrape."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import promql_parser
import yaml

from tests import ROOT
from tests.patience import PATIENCE_S

FOLDER = ROOT / "deploy" / "monitoring"
BOARDS = {"coordinator": "grafana-coordinator.json", "site": "grafana-site.json"}
# Prometheus' own, of each thing that it scrapes.
BUILT_IN = {"up"}


def scrape(process: "Popen[str]") -> str:
    """What a `metrics --port 0 --json` answers to whoever has its token."""
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        assert line, text
        text += line
    told = json.loads(text[text.index("{") :])
    token = Path(told["token"]).read_text().strip()
    return (
        httpx.get(told["address"], headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE_S)
        .raise_for_status()
        .text
    )


def board(side: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / BOARDS[side]).read_text(encoding="utf-8"))
    return read


def board_expressions(side: str) -> Iterator[str]:
    for panel in board(side)["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$run", ".*")


def rules() -> Mapping[str, list[dict[str, Any]]]:
    """The alerts, by group."""
    read = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    return {group["name"]: group["rules"] for group in read["groups"]}


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The measures that an expression reads, each with the labels that must match.

    Raises:
        ValueError: it is not of Prometheus' language.
    """
    left: list[Any] = [promql_parser.parse(expression)]
    while left:
        node = left.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield str(node.name), {one.name: one.value for one in node.matchers.matchers}
        for name in ("lhs", "rhs", "expr", "vector_selector"):
            if (child := getattr(node, name, None)) is not None:
                left.append(child)
        left += list(getattr(node, "args", None) or [])

"""No passphrase and no key goes into the environment of a process that we start, whichever it is."""

import ast
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from client.commands import diagnosis
from client.home import sitekey
from common.flower.processes import superlink_environment
from common.system.environment import for_child, own_as_for_child, without_secrets
from deploy.processes import Processes
from server.home import folder, root
from server.registry import operators
from tests import ROOT

OUR_PACKAGES = ("common", "client", "server", "simulations", "deploy")
PASSPHRASES = (folder.KEY_PASSPHRASE, root.ROOT_PASSPHRASE, operators.PASSPHRASE_VARIABLE, sitekey.PASSPHRASE_VARIABLE)
SECRETS = (*PASSPHRASES, *(f"{name}_FILE" for name in PASSPHRASES), sitekey.KEY_VARIABLE, "WARDROUND_OPERATOR_KEY")
VALUE = "five random words on paper"
# The only ones that take the whole environment, to leave secrets out.
# namespaces.py forks, starts no program, and is gone once its network is open: what it shows, its parent shows too.
# nursery.py forks workers of a simulation, which start no program either and end with it.
THE_WAY = (
    "common/system/environment.py",
    "common/system/namespaces.py",
    "deploy/bootstrap.py",
    "deploy/installation/steps.py",
    "deploy/containers/install.py",  # of a build, where pip takes its proxy from it
    "simulations/backends/nursery.py",
)


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, VALUE)


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in OUR_PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def is_of(node: ast.expr, module: str, *names: str) -> bool:
    """Whether an expression is MODULE.NAME."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
        and (not names or node.attr in names)
    )


def test_each_process_that_we_start_is_given_its_environment() -> None:
    starts = [
        (name, node)
        for name, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and is_of(node.func, "subprocess", "Popen", "run", "call", "check_call", "check_output", "getoutput")
    ]
    assert len(starts) > 5
    assert [f"{name}:{node.lineno}" for name, node in starts if "env" not in {one.arg for one in node.keywords}] == []


def test_nothing_else_starts_a_process_or_hands_the_whole_environment_on() -> None:
    allowed = {"get", "setdefault", "update", "keys"}
    wrong = []
    for name, tree in sources():
        fine: set[ast.expr] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Attribute() as inner, attr=attr) if attr in allowed:
                    fine.add(inner)
                case (
                    ast.Subscript(value=ast.Attribute() as inner) | ast.Compare(comparators=[ast.Attribute() as inner])
                ):
                    fine.add(inner)
                case ast.FunctionDef(args=arguments):  # a default that is only looked into
                    fine.update(arguments.defaults)
                case ast.comprehension(iter=_, ifs=[ast.Compare(comparators=[ast.Attribute() as inner])]):
                    fine.add(inner)
        wrong += [
            f"{name}:{node.lineno}"
            for node in ast.walk(tree)
            if name not in THE_WAY
            and isinstance(node, ast.expr)
            and (
                (is_of(node, "os", "environ") and node not in fine)
                or is_of(node, "os", "fork", "forkpty", "system", "popen", "posix_spawn", "execv", "execve", "execvp")
                or is_of(node, "multiprocessing")
            )
        ]
    assert wrong == []


def test_superlink_gets_none_and_the_rest_as_it_is(tmp_path: Path) -> None:
    environment = superlink_environment(tmp_path)
    assert not set(SECRETS) & set(environment)
    assert VALUE not in environment.values()
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert {name for name in os.environ if name not in environment} == set(SECRETS)


def test_program_that_the_doctor_starts_gets_none() -> None:
    seen = json.loads(diagnosis._python("import json, os; print(json.dumps(dict(os.environ)))"))
    assert not set(SECRETS) & set(seen)
    assert VALUE not in seen.values()


def test_programs_of_a_local_federation_get_none(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        code = "import json, os; print(json.dumps(dict(os.environ)))"
        seen = json.loads(processes.run("child", sys.executable, "-c", code))
    assert not set(SECRETS) & set(seen)
    assert VALUE not in seen.values()


@pytest.mark.parametrize("name", [*SECRETS, "WARDROUND_PASSPHRASE", "WARDROUND_COMING_TOKEN", "wardround_site_key"])
def test_secrets_to_come_are_known_by_their_names(name: str) -> None:
    kept = {"PATH": "/bin", "WARDROUND_HOME": "north", "WARDROUND_SERVER_HOME": "c", "WARDROUND_OPERATOR": "maria"}
    assert without_secrets(kept | {name: VALUE}) == kept
    assert for_child(PATH="/mine")["PATH"] == "/mine"


def test_own_environment_is_that_of_a_child_for_a_while_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_ROOT_PASSPHRASE", VALUE)
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("NEW", raising=False)
    before = dict(os.environ)
    with own_as_for_child(KEPT="meanwhile", NEW="1"):
        assert VALUE not in os.environ.values()
        assert (os.environ["KEPT"], os.environ["NEW"], os.environ["PATH"]) == ("meanwhile", "1", before["PATH"])
    assert dict(os.environ) == before
    with suppress(OSError), own_as_for_child():
        raise OSError
    assert dict(os.environ) == before

"""What `wardround-client doctor` looks at (common/console/doctor.py).

A check says what it found, or raises what is wrong.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from client.agent.status import EXPIRED, REFUSED, is_running, read_status
from client.home import sitekey
from client.home.folder import POLICY_NAME, SITE_NAME, check_private
from client.home.identity import load_identity
from client.trail.audit_trail import has_joined, open_log
from common.audit.entries import KINDS
from common.config import PolicyConfig, SiteConfig, load
from common.console import doctor, machine
from common.console.doctor import Finding
from common.errors import ConfigError, DataError, EnrolmentError, FederationError, WardroundError
from common.flower.version import check_version
from common.system import sandbox
from common.system.environment import PACKAGES, for_child
from common.text import counted, sized
from common.wire import clock
from common.wire.channels import certificate_trouble
from common.wire.proxy import proxy_of, told_of_proxy

RENEW_DAYS = 30
FREE_BYTES = 1 << 30
MEMORY_BYTES = 2 << 30  # a worker with torch, and one reader
REACH_S = 10.0
IMPORT_S = 180.0


def examine(home: Path) -> list[Finding]:
    """Run all checks on a site's home folder."""
    checks: dict[str, Callable[[Path], str | Iterable[Finding]]] = {
        "software": _software,
        "versions": lambda _home: machine.versions(("client",)),
        "foreign packages": lambda _home: machine.shadows(),
        "private files": _private_files,
        "site key": sitekey.custody,
        "certificate": _certificate,
        "clock": _clock,
        "proxy": _proxy,
        "coordinator": _coordinator,
        "policy": _policy,
        "data": _data,
        "disk": _disk,
        "memory": lambda _home: machine.memory(MEMORY_BYTES),
        "shared memory": lambda _home: machine.shared_memory(),
        "training": _training,
        "gpu": _gpu,
        "worker's network": _network,
        "worker's files": _files,
        "agent": _agent,
    }
    return doctor.examine({what: partial(check, home) for what, check in checks.items()})


def _software(_home: Path) -> str:
    check_version()
    return f"Python {sys.version_info.major}.{sys.version_info.minor}"


def _private_files(home: Path) -> str:
    if not home.is_dir():
        raise ConfigError(f"{home} does not exist. Join first, or name the site's folder with --home.")
    check_private(home)
    return "only this user reads the keys"


def _certificate(home: Path) -> str:
    days = load_identity(home).days_left
    if days < RENEW_DAYS:
        raise EnrolmentError(
            f"the certificate expires in {counted(days, 'day')}. Ask the coordinator for a new invitation."
        )
    return f"valid for {counted(days, 'day')}"


def _coordinator(home: Path) -> str:
    identity = load_identity(home)
    with identity.channel() as channel:
        try:
            began = time.time()
            reply, call = HealthStub(channel).Check.with_call(HealthCheckRequest(), timeout=REACH_S)
            theirs = clock.sent(call.initial_metadata())
        except grpc.RpcError as error:
            raise _unreachable(identity.gateway, error) from error
    if reply.status != HealthCheckResponse.SERVING:
        raise FederationError(f"{identity.gateway} answers, but its SuperLink does not. Tell the coordinator.")
    ahead_s = None if theirs is None else (began + time.time()) / 2 - theirs
    if not clock.is_well(ahead_s):
        raise FederationError(
            f"{identity.gateway} answers, but this computer's clock is {clock.in_words(ahead_s)}. Updates count all "
            "the same; certificates, the policy's hours and the audit log go by it: set one of the two right."
        )
    proxy = proxy_of(identity.gateway)
    through = "" if proxy is None else f" through the proxy {proxy.shown} ({proxy.variable})"
    return f"{identity.gateway} answers over mutual TLS{through} and is well; the clock is {clock.in_words(ahead_s)}"


def _unreachable(address: str, error: grpc.RpcError) -> WardroundError:
    if trouble := certificate_trouble(error):
        return FederationError(f"{address} cannot be trusted now: {trouble}.")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return FederationError(
            f"{address} does not answer. Check the network, the firewall (outbound), and whether the coordinator is "
            f"started.{told_of_proxy(address)}"
        )
    if error.code() == grpc.StatusCode.PERMISSION_DENIED:
        return EnrolmentError(
            "the coordinator has shut this site out. Ask its operator why; to return, ask for an invitation."
        )
    return FederationError(f"{address} answers with {error.code().name}. Try again later.")


def _policy(home: Path) -> str:
    path = home / POLICY_NAME
    if not path.exists():
        return "the strict default (no policy.toml)"
    rules = load(PolicyConfig, path)
    return f"runs are approved {'within the rules by themselves' if rules.auto_approve else 'by a person'}"


def _data(home: Path) -> str:
    site = load(SiteConfig, home / SITE_NAME)
    missing = [source.path for source in site.data if not (home / Path(source.path).expanduser()).is_dir()]
    if missing:
        raise DataError(f"these data folders are not there: {', '.join(missing)}. Mount them or correct site.toml.")
    if not site.data:
        raise DataError("no data yet. Add a folder with `wardround-client data add PATH`.")
    return f"{counted(len(site.data), 'source')}; look inside with `wardround-client data check`"


def _disk(home: Path) -> str:
    free = shutil.disk_usage(home if home.exists() else home.parent).free
    if free < FREE_BYTES:
        raise ConfigError(f"{sized(free)} are free at {home}, at least {sized(FREE_BYTES)} are needed. Free some.")
    return f"{sized(free)} free"


def _clock(home: Path) -> str:
    """Of this machine alone; the line of the coordinator compares it with theirs."""
    if not has_joined(home):
        return machine.clock(None)
    with open_log(home).transaction() as log:
        last = log.latest(*KINDS)
    return machine.clock(last[0].time if last else None)


def _proxy(home: Path) -> str:
    proxy = proxy_of(load_identity(home).gateway)
    return "none to the coordinator" if proxy is None else f"{proxy.shown}, which {proxy.variable} names"


def _gpu(home: Path) -> str:
    sees = _python("import torch; print(torch.cuda.is_available())") == "True"
    return machine.graphics(load(SiteConfig, home / SITE_NAME).device, sees=sees)


def _training(_home: Path) -> str:
    code = "import torch; print(torch.__version__, 'cuda' if torch.cuda.is_available() else 'cpu')"
    return f"torch {_python(code)}, {os.cpu_count()} cores"


def _network(_home: Path) -> str:
    result = _python("from common.system import sandbox; print(sandbox.remove_network())")
    if result != sandbox.REMOVED:
        raise ConfigError(
            f"{result}. Allow unprivileged user namespaces; in a container, with the seccomp profile that comes with "
            "Wardround."
        )
    return "removed by the kernel: the process with the images reaches nobody"


def _files(home: Path) -> str:
    code = (
        "import sys; from pathlib import Path; from common.system import sandbox; sandbox.remove_network(); "
        "home = Path(sys.argv[1]); keys = sandbox.hide([home / name for name in sandbox.SECRETS]); "
        "print(f'{keys}, {sandbox.lock([home])}')"
    )
    result = _python(code, str(home.resolve()))
    if result != f"{sandbox.HIDDEN}, {sandbox.LOCKED}":
        raise ConfigError(
            f"{result}. Allow unprivileged user namespaces and Landlock to keep the keys from the images."
        )
    return "the process with the images sees no key, and writes to this folder only (Landlock)"


def _agent(home: Path) -> str:
    if not is_running(home):
        raise FederationError("not running. Start it with `wardround-client start`.")
    state = str(read_status(home).get("state", "starting"))
    if state in (EXPIRED, REFUSED):
        raise FederationError(
            f"it runs and does no work: {state}. The line 'coordinator' says why; see also logs/agent.log."
        )
    return state


def _python(code: str, *arguments: str) -> str:
    """Run a line in a Python of its own, as the worker would."""
    result = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-P", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=IMPORT_S,
        check=False,
        env=for_child(PYTHONPATH=str(PACKAGES)),
    )
    if result.returncode != 0:
        last = result.stderr.strip().rpartition("\n")[2]
        raise ConfigError(f"Python failed with: {last}. Install wardround again.")
    return result.stdout.strip()

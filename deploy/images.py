"""Build the images of both sides, and let a coordinator and two sites that run from them train together.

    make images                                   or python -m deploy.images --wheelhouse dist/wheelhouse

With podman, and on a Debian that mmdebstrap makes where no base image is named; nothing comes from a registry. The
containers get what deploy/containers/*.yaml say, read from there; a network without a way out stands for the internet
between the houses. Then it is looked at from inside: rounds done, not root, nothing to write to, no capability, health,
and the worker's confinement, also under what Docker's own seccomp profile forbids. Takes some ten minutes.
"""

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from deploy.processes import ROOT, Processes, StepError, StoppedError

CONTAINERS = ROOT / "deploy/containers"
BASE = "localhost/debian-python:bookworm"
NETWORK = "wardround-images"
USER = 10001
SITES = {"north": "a", "south": "b"}  # and its scanner
SLOW_S = 1800.0
# What Docker's own profile lets nobody call who has no capability.
FORBIDDEN_BY_DOCKER = ("unshare", "mount", "setns")

_INSIDE = """
import json, os
told = dict(line.split(':', 1) for line in open('/proc/self/status'))
try:
    open('/opt/wardround/written', 'w')
    writable = True
except OSError:
    writable = False
print(json.dumps({'uid': os.getuid(), 'writable': writable, **{
    name: told[name].strip() for name in ('CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp')}}))
"""
_HARDENED = {
    **{"uid": USER, "writable": False, "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"},
}


class Containers:
    """The containers of one check, by podman."""

    def __init__(self, processes: Processes, out: Path, version: str) -> None:
        """Nothing runs yet.

        Args:
            processes: what starts podman.
            out: the folder for secrets, images and logs.
            version: of the images.
        """
        self._processes, self._out, self._version = processes, out, version
        self._names: list[str] = []
        self._volumes: list[str] = []

    def podman(self, *arguments: str | Path, timeout_s: float = SLOW_S) -> str:
        """Run podman to its end; what it printed to stdout."""
        return self._processes.run("podman", "podman", *arguments, timeout_s=timeout_s)

    def options(self, side: str, service: str, name: str) -> list[str]:
        """What a service of a compose file says, as podman takes it; a volume and a network of this check's own."""
        said = yaml.safe_load((CONTAINERS / f"{side}.yaml").read_text(encoding="utf-8"))["services"][service]
        volume = f"wardround-images-{name}"
        if volume not in self._volumes:
            self.podman("volume", "create", volume)
            self._volumes.append(volume)
        (secret,) = said["secrets"]
        return [
            *hardening(said),
            *(f"--env={key}={value}" for key, value in said["environment"].items()),
            f"--volume={self._out / secret}:/run/secrets/{secret}:ro",
            f"--volume={volume}:/var/lib/wardround",
            f"--network={NETWORK}",
        ]

    def once(self, options: Sequence[str], image: str, *command: str) -> str:
        """Run a command in a container that goes with it."""
        return self.podman("run", "--rm", *options, f"localhost/{image}:{self._version}", *command)

    def start(self, name: str, options: Sequence[str], image: str, *command: str) -> None:
        """Start a container that stays."""
        full = f"wardround-images-{name}"
        self._names.append(full)
        self.podman("run", "--detach", f"--name={full}", f"--hostname={name}", f"--network-alias={name}", *options,
                    f"localhost/{image}:{self._version}", *command)  # fmt: skip

    def inside(self, name: str, *command: str, timeout_s: float = SLOW_S) -> str:
        """Run a command in a container that runs."""
        return self.podman("exec", f"wardround-images-{name}", *command, timeout_s=timeout_s)

    def until_well(self, name: str) -> None:
        """Wait until the health check of the image says so."""
        deadline = time.monotonic() + 180
        while True:
            try:
                self.podman("healthcheck", "run", f"wardround-images-{name}")
            except StepError:
                if time.monotonic() > deadline:
                    raise
                self._processes.rest(2)
            else:
                return

    def remove(self) -> None:
        """End and remove what this check has made, but for the images."""
        for arguments in (
            *(["rm", "--force", "--time=20", name] for name in reversed(self._names)),
            *(["volume", "rm", "--force", name] for name in self._volumes),
            ["network", "rm", "--force", NETWORK],
        ):
            with suppress(StepError):
                self.podman(*arguments)


def hardening(service: Mapping[str, Any]) -> list[str]:
    """What a service is kept from and bounded by, as options of podman."""
    options = [f"--user={service['user']}", f"--memory={service['mem_limit']}", f"--pids-limit={service['pids_limit']}"]
    options += ["--read-only"] * service["read_only"] + ["--init"] * service["init"]
    options += [f"--cap-drop={one}" for one in service["cap_drop"]]
    options += [f"--tmpfs={one}" for one in service["tmpfs"]]
    if "shm_size" in service:
        options.append(f"--shm-size={service['shm_size']}")
    for one in service["security_opt"]:
        kind, _, value = one.replace(":", "=", 1).partition("=")
        options.append(f"--security-opt=seccomp={CONTAINERS / value}" if kind == "seccomp" else f"--security-opt={one}")
    return options


def docker_like(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Our seccomp profile without what Docker's own forbids."""
    found: dict[str, Any] = copy.deepcopy(dict(profile))
    for rule in found["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW":
            rule["names"] = [name for name in rule["names"] if name not in FORBIDDEN_BY_DOCKER]
    found["syscalls"] = [rule for rule in found["syscalls"] if rule["names"]]
    found["syscalls"].append(
        {"names": list(FORBIDDEN_BY_DOCKER), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    )  # EPERM, as there
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it all; 0 only if every check holds."""
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description="Build and try the images.")
    parser.add_argument("--wheelhouse", type=Path, default=ROOT / "dist/wheelhouse", help="[default: %(default)s]")
    parser.add_argument("--base", default=BASE, help="base image; made by mmdebstrap where it is not there")
    parser.add_argument("--torch-sha256", default="", help="of the wheel, where the wheelhouse has no requirements.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "out/images", help="[default: %(default)s]")
    options = parser.parse_args(arguments)
    from deploy.demo import fresh_folder  # noqa: PLC0415 - loads torch

    try:
        for tool in ("podman", "mmdebstrap", "iptables"):
            if shutil.which(tool) is None:
                wanted = "podman runc netavark aardvark-dns iptables mmdebstrap"
                raise StepError(f"{tool} is not installed. On Debian: apt-get install {wanted}")
        if not options.wheelhouse.is_dir():
            raise StepError(f"{options.wheelhouse} is not there. Make it by `make wheelhouse`, or name another.")
        fresh_folder(options.out)
        with Processes(options.out / "logs") as processes:
            _check(processes, options)
    except StoppedError as error:
        print(f"\nimages: stopped by {error}", file=sys.stderr)
        return 130
    except (StepError, OSError) as error:
        print(f"\nimages: {error}", file=sys.stderr)
        return 1
    return 0


def _check(processes: Processes, options: argparse.Namespace) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = project.partition('version = "')[2].partition('"')[0]
    out = options.out.resolve()
    containers = Containers(processes, out, version)
    figures = _build(containers, options, version)
    try:
        _federate(containers, processes, out)
        for name in ("coordinator", *SITES):
            if (found := json.loads(containers.inside(name, "python3", "-c", _INSIDE))) != _HARDENED:
                raise StepError(f"{name} is not kept from what it should be: {found}")
        memory = containers.podman("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}")
        figures["memory"] = memory.splitlines()
        _confinement(containers, out)
    finally:
        containers.remove()
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def _build(containers: Containers, options: argparse.Namespace, version: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    try:
        containers.podman("image", "exists", options.base)
    except StepError:
        _say(f"base: {options.base}")
        tar, packages = options.out.resolve() / "base.tar", "--include=python3,python3-venv,ca-certificates"
        containers._processes.run("mmdebstrap", "mmdebstrap", "--variant=minbase", packages, "bookworm", tar)
        containers.podman("import", "--change", "ENV PATH=/usr/local/bin:/usr/bin:/bin", tar, options.base)
        tar.unlink()
    recipe = CONTAINERS / "Dockerfile"
    for target in ("server", "client"):
        _say(f"image: {target}")
        began, image = time.monotonic(), f"localhost/wardround-{target}:{version}"
        containers.podman("build", "--pull=never", "--network=none", "--format=docker", f"--file={recipe}",
                          f"--ignorefile={recipe}.dockerignore", f"--build-arg=BASE={options.base}",
                          f"--build-arg=TORCH_SHA256={options.torch_sha256}", f"--build-arg=VERSION={version}",
                          f"--build-context=wheelhouse={options.wheelhouse.resolve()}", f"--target={target}",
                          f"--tag={image}", ROOT)  # fmt: skip
        size = int(containers.podman("image", "inspect", "--format", "{{.Size}}", image))
        figures[target] = {"seconds": round(time.monotonic() - began), "bytes": size}
    return figures


def _federate(containers: Containers, processes: Processes, out: Path) -> None:
    """From `init` to a run that is completed, by the commands that people type."""
    _say("images of two hospitals, secrets, network")
    for scanner in SITES.values():
        writer = (sys.executable, ROOT / "deploy/demo.py", "--write-hospital", scanner, "--out", out / "data")
        processes.run("phantoms", *writer, timeout_s=SLOW_S)
    for secret in ("coordinator-passphrase", "site-passphrase"):
        (out / secret).write_text("correct horse battery staple\n", encoding="ascii")
        shutil.chown(out / secret, USER, USER)
        (out / secret).chmod(0o400)
    document = (ROOT / "deploy/runs/demo-phantoms.toml").read_text(encoding="utf-8")
    document = document.replace("rounds = 10", "rounds = 2").replace("quorum = 3", "quorum = 2")
    (out / "run.toml").write_text(document, encoding="utf-8")
    (out / "run.toml").chmod(0o444)
    containers.podman("network", "create", "--internal", NETWORK)

    _say("coordinator: init, start, invite")
    at_server = containers.options("coordinator", "coordinator", "coordinator")
    at_server.append(f"--volume={out / 'run.toml'}:/run.toml:ro")
    containers.once(at_server, "wardround-server", "init", "--host", "coordinator", "--protect")
    containers.start("coordinator", at_server, "wardround-server", "start")
    containers.until_well("coordinator")
    containers.inside("coordinator", "wardround-server", "invite", *SITES)

    _say("sites: join, key protect, data add, start")
    for site, scanner in SITES.items():
        invitation = out / f"{site}.json"
        text = containers.inside("coordinator", "cat", f"/var/lib/wardround/coordinator/invitations/{site}.json")
        invitation.write_text(text, encoding="utf-8")
        invitation.chmod(0o444)
        options = [*containers.options("site", "site", site), f"--volume={out / 'data' / scanner}:/data:ro"]
        joining = [*options, f"--volume={invitation}:/invitation.json:ro"]
        containers.start(f"{site}-join", joining, "wardround-client", "join", "/invitation.json")
        containers.inside("coordinator", "wardround-server", "approve", site, "--wait")
        containers.podman("wait", f"wardround-images-{site}-join")
        containers.once(options, "wardround-client", "key", "protect")
        containers.once(options, "wardround-client", "data", "add", "/data", "--empty-labels-are-negative")
        containers.start(site, options, "wardround-client", "start")
    for site in SITES:
        containers.until_well(site)

    _say("run: proposed, approved at both, two rounds")
    containers.inside("coordinator", "wardround-server", "run", "/run.toml")
    for site in SITES:
        containers.inside(site, "wardround-client", "approve", "demo-phantoms", "--yes")
    containers.inside("coordinator", "wardround-server", "watch", "demo-phantoms")
    (done,) = json.loads(containers.inside("coordinator", "wardround-server", "runs", "--json"))
    if done["state"] != "completed":
        raise StepError(f"the run did not complete: {done}")
    print(f"   {done}")


def _confinement(containers: Containers, out: Path) -> None:
    """What the kernel gave the worker; and what `doctor` says where it gives nothing, as under Docker's own profile."""
    _say("confinement of the worker")
    for site in SITES:
        log = containers.inside(site, "cat", "/var/lib/wardround/site/logs/worker.log")
        if "network removed, keys hidden, disk locked" not in log:
            raise StepError(f"the worker of {site} is not confined: {log[:500]}")
        print(containers.inside(site, "wardround-client", "doctor"))
    print(containers.inside("coordinator", "wardround-server", "doctor"))
    profile = json.loads((CONTAINERS / "seccomp.json").read_text(encoding="utf-8"))
    (out / "docker-like.json").write_text(json.dumps(docker_like(profile)), encoding="utf-8")
    options = containers.options("site", "site", "north")
    options = [one for one in options if "seccomp=" not in one]
    options += [f"--security-opt=seccomp={out / 'docker-like.json'}"]
    with suppress(StepError):  # it has something to say
        containers.once(options, "wardround-client", "doctor", "--json")
    told = json.loads((out / "logs/podman.out").read_text(encoding="utf-8"))
    wrong = {row["check"]: row["detail"] for row in told if row["result"] == "WRONG"}
    for what in ("worker's network", "worker's files"):
        if what not in wrong:
            raise StepError(f"under what Docker's own profile forbids, `doctor` does not name the {what}: {wrong}")
        print(f"   without our profile: {what}: {wrong[what]}")


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

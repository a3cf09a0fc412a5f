"""What hospitals' IT is given to run containers with: each is kept from what it does not need, as the pages say.

Read as YAML and JSON, with nothing that runs containers: `make images` builds and runs them.
"""

import importlib.metadata
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.containers import install, requirements
from deploy.images import docker_like, hardening
from tests import ROOT

CONTAINERS, KUBERNETES = ROOT / "deploy/containers", ROOT / "deploy/kubernetes"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
RECIPE = (CONTAINERS / "Dockerfile").read_text(encoding="utf-8")
SECCOMP = json.loads((CONTAINERS / "seccomp.json").read_text(encoding="utf-8"))
IMAGES = {"coordinator": "server", "site": "client"}
# What each image has beside what Wardround needs in any case.
EXTRAS = {
    "server": ("server", "exchange", "evidence", "prometheus"),
    "client": ("client", "explain", "exchange", "pacs", "prometheus"),
}
PYTHONS = ("3.11", "3.12", "3.13")
SECRET = re.compile(r"PASSPHRASE|PASSWORD|TOKEN|SECRET|KEY")


def services() -> Iterator[tuple[str, dict[str, Any]]]:
    for side in IMAGES:
        for service in yaml.safe_load((CONTAINERS / f"{side}.yaml").read_text(encoding="utf-8"))["services"].values():
            yield side, service


def manifests(side: str) -> dict[str, dict[str, Any]]:
    text = (KUBERNETES / f"{side}.yaml").read_text(encoding="utf-8")
    return {one["kind"]: one for one in yaml.safe_load_all(text) if one}


def quadlet(side: str) -> list[tuple[str, str]]:
    lines = (CONTAINERS / f"wardround-{side}.container").read_text(encoding="utf-8").splitlines()
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines if "=" in line and line[0] not in "#["]


def needed(extras: tuple[str, ...]) -> set[str]:
    """All that is asked for with these extras, by any Python that an image may have."""
    here = {name: str(value) for name, value in default_environment().items()}
    environments = [here | {"python_version": one, "python_full_version": f"{one}.9"} for one in PYTHONS]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    left = [("wardround", extra) for extra in ("", *extras)]
    while left:
        if (one := left.pop()) in seen:
            continue
        seen.add(one)
        for text in importlib.metadata.requires(one[0]) or []:
            asked = Requirement(text)
            marker = asked.marker
            if marker is None or any(marker.evaluate(each | {"extra": one[1]}) for each in environments):
                name = canonicalize_name(asked.name)
                found.add(name)
                left += [(name, extra) for extra in ("", *asked.extras)]
    return found - {"torch", "wardround"}


@pytest.mark.parametrize("image", EXTRAS)
def test_image_takes_of_the_lock_what_its_side_asks_for_and_nothing_else(image: str) -> None:
    """Where this fails, something new is asked for: write what it names into the list."""
    assert set(requirements.names_in(CONTAINERS / f"{image}.txt")) == needed(EXTRAS[image])


def test_every_entry_of_an_image_has_its_hashes() -> None:
    names = requirements.names_in(CONTAINERS / "client.txt")
    taken = requirements.selected(LOCK, names)
    entries = re.split(r"\n(?=\S)", taken.strip())
    assert {canonicalize_name(entry.partition("==")[0]) for entry in entries} == set(names)
    assert all("--hash=sha256:" in entry and entry in LOCK for entry in entries)
    assert sum(entry.startswith("tifffile==") for entry in entries) == 2  # one for each Python
    with pytest.raises(KeyError, match="make lock"):
        requirements.selected(LOCK, ["nobody-has-this"])


def test_wheel_is_built_by_what_pyproject_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    builders = {canonicalize_name(Requirement(one).name) for one in project["build-system"]["requires"]}
    assert builders <= set(requirements.names_in(CONTAINERS / "build.txt"))
    torch = next(one for one in project["project"]["dependencies"] if one.startswith("torch"))
    assert f"ARG TORCH={torch}\n" in RECIPE


def test_wheelhouse_pins_torch_and_the_libraries_that_its_build_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = ["numpy==2.4.0 --hash=sha256:1\n", "torch==2.13.0 --hash=sha256:2\n", "nvidia-nccl==2 --hash=sha256:3\n"]
    (tmp_path / "requirements.txt").write_text("".join([*pins, "wardround==0.1.0 --hash=sha256:4\n"]))
    monkeypatch.setattr(install, "WHEELHOUSE", tmp_path)
    assert install._pinned(LOCK) == "".join(pins[1:])
    assert install._offline() == ["--no-index", "--find-links", str(tmp_path)]


def test_recipe_runs_as_nobody_without_a_shell_and_tells_its_health() -> None:
    final = RECIPE[RECIPE.index("FROM runtime AS server") :]
    assert final.count("USER 10001:10001") == final.count("ENTRYPOINT [") == final.count("FROM ") == 2
    checks = re.findall(r'CMD \["python3", "-P", "-m", "([a-z.]+)"\]', final)
    assert checks == ["server.coordinator.health", "client.agent.health"]
    for line in re.findall(r"^(?:ENTRYPOINT|CMD) .*", RECIPE, re.MULTILINE):
        assert json.loads(line.partition(" ")[2])
    assert f"ARG VERSION={VERSION}" in RECIPE


def test_every_service_is_kept_from_what_it_does_not_need() -> None:
    found = list(services())
    assert len(found) == 5
    for side, service in found:
        assert service["image"] == f"wardround-{IMAGES[side]}:{VERSION}"
        assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001:10001", True, ["ALL"])
        assert {"no-new-privileges:true", "seccomp=seccomp.json"} == set(service["security_opt"])
        assert {"mem_limit", "cpus", "pids_limit", "tmpfs"} <= set(service)
        assert not {"privileged", "cap_add", "devices", "ipc"} & set(service)
        assert not [name for name in service["environment"] if SECRET.search(name) and not name.endswith("_FILE")]
        assert service.get("ports", []) == (["9443:9443", "9444:9444"] if service.get("ports") else [])
        assert side == "coordinator" or "ports" not in service
        options = hardening(service)
        assert {"--read-only", "--cap-drop=ALL", "--user=10001:10001"} <= set(options)
        assert f"--security-opt=seccomp={CONTAINERS / 'seccomp.json'}" in options


def test_only_the_container_that_sees_the_pacs_is_in_the_hospitals_network() -> None:
    site = yaml.safe_load((CONTAINERS / "site.yaml").read_text(encoding="utf-8"))["services"]
    assert {name: service.get("networks") for name, service in site.items()} == {
        "site": ["outside"],
        "dashboard": None,
        "pacs": ["hospital"],
    }
    assert site["site"]["volumes"][1].endswith(":/data:ro")


@pytest.mark.parametrize("side", IMAGES)
def test_quadlet_is_as_strict_as_the_compose_file(side: str) -> None:
    said = quadlet(side)
    assert {
        ("Image", f"localhost/wardround-{IMAGES[side]}:{VERSION}"),
        ("User", "10001"),
        ("ReadOnly", "true"),
        ("DropCapability", "all"),
        ("NoNewPrivileges", "true"),
    } <= set(said)
    service = next(service for where, service in services() if where == side)
    arguments = dict(said)["PodmanArgs"]
    assert f"--memory={service['mem_limit']} --cpus={service['cpus']} --pids-limit={service['pids_limit']}" in arguments
    assert ("Tmpfs", service["tmpfs"][0]) in said
    assert [value.partition("=")[0] for key, value in said if key == "Environment"] == list(service["environment"])
    assert json.loads(dict(said)["HealthCmd"])[-1] in RECIPE


@pytest.mark.parametrize("side", IMAGES)
def test_pod_is_kept_from_what_it_does_not_need(side: str) -> None:
    pod = manifests(side)["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    about = pod["securityContext"]
    assert (about["runAsNonRoot"], about["runAsUser"], about["seccompProfile"]["type"]) == (True, 10001, "Localhost")
    assert about["fsGroupChangePolicy"] == "OnRootMismatch"  # else every start would open the keys to the group
    for container in pod["containers"]:
        assert container["image"].endswith(f"/wardround-{IMAGES[side]}:{VERSION}")
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert not [one for one in container["env"] if SECRET.search(one["name"]) and not one["name"].endswith("_FILE")]
        # A coordinator that is away is no reason to start a site anew.
        assert container["livenessProbe"]["exec"]["command"][-1] == "--alive"
        assert container["readinessProbe"]["exec"]["command"][-1].endswith(".health")
        assert container["readinessProbe"]["exec"]["command"][-1] in RECIPE


def test_site_is_reached_by_nobody_and_reaches_the_coordinator_alone() -> None:
    policy = manifests("site")["NetworkPolicy"]["spec"]
    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
    ports = [[(port["port"], port["protocol"]) for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[(9443, "TCP"), (9444, "TCP")], [(53, "UDP"), (53, "TCP")]]
    assert all(rule["to"] for rule in policy["egress"])
    coordinator = manifests("coordinator")["NetworkPolicy"]["spec"]
    assert (coordinator["policyTypes"], coordinator["egress"]) == (["Ingress", "Egress"], [])


def test_chart_and_its_values_are_of_this_version_and_what_its_schema_takes() -> None:
    chart = yaml.safe_load((KUBERNETES / "chart/Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == VERSION
    schema = json.loads((KUBERNETES / "chart/values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((KUBERNETES / "chart/values.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(values)
    for side in IMAGES:
        changes = yaml.safe_load((KUBERNETES / f"{side}-values.yaml").read_text(encoding="utf-8"))
        jsonschema.Draft7Validator(schema).validate(values | changes)
    with pytest.raises(jsonschema.ValidationError, match="latest"):
        jsonschema.Draft7Validator(schema).validate(values | {"image": {"repository": "here", "tag": "latest"}})


def test_seccomp_profile_gives_the_worker_its_namespaces_and_no_others() -> None:
    """user, network and mount; a flag beyond these is refused, and so are the ways around."""
    rules = [rule for rule in SECCOMP["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    (unshare,) = [rule for rule in rules if "unshare" in rule["names"]]
    (mask,) = unshare["args"]
    assert (mask["op"], mask["valueTwo"]) == ("SCMP_CMP_MASKED_EQ", 0)
    user, network, mounts, pids, cgroups = 0x10000000, 0x40000000, 0x00020000, 0x20000000, 0x02000000
    assert [flags & mask["value"] == 0 for flags in (user | network, user | mounts, network, mounts)] == [True] * 4
    assert [flags & mask["value"] == 0 for flags in (pids, cgroups, user | pids)] == [False] * 3
    allowed = {name for rule in rules for name in rule["names"]}
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "mount", "setns"} <= allowed
    assert not {"clone3", "ptrace", "umount2", "pivot_root", "bpf", "keyctl", "fsmount", "kexec_load"} & allowed
    rules = [rule for rule in docker_like(SECCOMP)["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW"]
    assert allowed - {name for rule in rules for name in rule["names"]} == {"unshare", "mount", "setns"}

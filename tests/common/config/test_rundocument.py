"""A run is the text that was issued: whoever receives it finds its hash, and accepts no bundle that says two things."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fab_config

from common.config import RunConfig, canonical, parse
from common.config.bundle import MAX_BUNDLE_BYTES, build_bundle
from common.config.rundocument import from_bundle, from_file, from_text, from_toml, issue
from common.errors import ConfigError

RUN_TOML = """
# A comment, "quotes" and ümlauts survive.
name = "lesions"
[data]
modality = "CT"
classes = ["lesion"]
[training]
patch-size = [32, 32]
[federation]
rounds = 2
"""
RUN = parse(RunConfig, RUN_TOML)
BUNDLE = from_toml(RUN_TOML).bundle


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, compress_type=compression)
    return buffer.getvalue()


def members(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_document_is_issued_once_and_found_again_in_its_bundle_and_by_its_text(tmp_path: Path) -> None:
    issued = from_toml(RUN_TOML)
    assert issued.config == RUN
    assert issued.hash == hashlib.sha256(issued.text.encode()).hexdigest()
    assert from_bundle(issued.bundle) == issued
    (tmp_path / "run.toml").write_text(RUN_TOML, encoding="utf-8")
    assert from_file(tmp_path / "run.toml") == issued
    alone = from_text(issued.text)
    assert (alone.text, alone.config, alone.hash, alone.bundle) == (issued.text, RUN, issued.hash, b"")
    assert issue(RUN) == alone


def test_what_is_hashed_is_the_text_that_came_and_none_that_is_made_anew() -> None:
    """Another version may write the same run in other words; it is the same run on both sides all the same."""
    values = json.loads(issue(RUN).text)
    text = json.dumps(values, indent=1)
    assert text != canonical(RUN)
    received = from_bundle(build_bundle("lesions", text, RUN_TOML))
    assert received.config == RUN
    assert received.text == text
    assert received.hash == hashlib.sha256(text.encode()).hexdigest()


def test_a_text_that_two_readers_could_understand_in_two_ways_is_refused() -> None:
    text = issue(RUN).text.replace('"seed":0', '"seed":1,"seed":0')
    with pytest.raises(ConfigError, match="not valid JSON"):
        from_text(text)


def test_a_bundle_of_a_later_format_is_refused_as_that() -> None:
    later = RunConfig.LATEST + 1
    text = json.dumps({"format": later, "name": "lesions", "quantum": True})
    said = f"this run is of format {later}, this version reads up to {RunConfig.LATEST}: update wardround"
    with pytest.raises(ConfigError, match=said):
        from_bundle(build_bundle("lesions", text, f"format = {later}\nquantum = true"))


def test_the_same_run_gives_the_same_bundle() -> None:
    assert from_toml(RUN_TOML).bundle == from_toml(RUN_TOML).bundle


def test_bundle_carries_the_run_and_no_code() -> None:
    assert set(members(BUNDLE)) == {"pyproject.toml", "run.toml", ".info/CONTENT"}
    assert members(BUNDLE)["run.toml"].decode() == RUN_TOML


def test_flower_reads_the_same_run_from_the_bundle() -> None:
    config = get_fab_config(BUNDLE)["tool"]["flwr"]["app"]
    assert config["config"]["run"] == canonical(RUN)
    assert config["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}


def test_flower_installs_the_bundle(tmp_path: Path) -> None:
    folder = install_from_fab(BUNDLE, tmp_path, skip_prompt=True)
    assert {path.name for path in folder.rglob("*")} == {"pyproject.toml", "run.toml"}


@pytest.mark.parametrize(
    "name", ["client/train/answer.py", "sitecustomize.py", "../evil.py", "/etc/cron.d/evil", "run.toml/x"]
)
def test_bundle_with_another_member_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="holds more than"):
        from_bundle(archive(members(BUNDLE) | {name: b"import os"}))


def test_bundle_whose_two_documents_disagree_is_refused() -> None:
    text = issue(RUN).text
    for name, other, toml in (
        ("lesions", text.replace('"rounds":2', '"rounds":9'), RUN_TOML),
        ("lesions", text, RUN_TOML.replace("rounds = 2", "rounds = 9")),
        ("others", text, RUN_TOML),
    ):
        with pytest.raises(ConfigError, match="do not agree"):
            from_bundle(build_bundle(name, other, toml))


def test_compressed_bundle_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds more than"):
        from_bundle(archive(members(BUNDLE), zipfile.ZIP_DEFLATED))


def test_zip_bomb_is_refused_without_unpacking_it() -> None:
    bomb = archive({"run.toml": b"#" * 50_000_000, "pyproject.toml": b"#" * 50_000_000}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2 * MAX_BUNDLE_BYTES
    with pytest.raises(ConfigError):
        from_bundle(bomb)
    with pytest.raises(ConfigError):
        from_bundle(archive({"run.toml": b"#" * 50_000_000}, zipfile.ZIP_DEFLATED))


def test_large_bundle_is_neither_built_nor_read() -> None:
    with pytest.raises(ConfigError, match=r"Shorten run\.toml"):
        from_toml(RUN_TOML + "#" * MAX_BUNDLE_BYTES)
    with pytest.raises(ConfigError, match="are allowed"):
        from_bundle(b"0" * (MAX_BUNDLE_BYTES + 1))


@pytest.mark.parametrize("position", range(0, 1400, 37))
def test_no_altered_byte_goes_unnoticed(position: int) -> None:
    bundle = bytearray(BUNDLE)
    bundle[position % len(bundle)] ^= 1
    with pytest.raises(ConfigError):
        from_bundle(bytes(bundle))


def test_bytes_before_or_after_the_archive_are_refused() -> None:
    for padded in (b"#!/bin/sh\n" + BUNDLE, BUNDLE + b"tail"):
        with pytest.raises(ConfigError):
            from_bundle(padded)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip", archive({"run.toml": b"", "pyproject.toml": b"[project"})])
def test_other_bytes_are_no_bundle(data: bytes) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        from_bundle(data)


@pytest.mark.parametrize("run", ["1", '["a"]', '"\\u00e9"'])
def test_a_project_that_carries_no_text_of_a_run_is_refused(run: str) -> None:
    project = f'[project]\nname = "a"\n[tool.flwr.app.config]\nrun = {run}\n'
    with pytest.raises(ConfigError, match="does not carry a run"):
        from_bundle(archive({"run.toml": b"", "pyproject.toml": project.encode()}))

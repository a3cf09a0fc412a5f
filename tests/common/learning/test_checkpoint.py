"""Weights as bytes and models on disk: exact, deterministic, and refused when damaged."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.config import RunConfig, canonical, sha256_of
from common.crypto.stream import Sealer
from common.errors import ConfigError, UpdateError
from common.learning.checkpoint import Manifest, load_model, pack, save_model, sha256, unpack
from tests import ROOT

RUN = RunConfig.model_validate(
    {
        "name": "test",
        "data": {"modality": "CT", "classes": ("lesion",)},
        "training": {"patch_size": (16, 16)},
        "federation": {"rounds": 1},
    }
)
STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3.0), "c": torch.zeros(0, 4)}


def make_manifest(weights: bytes) -> Manifest:
    return Manifest(canonical(RUN), sha256_of(RUN), 3, ("a", "b"), sha256(weights), None, {"dice": 0.5})


def saved(folder: Path) -> Path:
    weights = pack(STATE)
    save_model(folder, weights, make_manifest(weights))
    return folder


def test_unpack_restores_every_tensor() -> None:
    restored = unpack(pack(STATE))
    assert list(restored) == ["a", "b", "c"]
    assert all(torch.equal(restored[name], STATE[name]) for name in STATE)


def test_other_safetensors_readers_agree() -> None:
    assert torch.equal(safetensors.torch.load(pack(STATE))["b"], STATE["b"])


def test_order_strides_and_gradients_do_not_change_the_bytes() -> None:
    weights = torch.rand(2, 3, 4, 5)
    strided = weights.to(memory_format=torch.channels_last).requires_grad_()
    assert pack({"x": weights, "y": STATE["b"]}) == pack({"y": STATE["b"], "x": strided})


def test_another_process_packs_the_same_bytes() -> None:
    program = (
        "import torch; from common.learning.checkpoint import pack, sha256;"
        "print(sha256(pack({name: torch.arange(4.0) for name in 'hgfedcba'})))"
    )
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    prints = {
        subprocess.run([sys.executable, "-c", program], env=env, cwd=ROOT, check=True, capture_output=True).stdout
        for env in seeds
    }
    assert len(prints) == 1


@given(st.binary(max_size=200))
def test_bytes_from_elsewhere_are_refused_or_read_but_never_crash(data: bytes) -> None:
    with contextlib.suppress(UpdateError):
        unpack(data)


@pytest.mark.parametrize("header", [{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, {"a": 1}, []])
def test_strange_headers_are_refused(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(UpdateError, match="safetensors"):
        unpack(len(text).to_bytes(8, "little") + text + b"\0")


def test_truncated_weights_are_refused() -> None:
    with pytest.raises(UpdateError):
        unpack(pack(STATE)[:-1])


def test_sha256_is_that_of_the_bytes() -> None:
    assert sha256(b"ward") == hashlib.sha256(b"ward").hexdigest()


def test_a_saved_model_is_loaded_from_folder_and_from_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "new" / "model")
    for path in (folder, folder / "model.safetensors"):
        run, state, manifest = load_model(path)
        assert run == RUN
        assert torch.equal(state["b"], STATE["b"])
        assert manifest == make_manifest(pack(STATE))
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        load_model(tmp_path)


def test_a_sealed_model_opens_for_its_sealer_alone(tmp_path: Path) -> None:
    sealer, weights = Sealer(bytes(32)).at("run 7"), pack(STATE)
    save_model(tmp_path, weights, make_manifest(weights), sealer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json.sealed", "model.safetensors.sealed"]
    assert not any(
        weights[-24:] in path.read_bytes() or b"run_hash" in path.read_bytes() for path in tmp_path.iterdir()
    )
    _, state, manifest = load_model(tmp_path, sealer)
    assert torch.equal(state["b"], STATE["b"])
    assert manifest == make_manifest(weights)
    with pytest.raises(ConfigError, match="does not open"):
        load_model(tmp_path, Sealer(bytes(32)).at("run 8"))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ConfigError, match=r"is sealed.*`wardround-server export`"):
            load_model(path)


def test_weights_do_not_open_as_the_manifest(tmp_path: Path) -> None:
    sealer, weights = Sealer(bytes(32)), pack(STATE)
    save_model(tmp_path, weights, make_manifest(weights), sealer)
    (tmp_path / "model.safetensors.sealed").replace(tmp_path / "model.json.sealed")
    with pytest.raises(ConfigError, match=r"model\.json does not open"):
        load_model(tmp_path, sealer)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sites": 3}', '{"sites": [], "extra": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (saved(tmp_path) / "model.json").write_text(text)
    with pytest.raises(ConfigError, match="manifest"):
        load_model(tmp_path)


def test_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ConfigError, match="format 2"):
        load_model(tmp_path)


def test_a_missing_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        load_model(tmp_path / "nothing.safetensors")


def test_a_manifest_of_other_weights_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sha256"):
        save_model(tmp_path, pack(STATE), make_manifest(b"other"))
    assert not list(tmp_path.iterdir())

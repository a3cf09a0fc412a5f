"""Pretraining on generated images: the public start of a private run.

Differential privacy pays for every step on patients, so a private run should begin where images that no patient stands
behind can bring it. They are written as an ordinary archive, one site trains on them by the scenario's own network and
preprocessing, without privacy, and the resulting weights are named in the run by their SHA-256 ([initial] in run.toml)
together with the statement of why they are public.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from common.config import (
    Device,
    InitialConfig,
    RunConfig,
    SiteConfig,
    SourceConfig,
    TrainingConfig,
    sha256_of,
    validate,
)
from common.config.rundocument import issue
from common.learning.checkpoint import MANIFEST_NAME, load_model, pack, sha256
from common.strategies import STRATEGY_CHOICE
from common.system.files import write_atomically
from server.federation.events import INITIAL_NAME
from server.federation.rounds import federate
from simulations.backends import opened
from simulations.generators.hippocampi import write_hippocampi
from simulations.generators.mammograms import write_mammograms
from simulations.generators.retina import write_retinas
from simulations.scenarios.pretraining_settings import PretrainingConfig


class _Writer(Protocol):
    def __call__(
        self, folder: Path, *, count: int, seed: int, progress: Callable[[int, int], None] | None = None
    ) -> None: ...


_WRITERS: dict[str, tuple[_Writer, Literal["nifti", "images"]]] = {
    "hippocampi": (write_hippocampi, "nifti"),
    "mammograms": (write_mammograms, "images"),
    "retinas": (write_retinas, "images"),
}


def public_run(
    run: RunConfig, training: TrainingConfig | None, rounds: int, initial: InitialConfig | None = None
) -> RunConfig:
    """The run that pretrains for a scenario's run, on one site without privacy."""
    values = run.model_dump(by_alias=True)
    values |= {"name": f"{run.name}-public", "privacy": None, "initial": initial, "strategy": STRATEGY_CHOICE.default()}
    values["federation"] |= {
        "rounds": rounds, "quorum": 1, "evaluate-every": rounds, "weighting": None, "averaging": 0.0,
        "keep": "last", "patience": None,
    }  # fmt: skip
    values["data"] |= {"validation-fraction": 0.0, "test-fraction": 0.1, "folds": None, "fold": 0}
    values["training"] = (training or run.training).model_dump(by_alias=True) | {"trainable": "all"}
    return validate(RunConfig, values, "[pretraining]")


def pretrain(
    run: RunConfig,
    config: PretrainingConfig,
    out: Path,
    *,
    published: SourceConfig | None = None,
    device: Device = "auto",
    observe: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[bytes, InitialConfig]:
    """Train on generated images, and on published ones if there are; what is found finished in `out` stays.

    Args:
        run: the scenario's; its model, data, preprocessing and seed are used.
        config: the [pretraining] table.
        out: receives the images, the sites' homes and the models.
        published: images of patients who are at no site.
        device: where to train.
        observe: told what goes on, see `federate`.

    Returns:
        The weights, and what a run that starts from them says of them.
    """
    name = f"{config.images}-{config.patients}-{config.seed}"
    _, kind = _WRITERS[config.images]
    images = SourceConfig(path=str((out / name).absolute()), kind=kind)
    if not (out / name / ".complete").exists():
        _WRITERS[config.images][0](out / name, count=config.patients, seed=config.seed)
        write_atomically(out / name / ".complete", b"")
    public = f"trained on {config.patients} generated images ({config.images}, seed {config.seed})"
    weights = _trained(
        public_run(run, config.training, config.rounds), images, name, out, device=device, observe=observe
    )
    if published is not None and config.published_rounds:
        start = InitialConfig(sha256=sha256(weights), public=public)
        second = public_run(run, None, config.published_rounds, start)
        weights = _trained(
            second,
            published,
            f"published-{sha256_of(published)[:8]}",
            out,
            device=device,
            observe=observe,
            start=weights,
        )
        public += f", then on {len(published.patients)} patients of a published archive, who are at no site"
    else:
        public += ", behind which no patient stands"
    return weights, InitialConfig(sha256=sha256(weights), public=public)


def _trained(
    public: RunConfig,
    source: SourceConfig,
    name: str,
    out: Path,
    *,
    device: Device,
    observe: Callable[[dict[str, Any]], None] | None,
    start: bytes | None = None,
) -> bytes:
    from simulations.scenarios.homes import make_site  # noqa: PLC0415 - heavy

    # Which images there are is not in the run's hash.
    document = issue(public)
    folder = out / f"model-{name}-{document.hash[:8]}"
    if not (folder / MANIFEST_NAME).exists():
        if start is not None:
            write_atomically(folder / INITIAL_NAME, start)
        site = make_site(out / "sites", SiteConfig(name=name, data=(source,), device=device))
        with opened([site], document) as grid:
            federate(grid, document, folder, observe=observe)
    # Checked against its manifest: a run will say of these weights what they were trained on.
    _, state, _ = load_model(folder)
    return pack(state)


__all__ = ["PretrainingConfig", "pretrain", "public_run"]

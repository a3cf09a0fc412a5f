"""The last `data check` in numbers: how many studies are usable, and why the others are not. No study stands here."""

import datetime
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.home.folder import CHECK_NAME
from common.errors import ConfigError

_REPORT = "report.json"


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    at: datetime.datetime
    run: str | None  # as which run reads the data; None: as they are
    counts: Mapping[str, int]  # usable, quarantined, ignored, patients, without-foreground
    set_aside: Mapping[str, int]  # studies by code
    classes: tuple[tuple[str, int], ...]  # studies that show each; a label's free name is a number
    images: tuple[tuple[str, int], ...]  # studies of each modality


def checked(home: Path) -> Checked | None:
    """The last check; None: there was none.

    Raises:
        ConfigError: its report cannot be read.
    """
    path = home / CHECK_NAME / _REPORT
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        return Checked(
            at=datetime.datetime.fromisoformat(told["checked"]),
            run=None if told["run"] is None else str(told["run"]["name"]),
            counts={str(name): int(count) for name, count in told["counts"].items()},
            set_aside=Counter(str(study["code"]) for study in told["studies"] if study.get("code")),
            classes=tuple((str(one["class"]), int(one["studies"])) for one in told["classes"]),
            images=tuple((str(one["modality"] or "unknown"), int(one["studies"])) for one in told["images"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read. Make it anew with `wardround-client data check`.") from error


__all__ = ["Checked", "checked"]

"""Windows of CT by name: the part of the Hounsfield scale that radiologists look at a tissue through.

A window has a level, its middle, and a width, both in HU; `window_of` gives its ends. Values as commonly published:
Murphy and Baba, Windowing (CT), Radiopaedia.org, rID 52108.
"""

import difflib

# Level and width, in HU.
WINDOWS: dict[str, tuple[float, float]] = {
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (40, 40),
    "temporal-bone": (600, 2800),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft-tissue": (50, 400),
    "liver": (30, 150),
    "spine": (50, 250),
    "bone": (400, 1800),
}


def window_of(name: str) -> tuple[float, float]:
    """The lowest and the highest value of a window, in HU.

    Raises:
        ValueError: there is none of this name; the nearest is said.
    """
    if name in WINDOWS:
        level, width = WINDOWS[name]
        return level - width / 2, level + width / 2
    near = difflib.get_close_matches(name, WINDOWS, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no window {name[:40]!r}; there are {', '.join(WINDOWS)}, and [low, high]{hint}")


__all__ = ["WINDOWS", "window_of"]

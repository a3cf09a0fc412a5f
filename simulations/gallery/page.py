"""A gallery's page: Markdown with a heading, a sentence, settings and a picture for each entry."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from common.system.files import write_atomically

_HEAD = """\
# Gallery

What a run may ask for, on generated images: no patient is shown. Left as it was, right as it is then; outlines are
labels. Wardround draws this page and its pictures itself:

```
wardround-sim gallery --out docs/gallery
```

What the steps make of a hospital's own studies shows `wardround-client data preview`.
"""
# Where the page of the docs goes on in somebody's own words.
BY_HAND = "<!-- What follows is written by hand, and stays when the rest is drawn anew. -->"
# Colours of a picture: enough for greys and outlines, at half the size.
_COLOURS = 64


@dataclass(frozen=True)
class Entry:
    """One picture. name: small letters and hyphens, once in a gallery. says: a sentence. settings: as in run.toml."""

    name: str
    says: str
    settings: str
    picture: Image.Image = field(repr=False)


def write_gallery(
    folder: Path,
    sections: Mapping[str, Callable[[], Iterable[Entry]]],
    *,
    progress: Callable[[int, str], None] = lambda _done, _what: None,
) -> Path:
    """Draw all sections.

    Args:
        folder: receives the pictures; the page lies beside it, with the folder's name. What was written by hand at its
            end stays.
        sections: heading and entries of each.
        progress: called with (sections done, the next one's heading).

    Returns:
        The page.
    """
    parts = [_HEAD]
    for done, (heading, entries) in enumerate(sections.items()):
        progress(done, heading)
        parts.append(f"\n## {heading}\n")
        for entry in entries():
            write_atomically(folder / f"{entry.name}.png", _png(entry.picture))
            parts.append(_shown(entry, folder.name))
    progress(len(sections), "")
    page = folder.with_name(f"{folder.name}.md")
    written = page.read_text(encoding="utf-8") if page.is_file() else ""
    _, mark, own = written.partition(f"\n{BY_HAND}\n")
    write_atomically(page, "".join([*parts, mark, own]).encode())
    return page


def _shown(entry: Entry, folder: str) -> str:
    settings = f"\n```toml\n{entry.settings}\n```\n" if entry.settings else ""
    return f"\n### {entry.name}\n\n{entry.says}\n{settings}\n![{entry.name}]({folder}/{entry.name}.png)\n"


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


__all__ = ["BY_HAND", "Entry", "write_gallery"]

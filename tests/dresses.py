"""Where a text stands in files, in the clear or in a thin dress: hex, base64, UTF-16."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path


def found_in(words: Iterable[str | bytes], files: Iterable[Path]) -> list[tuple[str, str]]:
    """(file name, word) for each word that stands in a file or its name."""
    content = {path.name: path.name.encode() + b"\n" + path.read_bytes() for path in files}
    wanted = {str(word): tuple(dressed(word)) for word in words}
    return [
        (name, word)
        for name, data in content.items()
        for word, dresses in wanted.items()
        if any(dress in data for dress in dresses)
    ]


def dressed(word: str | bytes) -> Iterator[bytes]:
    """The bytes to look for."""
    data = word.encode() if isinstance(word, str) else word
    yield from (data, data.hex().encode(), data.hex().upper().encode())
    if isinstance(word, str):
        yield from (word.encode("utf-16-le"), word.encode("utf-16-be"), word.upper().encode())
    for shift in range(3):
        # What follows from the word alone, however it falls into groups of three bytes; the edges mix with neighbours.
        inner = data[(3 - shift) % 3 :]
        whole = inner[: len(inner) // 3 * 3]
        for code in (base64.b64encode, base64.urlsafe_b64encode):
            if whole:
                yield code(whole)

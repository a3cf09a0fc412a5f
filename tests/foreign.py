"""Text as a stranger would write it to forge what a person reads, and the property that what is shown must have."""

import json
import re
import unicodedata
from html.parser import HTMLParser

MARK = "zebra"  # stands in every one, so that a test sees that the text was shown at all
FOREIGN = {
    "markup": f"[bold red]{MARK}[/b] [link=https://evil.example]here[/link] :skull:",
    "ansi": f"\x1b[2J\x1b[1;1H\x1b]8;;https://evil.example\x1b\\{MARK}\x1b]8;;\x07\x1b[31m",
    "c0": f"{MARK}\r\x08\x08\x00\x07\x0b\x0c\x1c\x7f",
    "c1": f"{MARK}\x9b2J\x85\x90q\x9c",
    "bidi": f"\u202e{MARK}\u202d\u2066\u2067\u2068\u2069\u061c\u200e\u200f",
    "zero width": f"{MARK}\u200b\u200c\u200d\ufeff\u2060\u00ad\u180e\u3164\u115f\ufe0f\U000e0041",
    "newlines": f"{MARK}\nerror: forged\r\nAll is well.\u2028\u2029\x85policy   allows",
    "boxes": f"{MARK} \u2502 policy \u2502 allows \u2502 \u2503",
    "spaces": f"{MARK}\u00a0\u2003\u202f\u3000x",
    "marks": f"{MARK}{chr(0x336) * 40}",
    "html": f"<script>{MARK}</script><b onclick='x'>\"&amp;",
    "surrogate": f"{MARK}\udc9b\ud800",
}


def hidden(text: str, *, boxes: bool = False) -> list[str]:
    """The signs of a text that a terminal obeys or that nobody sees; line feeds, which we write ourselves, left out.

    Args:
        text: what was written.
        boxes: box drawings count too; not where a table of ours was drawn.
    """
    bad = []
    run = 0
    for sign in text.replace("\n", ""):
        kind = unicodedata.category(sign)
        run = run + 1 if kind in ("Mn", "Me") else 0
        is_blank = sign in "\u3164\u115f\u1160\uffa0\u2800\u034f\ufe0f" or run > 8
        is_box = boxes and "\u2500" <= sign <= "\u257f"
        if kind[0] == "C" or (kind[0] == "Z" and sign != " ") or is_blank or is_box:
            bad.append(f"U+{ord(sign):04X}")
    return bad


class Page(HTMLParser):
    """The text of a page, and the names of its elements and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {tag, *(name for name, _ in attrs)}
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


# All of them together, without what neither TOML nor a file name can hold.
ALL = " ".join(text.replace("\x00", "") for name, text in FOREIGN.items() if name != "surrogate")
# The same as a TOML string.
QUOTED = json.dumps(ALL, ensure_ascii=False).replace("\x7f", "\\u007f")


def assert_plain(output: str) -> None:
    """What a command printed is lines of visible signs, and the foreign text is among them, with its markup unread."""
    assert hidden(output) == []
    flat = "".join(re.sub(r"[│┃]", " ", output).split())  # a table folds long text
    assert MARK in flat, output
    forged = ("error: forged", "All is well.", "policy   allows")
    assert not any(line.strip().startswith(forged) for line in output.split("\n"))

"""The site is built without a warning, has every page, and a browser that reads it asks nobody else for anything."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import ROOT

CONFIG = ROOT / "deploy" / "site" / "mkdocs.yml"
# What a browser fetches by itself when it shows a page; links that a person follows are another matter.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


class Fetched(HTMLParser):
    """What a page has its browser fetch, and the policy that it gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.policy = ""
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.classes.update(given.get("class", "").split())
        if tag in FETCHED and FETCHED[tag] in given:
            self.addresses.append(given[FETCHED[tag]])
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(CONFIG),
        "--site-dir",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_built_and_found_by_its_name(site: Path) -> None:
    """That each is in the navigation, and each link and anchor is there, a strict build asks for itself."""
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert pages <= built
    assert Path("changes.html") in built
    index = (site / "index.html").read_text(encoding="utf-8")
    assert [str(page) for page in pages if f'href="{page}"' not in index and page != Path("index.html")] == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Fetched()
        page.feed(path.read_text(encoding="utf-8"))
        assert [one for one in page.addresses if re.match(r"(?:[a-z]+:)?//", one)] == [], path
        assert page.policy.startswith("default-src 'self'"), path
        assert "mermaid" not in page.classes, path
    for path in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path
    (bundle,) = site.glob("assets/javascripts/bundle.*.js")
    assert "unpkg.com/mermaid" not in bundle.read_text(encoding="utf-8")


def test_anchors_are_those_of_a_page_on_github(site: Path) -> None:
    """A link to a heading is the same in both places."""
    assert 'id="who-sees-what"' in (site / "concepts.html").read_text(encoding="utf-8")
    assert 'id="trainingaugmentation"' in (site / "run.html").read_text(encoding="utf-8")

"""What the site needs beside mkdocs.yml: anchors as GitHub makes them, the changelog as a page, nothing from elsewhere.

mkdocs calls these functions by their names. The theme carries one address of another host, of a library for diagrams
that it would fetch for a page with one; our pages have none, and the address goes.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

CHANGES = "changes.md"
ELSEWHERE = re.compile(r"https://unpkg\.com/mermaid@[\w./-]+")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors of headings like GitHub's, so that one link does for both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The changelog lies beside docs/, where people look for it, and is a page of the site."""
    text = (Path(config.docs_dir).parent / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, CHANGES, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link to the changelog leads to its page."""
    del config, files
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+CHANGELOG\.md", f"]({up}{CHANGES}", markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Take the theme's address of another host out of its script."""
    bundles = list(Path(config.site_dir).glob("assets/javascripts/bundle.*.js"))
    for bundle in bundles:
        text, count = ELSEWHERE.subn("", bundle.read_text(encoding="utf-8"))
        if count:
            bundle.write_text(text, encoding="utf-8")
    if not bundles:
        raise PluginError("The theme's script is not where it was: see whether it still names another host.")

"""Run documents for tests that need no real bundle."""

from dataclasses import replace

from common.config import RunConfig
from common.config.rundocument import RunDocument, issue


def carried(config: RunConfig, bundle: bytes = b"bundle") -> RunDocument:
    """A document as if these bytes had carried it."""
    return replace(issue(config), bundle=bundle)

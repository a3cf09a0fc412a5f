"""The version of a coordinator's home: see common/rescue/migration.py, which says what that is and how it grows."""

from common.rescue.migration import HomeVersions, Step

# From each version to the next; the number of steps is the version that this program works with.
STEPS = (Step("it says its version from now on", (), lambda _home: None),)

VERSIONS = HomeVersions(side="coordinator", program="wardround-server", busy="launcher.lock", steps=STEPS)

__all__ = ["STEPS", "VERSIONS"]

"""Whose studies are in memory: of the sites that worked last, as many as fit.

Opening a site again reads its encrypted cache, which costs a twentieth of a second for 30 MB; memory does not grow with
the number of sites.
"""

from pathlib import Path

from client.site import Site
from common.console.machine import total_memory

# Bytes of images and labels in one process; those of the site at work stay, however many they are.
MOST_BYTES = 2 << 30
# Beside its images a site has tables of its studies, which count too where there are thousands of small ones.
MOST_SITES = 64
_SHARE = 4  # of the machine's memory: a quarter, for all processes together


def share_of_memory(processes: int) -> int:
    """Bytes of studies that each of so many processes may hold."""
    return min(MOST_BYTES, total_memory() // _SHARE // processes)


class OpenSites:
    """The sites of one process whose studies are in memory, the one that worked last at the end."""

    def __init__(self, most_bytes: int, most_sites: int = MOST_SITES) -> None:
        self._most, self._most_sites = most_bytes, most_sites
        self._sites: dict[Path, tuple[Site, int]] = {}  # with the bytes of its studies

    def used(self, site: Site) -> None:
        """Note that a site has worked, and let go of those that worked longest ago until all fit."""
        self._sites.pop(site.home, None)
        self._sites[site.home] = (site, site.held_bytes)
        total = sum(size for _, size in self._sites.values())
        for home in list(self._sites)[:-1]:
            if total <= self._most and len(self._sites) <= self._most_sites:
                break
            other, size = self._sites.pop(home)
            other.let_go()
            total -= size


__all__ = ["MOST_BYTES", "MOST_SITES", "OpenSites", "share_of_memory"]

"""Pictures for the documentation, of what a run may ask for, on generated images: a section a file, and one line here.

A section is a function that gives its entries; `page` writes their pictures and the page that shows them. Imports what
it shows, and `simulations.generators`.
"""

from collections.abc import Callable, Iterable, Mapping

from simulations.gallery.page import Entry
from simulations.gallery.steps import intensities, steps

# Heading, and what stands below it.
SECTIONS: Mapping[str, Callable[[], Iterable[Entry]]] = {
    "Preparation: axes, spacing and intensities": intensities,
    "Preparation: steps": steps,
}

__all__ = ["SECTIONS", "Entry"]

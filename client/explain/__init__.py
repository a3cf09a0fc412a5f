"""Why a model answers as it does: maps of what its answer depends on, one method a file, and one line in `METHODS`.

Every method answers a `Subject` with maps on the preprocessed grid, one a class; `explanation.py` chooses what is
asked, takes the maps back to the study's own grid, and asks the same of networks with random weights (`sanity.py`).
Imports `client.predict`, `client.data` and `common`; nothing of a site's home, no key and no network.
"""

from client.explain import attention, grad_cam, integrated_gradients, occlusion, uncertainty
from client.explain.method import Method

METHODS: tuple[Method, ...] = (
    grad_cam.METHOD,
    occlusion.METHOD,
    integrated_gradients.METHOD,
    attention.METHOD,
    uncertainty.DROPOUT,
    uncertainty.ENSEMBLE,
)  # fmt: skip

__all__ = ["METHODS", "Method"]

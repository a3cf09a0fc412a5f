"""The model's part of an update as it travels: see [federation] update-precision, and `common.wire.encoding`.

Where moves are rounded, the site keeps what rounding took from them, the residual, and adds it to its next update: so
nothing is lost for good, and what is too small for a step adds up until it is one ("error feedback": Seide et al.,
Interspeech 2014; Karimireddy et al., ICML 2019). Rounding draws nothing: a round that is trained again from the same
residual gives the same bytes.

What rounding took is what the coordinator has less: it adds what it reads to float32 weights, and that sum is rounded
once more, by as much as a move where moves are as small as the last place of a weight.

A residual is made of the weights that would leave as float32, of models that were received, and of the residual
before. In a private run such weights are made by private steps, so all of this is computed from what they release, and
costs no privacy. Of an update that is lost, late or refused the site is told nothing here: what it carried is lost as
float32 weights would be, and what rounding took from it goes into the next one all the same. Where a strategy lets a
site go on from weights of its own, each update says anew where these are: nothing is kept, as nothing is lost.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from client.site import Site
from client.train.memory import recall_from, residuals_folder, retain_in
from client.train.strategies import Kept, State
from common.config.rundocument import RunDocument
from common.errors import ErrorCode, UpdateError
from common.learning.checkpoint import pack, unpack
from common.wire.encoding import encode, weights_of
from common.wire.messages import TrainRequest

_RESIDUAL = "residual"  # the only part of what is kept


def model_part(weights: State, request: TrainRequest, document: RunDocument, site: Site) -> bytes:
    """The weights of an update as bytes, in the precision of the run.

    Args:
        weights: that the site would send.
        request: whose round it is, with the model that it was sent.
        document: the run.
        site: the hospital; a residual is kept there, sealed.

    Raises:
        UpdateError: NOT_FINITE, a weight moved by more than can be told, or is not finite where it is read.
    """
    run = document.config
    encoding = run.federation.update_precision
    if encoding == "float32":
        return pack(weights)
    start = unpack(request.parts[run.strategy.MODEL])
    moves = {name: one.detach().cpu() - start[name] for name, one in weights.items()}
    folder, goes_on = residuals_folder(site, document), not run.strategy.OWN_START
    if goes_on and (kept := recall_from(folder, site, request.round)) is not None:
        moves = {name: one + kept.states[_RESIDUAL][name] for name, one in moves.items()}
    part = encode(_arrays(moves), encoding)
    read = {name: torch.from_numpy(one) for name, one in weights_of(part, _arrays(start), encoding).items()}
    if not all(bool(one.isfinite().all()) for one in read.values()):
        raise UpdateError("the update makes weights that are infinite. Lower the learning rate.", ErrorCode.NOT_FINITE)
    if not goes_on:
        return part
    residual = {name: one - (read[name] - start[name]) for name, one in moves.items()}
    retain_in(folder, site, Kept(request.round, {_RESIDUAL: residual}), wanted=request.round < run.federation.rounds)
    return part


def _arrays(moves: State) -> dict[str, NDArray[np.float32]]:
    return {name: one.numpy() for name, one in moves.items()}


__all__ = ["model_part"]

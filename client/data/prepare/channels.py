"""As many channels as the run has: colour to grey by brightness, grey to three equal channels."""

from dataclasses import replace

import numpy as np

from client.data.prepare.step import Geometry, Image, Label, Step
from common.config import RunConfig
from common.errors import DataError, ErrorCode

# ITU-R BT.601: brightness of red, green, blue.
_LUMINANCE = (0.299, 0.587, 0.114)


class Channels(Step):
    """[data] channels."""

    name = "channels"
    always = True

    def refuse(self, before: Geometry, run: RunConfig) -> DataError | None:
        """Neither grey nor in colour."""
        given, wanted = before.channels, run.data.channels
        if given in (wanted, 1) or (given, wanted) == (3, 1):
            return None
        return DataError(f"the image has {given} channels; expected {wanted}. Convert it.", ErrorCode.UNSUPPORTED)

    def after(self, before: Geometry, run: RunConfig) -> Geometry:
        """The channels that the run has."""
        return replace(before, channels=run.data.channels)

    def apply(self, image: Image, label: Label | None, before: Geometry, run: RunConfig) -> tuple[Image, Label | None]:
        """The label stays."""
        given, wanted = before.channels, run.data.channels
        if given == wanted:
            return image, label
        if given == 1:
            return np.broadcast_to(image, (wanted, *image.shape[1:])), label
        import torch  # noqa: PLC0415 - heavy

        weights = torch.tensor(_LUMINANCE).view(3, *[1] * (image.ndim - 1))
        grey: Image = (weights * torch.from_numpy(image)).sum(dim=0, keepdim=True).numpy()
        return grey, label


__all__ = ["Channels"]

"""As many channels as the run has: colour to grey by brightness, grey to three equal channels."""

from dataclasses import dataclass, replace

import numpy as np

from common.config import RunConfig
from common.errors import DataError, ErrorCode
from common.preparation import Change, Geometry, Voxels

# ITU-R BT.601: brightness of red, green, blue.
_LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Channels(Change):
    """[data] channels."""

    run: RunConfig

    def refuse(self, before: Geometry) -> DataError | None:
        """Neither grey nor in colour; three channels of a CT or MR volume are no colours."""
        given, wanted = before.channels, self.run.data.channels
        coloured = self.run.data.modality not in ("CT", "MR") or before.spacing_mm is None
        if given in (wanted, 1) or (given, wanted, coloured) == (3, 1, True):
            return None
        return DataError(
            f"the image has {given} channels; expected {wanted}. Convert it; of a site's data the one to use may be "
            "named with channel in site.toml.",
            ErrorCode.UNSUPPORTED,
        )

    def after(self, before: Geometry) -> Geometry:
        """The channels that the run has."""
        return replace(before, channels=self.run.data.channels)

    def apply(self, voxels: Voxels, before: Geometry) -> Voxels:
        """The label stays."""
        given, wanted, image = before.channels, self.run.data.channels, voxels.image
        if given == wanted:
            return voxels
        if given == 1:
            return replace(voxels, image=np.broadcast_to(image, (wanted, *image.shape[1:])))
        import torch  # noqa: PLC0415 - heavy

        weights = torch.tensor(_LUMINANCE).view(3, *[1] * (image.ndim - 1))
        return replace(voxels, image=(weights * torch.from_numpy(image)).sum(dim=0, keepdim=True).numpy())


__all__ = ["Channels"]

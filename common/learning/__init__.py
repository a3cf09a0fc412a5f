"""What training and prediction share: the network of a run, transforms, inference, checkpoints, schedule."""

import common.models  # noqa: F401 - before MONAI, see `common.models.trimmed`

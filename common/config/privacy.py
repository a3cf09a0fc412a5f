"""[privacy] of run.toml: differential privacy for a patient, by clipping and noise (Abadi et al., CCS 2016)."""

from typing import Annotated

from pydantic import Field

from common.config.crops import Crops
from common.document.table import Positive, Table


class AdaptiveClippingConfig(Table):
    """Let the clipping norm follow a quantile of the patients' gradient norms (Andrew et al., NeurIPS 2021)."""

    # Share of the sampled patients whose gradient should stay below the norm.
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    # The norm is multiplied by exp(-learning-rate * (measured share - quantile)) after each step.
    learning_rate: Positive = 0.2
    # Standard deviation of the noise on the number of patients below the norm. It is paid for by more noise on the
    # gradients, so that a step costs what it cost before.
    count_noise: Positive = 5.0


class PrivacyConfig(Table):
    """Differential privacy for a patient, whatever their number of slices."""

    # Spent over the whole run, per site.
    target_epsilon: Positive
    # None: 1 / (10 N), N the site's declared cohort size. A larger value is refused. So is one below 1e-10: a site's
    # budget is measured at the smallest delta of all its runs, and the accountant resolves little less.
    delta: Annotated[float, Field(ge=1e-10, lt=1)] | None = None
    # L2 bound on one patient's gradient; with adaptive-clipping each round's first.
    clipping_norm: Positive = 1.0
    adaptive_clipping: AdaptiveClippingConfig | None = None
    # Probability that a patient takes part in a step (Poisson sampling).
    sampling_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    # Crops averaged into one patient's gradient.
    crops_per_patient: Crops = 4


__all__ = ["AdaptiveClippingConfig", "PrivacyConfig"]

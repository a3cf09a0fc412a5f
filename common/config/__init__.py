"""What a coordinator, a site and a researcher may write: run.toml, site.toml, policy.toml.

Each document has a file, over one engine of tables (`common.document.table`). Imports it, `common.document.choice` and
the tables of what a run may choose: `common.models`, `common.tasks`, `common.strategies`.
"""

from common.config.augmentation import AugmentationConfig, AugmentationProbability
from common.config.federation import FederationConfig
from common.config.policy import ALL_METRICS, HOURS_PATTERN, METRICS, TRAIN_LOSS, PolicyConfig, Scores
from common.config.privacy import AdaptiveClippingConfig, PrivacyConfig
from common.config.run import (
    DataConfig,
    InitialConfig,
    PreprocessingConfig,
    RunConfig,
)
from common.config.site import Device, SiteConfig, SourceConfig
from common.config.training import TrainingConfig
from common.document.table import (
    Count,
    Document,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Table,
    TableType,
    canonical,
    from_canonical,
    load,
    parse,
    read_text,
    sha256_of,
    validate,
)

__all__ = [
    "ALL_METRICS",
    "HOURS_PATTERN",
    "METRICS",
    "TRAIN_LOSS",
    "AdaptiveClippingConfig",
    "AugmentationConfig",
    "AugmentationProbability",
    "Count",
    "DataConfig",
    "Device",
    "Document",
    "FederationConfig",
    "Fraction",
    "InitialConfig",
    "Name",
    "NonNegative",
    "PolicyConfig",
    "Positive",
    "PreprocessingConfig",
    "PrivacyConfig",
    "RunConfig",
    "Scores",
    "SiteConfig",
    "SourceConfig",
    "Table",
    "TableType",
    "TrainingConfig",
    "canonical",
    "from_canonical",
    "load",
    "parse",
    "read_text",
    "sha256_of",
    "validate",
]

"""wardround-client: what a person at a hospital types.

The home folder (site.toml, policy.toml, keys, ledger, logs) is --home, or WARDROUND_HOME, or ./wardround-site.
Commands that train or read images import torch inside; `start` never does: its worker does.
"""

import logging
import logging.handlers
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import grpc
import typer

from client import approvals, policy
from client.approvals import Proposal
from client.enrol import Identity, join as enrol_join, load_identity
from client.site import POLICY_NAME, SITE_NAME, open_site
from client.sources_file import add_source
from client.status import is_running, only_one, read_status
from common import cli
from common.cli import JsonFlag, note, show_table
from common.config import PolicyConfig, RunConfig, SiteConfig, SourceConfig, load, validate
from common.errors import ConfigError, DataError, EnrolmentError, FederationError, PolicyError, WardroundError
from common.pki import Invitation

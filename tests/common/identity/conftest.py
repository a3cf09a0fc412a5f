"""Two roots, one after the other."""

from typing import TypeAlias

import pytest
from cryptography import x509

from common.identity import certificates

Root: TypeAlias = tuple[certificates.PrivateKey, x509.Certificate]


@pytest.fixture
def root() -> Root:
    key = certificates.new_key()
    return key, certificates.new_root(key, "Test root")


@pytest.fixture
def new_root() -> Root:
    key = certificates.new_key()
    return key, certificates.new_root(key, "New root")

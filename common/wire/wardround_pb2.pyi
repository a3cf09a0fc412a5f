from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("site", "token", "csr_pem")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    site: str
    token: str
    csr_pem: bytes
    def __init__(self, site: _Optional[str] = ..., token: _Optional[str] = ..., csr_pem: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("site", "csr_sha256", "wait_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CSR_SHA256_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    csr_sha256: str
    wait_s: float
    def __init__(self, site: _Optional[str] = ..., csr_sha256: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class CollectReply(_message.Message):
    __slots__ = ("state", "certificate_pem")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PENDING: _ClassVar[CollectReply.State]
        APPROVED: _ClassVar[CollectReply.State]
        REFUSED: _ClassVar[CollectReply.State]
    PENDING: CollectReply.State
    APPROVED: CollectReply.State
    REFUSED: CollectReply.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    state: CollectReply.State
    certificate_pem: bytes
    def __init__(self, state: _Optional[_Union[CollectReply.State, str]] = ..., certificate_pem: _Optional[bytes] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("run_hash", "bundle", "bundle_sha256", "open")
    RUN_HASH_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    run_hash: str
    bundle: bytes
    bundle_sha256: str
    open: bool
    def __init__(self, run_hash: _Optional[str] = ..., bundle: _Optional[bytes] = ..., bundle_sha256: _Optional[str] = ..., open: _Optional[bool] = ...) -> None: ...

class ListProposalsRequest(_message.Message):
    __slots__ = ("revision", "wait_s")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    revision: int
    wait_s: float
    def __init__(self, revision: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class ListProposalsReply(_message.Message):
    __slots__ = ("revision", "proposals")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    def __init__(self, revision: _Optional[int] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ...) -> None: ...

class AnswerProposalRequest(_message.Message):
    __slots__ = ("run_hash", "approved")
    RUN_HASH_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    run_hash: str
    approved: bool
    def __init__(self, run_hash: _Optional[str] = ..., approved: _Optional[bool] = ...) -> None: ...

class AnswerProposalReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("site", "token", "csr_pem", "receipt_key", "proof")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_KEY_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    site: str
    token: str
    csr_pem: bytes
    receipt_key: bytes
    proof: bytes
    def __init__(self, site: _Optional[str] = ..., token: _Optional[str] = ..., csr_pem: _Optional[bytes] = ..., receipt_key: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("site", "request_sha256", "wait_s")
    SITE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    site: str
    request_sha256: str
    wait_s: float
    def __init__(self, site: _Optional[str] = ..., request_sha256: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("run_hash", "bundle", "bundle_sha256", "open", "endorsements", "resumption", "ending")
    RUN_HASH_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENTS_FIELD_NUMBER: _ClassVar[int]
    RESUMPTION_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    run_hash: str
    bundle: bytes
    bundle_sha256: str
    open: bool
    endorsements: _containers.RepeatedCompositeFieldContainer[Endorsement]
    resumption: Resumption
    ending: Ending
    def __init__(self, run_hash: _Optional[str] = ..., bundle: _Optional[bytes] = ..., bundle_sha256: _Optional[str] = ..., open: _Optional[bool] = ..., endorsements: _Optional[_Iterable[_Union[Endorsement, _Mapping]]] = ..., resumption: _Optional[_Union[Resumption, _Mapping]] = ..., ending: _Optional[_Union[Ending, _Mapping]] = ...) -> None: ...

class Ending(_message.Message):
    __slots__ = ("how", "code", "rounds")
    HOW_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    how: str
    code: str
    rounds: int
    def __init__(self, how: _Optional[str] = ..., code: _Optional[str] = ..., rounds: _Optional[int] = ...) -> None: ...

class Resumption(_message.Message):
    __slots__ = ("certificate_pem", "signed_at", "nonce", "signature")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNED_AT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    signed_at: int
    nonce: str
    signature: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., signed_at: _Optional[int] = ..., nonce: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Endorsement(_message.Message):
    __slots__ = ("certificate_pem", "signature", "signed_at")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SIGNED_AT_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    signature: bytes
    signed_at: int
    def __init__(self, certificate_pem: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., signed_at: _Optional[int] = ...) -> None: ...

class ListProposalsRequest(_message.Message):
    __slots__ = ("revision", "wait_s")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    revision: int
    wait_s: float
    def __init__(self, revision: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class ListProposalsReply(_message.Message):
    __slots__ = ("revision", "proposals", "removals")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    REMOVALS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    removals: _containers.RepeatedCompositeFieldContainer[Removal]
    def __init__(self, revision: _Optional[int] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ..., removals: _Optional[_Iterable[_Union[Removal, _Mapping]]] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("certificate_pem", "admin_pem", "signed_at", "nonce", "signature")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    ADMIN_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNED_AT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    admin_pem: bytes
    signed_at: int
    nonce: str
    signature: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., admin_pem: _Optional[bytes] = ..., signed_at: _Optional[int] = ..., nonce: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AnswerProposalRequest(_message.Message):
    __slots__ = ("run_hash", "approved", "code", "withdrawn")
    RUN_HASH_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    run_hash: str
    approved: bool
    code: str
    withdrawn: bool
    def __init__(self, run_hash: _Optional[str] = ..., approved: _Optional[bool] = ..., code: _Optional[str] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class AnswerProposalReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr_pem",)
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    csr_pem: bytes
    def __init__(self, csr_pem: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("certificate_pem", "successor_pem")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    successor_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., successor_pem: _Optional[bytes] = ...) -> None: ...

class SubmitReceiptRequest(_message.Message):
    __slots__ = ("receipt", "signature")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    signature: bytes
    def __init__(self, receipt: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SubmitReceiptReply(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class ExchangeCheckpointsRequest(_message.Message):
    __slots__ = ("checkpoint", "from_size", "proof", "known_size")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FROM_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    KNOWN_SIZE_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    from_size: int
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    known_size: int
    def __init__(self, checkpoint: _Optional[bytes] = ..., from_size: _Optional[int] = ..., proof: _Optional[_Iterable[bytes]] = ..., known_size: _Optional[int] = ...) -> None: ...

class ExchangeCheckpointsReply(_message.Message):
    __slots__ = ("seen_size", "checkpoint", "proof", "others")
    SEEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    seen_size: int
    checkpoint: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    others: _containers.RepeatedCompositeFieldContainer[SiteCheckpoint]
    def __init__(self, seen_size: _Optional[int] = ..., checkpoint: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., others: _Optional[_Iterable[_Union[SiteCheckpoint, _Mapping]]] = ...) -> None: ...

class SiteCheckpoint(_message.Message):
    __slots__ = ("site", "checkpoint", "proof", "certificate_pem")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    site: str
    checkpoint: bytes
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    certificate_pem: bytes
    def __init__(self, site: _Optional[str] = ..., checkpoint: _Optional[bytes] = ..., proof: _Optional[_Iterable[bytes]] = ..., certificate_pem: _Optional[bytes] = ...) -> None: ...

"""How a server says "not now, try again in a while" with a refusal, and how a client hears it.

RESOURCE_EXHAUSTED alone may be final: a request that is too large stays too large. With this entry in the call's
trailing metadata it is a matter of time.
"""

import grpc

# Milliseconds, a whole number in decimal.
_KEY, _DIGITS = "wardround-retry-after-ms", 12


def tell(context: grpc.ServicerContext, seconds: float) -> None:
    """Say, before the call is aborted, when it may come again."""
    context.set_trailing_metadata(((_KEY, str(max(1, round(seconds * 1000)))),))


def retry_after(error: grpc.RpcError) -> float | None:
    """In how many seconds the server wants the call again; None: it does not."""
    if not isinstance(error, grpc.Call) or error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    for key, value in error.trailing_metadata() or ():
        if key == _KEY and isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < _DIGITS:
            return int(value) / 1000
    return None

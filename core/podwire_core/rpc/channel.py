"""How our gRPC channels and servers are set up, and how an ApiError crosses them. Shared by clients and servers.

Rules it keeps: an address is "unix:/path" or "host:port". A lost server is found again within half a second (reconnect back-off);
one that takes its time to greet a new connection, as on a busy machine, has seconds for it.
A peer that vanished without a word is noticed by keepalive within about 15 seconds. A port in use is an error: gRPC's
default, SO_REUSEPORT, would let two servers share one silently.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core logs to stderr what we report as errors ourselves

import grpc

from podwire_core.errors import ApiError
from podwire_core.rpc.messages import Status, decode, encode

ERROR_KEY = "podwire-error-bin"
MAX_MESSAGE = 64 * 1024 * 1024
MAX_METADATA = 1024 * 1024  # an error with its causes travels there
MAX_CAUSES = 500

_COMMON = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
CLIENT_OPTIONS = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # despite its name: what an attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),  # a new client tries at once, whatever back-off another one is in
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]
SERVER_OPTIONS = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    410: grpc.StatusCode.OUT_OF_RANGE,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_FALLBACK = {
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.UNIMPLEMENTED: 405,
    grpc.StatusCode.CANCELLED: 499,
}


def open_channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=CLIENT_OPTIONS)


def status_of(error: ApiError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Code, details and trailing metadata that carry the error."""
    causes = error.causes[:MAX_CAUSES]
    data = encode(Status(error.code, error.reason, error.message[:16_384], causes))
    if len(data) > MAX_METADATA // 2:
        data = encode(Status(error.code, error.reason, error.message[:16_384]))
    return _CODES.get(error.code, grpc.StatusCode.INTERNAL), error.reason, ((ERROR_KEY, data),)


def error_of(failure: Any, address: str) -> ApiError:
    """The ApiError that a failed gRPC call carries; without one, what the transport says, in our words."""
    for key, value in failure.trailing_metadata() or ():
        if key == ERROR_KEY:
            status: Status = decode(Status, value)
            return ApiError(status.code, status.message, status.reason, status.causes)
    code, details = failure.code(), failure.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        return ApiError(503, f"cannot reach {address}: {_brief(details)}")
    return ApiError(
        _FALLBACK.get(code, 500), f"{address}: {details or code.name}", "Timeout" if _FALLBACK.get(code) == 504 else ""
    )


def _brief(details: str) -> str:
    """The cause at the end of gRPC's nested explanations."""
    for phrase in (
        "Connection refused",
        "No such file or directory",
        "Permission denied",
        "Socket closed",
        "DNS resolution failed",
    ):
        if phrase.lower() in details.lower():
            return phrase.lower()
    return details

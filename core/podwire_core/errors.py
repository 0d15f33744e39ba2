"""Errors that cross process boundaries, in the shape of a Kubernetes Status."""

from __future__ import annotations

from msgspec import Struct

REASONS = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class Cause(Struct):
    """One wrong field: `$.spec.ports[0].port` and what is wrong with it."""

    field: str
    message: str


class ApiError(Exception):
    """`code` as in HTTP, `reason` Kubernetes' word for it (AlreadyExists and Conflict share 409)."""

    def __init__(self, code: int, message: str, reason: str = "", causes: list[Cause] | None = None) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.reason = reason or REASONS.get(code, "Unknown")
        self.causes = causes or []

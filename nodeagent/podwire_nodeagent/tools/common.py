"""What the tools share: the connection they are given, how they fail, JSON as iproute2 prints it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from podwire_core.netlink import NetlinkError, Op

# What iproute2 says for an errno, after "RTNETLINK answers: "
_ANSWERS = {
    "EEXIST": "File exists",
    "ENOENT": "No such file or directory",
    "ESRCH": "No such process",
    "EINVAL": "Invalid argument",
    "ENETUNREACH": "Network is unreachable",
    "EHOSTUNREACH": "No route to host",
    "EACCES": "Permission denied",
    "EPERM": "Operation not permitted",
    "ENODEV": "No such device",
    "EBUSY": "Device or resource busy",
    "EOPNOTSUPP": "Operation not supported",
    "EADDRNOTAVAIL": "Cannot assign requested address",
}


class Client(Protocol):
    """What a tool needs of `podwire_core.netlink_client.Netlink`."""

    def dump(self, what: str) -> Any: ...

    def apply(self, ops: Sequence[Op]) -> None: ...


class ToolError(Exception):
    """The tool's complaint, for stderr, and its exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def apply(client: Client, ops: Sequence[Op], status: int = 2) -> None:
    """Do it, or complain as iproute2 does."""
    try:
        client.apply(ops)
    except NetlinkError as error:
        answer = _ANSWERS.get(error.errno_name, error.errno_name)
        raise ToolError(f"RTNETLINK answers: {answer} ({error.message})", status) from None


def unsupported(tool: str, words: Sequence[str]) -> ToolError:
    return ToolError(f'{tool}: "{" ".join(words)}" is not supported by podwire\'s datapath')


def to_json(data: list[dict[str, Any]], pretty: bool) -> str:
    """Compact, or with `-p` indented, as iproute2."""
    if pretty:
        return json.dumps(data, indent=4) + "\n"
    return json.dumps(data, separators=(",", ":")) + "\n"


class Words:
    """A command line's words, taken from the left."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    def __bool__(self) -> bool:
        return bool(self._words)

    def peek(self) -> str:
        return self._words[0] if self._words else ""

    def next(self, after: str = "") -> str:
        if not self._words:
            raise ToolError('Command line is not complete. Try option "help"' + (f" ({after})" if after else ""), 255)
        return self._words.pop(0)

    def rest(self) -> list[str]:
        return list(self._words)


def abbreviates(word: str, full: str) -> bool:
    """iproute2 takes any beginning of a command."""
    return bool(word) and full.startswith(word)

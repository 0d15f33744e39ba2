"""Requests as the datapath reads them: those of podwire_core.netlink, but that the rules and elements of whole tables stay
encoded until it is their turn. 20 000 Services are 160 000 rules; decoded all at once they would double what the tables need, and
what is freed of them would lie in pieces between what stays.

The types here stand in for those of the same name, field by field. A piece that is malformed is EINVAL when it is read, as all of
a request. Order to read: decoded, the two operations with their tables, the request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args

import msgspec
from msgspec import Raw, Struct

from podwire_core import netfilter as nf
from podwire_core import netlink
from podwire_core import nftables as nft
from podwire_core.netlink import AnyOp, Dump, NetlinkError, Op, Subscribe

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_EMPTY = Raw(b"\x90")
P = TypeVar("P")


def decoded(piece: Raw, decoder: msgspec.msgpack.Decoder[P]) -> P:
    try:
        return decoder.decode(piece)
    except UNDECODABLE as error:
        raise NetlinkError("EINVAL", f"malformed message: {error}") from None


# --- iptables --------------------------------


class Chain(Struct, frozen=True, array_like=True, gc=False):
    """`rules` are decoded each time they are asked for."""

    name: str
    encoded: Raw = _EMPTY
    policy: str = ""

    @property
    def rules(self) -> tuple[nf.Rule, ...]:
        return decoded(self.encoded, _rules)


class Table(Struct, frozen=True, array_like=True):
    name: str
    family: int
    chains: tuple[Chain, ...] = ()


class TablesReplace(Op, frozen=True, tag="nf.replace"):
    tables: tuple[Table, ...]


# --- nftables --------------------------------


class NftChain(Struct, frozen=True, gc=False):
    name: str
    encoded: Raw = msgspec.field(default=_EMPTY, name="rules")
    comment: str = ""
    hook: nft.Hook | None = None

    @property
    def rules(self) -> tuple[nft.Rule, ...]:
        return decoded(self.encoded, _nft_rules)


class Elements:
    """Each is decoded when it is come to."""

    def __init__(self, encoded: tuple[Raw, ...]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __iter__(self) -> Iterator[nft.Element]:
        return (decoded(each, _element) for each in self._encoded)


class NftSet(Struct, frozen=True):
    name: str
    types: tuple[str, ...]
    verdicts: bool = False
    comment: str = ""
    dynamic: bool = False
    timeout: int = 0
    size: int = 0
    encoded: tuple[Raw, ...] = msgspec.field(default=(), name="elements")

    @property
    def elements(self) -> Elements:
        return Elements(self.encoded)


class NftTable(Struct, frozen=True):
    family: int
    name: str
    comment: str = ""
    sets: tuple[NftSet, ...] = ()
    chains: tuple[NftChain, ...] = ()

    @property
    def id(self) -> nft.Id:
        return self.family, self.name


class NftReplace(Op, frozen=True, tag="nft.replace"):
    tables: tuple[NftTable, ...] = ()


_rules = msgspec.msgpack.Decoder(tuple[nf.Rule, ...])
_nft_rules = msgspec.msgpack.Decoder(tuple[nft.Rule, ...])
_element = msgspec.msgpack.Decoder(nft.Element)

# --- requests --------------------------------

if TYPE_CHECKING:
    _AnyOp = AnyOp
else:
    _WHOLE = (netlink.TablesReplace, netlink.NftReplace)
    _AnyOp = Union[(*(op for op in get_args(AnyOp) if op not in _WHOLE), TablesReplace, NftReplace)]


class Apply(Struct, tag_field="req", tag="apply"):
    seq: int
    ops: tuple[_AnyOp, ...]


Request = Apply | Dump | Subscribe
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Request)


def decode(message: bytes) -> Request:
    """Raises one of UNDECODABLE."""
    request: Request = _decoder.decode(message)
    return request

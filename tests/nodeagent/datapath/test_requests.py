"""Requests as the datapath reads them: the same fields as the contract's, pieces decoded one by one, all or nothing."""

from __future__ import annotations

import msgspec
import pytest

from podwire_core import netfilter as nf
from podwire_core import netlink
from podwire_core import nftables as nft
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath import requests
from tests.support.hooks import Gate
from tests.support.nft_node import NftNode

encode = msgspec.msgpack.encode
DROP = nf.Rule((nf.Source("10.0.0.0/8"),), nf.Verdict("DROP"), "Service ns/a")
TABLE = nf.Table("filter", 4, (nf.Chain("FORWARD", (DROP, DROP), "DROP"), nf.Chain("X")))
ELEMENTS = tuple(nft.Element((f"10.96.0.{n}",), origin="Service ns/a") for n in range(3))
NFT_TABLE = nft.Table(
    4,
    "t",
    "comment",
    (
        nft.Set("s", ("ipv4_addr",), comment="c", elements=ELEMENTS),
        nft.Set("dyn", ("ipv4_addr",), dynamic=True, timeout=9, size=3),
    ),
    (nft.Chain("c", (nft.Rule((nft.Verdict("drop"),), "said"),), "chain", nft.Hook("filter", "forward", 0)),),
)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (requests.Chain, nf.Chain),
        (requests.Table, nf.Table),
        (requests.TablesReplace, netlink.TablesReplace),
        (requests.NftChain, nft.Chain),
        (requests.NftSet, nft.Set),
        (requests.NftTable, nft.Table),
        (requests.NftReplace, netlink.NftReplace),
        (requests.Apply, netlink.Apply),
    ],
)
def test_the_types_stand_in_for_the_contracts(here, there) -> None:
    def shape(kind):
        config = kind.__struct_config__
        fields = [(f.encode_name if not config.array_like else "", f.required) for f in msgspec.structs.fields(kind)]
        return fields, config.array_like, config.tag_field, config.tag

    assert shape(here) == shape(there)


def test_whole_tables_are_what_was_sent() -> None:
    ops = (netlink.TablesReplace((TABLE,)), netlink.NftReplace((NFT_TABLE,)), netlink.SysctlSet("a", "b"))
    request = requests.decode(encode(netlink.Apply(7, ops)))
    assert isinstance(request, requests.Apply)
    tables, nfts, sysctl = request.ops
    assert (request.seq, sysctl) == (7, ops[2])
    [table] = tables.tables
    assert nf.Table(table.name, table.family, tuple(nf.Chain(c.name, c.rules, c.policy) for c in table.chains)) == TABLE
    [table] = nfts.tables
    assert table.id == NFT_TABLE.id
    sets = tuple(
        nft.Set(s.name, s.types, s.verdicts, s.comment, s.dynamic, s.timeout, s.size, tuple(s.elements)) for s in table.sets
    )
    chains = tuple(nft.Chain(c.name, c.rules, c.comment, c.hook) for c in table.chains)
    assert nft.Table(table.family, table.name, table.comment, sets, chains) == NFT_TABLE
    assert [len(each.elements) for each in table.sets] == [3, 0]


def broken(op: netlink.Op, what: str):
    """The operation with one piece of another type, as the datapath reads it."""
    data = encode(netlink.Apply(1, (op,)))
    assert data.count(encode(what)) == 1
    request = requests.decode(data.replace(encode(what), encode(0), 1))
    assert isinstance(request, requests.Apply)
    return request.ops[0]


def test_a_malformed_rule_is_refused_with_its_tables() -> None:
    gate = Gate("*filter\n-A FORWARD -j DROP\nCOMMIT\n")
    before = gate.netfilter.dump()
    odd = nf.Table("filter", 4, (nf.Chain("FORWARD", (DROP,)), nf.Chain("X", (nf.Rule((), nf.Verdict("odd")),))))
    with pytest.raises(NetlinkError, match="malformed message: Expected `str`, got `int`") as error:
        gate.netfilter.replace(broken(netlink.TablesReplace((odd,)), "odd").tables)
    assert error.value.errno_name == "EINVAL"
    assert gate.netfilter.dump() == before


@pytest.mark.parametrize("what", ["said", "10.96.0.1"])
def test_a_malformed_rule_or_element_is_refused_with_its_ruleset(what: str) -> None:
    node = NftNode([], NFT_TABLE)
    before = node.stack.dump("nftables", 0.0)
    with pytest.raises(NetlinkError, match="malformed message") as error:
        node.stack.apply([broken(netlink.NftReplace((NFT_TABLE,)), what)], 0.0)
    assert error.value.errno_name == "EINVAL"
    assert node.stack.dump("nftables", 0.0) == before

"""Changes of Services reach the datapath as deltas: the tables are those of a restatement, and packets fare the same."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.services import by_key, endpoint, endpoint_slice, port, service

from podwire_core import netfilter as nf
from podwire_core.iptables_save import print_tables
from podwire_core.netlink import Apply, ChainsUpdate, NetlinkError, TablesReplace
from podwire_nodeagent.datapath.chooser import RandomChooser
from podwire_nodeagent.proxy.config import ProxyConfiguration
from podwire_nodeagent.proxy.iptables import Proxier
from podwire_nodeagent.proxy.model import NodeFacts
from tests.nodeagent.datapath.netfilter.test_splices import column
from tests.nodeagent.proxy.test_iptables import ENDPOINTS, SPECS
from tests.support.hooks import Gate
from tests.support.packets import SYN, tcp, udp

CONFIG = ProxyConfiguration(cluster_cidrs=("10.0.0.0/8",), node_port_addresses=("192.168.1.0/24",))
NODES = [
    NodeFacts("node1", "", addresses, ("10.244.1.0/24",)) for addresses in (("192.168.1.11",), ("192.168.1.11", "192.168.1.12"))
]
QUIET = [f"m{number}" for number in range(10)]  # Services that are there all the time
NAMES = ["a", "m45", "m46", "z"]  # before, among and behind them
CLUSTER_IPS = {name: f"10.96.0.{number}" for number, name in enumerate([*QUIET, *NAMES], 1)}
PORTS = [port(80), port(53, "dns", "UDP")]
ROUNDS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(NAMES), st.none() | SPECS, max_size=4),
        st.dictionaries(st.sampled_from(NAMES), st.none() | ENDPOINTS, max_size=4),
        st.sampled_from([None, *NODES]),
    ),
    min_size=1,
    max_size=6,
)


class Node:
    """A proxy and the datapath it writes to, with the message between them."""

    def __init__(self, node: NodeFacts = NODES[0], more_services=None, more_slices=None) -> None:
        self.random = Random(1)
        self.proxier, self.gate = Proxier(CONFIG, node), Gate(chooser=RandomChooser(self.random))
        self.updates: list[ChainsUpdate] = []
        services = [service(name, CLUSTER_IPS[name]) for name in QUIET]
        slices = [endpoint_slice(name, [endpoint(f"10.244.2.1{number}")]) for number, name in enumerate(QUIET)]
        self.change(by_key(services) | (more_services or {}), by_key(slices) | (more_slices or {}))

    def change(self, services, slices, node=None) -> None:
        ops = self.proxier.changes(services, slices, node)
        sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Apply(1, tuple(ops))), type=Apply)
        transaction = self.gate.netfilter.begin()
        for op in sent.ops:
            if isinstance(op, TablesReplace):
                transaction.replace(op.tables)
            elif isinstance(op, ChainsUpdate):
                self.updates.append(op)
                transaction.update(op)
        transaction.commit()

    def tables(self) -> str:
        """Chains in order of their names: new ones come behind those that were there."""
        tables = [dump.table for dump in self.gate.netfilter.dump()]
        return print_tables(nf.Table(t.name, t.family, tuple(sorted(t.chains, key=lambda chain: chain.name))) for t in tables)

    def compiled(self):
        """What a walk sees that no text shows."""
        ruleset = self.gate.netfilter.ruleset
        chains = {(*key, name): chain for key, table in ruleset.tables.items() for name, chain in table.items()}
        return {key: (chain.uses, column(chain.body)) for key, chain in chains.items()}, ruleset.recents

    def fates(self):
        """What becomes of packets to all there is."""
        self.gate.netfilter.forget(0.0)
        self.random.seed(1)
        found = []
        for number, address in enumerate([*CLUSTER_IPS.values(), "192.0.2.1", "198.51.100.1", "192.168.1.11"]):
            packets = (
                tcp("10.244.1.5", address, 4000 + number, 80, SYN, 1, 0),
                udp("10.244.1.5", address, 4000 + number, 53),
                tcp("192.0.2.77", address, 4000 + number, 30080, SYN, 1, 0),
            )
            found += [(self.gate.forward(data), self.gate.sent) for data in packets]
        return found


def changed(specs, slices):
    services = {f"ns/{n}": s if s is None else service(n, CLUSTER_IPS[n], **s) for n, s in specs.items()}
    return services, {f"ns/{n}-1": e if e is None else endpoint_slice(n, e, PORTS) for n, e in slices.items()}


@settings(max_examples=60, deadline=None)
@given(ROUNDS)
def test_deltas_lead_where_a_restatement_does(rounds):
    node, there = Node(), ({}, {})
    for specs, slices, facts in rounds:
        given = changed(specs, slices)
        node.change(*given, facts)
        for kept, new in zip(there, given, strict=True):
            kept.update(new)
    services, slices = ({key: obj for key, obj in kept.items() if obj is not None} for kept in there)
    fresh = Node(node.proxier.model.node, services, slices)
    assert node.tables() == fresh.tables()
    assert node.compiled() == fresh.compiled()
    assert node.fates() == fresh.fates()


@pytest.mark.parametrize("name", NAMES)
def test_one_service_is_told_by_splices(name):
    """Its coming, an endpoint more, its going: no shared chain is stated."""
    node = Node()
    before = node.tables()
    for ends in (["10.244.2.2"], ["10.244.2.2", "10.244.2.3"]):
        node.change(*changed({name: {}}, {name: [endpoint(address) for address in ends]}))
    node.change(*changed({name: None}, {name: None}))
    come, more, gone = node.updates
    assert [[each.chain for each in update.splices] for update in node.updates] == [["KUBE-SERVICES"], [], ["KUBE-SERVICES"]]
    assert {chain.name[:9] for update in (come, more) for chain in update.chains} == {"KUBE-SVC-", "KUBE-SEP-"}
    assert gone.chains == ()
    assert node.tables() == before


def test_a_chain_that_somebody_changed_is_not_spliced():
    """The update is refused, nothing of it is done; a restatement puts all right."""
    node = Node()
    by_hand = node.gate.netfilter.ruleset.tables["nat", 4]["KUBE-SERVICES"].body.rules
    node.gate.netfilter.update(ChainsUpdate("nat", 4, (nf.Chain("KUBE-SERVICES", tuple(r.source for r in by_hand[1:])),)))
    before = node.tables()
    with pytest.raises(NetlinkError, match="EAGAIN"):
        node.change(*changed({"z": {}}, {"z": [endpoint("10.244.2.2")]}))
    assert node.tables() == before
    node.gate.netfilter.replace(node.proxier.restate()[0].tables)
    assert len(node.gate.netfilter.ruleset.tables["nat", 4]["KUBE-SERVICES"].body.rules) == len(by_hand) + 1
    node.change(*changed({"z": None}, {"z": None}))
    assert node.tables() == Node().tables()

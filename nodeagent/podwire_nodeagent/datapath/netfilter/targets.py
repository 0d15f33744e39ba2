"""Targets: compiling a rule's, and where each may stand (Linux: a target names its table and hooks, and a loop of
jumps is refused)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Final

from podwire_core import netfilter as nf
from podwire_core.iptables_save import rule_line
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.netfilter.chains import (
    ACCEPT_OP,
    ANY,
    DNAT_OP,
    DROP_OP,
    GOTO,
    JUMP,
    MASQUERADE_OP,
    NOTHING,
    REJECT_OP,
    RETURN,
    SET_MARK,
    SNAT_OP,
    Body,
    CompiledChain,
    CompiledRule,
)
from podwire_nodeagent.datapath.netfilter.matches import Context, compile_matches, invalid, network, protocol_number

MAX_CHAIN_NAME: Final = 28
WORTH_LOOKING: Final = 1000  # chains; where a change reaches more, the whole table is looked at
_VERDICTS: Final = {"ACCEPT": ACCEPT_OP, "DROP": DROP_OP, "RETURN": RETURN}
_NAT_HOOKS: Final = {
    nf.Dnat: ("PREROUTING", "OUTPUT"),
    nf.Snat: ("INPUT", "POSTROUTING"),
    nf.Masquerade: ("POSTROUTING",),
}
_REJECTS: Final = {
    4: {
        "icmp-net-unreachable",
        "icmp-host-unreachable",
        "icmp-proto-unreachable",
        "icmp-port-unreachable",
        "icmp-net-prohibited",
        "icmp-host-prohibited",
        "icmp-admin-prohibited",
        "tcp-reset",
    },
    6: {"icmp6-no-route", "icmp6-adm-prohibited", "icmp6-addr-unreachable", "icmp6-port-unreachable", "tcp-reset"},
}


def compile_rule(
    rule: nf.Rule, chain: str, table: str, family: int, chains: Mapping[str, CompiledChain], context: Context
) -> CompiledRule:
    try:
        tests = compile_matches(rule, family, context)
        operation, argument = _target(rule, table, family, chains)
        return CompiledRule(rule, chain, tests, operation, argument, _keys(rule, family))
    except NetlinkError as error:
        raise NetlinkError(error.errno_name, f"{table}: {rule_line(chain, rule)}: {error.message}") from None


def policy_rule(chain: nf.Chain) -> CompiledRule:
    """A chain's policy as the rule that is reached when no other decided."""
    rule = nf.Rule((), nf.Verdict(chain.policy))
    return CompiledRule(rule, chain.name, (), _VERDICTS[chain.policy], None, (None, None, None))


def _target(rule: nf.Rule, table: str, family: int, chains: Mapping[str, CompiledChain]) -> tuple[int, Any]:
    target = rule.target
    if isinstance(target, nf.Verdict):
        return _verdict(target, table), None
    if isinstance(target, nf.Jump):
        if target.chain in nf.BUILTIN_CHAINS[table]:
            raise invalid(f"jump to the built-in chain {target.chain}")
        if target.chain not in chains:
            raise NetlinkError("ENOENT", f"no chain {target.chain}")
        return (GOTO if target.goto else JUMP), chains[target.chain]
    if isinstance(target, nf.SetMark):
        if not (0 <= target.value <= 0xFFFFFFFF and 0 <= target.mask <= 0xFFFFFFFF):
            raise invalid(f"invalid mark {target.value:#x}/{target.mask:#x}")
        return SET_MARK, (~target.mask & 0xFFFFFFFF, target.value)
    if isinstance(target, nf.Reject):
        return REJECT_OP, _reject(rule, target, table, family)
    if isinstance(target, nf.NoTarget):
        return NOTHING, None
    if table != "nat":
        raise invalid(f"{type(target).__name__.upper()} is for table nat only")
    if isinstance(target, nf.Masquerade):
        return MASQUERADE_OP, target.random_fully
    return (DNAT_OP if isinstance(target, nf.Dnat) else SNAT_OP), _nat_address(rule, target, family)


def _verdict(target: nf.Verdict, table: str) -> int:
    operation = _VERDICTS.get(target.name)
    if operation is None:
        raise invalid(f"unknown verdict {target.name!r}")
    if table == "nat" and operation == DROP_OP:
        raise invalid('The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.')
    return operation


def _reject(rule: nf.Rule, target: nf.Reject, table: str, family: int) -> str:
    if table != "filter":
        raise invalid("REJECT is for table filter only")
    if target.with_ not in _REJECTS[family]:
        raise invalid(f"unknown reject type {target.with_!r} for IPv{family}")
    if target.with_ == "tcp-reset" and "tcp" not in _protocols(rule):
        raise invalid("tcp-reset needs -p tcp")
    return target.with_


def _nat_address(rule: nf.Rule, target: nf.Dnat | nf.Snat, family: int) -> tuple[bytes, int]:
    try:
        address = ip_address(target.address)
    except ValueError as error:
        raise invalid(str(error)) from None
    if address.version != family:
        raise invalid(f"{target.address} is not of IPv{family}")
    if not 0 <= target.port <= 65535:
        raise invalid(f"invalid port {target.port}")
    if target.port and not _protocols(rule) & {"tcp", "udp", "sctp", "dccp"}:
        raise invalid("Need TCP, UDP, SCTP or DCCP with port specification")
    return address.packed, target.port


def _protocols(rule: nf.Rule) -> set[str]:
    return {match.name for match in rule.matches if isinstance(match, nf.Protocol) and not match.invert}


def _keys(rule: nf.Rule, family: int) -> tuple[None, Any, Any]:
    """The rule's values in the columns of chains.py."""
    destination: Any = ANY
    service: Any = ANY
    for match in rule.matches:
        if isinstance(match, nf.Destination) and not match.invert:
            net = network(match.net, family)
            if net.prefixlen == net.max_prefixlen:
                destination = net.network_address.packed
        elif isinstance(match, nf.DestinationPort) and not match.invert and match.low == match.high:
            service = protocol_number(match.proto) << 16 | match.low
    return None, destination, service


# --- chains and the graph they make --------------------------------


def check_chain(table: str, chain: nf.Chain) -> None:
    builtin = chain.name in nf.BUILTIN_CHAINS[table]
    if not builtin:
        if not chain.name or len(chain.name) > MAX_CHAIN_NAME or chain.name[0] in "-!" or any(c.isspace() for c in chain.name):
            raise invalid(f"{table}: invalid chain name {chain.name!r} (1 to {MAX_CHAIN_NAME} characters)")
        if chain.policy:
            raise invalid(f"{table}: chain {chain.name} is not built in and has no policy")
    elif chain.policy not in ("", "ACCEPT", "DROP"):
        raise invalid(f"{table}: policy {chain.policy!r} of {chain.name} is neither ACCEPT nor DROP")
    elif table == "nat" and chain.policy == "DROP":
        raise invalid('The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.')
    if builtin:
        kind = {"OUTPUT": nf.InInterface, "POSTROUTING": nf.InInterface, "PREROUTING": nf.OutInterface, "INPUT": nf.OutInterface}
        unfit = kind.get(chain.name)
        for rule in chain.rules:
            if unfit and any(isinstance(match, unfit) for match in rule.matches):
                option = "-i" if unfit is nf.InInterface else "-o"
                raise invalid(f"{table}: {rule_line(chain.name, rule)}: {option} cannot be used in {chain.name}")


def check_graph(table: str, bodies: Mapping[str, Body]) -> None:
    """No loop of jumps, and no NAT target where its hook cannot lead."""
    jumps = {name: _jumps(body) for name, body in bodies.items()}
    _check_loops(table, jumps)
    if table == "nat":
        _check_hooks(bodies, jumps)


def check_changes(table: str, body: Callable[[str], Body], changed: Mapping[str, Body]) -> bool:
    """`check_graph` for a graph that was in order before these chains changed (given with what they held): looks only at what
    the change made reachable, so that one Service more costs the same among ten and among ten thousand. True: in order.
    False: not certain, look at everything."""
    anew: set[str] = set()
    for name, old in changed.items():
        anew.update(set(_jumps(body(name))).difference(_jumps(old)))
    below = _reach(anew, body)
    if below is None:
        return False
    # A loop that is new takes a new jump and comes back to it, so all of it is below new jumps.
    _check_loops(table, {name: [each for each in _jumps(body(name)) if each in below] for name in below})
    return table != "nat" or _hooks_fit(body, below | set(changed))


def _reach(roots: Iterable[str], body: Callable[[str], Body]) -> set[str] | None:
    """The chains that these lead to, themselves included; None if they are too many to be worth it."""
    seen = set(roots)
    pending = list(seen)
    while pending:
        if len(seen) > WORTH_LOOKING:
            return None
        for following in _jumps(body(pending.pop())):
            if following not in seen:
                seen.add(following)
                pending.append(following)
    return seen


def _hooks_fit(body: Callable[[str], Body], names: Iterable[str]) -> bool:
    """Whether no hook leads to a NAT target among these chains that it may not have."""
    unfit: dict[str, set[str]] = {}
    for name in names:
        for rule in body(name).rules:
            if rule.operation >= DNAT_OP:
                for hook in set(nf.BUILTIN_CHAINS["nat"]).difference(_NAT_HOOKS[type(rule.source.target)]):
                    unfit.setdefault(hook, set()).add(name)
    for hook, wrong in unfit.items():
        led_to = _reach([hook], body)
        if led_to is None or not led_to.isdisjoint(wrong):
            return False
    return True


def _jumps(body: Body) -> list[str]:
    return [rule.source.target.chain for rule in body.rules if isinstance(rule.source.target, nf.Jump)]


def _check_loops(table: str, jumps: Mapping[str, list[str]]) -> None:
    done: set[str] = set()
    for root in jumps:
        if root in done:
            continue
        path: dict[str, None] = {root: None}
        pending = [iter(jumps[root])]
        while pending:
            for name in pending[-1]:
                if name in path:
                    raise NetlinkError("ELOOP", f"{table}: chains jump in a loop: {' -> '.join([*path, name])}")
                if name not in done:
                    path[name] = None
                    pending.append(iter(jumps[name]))
                    break
            else:
                pending.pop()
                done.add(path.popitem()[0])


def _check_hooks(bodies: Mapping[str, Body], jumps: Mapping[str, list[str]]) -> None:
    for hook in nf.BUILTIN_CHAINS["nat"]:
        seen = {hook}
        pending = [hook]
        while pending:
            name = pending.pop()
            for rule in bodies[name].rules:
                if rule.operation >= DNAT_OP and hook not in _NAT_HOOKS[type(rule.source.target)]:
                    where = "" if name == hook else f" (reached from {hook})"
                    raise invalid(f"nat: {rule.text()}{where}: not allowed in {hook}")
            for following in jumps[name]:
                if following not in seen:
                    seen.add(following)
                    pending.append(following)

"""Rules compiled: their conditions (matches.py) and their targets, and what may not stand in a table or chain. Where jumps
lead is graph.py's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from podwire_core import netfilter as nf
from podwire_core.iptables_save import rule_line
from podwire_core.netlink import NetlinkError
from podwire_nodeagent.datapath.netfilter.chains import (
    ACCEPT_OP,
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
    CompiledChain,
    CompiledRule,
    Policy,
)
from podwire_nodeagent.datapath.netfilter.matches import Conditions, Context, Matches, invalid, protocols
from podwire_nodeagent.datapath.wire import address_bytes

MAX_CHAIN_NAME: Final = 28
_CHOOSY: Final = (REJECT_OP, DNAT_OP, SNAT_OP)  # what not every protocol's packets can be done to
_TRANSPORTS: Final = frozenset(("tcp", "udp", "sctp", "dccp"))
_VERDICTS: Final = {"ACCEPT": ACCEPT_OP, "DROP": DROP_OP, "RETURN": RETURN}
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


class Compiler:
    """Compiles the rules of one table while a transaction lasts. `chains`: what jumps may lead to. What is equal in rules is
    compiled once and kept once: it is taken from the first rule that had it."""

    def __init__(self, table: str, family: int, chains: Mapping[str, CompiledChain], context: Context) -> None:
        self._table, self._family, self._chains = table, family, chains
        self._conditions = Conditions(family, context)
        self._by_matches: dict[Matches, CompiledRule] = {}
        self._by_target: dict[nf.AnyTarget, CompiledRule] = {}
        self._origins: dict[str, str] = {}

    def rule(self, rule: nf.Rule, chain: str) -> CompiledRule:
        """Raises NetlinkError with the rule's text."""
        alike, aimed = self._by_matches.get(rule.matches), self._by_target.get(rule.target)
        try:
            matches, tests = (alike.source.matches, alike.tests) if alike else self._conditions.compiled(rule.matches)
            if aimed:
                target, operation, argument = aimed.source.target, aimed.operation, aimed.argument
            else:
                target, operation, argument = _target(rule.target, self._table, self._family, self._chains)
            if operation in _CHOOSY:
                _check_protocol(target, matches)
        except NetlinkError as error:
            raise NetlinkError(error.errno_name, f"{self._table}: {rule_line(chain, rule)}: {error.message}") from None
        source = nf.Rule(matches, target, self._origins.setdefault(rule.origin, rule.origin))
        made = CompiledRule(source, chain, tests, operation, argument)
        if alike is None:
            self._by_matches[matches] = made
        if aimed is None:
            self._by_target[target] = made
        return made


def policy_rule(chain: str, policy: str) -> Policy:
    """A chain's policy as the rule that is reached when no other decided."""
    return Policy(nf.Rule((), nf.Verdict(policy)), chain, (), _VERDICTS[policy], None)


def _target(target: nf.AnyTarget, table: str, family: int, chains: Mapping[str, CompiledChain]) -> tuple[nf.AnyTarget, int, Any]:
    """The target to keep, and a rule's operation with its argument."""
    if isinstance(target, nf.Jump):
        operation, argument = _jump(target, table, chains)
        return nf.Jump(argument.name, target.goto), operation, argument
    return target, *_final(target, table, family)


def _jump(target: nf.Jump, table: str, chains: Mapping[str, CompiledChain]) -> tuple[int, CompiledChain]:
    if target.chain in nf.BUILTIN_CHAINS[table]:
        raise invalid(f"jump to the built-in chain {target.chain}")
    if target.chain not in chains:
        raise NetlinkError("ENOENT", f"no chain {target.chain}")
    return (GOTO if target.goto else JUMP), chains[target.chain]


def _final(target: nf.AnyTarget, table: str, family: int) -> tuple[int, Any]:
    if isinstance(target, nf.Verdict):
        return _verdict(target, table), None
    if isinstance(target, nf.SetMark):
        if not (0 <= target.value <= 0xFFFFFFFF and 0 <= target.mask <= 0xFFFFFFFF):
            raise invalid(f"invalid mark {target.value:#x}/{target.mask:#x}")
        return SET_MARK, (~target.mask & 0xFFFFFFFF, target.value)
    if isinstance(target, nf.Reject):
        return REJECT_OP, _reject(target, table, family)
    if isinstance(target, nf.NoTarget):
        return NOTHING, None
    if table != "nat":
        raise invalid(f"{type(target).__name__.upper()} is for table nat only")
    if isinstance(target, nf.Masquerade):
        return MASQUERADE_OP, target.random_fully
    assert isinstance(target, nf.Dnat | nf.Snat)
    return (DNAT_OP if isinstance(target, nf.Dnat) else SNAT_OP), _nat_address(target, family)


def _verdict(target: nf.Verdict, table: str) -> int:
    operation = _VERDICTS.get(target.name)
    if operation is None:
        raise invalid(f"unknown verdict {target.name!r}")
    if table == "nat" and operation == DROP_OP:
        raise invalid('The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.')
    return operation


def _reject(target: nf.Reject, table: str, family: int) -> str:
    if table != "filter":
        raise invalid("REJECT is for table filter only")
    if target.with_ not in _REJECTS[family]:
        raise invalid(f"unknown reject type {target.with_!r} for IPv{family}")
    return target.with_


def _nat_address(target: nf.Dnat | nf.Snat, family: int) -> tuple[bytes, int]:
    try:
        address = address_bytes(target.address)
    except ValueError as error:
        raise invalid(str(error)) from None
    if len(address) != (4 if family == 4 else 16):
        raise invalid(f"{target.address} is not of IPv{family}")
    if not 0 <= target.port <= 65535:
        raise invalid(f"invalid port {target.port}")
    return address, target.port


def _check_protocol(target: nf.AnyTarget, matches: Matches) -> None:
    """A port, and a TCP reset, need a rule whose packets have them."""
    if isinstance(target, nf.Reject):
        if target.with_ == "tcp-reset" and "tcp" not in protocols(matches):
            raise invalid("tcp-reset needs -p tcp")
    elif isinstance(target, nf.Dnat | nf.Snat) and target.port and not protocols(matches) & _TRANSPORTS:
        raise invalid("Need TCP, UDP, SCTP or DCCP with port specification")


# --- chains --------------------------------


def check_chain(table: str, chain: nf.Chain) -> None:
    builtin = chain.name in nf.BUILTIN_CHAINS[table]
    if not builtin:
        if not chain.name or len(chain.name) > MAX_CHAIN_NAME or chain.name[0] in "-!" or chain.name.split() != [chain.name]:
            raise invalid(f"{table}: invalid chain name {chain.name!r} (1 to {MAX_CHAIN_NAME} characters)")
        if chain.policy:
            raise invalid(f"{table}: chain {chain.name} is not built in and has no policy")
    elif chain.policy not in ("", "ACCEPT", "DROP"):
        raise invalid(f"{table}: policy {chain.policy!r} of {chain.name} is neither ACCEPT nor DROP")
    elif table == "nat" and chain.policy == "DROP":
        raise invalid('The "nat" table is not intended for filtering, the use of DROP is therefore inhibited.')
    if builtin:
        check_interfaces(table, chain.name, chain.rules)


def check_interfaces(table: str, chain: str, rules: Iterable[nf.Rule]) -> None:
    """What a packet does not have yet, or no longer, cannot be asked for in these built-in chains."""
    kind = {"OUTPUT": nf.InInterface, "POSTROUTING": nf.InInterface, "PREROUTING": nf.OutInterface, "INPUT": nf.OutInterface}
    unfit = kind.get(chain)
    for rule in rules:
        if unfit and any(isinstance(match, unfit) for match in rule.matches):
            option = "-i" if unfit is nf.InInterface else "-o"
            raise invalid(f"{table}: {rule_line(chain, rule)}: {option} cannot be used in {chain}")

"""`ipset`: list, save, test, create, add, del, destroy, flush, as ipset 7.17 prints and takes them."""

from __future__ import annotations

from podwire_core import netfilter as nf
from podwire_core.ipset import TYPES, IpSet, check, header, in_order, parse, save_lines
from podwire_core.netlink import IpsetDestroy, IpsetSet, IpsetUpdate, NetlinkError, Op, TableDump
from podwire_nodeagent.tools.common import Client, ToolError, Words, unsupported

_NAMES = {"-L": "list", "-S": "save", "-T": "test", "-N": "create", "-A": "add", "-D": "del", "-X": "destroy", "-F": "flush"}
_REVISIONS = {
    "hash:ip": 6,
    "hash:net": 8,
    "hash:ip,port": 7,
    "hash:ip,port,ip": 7,
    "hash:ip,port,net": 9,
    "bitmap:port": 4,
}


def main(argv: list[str], client: Client) -> str:
    words = Words([word for word in argv if word not in ("-exist", "-!")])
    if not words:
        raise ToolError("ipset v7.17: No command specified.", 2)
    word = words.next()
    command = _NAMES.get(word, word)
    if command in ("list", "save"):
        names_only = words.peek() in ("-n", "-name") and bool(words.next())
        sets = _chosen(client, words.peek())
        if names_only:
            return "".join(f"{each.name}\n" for each in sets)
        if command == "save":
            return "".join(f"{line}\n" for each in sets for line in save_lines(each))
        references = _references(client)
        return "\n".join(_listed(each, references.get(each.name, 0)) for each in sets)
    if command == "test":
        return _test(client, words)
    _apply(client, _operation(command, words, client, "-exist" in argv or "-!" in argv))
    return ""


def _chosen(client: Client, name: str) -> list[IpSet]:
    sets: list[IpSet] = client.dump("ipsets")
    found = [each for each in sets if name in ("", each.name)]
    if name and not found:
        raise ToolError("ipset v7.17: The set with the given name does not exist", 1)
    return found


def _references(client: Client) -> dict[str, int]:
    found: dict[str, int] = {}
    tables: list[TableDump] = client.dump("rules")
    rules = (rule for dump in tables for chain in dump.table.chains for rule in chain.rules)
    for match in (match for rule in rules for match in rule.matches if isinstance(match, nf.Set)):
        found[match.name] = found.get(match.name, 0) + 1
    return found


def _listed(each: IpSet, references: int) -> str:
    lines = [
        f"Name: {each.name}",
        f"Type: {each.type}",
        f"Revision: {_REVISIONS[each.type]}",
        f"Header: {header(each)}",
        f"Size in memory: {_size(each)}",
        f"References: {references}",
        f"Number of entries: {len(each.elements)}",
        "Members:",
        *in_order(each),
    ]
    return "".join(f"{line}\n" for line in lines)


def _size(each: IpSet) -> int:
    """As a kernel of 64 bits needs, about."""
    return 8264 if each.type.startswith("bitmap:") else 208 + 64 * len(each.elements)


def _test(client: Client, words: Words) -> str:
    name = words.next("the name of a set")
    (each,), element = _chosen(client, name), words.next("an element")
    try:
        wanted = parse(each.type, each.family, element)
    except ValueError as error:
        raise ToolError(f"ipset v7.17: {error}", 1) from None
    if not any(parse(each.type, each.family, one) == wanted for one in each.elements):
        raise ToolError(f"{element} is NOT in set {name}.", 1)
    return f"Warning: {element} is in set {name}.\n"


def _operation(command: str, words: Words, client: Client, exist: bool) -> Op:
    if command == "destroy":
        return IpsetDestroy(words.next(), missing_ok=exist) if words else IpsetDestroy()
    name = words.next("the name of a set")
    if command == "create":
        kind, options = words.next("a type"), words.rest()
        family = 6 if "inet6" in options else 4
        there = [each.name for each in client.dump("ipsets")]
        if name in there and not exist:
            raise ToolError("ipset v7.17: Set cannot be created: set with the same name already exists", 1)
        if kind not in TYPES:
            raise ToolError(f"ipset v7.17: Syntax error: unknown settype {kind}", 2)
        return IpsetSet(IpSet(name, kind, family))
    (each,) = _chosen(client, name)
    if command == "flush":
        return IpsetSet(IpSet(each.name, each.type, each.family, (), each.maxelem, each.hashsize))
    if command in ("add", "del"):
        element = (words.next("an element"),)
        return IpsetUpdate(name, add=element) if command == "add" else IpsetUpdate(name, delete=element)
    raise unsupported("ipset", [command])


def _apply(client: Client, operation: Op) -> None:
    try:
        if isinstance(operation, IpsetSet):
            check(operation.set)
        client.apply([operation])
    except ValueError as error:
        raise ToolError(f"ipset v7.17: {error}", 1) from None
    except NetlinkError as error:
        busy = "Set cannot be destroyed: it is in use by a kernel component"
        raise ToolError(f"ipset v7.17: {busy if error.errno_name == 'EBUSY' else error.message}", 1) from None

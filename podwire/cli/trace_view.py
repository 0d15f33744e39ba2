"""A journey as text for people: rich markup in, lines out. Pure, but for the console it is given.

    Story       what was asked: who, where from, which command, what address is whose
    render      DNS in one line a lookup, then the request's first packet and its reply hop by hop, then totals

Every step shows what a stage decided, the rule that made it decide so, and the object that the rule is there for.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field, structs
from rich.console import Console
from rich.markup import escape

from podwire.journey import Connection, Passage, totals
from podwire_core.trace import Digest, Hop, Step

DNS_PORT = 53
QUIET = ("pass", "accept")  # of a stage that let a packet pass without having looked at a rule
TRANSLATIONS = ("dnat", "snat", "masquerade")
COLOURS = {
    **dict.fromkeys((*TRANSLATIONS, "un-dnat", "un-snat"), "magenta"),
    **dict.fromkeys(("drop", "reject", "error"), "bold red"),
    **dict.fromkeys(("encapsulate", "decapsulate"), "cyan"),
    **dict.fromkeys(("accept", "deliver", "established", "new", "related"), "green"),
}
FLAGS = {"S": "SYN", "SA": "SYN-ACK", "A": "ACK", "PA": "PSH-ACK", "FA": "FIN-ACK", "F": "FIN", "R": "RST", "RA": "RST-ACK"}
ICMP = {0: "echo reply", 3: "destination unreachable", 8: "echo request", 11: "time exceeded"}
ICMP6 = {1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply"}


class Story(Struct):
    """`names`: what an address belongs to ("pod default/client")."""

    source: str
    target: str
    command: list[str]
    exit: int
    output: str
    connections: list[Connection]
    names: dict[str, str] = field(default_factory=dict)
    lost: int = 0


def render(story: Story, console: Console, everything: bool = False) -> None:
    view = _View(console, story.names)
    view.line(f"[bold]{escape(' '.join(story.command))}[/]  in {escape(story.source)}")
    if not story.connections:
        view.line("[yellow]no packet left it[/]")
    for number, connection in enumerate(story.connections, 1):
        view.blank()
        if connection.server_port == DNS_PORT and not everything:
            view.lookup(number, connection)
        else:
            view.connection(number, connection, everything)
    view.blank()
    _footer(view, story)


def _footer(view: _View, story: Story) -> None:
    sums = totals([passage for each in story.connections for passage in each.passages])
    view.line(
        f"[bold]{sums.packets}[/] packets, [bold]{sums.hops}[/] hops, [bold]{sums.rules}[/] rules evaluated, "
        f"[bold]{sums.tunnels}[/] times through a tunnel; {_micro(sums.datapath_ns)} in datapaths, "
        f"{sums.seconds * 1000:.1f} ms in all"
    )
    if story.lost:
        view.line(f"[yellow]{story.lost} records were lost: what is shown has gaps[/]")
    colour = "green" if story.exit == 0 else "bold red"
    view.line(f"[{colour}]exit status {story.exit}[/]" + (f": {escape(story.output)}" if story.output else ""))


class _View:
    def __init__(self, console: Console, names: dict[str, str]) -> None:
        self.console, self.names = console, names

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def blank(self) -> None:
        self.console.print()

    def named(self, address: str, port: int = 0) -> str:
        text = f"{address}:{port}" if port else address
        owner = self.names.get(address)
        return f"{text} [dim]({escape(owner)})[/]" if owner else text

    # --- connections ---

    def lookup(self, number: int, connection: Connection) -> None:
        """A DNS lookup in two lines: who was asked, who answered."""
        questions = sum(1 for passage in connection.passages if not passage.reply)
        answers = len(connection.passages) - questions
        sums = totals(connection.passages)
        state = f"{answers} answers" if answers else "[bold red]no answer[/]"
        self.line(
            f"[bold]{number}. DNS[/] {self.named(connection.client, connection.client_port)} → "
            f"{self.named(connection.server, DNS_PORT)}: {questions} questions, {state}, {sums.seconds * 1000:.1f} ms"
        )
        if connection.backend:
            rule = next((s for p in connection.passages for s in p.steps() if s.action == "dnat" and s.rule), None)
            why = f", by {escape(rule.origin)}" if rule and rule.origin else ""
            self.line(
                f"   answered by {self.named(connection.backend, connection.backend_port)}{why}, {sums.rules} rules evaluated"
            )

    def connection(self, number: int, connection: Connection, everything: bool) -> None:
        self.line(
            f"[bold]{number}. {connection.proto.upper()}[/] {self.named(connection.client, connection.client_port)} → "
            f"{self.named(connection.server, connection.server_port)}"
        )
        if connection.backend:
            seen = f", which sees {self.named(connection.seen_as)}" if connection.seen_as else ""
            self.line(f"   reached {self.named(connection.backend, connection.backend_port)}{seen}")
        shown = connection.passages if everything else connection.opening()
        for passage in shown:
            self.blank()
            self.passage(passage)
        rest = len(connection.passages) - len(shown)
        if rest > 0:
            self.blank()
            self.line(f"   [dim]and {rest} more packets the same way (--all shows them)[/]")

    def passage(self, passage: Passage) -> None:
        arrow, colour = ("◀", "blue") if passage.reply else ("▶", "green")
        d = passage.first
        back = "the way back: " if passage.reply else ""
        self.line(f"   [{colour} bold]{arrow} {back}{packet_name(d)}[/] {_ends(d)}  [dim]{d.length} bytes, ttl {d.ttl}[/]")
        for index, hop in enumerate(passage.hops):
            self.hop(hop, first=index == 0)

    # --- hops ---

    def hop(self, hop: Hop, first: bool) -> None:
        entry = f"in {escape(hop.in_link)}" + (f" [dim]({escape(hop.in_alias)})[/]" if hop.in_alias else "")
        self.line(f"     [bold]{escape(hop.node)}[/]  {entry}")
        for step in worth_showing(hop.steps):
            self.step(step)
        self.outcome(hop)

    def step(self, step: Step) -> None:
        colour = COLOURS.get(step.action, "white")
        rules = f"{step.evaluated} rules" if step.evaluated else ""
        cost = f" [dim]{rules:>9} {_micro(step.ns) if step.ns else '':>9}[/]" if rules or step.ns else ""
        detail = escape(f"{step.detail:<52}" if cost else step.detail)
        self.line(f"       {step.stage:<17} [{colour}]{step.action:<12}[/] {detail}{cost}")
        for line in _because(step):
            self.line(f"       {'':<17} [dim]{escape(line)}[/]")

    def outcome(self, hop: Hop) -> None:
        took = f"  [dim]{_micro(hop.ns)}[/]" if hop.ns else ""
        target = f"{escape(hop.out_link)}" + (f" [dim]({escape(hop.out_alias)})[/]" if hop.out_alias else "")
        if hop.tunnel_dst:
            self.line(f"       [cyan]═▶ out {target}, in a tunnel to {self.named(hop.tunnel_dst)}[/]{took}")
        elif hop.verdict in ("dropped", "rejected"):
            reason = f" ({escape(hop.reason)})" if hop.reason else ""
            self.line(f"       [bold red]✗ {hop.verdict}{reason}[/]{took}")
        elif hop.verdict == "delivered":
            self.line(f"       [green]✓ delivered to {target or escape(hop.node)}[/]{took}")
        elif hop.out_link:
            changed = f" as {_ends(hop.out)}" if hop.out and _ends(hop.out) != _ends(hop.entered) else ""
            self.line(f"       ─▶ out {target}{changed}{took}")
        else:
            self.line(f"       {hop.verdict} {escape(hop.reason)}{took}".rstrip())


def worth_showing(steps: Iterable[Step]) -> list[Step]:
    """Not the stages that looked at no rule; a translation that was decided and then done is one step."""
    shown: list[Step] = []
    for step in steps:
        before = shown[-1] if shown else None
        if step.action in QUIET and not step.evaluated:
            continue
        if before is not None and (before.stage, before.action) == (step.stage, step.action) and not step.rule:
            shown[-1] = structs.replace(before, ns=before.ns + step.ns)
            continue
        shown.append(step)
    return shown


def _because(step: Step) -> Iterable[str]:
    """Why a stage decided as it did: the rule, what the rule is there for, the chains that led to it. That no rule held, and the
    chain's policy decided, goes without saying."""
    if step.rule and step.rule != step.detail and not step.rule.startswith("-P "):
        yield step.rule
    if step.origin:
        yield f"because of {step.origin}"
    if step.chain and step.action in (*TRANSLATIONS, "drop", "reject"):
        yield f"by way of {' → '.join(step.chain)}"


def packet_name(d: Digest) -> str:
    if d.proto == "tcp":
        return f"TCP {FLAGS.get(d.flags, d.flags)}"
    if d.proto.startswith("icmp"):
        return f"ICMP {(ICMP if d.proto == 'icmp' else ICMP6).get(d.sport, f'type {d.sport}')}"
    return d.proto.upper()


def _ends(d: Digest) -> str:
    if d.proto.startswith("icmp"):
        return f"{d.src} → {d.dst}"
    return f"{d.src}:{d.sport} → {d.dst}:{d.dport}"


def _micro(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms" if ns >= 1_000_000 else f"{ns / 1000:.1f} µs"

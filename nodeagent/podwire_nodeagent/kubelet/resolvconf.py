"""/etc/resolv.conf, /etc/hosts and the host name of a pod: pure text.

Kubernetes' limits hold: 3 name servers, 32 search domains of at most 2 048 characters together; what is cut is told in a warning
(event DNSConfigForming). A node of the emulation has no search domains of its own, so ClusterFirst gives the cluster's
three only: the machine's would send the pods' queries astray.
"""

from __future__ import annotations

from podwire_core.objects import HostAlias, PodDNSConfig, PodSpec

MAX_SERVERS, MAX_DOMAINS, MAX_CHARACTERS = 3, 32, 2048


def resolv_conf(spec: PodSpec, namespace: str, cluster_domain: str, dns_ip: str, machine: str) -> tuple[str, list[str]]:
    """(text, warnings). `machine` is the text of the machine's own resolv.conf, for policy Default."""
    servers, domains, options = _base(spec, namespace, cluster_domain, dns_ip, machine)
    if spec.dns_config is not None:
        servers, domains, options = _merge(spec.dns_config, servers, domains, options)
    warnings = []
    if len(servers) > MAX_SERVERS:
        servers = servers[:MAX_SERVERS]
        warnings.append(_cut("Nameserver", "nameservers", "nameserver", servers))
    if len(domains) > MAX_DOMAINS or len(" ".join(domains)) > MAX_CHARACTERS:
        domains = _fitting(domains)
        warnings.append(_cut("Search Line", "search paths", "search", domains))
    lines = [f"search {' '.join(domains)}"] if domains else []
    lines += [f"nameserver {server}" for server in servers]
    if options:
        lines.append("options " + " ".join(name if value is None else f"{name}:{value}" for name, value in options.items()))
    return "".join(f"{line}\n" for line in lines), warnings


def _cut(limit: str, what: str, line: str, kept: list[str]) -> str:
    return f"{limit} limits were exceeded, some {what} have been omitted, the applied {line} line is: {' '.join(kept)}"


_Parts = tuple[list[str], list[str], dict[str, str | None]]


def _base(spec: PodSpec, namespace: str, cluster_domain: str, dns_ip: str, machine: str) -> _Parts:
    policy = spec.dns_policy
    if policy == "None":
        return [], [], {}
    if policy == "Default" or (policy == "ClusterFirst" and spec.host_network):
        return parse(machine)
    domains = [f"{namespace}.svc.{cluster_domain}", f"svc.{cluster_domain}", cluster_domain]
    return [dns_ip], domains, {"ndots": "5"}


def parse(text: str) -> _Parts:
    """Name servers, search domains and options of a resolv.conf; the last search or domain line counts."""
    servers: list[str] = []
    domains: list[str] = []
    options: dict[str, str | None] = {}
    for line in text.splitlines():
        match line.split("#")[0].split(";")[0].split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *names]:
                domains = [name for name in names if name != "."]
            case ["options", *words]:
                options |= {name: value if colon else None for name, colon, value in (word.partition(":") for word in words)}
    return servers, domains, options


def _merge(config: PodDNSConfig, servers: list[str], domains: list[str], options: dict[str, str | None]) -> _Parts:
    servers = list(dict.fromkeys(servers + (config.nameservers or [])))
    domains = list(dict.fromkeys(domains + (config.searches or [])))
    return servers, domains, options | {option.name: option.value for option in config.options or []}


def _fitting(domains: list[str]) -> list[str]:
    kept: list[str] = []
    for domain in domains[:MAX_DOMAINS]:
        if len(" ".join([*kept, domain])) > MAX_CHARACTERS:
            break
        kept.append(domain)
    return kept


# --- host name --------------------------------


def host_names(spec: PodSpec, pod: str, namespace: str, node: str, cluster_domain: str) -> tuple[str, str]:
    """(what `hostname` says, the fully qualified name or ""). A name that is too long for Linux raises ValueError."""
    if spec.host_network:
        return node, ""
    name = spec.hostname or pod[:63].rstrip("-.")
    domain = f"{name}.{spec.subdomain}.{namespace}.svc.{cluster_domain}" if spec.subdomain else ""
    if spec.set_hostname_as_fqdn and domain:
        if len(domain) > 64:
            raise ValueError(f"failed to construct FQDN from pod hostname and cluster domain: {domain} is over 64 characters")
        return domain, domain
    return name, domain


# --- hosts --------------------------------

_MANAGED = """# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
fe00::0\tip6-mcastprefix
fe00::1\tip6-allnodes
fe00::2\tip6-allrouters
"""


def hosts(ips: list[str], hostname: str, fqdn: str, aliases: list[HostAlias] | None) -> str:
    names = f"{fqdn}\t{hostname}" if fqdn and fqdn != hostname else hostname
    return _MANAGED + "".join(f"{ip}\t{names}\n" for ip in ips) + _aliases(aliases)


def host_network_hosts(machine: str, aliases: list[HostAlias] | None) -> str:
    return "# Kubernetes-managed hosts file (host network).\n" + machine + _aliases(aliases)


def _aliases(aliases: list[HostAlias] | None) -> str:
    if not aliases:
        return ""
    lines = (f"{alias.ip}\t" + "\t".join(alias.hostnames or []) + "\n" for alias in aliases)
    return "\n# Entries added by HostAliases.\n" + "".join(lines)

"""`sysctl` of the datapath's settings."""

from __future__ import annotations

from podwire_core.netlink import NetlinkError, SysctlSet
from podwire_nodeagent.tools.common import Client, ToolError, unsupported


def sysctl(argv: list[str], client: Client) -> str:
    flags = {word for word in argv if word.startswith("-")}
    names = [word for word in argv if not word.startswith("-")]
    unknown = flags - {"-n", "-w", "-a", "-e", "-q"}
    if unknown:
        raise unsupported("sysctl", sorted(unknown))
    known: dict[str, str] = client.dump("sysctls")
    if "-a" in flags:
        return "".join(f"{name} = {value}\n" for name, value in sorted(known.items()))
    if not names:
        raise ToolError('sysctl: no variables specified\nTry "sysctl --help" for more information.')
    text = ""
    for word in names:
        name, equals, value = (part.strip() for part in word.replace("/", ".").partition("=")) if "=" in word else (word, "", "")
        name = name.replace("/", ".")
        if equals:
            try:
                client.apply([SysctlSet(name, value)])
            except NetlinkError as error:
                raise ToolError(f'sysctl: setting key "{name}": {error.message}') from None
            text += f"{name} = {value}\n" if "-q" not in flags else ""
            continue
        found = {key: value for key, value in known.items() if key == name or key.startswith(name + ".")}
        if not found:
            raise ToolError(f"sysctl: cannot stat /proc/sys/{name.replace('.', '/')}: No such file or directory")
        text += "".join(f"{value}\n" if "-n" in flags else f"{key} = {value}\n" for key, value in sorted(found.items()))
    return text

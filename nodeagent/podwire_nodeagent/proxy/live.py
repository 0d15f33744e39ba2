"""Which kube-proxy configuration a running node has: the cluster's, from its ConfigMap, with the node's own mode if it has one.

    kube-system/kube-proxy, key config.conf     a KubeProxyConfiguration, as kubeadm writes it; applies to all nodes
    annotation podwire.dev/proxy-mode           on a Node: its mode, so that modes can be changed, and compared, node by node

Pure. A field that the file leaves out is as the agent was started with. A file that is wrong changes nothing: its error is
told, and the configuration in force stays.
"""

from __future__ import annotations

import msgspec

from podwire_core import manifest
from podwire_core.errors import Cause
from podwire_core.objects import Json
from podwire_nodeagent.proxy import modes
from podwire_nodeagent.proxy.config import ConfigurationError, ProxyConfiguration, load

CONFIG_MAP, KEY = "kube-system/kube-proxy", "config.conf"
MODE_ANNOTATION = "podwire.dev/proxy-mode"


def configuration(started_with: ProxyConfiguration, config_map: Json | None, node: Json) -> ProxyConfiguration:
    """Raises ConfigurationError, whose message says where."""
    config = started_with
    text = ((config_map or {}).get("data") or {}).get(KEY, "")
    if text:
        config = _from_file(started_with, text)
    mode = (node["metadata"].get("annotations") or {}).get(MODE_ANNOTATION, "")
    if mode:
        config = msgspec.structs.replace(config, mode=mode)
    if config.mode not in modes.MODES:
        where = f"annotation {MODE_ANNOTATION}" if mode else "$.mode"
        raise ConfigurationError([Cause(where, f"there is no mode {config.mode!r}; there are: {', '.join(modes.MODES)}")])
    return config


def _from_file(started_with: ProxyConfiguration, text: str) -> ProxyConfiguration:
    try:
        [document] = manifest.load(text, KEY)
    except manifest.ManifestError as error:
        raise ConfigurationError([Cause(*error.errors[0].split(": ", 1))]) from None
    except ValueError:
        raise ConfigurationError([Cause("$", "expected one KubeProxyConfiguration")]) from None
    given = document.object
    config = load(given)
    if not given.get("mode"):
        config = msgspec.structs.replace(config, mode=started_with.mode)
    if not given.get("clusterCIDR"):
        config = msgspec.structs.replace(config, cluster_cidrs=started_with.cluster_cidrs)
    return config

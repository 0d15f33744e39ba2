"""Chain names are kube-proxy's: known values of its own tests."""

from podwire_nodeagent.proxy.names import endpoint_chain, port_hash


def test_known_hashes():
    assert port_hash("ns1/svc1:p80", "tcp") == "XPGD46QRK7WJZT7O"
    assert port_hash("ns2/svc2:p80", "tcp") == "GNZBNJ2PO5MGZ6GT"
    assert endpoint_chain("ns1/svc1:p80", "tcp", "10.180.0.1:80") == "KUBE-SEP-SXIVWICOYRO3J4NJ"


def test_every_part_counts():
    names = {
        port_hash(*each) for each in (("a/b:c", "tcp"), ("a/b:c", "udp"), ("a/b", "tcp"), ("a/d:c", "tcp"), ("e/b:c", "tcp"))
    }
    assert len(names) == 5

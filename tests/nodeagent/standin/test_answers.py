"""What a stand-in says, protocol by protocol; any bytes in any pieces leave it standing."""

import json

import h2.config
import h2.connection
import h2.events
import h11
from hypothesis import given
from hypothesis import strategies as st

from podwire_nodeagent.standin.answers import SERVING, Conversation, Identity, Peer, datagram

WHO = Identity(pod="default/web-0", node="node2", ip="10.244.2.3")
PEER = Peer("10.244.1.7", 40000, "10.244.2.3", 8080)


def http(request: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(Conversation(WHO, PEER).receive(request))
    response, body = client.next_event(), b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    return response.status_code, dict(response.headers), body


def test_http_says_who_answers_and_whom_it_saw():
    status, headers, body = http(b"GET /cart?x=1 HTTP/1.1\r\nHost: web\r\n\r\n")
    assert status == 200
    assert headers[b"content-type"] == b"text/plain"
    assert body.decode().splitlines() == [
        "pod: default/web-0",
        "node: node2",
        "address: 10.244.2.3:8080",
        "client: 10.244.1.7:40000",
        "request: GET /cart?x=1",
        "host: web",
    ]


def test_http_as_json_when_asked_for():
    _, _, body = http(b"GET / HTTP/1.1\r\nHost: web\r\nAccept: application/json\r\n\r\n")
    assert json.loads(body)["pod"] == "default/web-0"


def test_agnhost_paths():
    assert http(b"GET /hostname HTTP/1.1\r\nHost: w\r\n\r\n")[2] == b"web-0"
    assert http(b"GET /clientip HTTP/1.1\r\nHost: w\r\n\r\n")[2] == b"10.244.1.7:40000"
    assert http(b"GET /echo?msg=hi%20you HTTP/1.1\r\nHost: w\r\n\r\n")[2] == b"hi you"


def test_pipelined_requests_are_all_answered_and_close_closes():
    conversation = Conversation(WHO, PEER)
    out = conversation.receive(b"GET /hostname HTTP/1.1\r\nHost: w\r\n\r\n" * 2)
    assert out.count(b"HTTP/1.1 200") == 2
    assert not conversation.finished
    out = conversation.receive(b"GET /hostname HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n")
    assert out.count(b"HTTP/1.1 200") == 1
    assert conversation.finished


def test_a_broken_request_is_400():
    conversation = Conversation(WHO, PEER)
    assert conversation.receive(b"GET / HTTP/9.x\r\n\r\n").startswith(b"HTTP/1.1 4")
    assert conversation.finished


def grpc(path: str) -> list[h2.events.Event]:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    headers = [
        (":method", "POST"),
        (":path", path),
        (":scheme", "http"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
    ]
    client.send_headers(1, headers)
    client.send_data(1, b"\0\0\0\0\0", end_stream=True)
    return client.receive_data(Conversation(WHO, PEER).receive(client.data_to_send()))


def test_grpc_health_is_serving():
    events = grpc("/grpc.health.v1.Health/Check")
    assert [e.data for e in events if isinstance(e, h2.events.DataReceived)] == [SERVING]
    assert [h for e in events if isinstance(e, h2.events.TrailersReceived) for h in e.headers] == [("grpc-status", "0")]


def test_other_grpc_methods_are_unimplemented():
    headers = [dict(e.headers) for e in grpc("/shop.Cart/Get") if isinstance(e, h2.events.ResponseReceived)]
    assert headers[0]["grpc-status"] == "12"
    assert "default/web-0" in headers[0]["grpc-message"]


def test_plain_tcp_greets_once_and_echoes():
    conversation = Conversation(WHO, PEER)
    first, rest = conversation.receive(b"hello\n").split(b"\n", 1)
    assert json.loads(first)["client"] == "10.244.1.7:40000"
    assert rest == b"hello\n"
    assert conversation.receive(b"again") == b"again"


def test_datagram_names_the_pod_and_echoes():
    first, rest = datagram(WHO, PEER, b"\x00\xff").split(b"\n", 1)
    assert json.loads(first)["node"] == "node2"
    assert rest == b"\x00\xff"


@given(
    st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n"]))
    )
)
def test_no_bytes_break_it(pieces: list[bytes]):
    conversation = Conversation(WHO, PEER)
    for piece in pieces:
        assert isinstance(conversation.receive(piece), bytes)
        if conversation.finished:
            return


@given(st.integers(1, 60))
def test_pieces_make_no_difference(cut: int):
    request = b"GET /echo?msg=0123456789 HTTP/1.1\r\nHost: web.default\r\n\r\n"
    whole, pieces = Conversation(WHO, PEER), Conversation(WHO, PEER)
    assert pieces.receive(request[:cut]) + pieces.receive(request[cut:]) == whole.receive(request)

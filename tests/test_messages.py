"""Messages carry numbers, texts and plain arrays; whatever else arrives is refused before it is read."""

import contextlib
import json
import socket
import threading

import numpy as np
import pytest

from offrl.errors import ConfigError, PolicyError
from offrl.messages import (
    HOST,
    LENGTHS,
    MAX_BODY,
    MAX_HEADER,
    Client,
    Message,
    MessageError,
    Server,
    pack,
    served_port,
    unpack,
)


def parts(data):
    header, _ = LENGTHS.unpack(data[: LENGTHS.size])
    return data[LENGTHS.size : LENGTHS.size + header], data[LENGTHS.size + header :]


def test_numbers_texts_and_arrays_come_back_as_they_were():
    arrays = {
        "a": np.arange(9, dtype=np.float32).reshape(3, 3).T,  # not contiguous
        "b": np.array([True, False]),
        "c": np.array(np.pi),
        "d": np.zeros((0, 4), np.uint8),
        "e": np.array([-(2**60)]),
    }
    values = {"rho": float("inf"), "text": "ü", "none": None, "list": [1, 2.5]}
    back = unpack(*parts(pack(Message("denoise", values, arrays))))
    assert (back.call, back.values) == ("denoise", values)
    assert back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays[name], array)


def test_a_received_array_is_memory_of_its_own_and_may_be_written():
    back = unpack(*parts(pack(Message("x", {}, {"a": np.zeros(3)}))))
    back.arrays["a"][0] = 1.0
    assert back.arrays["a"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([None]), np.zeros(2, np.complex64), np.zeros(2, "M8[s]")]
)
def test_arrays_of_other_types_are_not_sent(array):
    with pytest.raises(MessageError, match="has type"):
        pack(Message("x", {}, {"a": array}))


HEAD = {"protocol": 1, "call": "x", "values": {}, "arrays": []}


@pytest.mark.parametrize(
    ("changed", "body", "what"),
    [
        ({"protocol": 2}, b"", "protocol 2"),
        ({"call": 3}, b"", "a name"),
        ({"values": []}, b"", "a name"),
        ({"arrays": [["a", "|O", [1]]]}, bytes(8), "unknown type"),
        ({"arrays": [["a", "<f4", [2]]]}, bytes(4), "longer than its message"),
        ({"arrays": [["a", "<f4", [-1]]]}, b"", "unknown type or shape"),
        ({"arrays": [["a", "<f4", [2**40, 2**40]]]}, bytes(4), "longer than its message"),
        ({"arrays": [["a", "<f4", [1.0]]]}, bytes(4), "unknown type or shape"),
        ({"arrays": [["a", "<f4", [True]]]}, bytes(4), "unknown type or shape"),
        ({"arrays": [["a", "<f4", [1] * 7]]}, bytes(4), "unknown type or shape"),
        ({"arrays": [["a", "<f4"]]}, b"", "not a message"),
        ({"arrays": [["a", "|u1", [0]]] * 65}, b"", "a table of arrays"),
        ({}, bytes(1), "do not fill"),
    ],
)
def test_what_is_no_message_is_refused(changed, body, what):
    with pytest.raises(MessageError, match=what):
        unpack(json.dumps(HEAD | changed).encode(), body)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"\xff", b"{}", b"[" * 100_000, b"cos\nsystem\n(S'true'\ntR."]
)
def test_bytes_that_are_no_json_object_are_refused(header):
    with pytest.raises(MessageError, match="not a message"):
        unpack(header, b"")


class Echo:
    """Doubles ``a``; counts the connections that were closed."""

    closed = 0

    def answer(self, message):
        if message.call == "large":
            return Message("large", {}, {"a": np.zeros(MAX_BODY, np.float64)})
        return Message(message.call, message.values, {"a": 2 * message.arrays["a"]})

    def close(self):
        Echo.closed += 1


@pytest.fixture
def server():
    made = Server(Echo)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.threads.shutdown()
    made.close()


def test_a_server_answers_several_clients_and_goes_on_after_an_error(server):
    first, second = Client(server.port), Client(server.port)
    assert first("double", {"a": np.array([1.0, 2.0])}).arrays["a"].tolist() == [2.0, 4.0]
    with pytest.raises(PolicyError, match=f"served:{server.port}: KeyError: 'a'"):
        first("double")
    with pytest.raises(PolicyError, match="a message has at most"):
        first("large", {"a": np.zeros(1)})
    assert second("double", {"a": np.array([3.0])}, x=1).values == {"x": 1}
    assert first("double", {"a": np.array([4.0])}).arrays["a"].tolist() == [8.0]
    first.close()
    second.close()


def test_a_server_listens_on_the_loopback_interface_alone(server):
    assert server.threads.server_address[0] == HOST == "127.0.0.1"
    with socket.socket() as outside:
        outside.settimeout(2)
        assert outside.connect_ex(("127.0.0.2", server.port)) != 0


@pytest.mark.parametrize("lengths", [(MAX_HEADER + 1, 0), (2, MAX_BODY + 1)])
def test_a_server_hangs_up_on_what_would_be_too_large(server, lengths):
    with socket.create_connection((HOST, server.port), timeout=5) as connection:
        connection.sendall(LENGTHS.pack(*lengths))
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    refused = unpack(*parts(answer))
    assert refused.call == "error"
    assert "a message has at most" in refused.values["text"]


def test_a_server_hangs_up_on_a_browser_and_serves_the_next_one(server):
    with socket.create_connection((HOST, server.port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while connection.recv(1 << 16):
                pass
    client = Client(server.port)
    assert client("double", {"a": np.array([1.0])}).arrays["a"].tolist() == [2.0]
    client.close()


def test_nobody_there_is_one_clear_line():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"nothing answers on served:{port}.*offrl serve"):
        Client(port)("describe")


@pytest.mark.parametrize(
    "text", ["served:", "served:0", "served:65536", "served:example.org:80", "served:²", "run:5"]
)
def test_a_served_policy_is_named_by_a_port_of_this_machine(text):
    with pytest.raises(ConfigError, match="must be served:PORT"):
        served_port(text)
    assert served_port("served:5000") == 5000

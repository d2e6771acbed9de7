"""Messages between processes on one machine: JSON and plain arrays, never pickle, sizes limited.

    4 bytes  length of the header        big-endian, at most 1 MiB
    8 bytes  length of the body          big-endian, at most 64 MiB
    header   JSON: {"protocol": 1, "call": NAME, "values": {...}, "arrays": [[NAME, DTYPE, [SIZES]], ...]}
    body     the arrays one after the other, C order, little-endian

Nothing that is received can run: numbers, texts, and arrays of a few plain types. An answer has the call's name, or
"error" with one line of text. Sockets are those of the loopback interface only.
"""

import contextlib
import json
import math
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from offrl.errors import ConfigError, PolicyError

PROTOCOL = 1
HOST = "127.0.0.1"
MAX_HEADER, MAX_BODY = 1 << 20, 64 << 20
DTYPES = ("<f4", "<f8", "<i8", "|u1", "|b1")
MAX_DIMS, MAX_ARRAYS = 6, 64
LENGTHS = struct.Struct(">IQ")
SECONDS = 120.0  # that a client waits for an answer
CONNECTIONS = 64  # that a server takes at once


class MessageError(ConfigError):
    """What was received is no message, or too large."""


@dataclass(frozen=True)
class Message:
    """A call or its answer."""

    call: str
    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def pack(message: Message) -> bytes:
    """The bytes of a message.

    Raises:
        MessageError: an array of another type than those above, or too much.
    """
    table, parts = [], []
    for name, array in message.arrays.items():
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if plain.dtype.str not in DTYPES:
            raise MessageError(f"array {name!r} has type {array.dtype}; messages carry {', '.join(DTYPES)}")
        table.append([name, plain.dtype.str, list(array.shape)])
        parts.append(plain.tobytes())
    head = {"protocol": PROTOCOL, "call": message.call, "values": message.values, "arrays": table}
    header, body = json.dumps(head).encode(), b"".join(parts)
    _check_lengths(len(header), len(body))
    return LENGTHS.pack(len(header), len(body)) + header + body


def unpack(header: bytes, body: bytes) -> Message:
    """A message of its two parts.

    Raises:
        MessageError: it is none.
    """
    try:
        head = json.loads(header)
        if head["protocol"] != PROTOCOL:
            raise MessageError(f"the other side speaks protocol {head['protocol']!r}, this one {PROTOCOL}")
        call, values, table = head["call"], head["values"], head["arrays"]
        if not isinstance(call, str) or not isinstance(values, dict) or len(table) > MAX_ARRAYS:
            raise MessageError("a message needs a name, values and a table of arrays")
        arrays, start = {}, 0
        for name, dtype, shape in table:
            arrays[str(name)], start = _array(body, start, dtype, shape)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, MessageError):
            raise
        raise MessageError(f"not a message: {type(error).__name__}") from None
    if start != len(body):
        raise MessageError("the arrays of a message do not fill its body")
    return Message(call, values, arrays)


def _array(body: bytes, start: int, dtype: Any, shape: Any) -> tuple[np.ndarray, int]:
    if dtype not in DTYPES or len(shape) > MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
        raise MessageError("an array of unknown type or shape")
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if size > len(body) - start:
        raise MessageError("an array is longer than its message")
    return np.frombuffer(body, dtype, math.prod(shape), start).reshape(shape).copy(), start + size


def _check_lengths(header: int, body: int) -> None:
    if header > MAX_HEADER or body > MAX_BODY:
        raise MessageError(f"a message has at most {MAX_HEADER} + {MAX_BODY} bytes, got {header} + {body}")


def send(connection: socket.socket, message: Message) -> None:
    """Write a message."""
    connection.sendall(pack(message))


def receive(connection: socket.socket) -> Message | None:
    """Read a message; None where the other side has left.

    Raises:
        MessageError: it is none, or too large; the connection is of no more use.
    """
    lengths = _read(connection, LENGTHS.size)
    if lengths is None:
        return None
    header, body = LENGTHS.unpack(lengths)
    _check_lengths(header, body)
    parts = [_read(connection, header), _read(connection, body)]
    if parts[0] is None or parts[1] is None:
        return None
    return unpack(parts[0], parts[1])


def _read(connection: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        part = connection.recv(min(count - len(found), 1 << 16))
        if not part:
            return None
        found += part
    return bytes(found)


class Client:
    """Calls to a server on this machine; connects at the first one, and again in a process that it was sent to.

    Args:
        port: of the server.
    """

    connection: socket.socket | None = None

    def __init__(self, port: int) -> None:
        self.port = port

    def __getstate__(self) -> dict[str, Any]:
        return {"port": self.port, "connection": None}

    def __del__(self) -> None:
        self.close()

    def __call__(self, call: str, arrays: dict[str, np.ndarray] | None = None, **values: Any) -> Message:
        """The answer to a call.

        Raises:
            PolicyError: the server refused, with its words.
            ConfigError: nobody answers there.
        """
        try:
            if self.connection is None:
                self.connection = socket.create_connection((HOST, self.port), timeout=SECONDS)
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            send(self.connection, Message(call, values, arrays or {}))
            answer = receive(self.connection)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"nothing answers on served:{self.port} ({error}); is 'offrl serve' running?"
            ) from None
        if answer is None:
            self.close()
            raise ConfigError(f"served:{self.port} closed the connection")
        if answer.call == "error":
            raise PolicyError(f"served:{self.port}: {answer.values.get('text')}")
        return answer

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class Service(Protocol):
    """What a server does for one connection."""

    def answer(self, message: Message) -> Message:
        """The answer to a call; a ValueError's text goes back as an error."""

    def close(self) -> None:
        """The other side has left."""


class Server:
    """Answers calls on a port of the loopback interface, one thread a connection.

    Args:
        make: a service for a new connection.
        port: to listen on; 0: a free one.

    Raises:
        ConfigError: there is no such port, or it is taken.
    """

    def __init__(self, make: Callable[[], Service], port: int = 0) -> None:
        if not 0 <= port < 1 << 16:
            raise ConfigError(f"--port must be in 1 .. 65535, or 0 for a free one, got {port}")
        places = threading.BoundedSemaphore(CONNECTIONS)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if places.acquire(blocking=False):
                    try:
                        _serve(self.request, make)
                    finally:
                        places.release()

        class Threads(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads = True, True

        try:
            self.threads = Threads((HOST, port), Handler)
        except OSError as error:
            raise ConfigError(f"--port {port} cannot be used: {error.strerror}; 0 takes a free one") from None
        self.port = int(self.threads.server_address[1])

    def run(self) -> None:
        """Until it is closed or interrupted."""
        self.threads.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop listening."""
        self.threads.server_close()


def _serve(connection: socket.socket, make: Callable[[], Service]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    service = make()
    try:
        with contextlib.suppress(OSError):
            while True:
                try:
                    message = receive(connection)
                except MessageError as error:
                    send(connection, Message("error", {"text": str(error)}))
                    return
                if message is None:
                    return
                connection.sendall(_answered(service, message))
    finally:
        service.close()


def _answered(service: Service, message: Message) -> bytes:
    try:
        return pack(service.answer(message))
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return pack(Message("error", {"text": " ".join(text.split())[:2000]}))


def served_port(text: str) -> int:
    """The port of ``served:PORT``.

    Raises:
        ConfigError: it names none, or another machine.
    """
    scheme, _, port = text.partition(":")
    if scheme != "served" or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"{text!r} must be served:PORT, the number that 'offrl serve' prints (this machine only)"
        )
    return int(port)

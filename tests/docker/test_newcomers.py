"""What newcomers have sent: a part of a request, a whole one, or something for the server."""

from __future__ import annotations

import socket
from pathlib import Path

import h11
import pytest

from tests.docker.conftest import request
from volfs.docker.newcomers import Asked, Newcomers, what_is

pytestmark = pytest.mark.any_level

BODY = b'{"Name": "web", "Opts": {}}\r\n\r\n'

REQUESTS = {
    "usual": request("VolumeDriver.Get", BODY),
    "without a body": request("Plugin.Activate"),
    "as Go writes it": b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: %2Frun%2Fv.sock\r\n"
    b"User-Agent: Go-http-client/1.1\r\nTransfer-Encoding: chunked\r\n"
    b"Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "with odd spaces": b"POST / HTTP/1.1\r\nhost:x\r\nCONTENT-LENGTH:\t 2 \t\r\nX:  \r\n\r\n{}",
    "with bare line feeds": b"POST / HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
    "length last but one": b"POST / HTTP/1.0\r\nContent-Length: 2\r\nX: content-length:\r\n\r\n{}",
    "length in another field": b"POST / HTTP/1.1\r\nHost: x\r\nX-Content-Length: 9\r\n\r\n",
    "length in a value": b"POST / HTTP/1.1\r\nHost: x\r\nX: \tContent-Length: 9\r\n\r\n",
    "two lengths": request("", b"", "Content-Length: 1", "Content-Length: 2") + b"xx",
    "the same length twice": request("", b"", "Content-Length: 1", "Content-Length: 1") + b"x",
    "no number": request("", b"", "Content-Length: x"),
    "a number below zero": request("", b"", "Content-Length: -1"),
    "a number too large for Python": request("", b"", "Content-Length: " + "9" * 5000),
    "awaiting a word": request("", b"", "Content-Length: 2", "Expect: 100-continue"),
    "awaiting another protocol": request("", b"", "Content-Length: 0", "Upgrade: h2c"),
    "in chunks, with a length": request("", b"", "Content-Length: 9", "Transfer-Encoding: chunked"),
    "another method": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "nothing but lines": b"\r\n\r\n\r\n",
}


def server_says(received: bytes) -> str:
    """What h11 makes of it: whether more is needed, all is there, or the server has to answer."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(received)
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return "refused"
        if event is h11.NEED_DATA:
            return "asked to go on" if connection.they_are_waiting_for_100_continue else "more"
        if isinstance(event, h11.EndOfMessage):
            return "whole"
        if event is h11.PAUSED or (isinstance(event, h11.Request) and event.method != b"POST"):
            return "something else"


@pytest.mark.parametrize("text", REQUESTS.values(), ids=REQUESTS)
def test_as_the_server_sees_it(text: bytes) -> None:
    """However much of it has come: nobody waits who could be answered, and whole is whole."""
    for size in (*range(1, len(text), len(text) // 500 + 1), len(text)):
        received = text[:size]
        asked, says = what_is(received), server_says(received)
        if asked is Asked.PART:
            # What is refused at the first line is so when the head has come to its end.
            assert says == "more" or (says == "refused" and b"\n\r\n" not in received), received
        if asked is Asked.WHOLE:
            assert says in ("whole", "refused"), received


@pytest.mark.parametrize("name", ["usual", "without a body", "with odd spaces"])
def test_the_usual_request_is_whole_at_its_end(name: str) -> None:
    text = REQUESTS[name]
    assert what_is(text[:-1]) is Asked.PART
    assert what_is(text) is Asked.WHOLE


def test_no_more_is_kept_than_a_head_can_have() -> None:
    assert what_is(b"x" * (1 << 14)) is Asked.UNCLEAR


@pytest.mark.parametrize("text", [b"", REQUESTS["usual"][:30]])
async def test_those_who_have_gone_are_nobodys_concern(path: Path, text: bytes) -> None:
    """Unlike who says no more, and may read what is wrong with what it said."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        newcomers = Newcomers(listening)
        with socket.socket(socket.AF_UNIX) as gone, socket.socket(socket.AF_UNIX) as silent:
            for client in (gone, silent):
                client.connect(str(path))
                client.sendall(text)
                assert newcomers.accept() is None
            assert len(newcomers) == 2
            gone.close()
            silent.shutdown(socket.SHUT_WR)
            wanted, asked = newcomers.look()
            assert not wanted
            assert [newcomer.received for newcomer in asked] == ([text] if text else [])
            assert len(newcomers) == 0
            for newcomer in asked:
                newcomer.socket.close()
        newcomers.close()

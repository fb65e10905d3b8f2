"""A small web server on this machine for tests: it answers as told, notes what it was asked, and misbehaves on demand.

    with Server({"/label": ok({"n": 1})}) as server:              # a table of paths ...
    with Server(lambda asked: ok(asked.query)) as server:          # ... or a function of the request
        server.faults.append(busy(retry_after=1))                  # the next request gets this instead
        ...
        assert server.asked[0].path == "/label"

An API is a subclass with `answer(asked)`; see the other files of this folder.
"""

import gzip
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, urlsplit


@dataclass
class Asked:
    "One request as the server saw it."

    method: str
    path: str  # without the query
    query: dict[str, str]  # the last value of each
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float  # time.monotonic()
    target: str  # path and query as they came

    @property
    def form(self) -> dict[str, str]:
        "What was posted as a form."
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))

    def values(self, name: str) -> list[str]:
        "All values of one parameter."
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True).get(name, [])


@dataclass
class Answer:
    "What to send, and how badly."

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    send: int | None = None  # only so many bytes of the body, then hang up
    drip: float | None = None  # seconds between one byte and the next
    drip_head: bool = False  # let the header lines drip too
    wait: float = 0.0  # seconds before anything is said


def ok(value="ok", headers=None, status=200) -> Answer:
    "An answer: bytes or text as they are, anything else as JSON."
    if isinstance(value, (bytes, str)):
        return Answer(status, value.encode() if isinstance(value, str) else value, headers or {})
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


# --- faults --------------------------------------------------------------------------------------------------------------


def busy(retry_after=None, body=b'{"error": "rate limit"}', status=429) -> Answer:
    "429 (or another status), with Retry-After (seconds or a date) or without."
    return Answer(status, body, {} if retry_after is None else {"Retry-After": str(retry_after)})


def truncated(answer: Answer, share=0.5) -> Answer:
    "The same answer, cut off: the length is announced, the connection closed before."
    return Answer(answer.status, answer.body, answer.headers, send=int(len(answer.body) * share))


def torn(answer: Answer, share=0.5) -> Answer:
    "The same answer cut off without a sign: the length that is announced is the length of what is left."
    return Answer(answer.status, answer.body[: int(len(answer.body) * share)], answer.headers)


def slow_drip(answer: Answer, every=0.05, head=False) -> Answer:
    "The same answer, one byte at a time: never a timeout between two bytes, and never an end."
    return Answer(answer.status, answer.body, answer.headers, drip=every, drip_head=head)


def redirect(location: str, status=302) -> Answer:
    "Go there, and take your key along."
    return Answer(status, b"", {"Location": location})


def wrong_type(body=b"<html><body>Please log in to the network</body></html>") -> Answer:
    "A web page with status 200 where data were expected."
    return Answer(200, body, {"Content-Type": "text/html; charset=utf-8"})


def gzip_bomb(size=200_000_000) -> Answer:
    "A small body that unpacks to `size` bytes."
    packer, pieces = gzip_stream(), []
    for _ in range(size // 1_000_000):
        pieces.append(packer.compress(b" " * 1_000_000))
    return Answer(200, b"".join([*pieces, packer.flush()]), {"Content-Encoding": "gzip", "Content-Type": "application/json"})


def gzip_stream():
    import zlib

    return zlib.compressobj(9, zlib.DEFLATED, 31)


def gzipped(answer: Answer) -> Answer:
    "The same answer, compressed."
    return Answer(answer.status, gzip.compress(answer.body), {**answer.headers, "Content-Encoding": "gzip"})


def hang_up() -> Answer:
    "Close the connection without a word."
    return Answer(0)


# --- the server ----------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        asked = Asked(
            self.command, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), {k.lower(): v for k, v in self.headers.items()},
            self.rfile.read(int(self.headers.get("Content-Length") or 0)), time.monotonic(), self.path,
        )  # fmt: skip
        with self.server.owner.lock:
            self.server.owner.asked.append(asked)
            fault = self.server.owner.faults.pop(0) if self.server.owner.faults else None
        answer = fault(asked) if callable(fault) else fault
        self.say(answer or self.server.owner.answer(asked) or ok("nothing here", status=404))

    do_POST = do_HEAD = do_GET

    def say(self, answer: Answer):
        time.sleep(answer.wait)
        if answer.status == 0:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(answer.status)
        for name, value in {"Content-Length": len(answer.body), **answer.headers}.items():
            self.send_header(name, str(value))
        if answer.drip is not None:
            self.dripped(answer)
            return
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else answer.body[: answer.send])
        self.close_connection = self.close_connection or answer.send is not None

    def dripped(self, answer: Answer):
        self.close_connection = True
        if answer.drip_head:
            head, self._headers_buffer = b"".join(self._headers_buffer) + b"\r\n", []
        else:
            head = b""
            self.end_headers()
        for byte in head + answer.body:
            if self.server.owner.closed.wait(answer.drip):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def log_message(self, *_):
        pass


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        "A client that hangs up is part of the test."


class Server:
    "A server on a free port of 127.0.0.1; use it in a `with` block. `asked`: all requests; `faults`: answers (or functions) used up first."

    def __init__(self, answers: dict[str, Answer | list[Answer]] | Callable[[Asked], Answer | None] | None = None):
        self.answers, self.asked, self.faults = answers, [], []
        self.lock, self.closed = threading.Lock(), threading.Event()
        self.web = Web(("127.0.0.1", 0), Handler)
        self.web.owner = self
        self.url = f"http://127.0.0.1:{self.web.server_port}"

    def answer(self, asked: Asked) -> Answer | None:
        "What to say; None is a 404. In a table, a list gives one answer after the other and repeats the last."
        if callable(self.answers):
            return self.answers(asked)
        found = (self.answers or {}).get(asked.path)
        if isinstance(found, list):
            with self.lock:
                return found.pop(0) if len(found) > 1 else found[0]
        return found

    @property
    def requests(self) -> list[Asked]:
        return self.asked

    def gaps(self) -> list[float]:
        "Seconds between one request and the next."
        times = [asked.at for asked in self.asked]
        return [later - earlier for earlier, later in zip(times, times[1:])]

    def __enter__(self):
        threading.Thread(target=self.web.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self.web.shutdown()
        self.web.server_close()

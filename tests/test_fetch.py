"HTTP as real servers do it: everything here talks to a server on this machine that is busy, ill, slow, wrong or gone."

import base64
import gzip
import hashlib
import html
import json
import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, quote_plus

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.base import Answer, Server, gzip_bomb, gzipped, ok, redirect, slow_drip, torn, truncated, wrong_type

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import sha256_text
from medlab.basics.processes import free_port
from medlab.basics.secrets import masked
from medlab.fetch import Counts, Fetched, Fetcher, check_json
from medlab.fetching.request import next_hop, public_address
from medlab.fetching.download import download
from medlab.fetching.markup import html_text, parse_xml
from medlab.fetching.pace import Bucket, seconds_to_wait
from medlab.fetching.retry import BadAnswer, TryAgain, retrying, without_caller

BODY = bytes(range(256)) * 4096  # 1 MB


class Script(BaseHTTPRequestHandler):
    "Answers each path with the next of the answers that the test laid down for it; the last one is repeated."

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.seen.append((time.monotonic(), self.path, dict(self.headers)))
            answers = self.server.answers.get(path, [lambda handler: handler.reply(404, b"nothing here")])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def reply(self, status, body=b"", headers=None, send=None):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body if send is None else body[:send])
        if send is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


def says(status, body=b"ok", headers=None, send=None):
    return lambda handler: handler.reply(status, body, headers, send)


@pytest.fixture
def server():
    "A server on a free port; lay down answers in `server.answers`, read what was asked in `server.seen`."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    server.daemon_threads = True
    server.answers, server.seen, server.lock = {}, [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher(tmp_path, server):
    with Fetcher(tmp_path / "raw", first_wait=0.02, timeout=2) as fetcher:
        fetcher.limit(server.url, 1000)
        yield fetcher


def gaps(server):
    times = [seen[0] for seen in server.seen]
    return [later - earlier for earlier, later in zip(times, times[1:])]


def all_text(folder):
    return "".join(path.name + path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file())


# --- get -----------------------------------------------------------------------------------------------------------------


def test_an_answer_is_kept_and_replayed_without_asking(server, fetcher, tmp_path):
    server.answers["/label"] = [says(200, b'{"n": 1}', {"Link": "<next>", "Set-Cookie": "id=secret"}), says(200, b'{"n": 2}')]
    first = fetcher.get(server.url + "/label", {"limit": 5})
    again = fetcher.get(server.url + "/label?limit=5")
    assert (first.json(), again.json(), first.from_store, again.from_store) == ({"n": 1}, {"n": 1}, False, True)
    assert again.headers["link"] == "<next>" and "set-cookie" not in again.headers
    assert (again.sha256, again.retrieved_at) == (first.sha256, first.retrieved_at)
    assert len(server.seen) == 1
    assert fetcher.store.body(first.sha256).read_bytes() == b'{"n": 1}'


def test_offline_answers_from_the_store_and_says_what_is_not_in_it(server, fetcher, tmp_path):
    server.answers["/a"] = [says(200)]
    fetcher.get(server.url + "/a")
    server.shutdown()
    with Fetcher(tmp_path / "raw", offline=True) as offline:
        assert offline.get(server.url + "/a", max_age=0).content == b"ok"  # old is better than nothing when offline
        with pytest.raises(MissingError, match="not in the store"):
            offline.get(server.url + "/b")


def test_an_old_answer_is_asked_for_again(server, fetcher):
    server.answers["/a"] = [says(200, b"old"), says(200, b"new")]
    assert fetcher.get(server.url + "/a").text == "old"
    assert fetcher.get(server.url + "/a", max_age=3600).text == "old"
    assert fetcher.get(server.url + "/a", max_age=-1).text == "new"


def test_a_damaged_answer_in_the_store_is_fetched_again_and_mended(server, fetcher):
    server.answers["/a"] = [says(200, b"right")]
    kept = fetcher.get(server.url + "/a")
    fetcher.store.body(kept.sha256).write_bytes(b"wrong")
    assert fetcher.get(server.url + "/a").text == "right"
    assert fetcher.get(server.url + "/a").from_store
    fetcher.store.note(kept.url).write_text("{torn")
    assert fetcher.get(server.url + "/a").text == "right"


def test_requests_keep_their_distance_over_threads(server, tmp_path):
    server.answers["/a"] = [says(200)]
    with Fetcher(tmp_path / "raw") as fetcher:
        fetcher.limit(server.url, per_second=20)
        threads = [threading.Thread(target=fetcher.get, args=(server.url + f"/a?n={n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.seen) == 6
    assert server.seen[-1][0] - server.seen[0][0] >= 5 / 20 - 0.1


@pytest.mark.parametrize("header", ["1", "date"])
def test_429_waits_as_long_as_asked(server, fetcher, header):
    def refuses(handler):
        asked = header if header == "1" else formatdate(time.time() + 2, usegmt=True)  # from the moment of the answer on
        return says(429, b'{"api-key": "10.1.2.3"}', {"Retry-After": asked})(handler)

    server.answers["/a"] = [refuses, says(200)]
    assert fetcher.get(server.url + "/a").text == "ok"
    assert gaps(server)[0] >= 0.9


def test_429_that_asks_for_an_hour_is_not_asked_again(server, fetcher):
    server.answers["/a"] = [says(429, b'{"api-key": "10.1.2.3"}', {"Retry-After": "3600"})]
    with pytest.raises(MissingError, match="answered 429.*in 3600 s, as it asks") as caught:
        fetcher.get(server.url + "/a")
    assert "10.1.2.3" not in str(caught.value)  # such answers quote the caller's address or key
    assert len(server.seen) == 1


def test_500s_are_tried_again_with_growing_waits_and_then_given_up(server, fetcher):
    server.answers["/passes"] = [says(500), says(503), says(522), says(200)]
    assert fetcher.get(server.url + "/passes").text == "ok"
    assert gaps(server)[2] > gaps(server)[0]
    server.answers["/stays"] = [says(500, b"Lucene cannot parse this")]
    with pytest.raises(MissingError, match="500 .*Lucene"):
        fetcher.get(server.url + "/stays")
    assert sum("/stays" in path for _, path, _ in server.seen) == 6
    assert not fetcher.store.note(public_address(server.url + "/stays")).exists()  # a refusal is no data


def test_a_dropped_connection_and_a_torn_body_are_tried_again(server, fetcher):
    def slams(handler):
        handler.close_connection = True
        handler.connection.close()

    server.answers["/a"] = [slams, says(200, b"0123456789", send=4), says(200, b"0123456789")]
    assert fetcher.get(server.url + "/a").content == b"0123456789"
    assert len(server.seen) == 3


def test_a_server_that_says_nothing_is_given_up(server, tmp_path):
    server.answers["/a"] = [lambda handler: time.sleep(1.5)]
    with Fetcher(tmp_path / "raw", timeout=0.2, attempts=2, first_wait=0.02) as fetcher:
        with pytest.raises(MissingError, match="connection failed"):
            fetcher.get(server.url + "/a")
    assert len(server.seen) == 2


def test_nobody_there_is_said_quickly(fetcher):
    began = time.monotonic()
    with pytest.raises(MissingError, match="cannot be reached"):
        fetcher.get(f"http://127.0.0.1:{free_port()}/a")
    assert time.monotonic() - began < 2


def test_an_unknown_host_is_missing_not_wrong(fetcher):
    with pytest.raises(MissingError, match="cannot be reached"):
        fetcher.get("http://no-such-host.invalid/a")


def test_404_is_an_error_or_an_answer_as_the_caller_says(server, fetcher):
    server.answers["/none"] = [says(404, b'{"error": {"code": "NOT_FOUND", "message": "No matches found!"}}')]
    with pytest.raises(MissingError, match="No matches found"):
        fetcher.get(server.url + "/none")
    assert fetcher.get(server.url + "/none", accept=(404,)).json()["error"]["code"] == "NOT_FOUND"
    assert fetcher.get(server.url + "/none", accept=(404,)).from_store


def test_a_wrong_request_is_not_repeated(server, fetcher):
    server.answers["/a"] = [says(400, b'{"error": {"message": "Limit cannot exceed 1000 results"}}')]
    with pytest.raises(InputError, match="Limit cannot exceed"):
        fetcher.get(server.url + "/a", {"limit": 2000})
    assert len(server.seen) == 1


@pytest.mark.parametrize("address", ["label.json", "ftp://example.org/x", "http://host:port/"])
def test_a_bad_address_is_the_callers_mistake(fetcher, address):
    with pytest.raises(InputError, match="expected an address"):
        fetcher.get(address)


def test_a_huge_answer_is_refused_before_it_fills_the_memory(server, tmp_path):
    server.answers["/big"] = [says(200, b"x" * 3_000_000)]
    server.answers["/bomb"] = [says(200, gzip.compress(b"x" * 30_000_000), {"Content-Encoding": "gzip"})]  # 30 kB on the wire
    with Fetcher(tmp_path / "raw", max_bytes=1_000_000) as fetcher:
        for path in ("/big", "/bomb"):
            with pytest.raises(InputError, match="larger than 1 MB"):
                fetcher.get(server.url + path)


def test_compressed_answers_are_stored_as_text(server, fetcher):
    server.answers["/a"] = [says(200, gzip.compress(b"plain"), {"Content-Encoding": "gzip"})]
    assert fetcher.get(server.url + "/a").text == "plain"
    assert fetcher.get(server.url + "/a").text == "plain"


def test_a_body_that_is_not_what_it_claims(server, fetcher):
    server.answers["/html"] = [says(200, b"<html>Please log in</html>")]
    with pytest.raises(InputError, match="expected JSON.*Please log in"):
        fetcher.get(server.url + "/html").json()
    server.answers["/gz"] = [says(200, b"not gzip at all", {"Content-Encoding": "gzip"})]
    with pytest.raises(MissingError):
        fetcher.get(server.url + "/gz")


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_keys_are_sent_but_kept_nowhere(server, fetcher, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENFDA_API_KEY", "fda-key-123")
    monkeypatch.setenv("NHS_API_KEY", "nhs-key-456")
    server.answers["/a"] = [says(200, b"{}", {"X-Echo": "fda-key-123"})]
    with caplog.at_level("DEBUG"):
        fetcher.get(server.url + "/a", {"api_key": "fda-key-123", "q": "x"}, headers={"apikey": "nhs-key-456"})
        with pytest.raises(MissingError) as caught:
            fetcher.get(server.url + "/gone", {"strange_name": "fda-key-123"})
    _, path, headers = server.seen[0]
    assert "api_key=fda-key-123" in path and headers["apikey"] == "nhs-key-456"
    logged = "".join(record.getMessage() for record in caplog.records if record.name.partition(".")[0] in ("medlab", "httpx"))
    everywhere = all_text(tmp_path) + str(caught.value) + logged
    assert "fda-key-123" not in everywhere and "nhs-key-456" not in everywhere


@pytest.mark.parametrize("key", ["odd+key/1=&2", "plain-key-123"])
def test_a_key_that_comes_back_is_kept_and_shown_nowhere(tmp_path, monkeypatch, key):
    monkeypatch.setenv("OPENFDA_API_KEY", key)
    echo = {
        "/fine": lambda asked: ok(f"{asked.query['api_key']} {asked.target}", {"X-Echo": asked.target, "Link": f"<{asked.target}>; rel=next"}),
        "/wrong": lambda asked: ok(asked.target + " " + asked.query["api_key"], status=400),
        "/away": lambda asked: redirect("https://away.example.org" + asked.target), "/odd": lambda asked: redirect("http://host:port" + asked.target),
    }  # fmt: skip
    said = []
    with Server(lambda asked: echo[asked.path](asked)) as server, Fetcher(tmp_path, attempts=2, first_wait=0.01) as fetcher:
        fetcher.limit(server.url, 1000)
        fetcher.tell = said.append
        said.append(repr(fetcher.get(server.url + "/fine", {"api_key": key})))
        for path in ("/wrong", "/away", "/odd"):
            with pytest.raises(MedlabError) as caught:
                fetcher.get(server.url + path, {"api_key": key})
            said.append(repr(caught.value))
        assert all(asked.query["api_key"] == key for asked in server.asked) and len(server.asked) >= 4
    from urllib.parse import quote

    everywhere = all_text(tmp_path) + "".join(said)
    assert key not in everywhere and quote(key, safe="") not in everywhere


@pytest.mark.parametrize("key", ["two\nlines-of-key", "schl\u00fcssel-geheim"])
def test_a_key_that_no_header_can_hold_is_not_quoted(server, fetcher, key):
    with pytest.raises(InputError, match="odd character in a key") as caught:
        fetcher.get(server.url + "/a", headers={"apikey": key})
    assert "geheim" not in str(caught.value) and "lines-of" not in str(caught.value) and server.seen == []


def test_a_bad_address_is_shown_without_its_key(fetcher):
    for address in ("http://host:port/?api_key=hush", "ftp://me:hush@example.org/"):
        with pytest.raises(InputError) as caught:
            fetcher.get(address)
        assert "hush" not in str(caught.value)


def test_a_key_does_not_travel_in_the_open(fetcher, tmp_path):
    for given_key in ({"params": {"api_key": "hush"}}, {"headers": {"apikey": "hush"}}):
        with pytest.raises(InputError, match="must not go over http"):
            fetcher.get("http://api.example.invalid/x", **given_key)
    with pytest.raises(InputError, match="must not go over http"):
        download("http://api.example.invalid/x?api_key=hush", tmp_path / "x", progress=False)


def test_a_word_that_stands_where_no_key_is_needed_changes_no_address(monkeypatch):
    for word in ("x", "none", "5"):
        monkeypatch.setenv("GROQ_API_KEY", word)
        assert public_address("https://x.example.org/?limit=5&sort=none") == "https://x.example.org/?limit=5&sort=none"


def test_another_key_finds_the_same_answer(server, fetcher):
    server.answers["/a"] = [says(200)]
    fetcher.get(server.url + "/a", {"api_key": "mine"})
    assert fetcher.get(server.url + "/a", {"api_key": "yours"}).from_store
    assert not fetcher.get(server.url + "/a", {"api_key": "yours", "skip": 1}).from_store


def test_user_name_and_password_do_not_get_into_the_name():
    assert public_address("https://key:pass@api.example.org/x?b=1&a=2#part") == "https://api.example.org/x?a=2&b=1"


def test_a_header_with_a_key_does_not_follow_a_redirect(server, fetcher):
    server.answers["/old"] = [says(302, headers={"Location": "/new"})]
    server.answers["/new"] = [says(200, b"arrived")]
    assert fetcher.get(server.url + "/old?x").text == "arrived"


def test_a_proxy_is_not_used_for_this_machine(server, fetcher, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    server.answers["/a"] = [says(200)]
    assert fetcher.get(server.url + "/a").text == "ok"


def test_waiting_does_not_touch_the_seeded_generators():
    import random

    random.seed(7)
    expected = [random.random() for _ in range(3)]
    random.seed(7)

    def fails():
        raise TryAgain("busy")

    with pytest.raises(TryAgain):
        retrying(attempts=3, first_wait=0.01)(fails)
    assert [random.random() for _ in range(3)] == expected


# --- where a redirect leads ----------------------------------------------------------------------------------------------


def test_a_key_goes_to_one_host_only(server, fetcher):
    with Server({"/here": ok("arrived")}) as other:
        server.answers["/away"] = [says(302, headers={"Location": other.url + "/here?api_key=hush"})]
        for given_key in ({"headers": {"apikey": "hush"}}, {"headers": {"Authorization": "Bearer hush"}}, {"params": {"api_key": "hush"}}):
            with pytest.raises(InputError, match="must not go") as caught:
                fetcher.get(server.url + "/away", **given_key)
            assert "hush" not in str(caught.value)
        assert other.asked == []
        fetcher.limit(other.url, 1000)
        assert fetcher.get(server.url + "/away", headers={"Accept": "text/plain"}).text == "arrived"  # without a key we may go and look


def test_a_key_follows_on_its_own_host(server, fetcher):
    server.answers["/old"], server.answers["/new/"] = [says(301, headers={"Location": "/new/"})], [says(200, b"arrived")]
    assert fetcher.get(server.url + "/old", headers={"apikey": "hush"}).text == "arrived"
    assert server.seen[1][2]["apikey"] == "hush"


@pytest.mark.parametrize(
    "there, said",
    [
        ("http://api.example.org/x", "not https"), ("http://files.example.org/x", "not https"), ("https://127.0.0.1/x", "to this machine"),
        ("file:///etc/passwd", "not https"), ("data:text/html,x", "not https"), ("https://127.0.0.2/x", "to this machine"), ("https://127.1/", "to this machine"),
        ("https://2130706433/", "to this machine"), ("https://[::ffff:127.0.0.1]/", "to this machine"), ("https://localhost./", "to this machine"),
        ("https://0.0.0.0/", "to this machine"), ("https://files.example.org/x", None), ("/x", None), ("?page=2", None),
    ],
)  # fmt: skip
def test_where_a_redirect_may_lead(there, said):
    here = httpx.URL("https://api.example.org/old")
    if said is None:
        assert next_hop(here, there, keyed=False).scheme == "https"
    else:
        with pytest.raises(InputError, match=said):
            next_hop(here, there, keyed=False)
    assert next_hop(httpx.URL("http://api.example.org/a"), "https://api.example.org/a", keyed=True).scheme == "https"


def test_what_a_server_does_wrong_is_no_fault_of_the_user(server, fetcher):
    server.answers["/away"], server.answers["/file"] = [says(302, headers={"Location": "https://x.example.org/"})], [says(302, headers={"Location": "file:///x"})]
    server.answers["/big"], fetcher.max_bytes = [says(200, b"x" * 2000)], 1000
    for path in ("/away", "/file", "/big"):
        with pytest.raises(MissingError) as caught:  # a collection goes on without it; an InputError alone would stop it
            fetcher.get(server.url + path)
        assert isinstance(caught.value, BadAnswer)
    assert len(server.seen) == 3


def test_a_circle_of_redirects_ends(server, fetcher):
    server.answers["/a"] = [says(302, headers={"Location": "/a"})]
    with pytest.raises(InputError, match="more than 5 redirects"):
        fetcher.get(server.url + "/a")
    assert len(server.seen) == 6


def test_what_is_posted_is_not_sent_on(server, fetcher):
    server.answers["/a"], server.answers["/b"] = [says(307, headers={"Location": "/b"})], [says(200)]
    with pytest.raises(InputError, match="not sent on"):
        fetcher.post(server.url + "/a", {"id": 1})


# --- pace, and waiting ---------------------------------------------------------------------------------------------------


def test_each_host_has_its_own_bucket(tmp_path):
    with Server({"/a": ok()}) as first, Server({"/a": ok()}) as second, Fetcher(tmp_path) as fetcher:
        fetcher.limit(first.url, 5)
        fetcher.limit(second.url.removeprefix("http://"), 1000)
        for n in range(3):
            fetcher.get(first.url + f"/a?{n}=")
            fetcher.get(second.url + f"/a?{n}=")
        assert min(first.gaps()) >= 0.1 and sum(first.gaps()) >= 0.35 and fetcher.counts.requests == 6  # a busy machine shifts arrivals
        assert fetcher.buckets[first.url[7:]].gap == 0.2 and 0 < fetcher.counts.waited < 1


def test_a_bucket_lets_a_burst_go_and_then_paces():
    bucket = Bucket(10, burst=3)
    assert [round(bucket.reserve(), 1) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    bucket.hold(2)
    assert 1.9 < bucket.reserve() <= 2
    for wrong in ((0, 1), (-1, 1), (1, 0)):
        with pytest.raises(InputError, match="per_second"):
            Bucket(*wrong)


def test_a_server_that_wants_an_hour_is_left_alone_by_everybody(server, fetcher):
    server.answers["/a"] = [says(429, headers={"Retry-After": "3600"})]
    for _ in range(3):
        with pytest.raises(TryAgain):
            fetcher.get(server.url + "/a")
    with pytest.raises(TryAgain, match="left alone for"):
        fetcher.get(server.url + "/other")
    assert len(server.seen) == 1


def test_a_window_that_is_used_up_is_waited_for_before_a_429(server, fetcher):
    server.answers["/a"] = [says(200, headers={"RateLimit": '"api";r=0;t=1', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'})]
    fetcher.get(server.url + "/a?1")
    fetcher.get(server.url + "/a?2")
    assert gaps(server)[0] >= 0.95


def test_more_than_a_minute_is_waited_for_when_it_is_asked():
    waits, answers = [], [TryAgain("busy", seconds=90.0), TryAgain("busy", seconds=599.0), TryAgain("busy", seconds=601.0)]

    def fails():
        raise answers.pop(0)

    with pytest.raises(TryAgain):
        retrying(before=lambda seconds, error: None).copy(sleep=waits.append)(fails)
    assert waits == [90.0, 599.0] and answers == []


def test_a_server_that_says_zero_again_and_again_is_given_time(server, fetcher):
    server.answers["/a"] = [says(429, headers={"Retry-After": "0"})]
    fetcher.retry["first_wait"] = 0.4
    began = time.monotonic()
    with pytest.raises(MissingError):
        fetcher.get(server.url + "/a")
    assert len(server.seen) == 6 and time.monotonic() - began > 1


def through(server, monkeypatch):
    "An address that is not of this machine, though it is asked through `server` as a proxy: what is promised there is kept by all programs."
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    return "http://api.example.org"


def test_two_programs_keep_one_pace(tmp_path, monkeypatch):
    code = """
import sys
from medlab.fetch import Fetcher
with Fetcher(sys.argv[2]) as fetcher:
    fetcher.limit(sys.argv[1], 5)
    for n in range(6):
        fetcher.get(sys.argv[1] + "/a", {"n": n, "who": sys.argv[3]})
"""
    with Server(lambda asked: ok("fine")) as server:
        both = [subprocess.Popen([sys.executable, "-c", code, through(server, monkeypatch), str(tmp_path), who]) for who in "ab"]
        assert [child.wait(60) for child in both] == [0, 0]
        assert len(server.asked) == 12 and server.asked[-1].at - server.asked[0].at >= 11 / 5 - 0.15  # each alone would need one second


def test_what_a_server_asked_for_holds_for_the_next_program_too(tmp_path, monkeypatch):
    with Server(lambda asked: Answer(429, b"", {"Retry-After": "3000"})) as server:
        address = through(server, monkeypatch)
        for said in ("answered 429", "left alone for (2999|3000) s"):
            with Fetcher(tmp_path) as fetcher, pytest.raises(TryAgain, match=said):
                fetcher.get(address + "/a")
        assert len(server.asked) == 1


def test_nothing_is_promised_to_this_machine(server, fetcher, tmp_path):
    server.answers["/a"] = [says(200)]
    fetcher.get(server.url + "/a")
    assert not (tmp_path / "raw" / "pace").exists()


@pytest.mark.parametrize("noted", ["", "no numbers", "nan nan", "1", "9e99 9e99", "{later} 0", "0 {much_later}"])
def test_a_note_of_the_pace_that_cannot_be_believed_stops_nobody(tmp_path, noted):
    noted = noted.format(later=time.time() + 1800, much_later=time.time() + 86400)  # the clock was put back meanwhile
    (tmp_path / "host").write_text(noted)
    bucket = Bucket(10, shared=tmp_path / "host")
    assert bucket.reserve() == bucket.held() == 0
    assert 0 < Bucket(10, shared=tmp_path / "host").reserve() <= 0.1  # and it was mended


@pytest.mark.parametrize("asked", ["-5", "1e9", "1, 2", "soon", "", "Sun, 06 Nov 99999999999 08:49:37 GMT", "Mon, 99 Foo 2026", "\u0663"])
def test_an_odd_wish_is_no_wish(asked):
    assert seconds_to_wait({"Retry-After": asked}) is None


@pytest.mark.parametrize("asked", ["99999999999999", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_says_never_is_not_asked_again(server, fetcher, asked):
    server.answers["/a"] = [says(429, headers={"Retry-After": asked})]
    for _ in range(2):
        with pytest.raises(TryAgain):
            fetcher.get(server.url + "/a")
    assert len(server.seen) == 1


def test_long_waits_are_announced_with_whom_and_how_long(server, fetcher, monkeypatch):
    lines, slept = [], []
    fetcher.tell = lines.append
    monkeypatch.setattr("tenacity.nap.time.sleep", slept.append)
    server.answers["/a"] = [says(429, headers={"Retry-After": "61"}), says(200)]
    fetcher.get(server.url + "/a")
    assert sum(slept) >= 61 and "waiting 61 s for 127.0.0.1:" in lines[0] and "answered 429" in lines[0]
    assert (fetcher.counts.requests, fetcher.counts.retries) == (2, 1) and fetcher.counts.waited >= 61
    assert "2 requested" in str(fetcher.counts) and "1 retried" in str(fetcher.counts)


def test_long_waits_are_said_on_stderr(tmp_path, capsys):
    Fetcher(tmp_path).announce(4, "api.example.org")
    assert "waiting 4 s for api.example.org" in capsys.readouterr().err
    assert str(Counts(requests=2, from_store=3)) == "2 requested, 3 from the store, 0 s waited"


# --- what an answer says -------------------------------------------------------------------------------------------------


def no_error(fetched):
    if "busy" in fetched.text:
        raise TryAgain("busy inside of 200")
    if "gone" in fetched.text:
        raise MissingError("gone inside of 200")


def test_an_error_inside_of_200_is_tried_again_or_raised_and_never_kept(server, fetcher):
    server.answers["/a"] = [says(200, b"busy"), says(200, b"busy"), says(200, b"fine")]
    assert fetcher.get(server.url + "/a", check=no_error).text == "fine" and len(server.seen) == 3
    server.answers["/b"] = [says(200, b"gone"), says(200, b"fine")]
    with pytest.raises(MissingError, match="gone inside"):
        fetcher.get(server.url + "/b", check=no_error)
    assert fetcher.get(server.url + "/b", check=no_error).text == "fine"


def test_a_stored_answer_that_is_none_is_asked_for_anew_but_not_offline(server, fetcher, tmp_path):
    server.answers["/a"] = [says(200, b"gone"), says(200, b"fine")]
    fetcher.get(server.url + "/a")
    with Fetcher(tmp_path / "raw", offline=True) as offline, pytest.raises(MissingError, match="gone inside"):
        offline.get(server.url + "/a", check=no_error)
    assert fetcher.get(server.url + "/a", check=no_error).text == "fine"
    assert fetcher.get(server.url + "/a", check=no_error).from_store


def test_a_404_that_somebody_took_for_an_answer_is_still_an_error_for_others(server, fetcher):
    server.answers["/a"] = [says(404, b"none")]
    assert fetcher.get(server.url + "/a", accept=(404,)).status == 404
    with pytest.raises(MissingError, match="answered 404"):
        fetcher.get(server.url + "/a")


def test_forgetting_asks_again(server, fetcher):
    server.answers["/a"] = [says(200, b"old"), says(200, b"new")]
    fetcher.forget(fetcher.get(server.url + "/a"))
    assert fetcher.get(server.url + "/a").text == "new"


def test_posts_are_kept_by_what_was_posted_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("NCBI_API_KEY", "ncbi-key-789")
    with Server(lambda asked: ok(asked.form if asked.body.startswith(b"id") else asked.body)) as server, Fetcher(tmp_path) as fetcher:
        fetcher.limit(server.url, 1000)
        first = fetcher.post(server.url + "/p", {"id": "1,2", "api_key": "ncbi-key-789"}, params={"db": "x"})
        assert server.asked[0].form == {"id": "1,2", "api_key": "ncbi-key-789"} and server.asked[0].query == {"db": "x"}
        assert first.json() == {"id": "1,2", "api_key": "***"}  # the server said it back
        assert fetcher.post(server.url + "/p", {"api_key": "another", "id": "1,2"}, params={"db": "x"}).from_store
        assert not fetcher.post(server.url + "/p", {"id": "1,3"}, params={"db": "x"}).from_store
        assert not fetcher.get(server.url + "/p", params={"db": "x"}).from_store
        assert fetcher.post(server.url + "/p", b"raw bytes").content == b"raw bytes"
        assert fetcher.post(server.url + "/p", b"raw bytes").from_store
    notes = "".join(path.name + path.read_text() for path in (tmp_path / "notes").rglob("*.json"))
    assert "ncbi-key-789" not in notes and "another" not in notes


@pytest.mark.parametrize("spoil", [truncated, lambda answer: truncated(gzipped(answer)), lambda answer: torn(gzipped(answer))])
def test_a_torn_answer_is_asked_for_again(tmp_path, spoil):
    whole = ok({"text": "word " * 500})
    with Server({"/a": [spoil(whole), gzipped(whole)]}) as server, Fetcher(tmp_path, first_wait=0.02) as fetcher:
        fetcher.limit(server.url, 1000)
        assert fetcher.get(server.url + "/a").json()["text"].startswith("word") and len(server.asked) == 2


def test_a_body_that_is_torn_without_a_sign_is_found_by_the_check(tmp_path):
    whole = ok({"text": "word " * 500})
    with Server({"/a": [torn(whole), whole], "/b": wrong_type()}) as server, Fetcher(tmp_path, first_wait=0.02) as fetcher:
        fetcher.limit(server.url, 1000)
        assert fetcher.get(server.url + "/a", check=check_json).json() and len(server.asked) == 2
        with pytest.raises(MissingError, match="login page"):
            fetcher.get(server.url + "/b", check=check_json)


@pytest.mark.parametrize("head", [False, True])
def test_a_slow_drip_is_given_up(tmp_path, head):
    with Server({"/a": slow_drip(ok("x" * 1000), 0.05, head)}) as server, Fetcher(tmp_path, attempts=2, first_wait=0.02, deadline=0.4) as fetcher:
        fetcher.limit(server.url, 1000)
        began = time.monotonic()
        with pytest.raises(TryAgain, match="not done after 0.4 s"):
            fetcher.get(server.url + "/a")
        assert time.monotonic() - began < 20 and len(server.asked) == 2  # the whole drip takes 50 s


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc, which this system has not")
def test_a_bomb_costs_no_memory(tmp_path):
    with Server({"/bomb": gzip_bomb(1_000_000_000)}) as server:
        code = f"""
from medlab.fetch import Fetcher
from medlab.basics.errors import InputError
with Fetcher({str(tmp_path)!r}) as fetcher:
    try: fetcher.get({server.url + "/bomb"!r})
    except InputError as error: print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # ru_maxrss would begin at the parent's
"""
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert "larger than 50 MB" in said[0] and int(said[1]) < 300_000


def test_an_encoding_that_was_not_asked_for(server, fetcher):
    server.answers["/a"] = [says(200, b"??", {"Content-Encoding": "br"})]
    with pytest.raises(MissingError, match="expected gzip or none"):
        fetcher.get(server.url + "/a")


def test_a_certificate_that_proves_nothing_is_refused_at_once(tmp_path, fetcher):
    import shutil
    import ssl

    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: it makes the certificate of this test")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    with Server({"/a": ok()}) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server.web.socket = context.wrap_socket(server.web.socket, server_side=True)
        with pytest.raises(MissingError, match="does not prove its identity") as caught:
            fetcher.get(server.url.replace("http:", "https:") + "/a")
        assert not isinstance(caught.value, TryAgain) and server.asked == []


def test_who_asks_is_said(server, fetcher, monkeypatch):
    server.answers["/a"] = [says(200)]
    monkeypatch.setenv("MEDLAB_CONTACT", "me@example.org")
    fetcher.get(server.url + "/a")
    assert "medlab" in server.seen[0][2]["User-Agent"] and "me@example.org" in server.seen[0][2]["User-Agent"]


# --- offline, and going on -----------------------------------------------------------------------------------------------


def test_offline_opens_no_socket(server, fetcher, tmp_path, monkeypatch):
    import socket

    server.answers["/a"] = [says(200)]
    fetcher.get(server.url + "/a")
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    with Fetcher(tmp_path / "raw", offline=True) as offline:
        assert offline.get(server.url + "/a").from_store
        with pytest.raises(MissingError, match=f"{server.url}/b.* is not in the store"):
            offline.get(server.url + "/b", {"api_key": "hush"})
        with pytest.raises(MissingError, match="is not in the store"):
            offline.post(server.url + "/a", {"id": 2})
        assert offline.client is None and offline.counts.requests == 0


def test_a_collection_that_was_killed_goes_on_without_asking_twice(tmp_path):
    code = """
import sys
from medlab.fetch import Fetcher
with Fetcher(sys.argv[2]) as fetcher:
    fetcher.limit(sys.argv[1], 40)
    for n in range(40):
        fetcher.get(sys.argv[1] + "/a", {"n": n})
"""
    with Server(lambda asked: ok({"n": asked.query["n"]})) as server:
        command = [sys.executable, "-c", code, server.url, str(tmp_path)]
        for share in (8, 20):
            child = subprocess.Popen(command)
            deadline = time.monotonic() + 30
            while len(server.asked) < share and time.monotonic() < deadline:
                time.sleep(0.01)
            child.kill()
            child.wait()
        assert subprocess.run(command, timeout=30).returncode == 0
        asked = [int(one.query["n"]) for one in server.asked]
    assert set(asked) == set(range(40)) and len(asked) <= 40 + 2  # at most the one that was on its way, each time
    with Fetcher(tmp_path, offline=True) as offline:
        assert [offline.get(server.url + "/a", {"n": n}).json() for n in range(40)] == [{"n": str(n)} for n in range(40)]


def test_many_threads_and_processes_may_share_a_store(tmp_path):
    code = """
import sys, threading
from medlab.fetch import Fetcher
with Fetcher(sys.argv[2]) as fetcher:
    fetcher.limit(sys.argv[1], 1000)
    threads = [threading.Thread(target=lambda n=n: fetcher.get(sys.argv[1] + "/a", {"n": n % 5})) for n in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
    with Server(lambda asked: ok("the same body")) as server:
        both = [subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path)]) for _ in range(2)]
        assert [child.wait(30) for child in both] == [0, 0]
    with Fetcher(tmp_path, offline=True) as offline:
        assert {offline.get(server.url + "/a", {"n": n}).text for n in range(5)} == {"the same body"}
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def note(**changes):
    whole = {"method": "GET", "posted": "", "status": 200, "headers": {}, "url": "{url}", "sha256": sha256_text("x"), "retrieved_at": "2026-01-01T00:00:00+00:00"}
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{", '{"a": 1}', "\x00\xff", note(status="200"), note(sha256=""), note(sha256=3), note(sha256="../../../etc/passwd"), note(sha256="a\0b"),
     note(retrieved_at="now"), note(retrieved_at="2026-01-01T00:00:00"), note(headers=["x"]), note(url="http://another.example.org/"), note(method="POST"),
     note(extra=1), note(retrieved_at="2999-01-01T00:00:00+00:00"), note(sha256="0" * 64)],
)  # fmt: skip
def test_a_note_that_is_none_is_written_anew(server, fetcher, content):
    server.answers["/a"] = [says(200, b"fine")]
    body, place = fetcher.store.body(sha256_text("x")), fetcher.store.note(server.url + "/a")
    for path, text in ((body, "x"), (place, content.replace("{url}", server.url + "/a"))):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    assert fetcher.get(server.url + "/a", max_age=3600).text == "fine"
    assert fetcher.get(server.url + "/a", max_age=3600).from_store and len(server.seen) == 1


@pytest.mark.parametrize("what", ["note", "body"])
def test_a_folder_where_an_answer_should_be_is_named(server, fetcher, what):
    server.answers["/a"] = [says(200, b"fine")]
    path = fetcher.store.note(server.url + "/a") if what == "note" else fetcher.store.body(sha256_text("fine"))
    path.mkdir(parents=True)
    with pytest.raises(MedlabError, match=f"cannot write to .*{path.name}"):
        fetcher.get(server.url + "/a")


def test_a_disk_that_is_full_is_said_and_nothing_half_is_kept(tmp_path):
    resource = pytest.importorskip("resource")
    code = """
import sys
from medlab.basics.errors import MedlabError
from medlab.fetch import Fetcher
with Fetcher(sys.argv[2]) as fetcher:
    try: fetcher.get(sys.argv[1] + "/a")
    except MedlabError as error: print(error)
"""
    with Server({"/a": ok("x" * 100_000)}) as server:
        command = [sys.executable, "-c", code, server.url, str(tmp_path / "raw")]
        small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert "grew larger than this disk or account allows" in done.stdout and done.returncode == 0, done.stderr
    assert not [path for kind in ("notes", "bodies") for path in (tmp_path / "raw" / kind).rglob("*") if path.is_file()]


def test_two_fetchers_in_one_process_may_share_a_store(tmp_path):
    failed = []

    def put(fetcher):
        for n in range(100):
            try:
                fetcher.store.put(Fetched(200, {}, b"same", f"http://x.example.org/{n}", sha256_text("same"), "2026-01-01T00:00:00+00:00", False))
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=put, args=(Fetcher(tmp_path),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# --- texts from strangers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack, said",
    [
        (b'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><d>&x;</d>', "declares entities"),
        (b'<!DOCTYPE d [<!ENTITY % x SYSTEM "http://127.0.0.1/x.dtd"> %x;]><d/>', "declares entities"),
        (b'<!DOCTYPE d [<!ENTITY a "ha">]><d b="&a;"/>', "declares entities"),
        (b"<d>" * 5000 + b"</d>" * 5000, "broken XML"), (b"", "broken XML"), (b"<d>&undefined;</d>", "broken XML"), (b"\x00\x01", "broken XML"),
        (b'<d xmlns:xi="http://www.w3.org/2001/XInclude"><a>', "broken XML"),
    ],
)  # fmt: skip
def test_xml_that_attacks_its_reader(attack, said):
    with pytest.raises(InputError, match=said):
        parse_xml(attack, "answer", doctype=True)


def test_a_doctype_is_allowed_only_where_it_is_said_and_never_fetched():
    with Server({"/x.dtd": ok('<!ENTITY a "b">')}) as server:
        document = f'<!DOCTYPE d PUBLIC "-//NLM//DTD" "{server.url}/x.dtd"><d>text</d>'.encode()
        assert parse_xml(document, "answer", doctype=True).text == "text" and server.asked == []
        with pytest.raises(InputError, match="document type"):
            parse_xml(document, "answer")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_xml_or_explained(data):
    try:
        parse_xml(b"<d>" + data + b"</d>", "answer", doctype=True)
    except InputError:
        pass


@pytest.mark.parametrize(
    "html, text",
    [
        ("<p>one</p><p>two<br>three</p>", "one\ntwo\nthree"), ("<ul><li>a<ul><li>b</li></ul></li><li><p>c</p></li></ul>", "- a\n- b\n- c"),
        ("<ol><li>first</li><li>second</li></ol>", "- first\n- second"), ("a<b>b</b>c <i>d</i>", "abc d"), ("x&nbsp;y&lt;z&amp;", "x y<z&"),
        ("<table><tr><th>A</th><th>B</th></tr> <tr> <td>1<br>2</td> <td><ul><li>x</li></ul></td></tr></table>", "A | B\n1 2 | x"),
        ("<table><tr><td></td><td>b</td></tr></table>", "| b"), ("10<sup>9</sup>/L, H<sub>2</sub>O, kg/m<sup>2</sup>, 1<sup>st</sup>", "10⁹/L, H2O, kg/m², 1st"),
        ("<script>x</script><style>y</style>z<!-- c -->", "z"), ("", ""), ("<li>", ""), ("no tags, 3 < 4", "no tags, 3 < 4"), ("<p>a</p> b <p>c", "a\nb\nc"),
        ("<table><tr><td><paragraph>a</paragraph></td><td><content styleCode='bold'>b</content></td></tr></table>", "a | b"),
    ],
)  # fmt: skip
def test_html_as_text(html, text):
    assert html_text(html) == text


TAGS = st.sampled_from("p div ul ol li table tr td th sup sub br b script h2 section".split())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=10), TAGS.map(lambda tag: f"<{tag}>"), TAGS.map(lambda tag: f"</{tag}>")), max_size=30))
def test_any_html_becomes_tidy_text(parts):
    text = html_text("".join(parts))
    assert all(line == line.strip() and line and "  " not in line for line in text.split("\n")) or text == ""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcdefg ", min_size=1, max_size=8), min_size=1, max_size=12), st.data())
def test_no_word_of_html_is_lost(words, data):
    html = "".join(f"<{tag}>{word}</{tag}>" for word in words for tag in [data.draw(st.sampled_from(["p", "b", "li", "div", "h3", "span"]))])
    assert "".join(html_text(html).replace("- ", "").split()) == "".join("".join(words).split())


def test_html_of_absurd_depth_is_read_in_no_time():
    began = time.process_time()
    assert html_text("<div>" * 50_000 + "deep") == "deep"
    assert html_text("<td>" * 1500 + "deep").endswith("deep")
    assert time.process_time() - began < 5


def holds(path, body):
    "Whether a file holds these bytes, by their hashes: of long bytes that differ pytest would write the difference for hours."
    return hashlib.sha256(path.read_bytes()).hexdigest() == hashlib.sha256(body).hexdigest()


# --- download ------------------------------------------------------------------------------------------------------------


def ranged(version="v1", body=BODY, send=300_000, etag=True):
    "A server of one file that hangs up after `send` bytes and understands Range and If-Range."

    def answer(handler):
        begin = int(handler.headers.get("Range", "bytes=0-")[6:-1]) if handler.headers.get("If-Range") == f'"{version}"' else 0
        headers = {"ETag": f'"{version}"'} if etag else {}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        handler.reply(206 if begin else 200, body[begin:], headers, send=send)

    return answer


def get(server, path, **options):
    return download(server.url + "/file", path, **{"first_wait": 0.02, "progress": False, "timeout": 2, **options})


def test_a_download_goes_on_where_the_connection_dropped(server, tmp_path):
    server.answers["/file"] = [ranged()]
    path = get(server, tmp_path / "file.zip")
    assert holds(path, BODY)
    starts = [headers.get("Range") for _, _, headers in server.seen]
    assert starts[0] is None and len(starts) == 4 and all(starts[1:])
    assert {left.name for left in tmp_path.iterdir()} <= {"file.zip", "file.zip.lock"}
    get(server, path)
    assert len(server.seen) == 4  # it is there, nothing is asked


def test_a_file_that_was_replaced_meanwhile_is_fetched_from_the_start(server, tmp_path):
    new = BODY[::-1]
    server.answers["/file"] = [ranged("v1"), ranged("v2", new, send=None)]
    assert holds(get(server, tmp_path / "file.zip"), new)


def test_without_a_version_tag_it_begins_again_rather_than_glue(server, tmp_path):
    server.answers["/file"] = [ranged(etag=False), says(200, BODY)]
    assert holds(get(server, tmp_path / "file.zip"), BODY)
    assert all("Range" not in headers for _, _, headers in server.seen)


def test_a_server_without_ranges_sends_it_whole(server, tmp_path):
    server.answers["/file"] = [says(200, BODY, {"ETag": '"v1"'}, send=1000), says(200, BODY, {"ETag": '"v1"'})]
    assert holds(get(server, tmp_path / "file.zip"), BODY)


def test_416_and_a_range_that_was_not_asked_for_begin_again(server, tmp_path):
    server.answers["/file"] = [ranged(), says(416), ranged(send=None)]
    assert holds(get(server, tmp_path / "a.zip"), BODY)
    wrong = says(206, BODY[5:], {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}", "ETag": '"v1"'})
    server.answers["/file"] = [ranged(), wrong, ranged(send=None)]
    assert holds(get(server, tmp_path / "b.zip"), BODY)


def test_a_wrong_hash_is_said_and_nothing_is_left(server, tmp_path):
    server.answers["/file"] = [says(200, b"<html>Please log in</html>")]
    with pytest.raises(MedlabError, match="expected " + "0" * 64):
        get(server, tmp_path / "file.zip", sha256="0" * 64)
    assert not (tmp_path / "file.zip").exists() and not (tmp_path / "file.zip.part").exists()
    assert get(server, tmp_path / "file.zip", sha256=sha256_text("<html>Please log in</html>")).exists()


def test_404_and_a_busy_server_are_missing(server, tmp_path):
    with pytest.raises(MissingError, match="404"):
        get(server, tmp_path / "file.zip")
    server.answers["/file"] = [says(503)]
    with pytest.raises(MissingError, match="503"):
        get(server, tmp_path / "file.zip", attempts=2)
    assert not (tmp_path / "file.zip").exists()


def test_a_file_larger_than_the_disk_is_refused_at_once(server, tmp_path):
    server.answers["/file"] = [says(200, b"x", {"Content-Length": 10**17}, send=1)]
    with pytest.raises(MedlabError, match="the disk is full"):
        get(server, tmp_path / "file.zip")
    assert len(server.seen) == 1


def test_a_killed_download_is_resumed_by_the_next_process(server, tmp_path):
    def slow(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.send_header("ETag", '"v1"')
        handler.end_headers()
        handler.wfile.write(BODY[:500_000])
        handler.wfile.flush()
        time.sleep(5)

    server.answers["/file"] = [slow, ranged(send=None)]
    code = f"from medlab.fetching.download import download; download({server.url + '/file'!r}, {str(tmp_path / 'file.zip')!r}, progress=False)"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    part, deadline = tmp_path / "file.zip.part", time.monotonic() + 20
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.05)
    child.kill()
    child.wait()
    kept = part.stat().st_size
    assert not (tmp_path / "file.zip").exists() and kept > 100_000
    assert holds(get(server, tmp_path / "file.zip"), BODY)
    assert server.seen[-1][2]["Range"] == f"bytes={kept}-"


def test_two_processes_download_a_file_once(server, tmp_path):
    server.answers["/file"] = [says(200, BODY)]
    code = f"from medlab.fetching.download import download; download({server.url + '/file'!r}, {str(tmp_path / 'file.zip')!r}, progress=False)"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [child.wait(30) for child in both] == [0, 0]
    assert holds(tmp_path / "file.zip", BODY) and len(server.seen) == 1


def test_the_note_of_an_answer_is_readable_by_people(server, fetcher):
    server.answers["/a"] = [says(200, b"x")]
    kept = fetcher.get(server.url + "/a", {"q": "dose"})
    note = json.loads(fetcher.store.note(kept.url).read_text())
    assert (note["url"], note["status"], note["sha256"]) == (server.url + "/a?q=dose", 200, kept.sha256)


# --- what a server repeats -----------------------------------------------------------------------------------------------

OURS = {"key": "our-key+5/x=9", "mail": "ada.lovelace@clinic.example", "ip": "203.0.113.77", "ip6": "2001:db8:0:1::77"}
REPEATS = {
    "address": lambda key, mail: f"wrong request: /efetch.fcgi?db=pubmed&api_key={quote(key, safe='')}&email={quote(mail)}&tool=adas-tool from 203.0.113.77",
    "html": lambda key, mail: f"<html><body>/x?a=1&amp;api_key={key}&amp;email={mail} for 203.0.113.77</body></html>",
    "encoded": lambda key, mail: f"next=%2Fx%3Fapi_key%3D{quote(quote(key, safe=''), safe='')}%26email%3D{quote(quote(mail, safe=''), safe='')}%26retmax%3D5",
    "json": lambda key, mail: json.dumps({"error": {"api-key": key, "email": mail, "client_ip": "2001:db8:0:1::77", "message": "over the limit"}}),
    "json in json": lambda key, mail: json.dumps({"message": json.dumps({"api_key": key, "email": mail})}),
    "headers": lambda key, mail: f"apikey: {key}\r\nX-Api-Key: {key}\r\nFrom: {mail}\r\nX-Forwarded-For: 203.0.113.77",
    "login": lambda key, mail: f"Authorization: Basic {base64.b64encode((key + ':').encode()).decode()} of {mail}",
    "prose": lambda key, mail: f"the key {key} of {mail} at [2001:db8:0:1::77]:443 and (203.0.113.77) has no quota",
    "far back": lambda key, mail: "x" * 190 + f" {key} {mail} 203.0.113.77",
}  # fmt: skip


def said_without(text):
    "Nothing of ours, also no piece of it that a cut left over."
    mail, key = quote(OURS["mail"], safe=""), quote(OURS["key"], safe="")
    return not [one for one in (*OURS.values(), mail, key, "our-key", "ada.love", "203.0.113", "2001:db8", "b3VyLWtleS") if one in text]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500, 503])
@pytest.mark.parametrize("form", REPEATS)
def test_what_a_server_repeats_of_us_gets_into_no_error(tmp_path, form, status):
    "The key is not set in the environment: it is known only because it was sent."
    body, said = REPEATS[form](OURS["key"], OURS["mail"]), []
    with Server({"/x": ok(body, status=status)}) as server, Fetcher(tmp_path, attempts=2, first_wait=0.01) as fetcher:
        fetcher.limit(server.url, 1000)
        fetcher.tell = said.append
        with pytest.raises(MedlabError) as caught:
            fetcher.get(server.url + "/x", {"api_key": OURS["key"], "email": OURS["mail"]}, headers={"apikey": OURS["key"]})
    assert said_without(str(caught.value) + "".join(said) + all_text(tmp_path))


@pytest.mark.parametrize("form", REPEATS)
def test_what_a_server_repeats_is_masked_when_it_is_no_json(tmp_path, form):
    with Server({"/x": ok("{" + REPEATS[form](OURS["key"], OURS["mail"]))}) as server, Fetcher(tmp_path, attempts=1) as fetcher:
        fetcher.limit(server.url, 1000)
        with pytest.raises(MedlabError) as caught:
            fetcher.get(server.url + "/x", {"api_key": OURS["key"], "email": OURS["mail"]}, check=check_json)
    assert said_without(str(caught.value))


@pytest.mark.parametrize("said", [
    "?api_key=hush9&x=1", "?API_KEY=hush9", "?api-key=hush9;b", "?x=1&subscription-key=hush9", '{"api_key":"hush9"}', "{'api_key': 'hush9'}", '{\\"api_key\\":\\"hush9\\"}', "api%5Fkey%3Dhush9%26b",
    "x-api-key: hush9hush9", "Authorization: Bearer hush9", "authorization=Token hush9", "email=hush9@x.org", "mail to hush9@mail.x.org", "hush9%40x.org", "token=hush9", '"access_token" : "hush9"',
    "https://hush9:hush9@x.org/", "tool=hush9&db=pubmed", "api_key => 'hush9'",
])  # fmt: skip
def test_notations_in_which_services_repeat_who_asked(said):
    assert "hush9" not in without_caller(said) and "***" in without_caller(said)


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7", "::ffff:203.0.113.7", "fe80::1", "10.0.0.12", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"])
def test_addresses_of_machines_are_masked(address):
    for said in (f"from {address}", f"({address})", f'"{address}"', f"ip={address},", f"{address} is blocked", f"IP {address}.", f"{address}: blocked"):
        assert address not in without_caller(said) and "***" in without_caller(said)


@pytest.mark.parametrize("said", [
    "Limit cannot exceed 1000 results for search requests.", "Invalid api_key: must have 40 characters", "An invalid api_key was supplied.", "at 12:30:45", "version 1.2.3", "std::vector",
    "WebEnv not found", "Search Backend failed: 502 Proxy Error", "see https://api.example.org/docs?page=2", "no token was sent", "section 5.1.2.3.4", "the tool is down",
])
def test_ordinary_messages_stay_as_they_are(said):
    assert without_caller(said) == said


@pytest.mark.parametrize("key", ["odd+key/1=&2", "plain-key-123", 'quote"key\\9', "<key>&9", "käse-key-9"])
def test_a_key_is_masked_in_every_form(monkeypatch, key):
    monkeypatch.setenv("NCBI_API_KEY", key)
    forms = [key, quote(key), quote(key, safe=""), quote_plus(key), quote(quote(key, safe=""), safe=""), html.escape(key), json.dumps(key)[1:-1], base64.b64encode(f"{key}:".encode()).decode()]
    assert [masked(f"[{form}]") for form in forms] == ["[***]"] * len(forms)


def test_an_e_mail_address_that_comes_back_in_an_answer_is_not_stored(tmp_path):
    with Server(lambda asked: ok({"asked": asked.target, "by": asked.query["email"]})) as server, Fetcher(tmp_path) as fetcher:
        fetcher.limit(server.url, 1000)
        assert fetcher.get(server.url + "/x", {"email": OURS["mail"]}).json()["by"] == "***"
    assert said_without(all_text(tmp_path))

"HTTP as real servers do it: everything here talks to a server on this machine that is busy, ill, slow, wrong or gone."

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medlab.core import InputError, MedlabError, MissingError, free_port, sha256_text
from medlab.fetch import Fetcher, TryAgain, download, public_address, retrying

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
def fetcher(tmp_path):
    with Fetcher(tmp_path / "raw", per_second=1000, first_wait=0.02, timeout=2) as fetcher:
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
    with Fetcher(tmp_path / "raw", per_second=20) as fetcher:
        threads = [threading.Thread(target=fetcher.get, args=(server.url + f"/a?n={n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.seen) == 6
    assert server.seen[-1][0] - server.seen[0][0] >= 5 / 20 - 0.1


@pytest.mark.parametrize("header", ["1", "date"])
def test_429_waits_as_long_as_asked(server, fetcher, header):
    asked = header if header == "1" else formatdate(time.time() + 2, usegmt=True)
    server.answers["/a"] = [says(429, b'{"api-key": "10.1.2.3"}', {"Retry-After": asked}), says(200)]
    assert fetcher.get(server.url + "/a").text == "ok"
    assert gaps(server)[0] >= 0.9


def test_429_that_asks_for_an_hour_is_not_asked_again(server, fetcher):
    server.answers["/a"] = [says(429, b'{"api-key": "10.1.2.3"}', {"Retry-After": "3600"})]
    with pytest.raises(MissingError, match="answered 429.*in 3600 s, as it asks") as caught:
        fetcher.get(server.url + "/a")
    assert "10.1.2.3" not in str(caught.value)  # such answers quote the caller's address or key
    assert len(server.seen) == 1


def test_500s_are_tried_again_with_growing_waits_and_then_given_up(server, fetcher):
    server.answers["/passes"] = [says(500), says(503), says(502), says(200)]
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
    with Fetcher(tmp_path / "raw", per_second=1000, timeout=0.2, attempts=2, first_wait=0.02) as fetcher:
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
    with Fetcher(tmp_path / "raw", per_second=1000, max_bytes=1_000_000) as fetcher:
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
    with pytest.raises(InputError, match="moved to /new"):
        fetcher.get(server.url + "/old", headers={"apikey": "hush"})
    assert all("apikey" not in headers for _, path, headers in server.seen if path == "/new")


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
    assert path.read_bytes() == BODY
    starts = [headers.get("Range") for _, _, headers in server.seen]
    assert starts[0] is None and len(starts) == 4 and all(starts[1:])
    assert {left.name for left in tmp_path.iterdir()} <= {"file.zip", "file.zip.lock"}
    get(server, path)
    assert len(server.seen) == 4  # it is there, nothing is asked


def test_a_file_that_was_replaced_meanwhile_is_fetched_from_the_start(server, tmp_path):
    new = BODY[::-1]
    server.answers["/file"] = [ranged("v1"), ranged("v2", new, send=None)]
    assert get(server, tmp_path / "file.zip").read_bytes() == new


def test_without_a_version_tag_it_begins_again_rather_than_glue(server, tmp_path):
    server.answers["/file"] = [ranged(etag=False), says(200, BODY)]
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY
    assert all("Range" not in headers for _, _, headers in server.seen)


def test_a_server_without_ranges_sends_it_whole(server, tmp_path):
    server.answers["/file"] = [says(200, BODY, {"ETag": '"v1"'}, send=1000), says(200, BODY, {"ETag": '"v1"'})]
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY


def test_416_and_a_range_that_was_not_asked_for_begin_again(server, tmp_path):
    server.answers["/file"] = [ranged(), says(416), ranged(send=None)]
    assert get(server, tmp_path / "a.zip").read_bytes() == BODY
    wrong = says(206, BODY[5:], {"Content-Range": f"bytes 5-{len(BODY) - 1}/{len(BODY)}", "ETag": '"v1"'})
    server.answers["/file"] = [ranged(), wrong, ranged(send=None)]
    assert get(server, tmp_path / "b.zip").read_bytes() == BODY


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
    code = f"from medlab.fetch import download; download({server.url + '/file'!r}, {str(tmp_path / 'file.zip')!r}, progress=False)"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    part, deadline = tmp_path / "file.zip.part", time.monotonic() + 20
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.05)
    child.kill()
    child.wait()
    kept = part.stat().st_size
    assert not (tmp_path / "file.zip").exists() and kept > 100_000
    assert get(server, tmp_path / "file.zip").read_bytes() == BODY
    assert server.seen[-1][2]["Range"] == f"bytes={kept}-"


def test_two_processes_download_a_file_once(server, tmp_path):
    server.answers["/file"] = [says(200, BODY)]
    code = f"from medlab.fetch import download; download({server.url + '/file'!r}, {str(tmp_path / 'file.zip')!r}, progress=False)"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [child.wait(30) for child in both] == [0, 0]
    assert (tmp_path / "file.zip").read_bytes() == BODY and len(server.seen) == 1


def test_the_note_of_an_answer_is_readable_by_people(server, fetcher):
    server.answers["/a"] = [says(200, b"x")]
    kept = fetcher.get(server.url + "/a", {"q": "dose"})
    note = json.loads(fetcher.store.note(kept.url).read_text())
    assert (note["url"], note["status"], note["sha256"]) == (server.url + "/a?q=dose", 200, kept.sha256)

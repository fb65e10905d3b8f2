"""What the tests of all sources share: a client that does not wait long, how to look at what comes, and the faults that every source lives with.

    class TestFaults(SourceFaults):                 # in the file of a source
        def playing(self):                          # a server that gives `records` records in at least three answers
            return CdcServer(pages(6))

        def source(self, server, fetcher):          # the source on that server
            return Cdc(fetcher, base_url=server.base)
"""

import copy
import json
import random
from contextlib import contextmanager
from itertools import islice

import pytest
from lxml import etree

from medlab.basics.errors import MissingError
from medlab.contracts.records import Record, Unread
from medlab.fetch import Fetched, Fetcher

from .base import Server, busy, gzip_bomb, gzipped, hang_up, ok, redirect, slow_drip, torn, truncated, wrong_type


def quick_fetcher(store, **options):
    "A client that gives up after three tries and waits next to nothing between them."
    return Fetcher(store, **{"attempts": 3, "first_wait": 0.01, "timeout": 5.0, "deadline": 5.0, **options})


def records(items):
    return [item for item in items if isinstance(item, Record)]


def unread(items):
    return {item.key: item.reason for item in items if isinstance(item, Unread)}


def answered(body, kind="", status=200, url="https://example.org/x"):
    "An answer as the fetcher gives it: bytes or text as they are, anything else as JSON."
    kind = kind or ("" if isinstance(body, (bytes, str)) else "application/json")
    body = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Fetched(status, {"content-type": kind} if kind else {}, body, url, "0" * 64, "2026-11-22T09:00:00+00:00", False)


def mutated(data: bytes, seed: int, pieces: list[bytes]) -> bytes:
    "`data` with up to four places cut out, doubled, reversed or replaced by one of `pieces`."
    chance, data = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 4)):
        here, length = chance.randrange(len(data) + 1), chance.choice([0, 1, 7, 60, 400])
        cut = bytes(data[here : here + length])
        data[here : here + length] = chance.choice([b"", chance.choice(pieces), cut + cut, bytes(reversed(cut)), cut + chance.choice(pieces)])
    return bytes(data)


#: What may stand where something else was expected: of every JSON type, empty and not, and texts that are no addresses or days.
WRONG = [None, True, False, 0, 7, -1.5, "", " ", "x", "http://[", "https://[", "<p>x", [], [None], [7], ["x"], [["x"]], [{}], {}, {"x": 7}, {"text": 7}]


def places(value):
    "Every (container, key) inside a JSON value, from the outside in."
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(inner)


def spoiled(body, wrong=WRONG):
    "Copies of a JSON value, each with one place in it left out, or with something wrong in that place or for the whole: all there are, none by chance."
    yield from copy.deepcopy(wrong)
    for number in range(sum(1 for _ in places(body))):
        for new in [..., *wrong]:
            copied = copy.deepcopy(body)
            container, key = next(islice(places(copied), number, None))
            if new is ...:
                del container[key]
            else:
                container[key] = copy.deepcopy(new)
            yield copied


def spoiled_xml(body):
    "Copies of an XML document, each with one element left out, emptied, doubled, renamed or with another text, or one attribute lost or odd."
    root = etree.fromstring(body)
    for number, element in enumerate(root.iter("*")):
        changes = ["text", "empty", "rename"] + (["gone", "twice"] if number else []) + [(name, value) for name in element.attrib for value in (None, "", "http://[")]
        for change in changes:
            copied = copy.deepcopy(root)
            here = next(islice(copied.iter("*"), number, None))
            match change:
                case "text":
                    here.text = "0 &<> http://["
                case "empty":
                    here.clear(keep_tail=True)
                case "rename":
                    here.tag = "other"
                case "gone":
                    here.getparent().remove(here)
                case "twice":
                    here.addnext(copy.deepcopy(here))
                case name, None:
                    del here.attrib[name]
                case name, value:
                    here.set(name, value)
            yield etree.tostring(copied)


PASSING = {
    "429": busy(), "429 with seconds": busy(retry_after=0.05), "429 with a date": busy(retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "503": busy(status=503), "502 web page": ok("<html>Bad gateway</html>", status=502), "hang up": hang_up(),
}  # fmt: skip
SPOILED = {
    "truncated": truncated, "truncated gzip": lambda answer: truncated(gzipped(answer)), "torn": torn, "empty": lambda answer: ok(b"", answer.headers),
    "torn gzip": lambda answer: torn(gzipped(answer)),
}  # fmt: skip


class SourceFaults:
    "Each fault once on the first answer of a source, and what must come of it. `key`: a secret that the source sends along, if it sends one."

    key = ""

    def playing(self) -> Server:
        raise NotImplementedError

    def source(self, server, fetcher):
        raise NotImplementedError

    @contextmanager
    def client(self, server, store, **options):
        with quick_fetcher(store, **options) as fetcher:
            source = self.source(server, fetcher)
            fetcher.limit(server.url, 1000)
            yield source

    def collect(self, server, store, **options):
        with self.client(server, store, **options) as source:
            return list(source.fetch())

    def sat_out(self, store, spoil):
        "The first answer is spoiled twice; everything comes all the same, and what was stored is good."
        with self.playing() as server:
            expected = self.collect(server, store / "well")
            asked, server.faults = len(server.asked), [lambda asked: spoil(server.answer(asked))] * 2
            found = self.collect(server, store / "spoiled")
            assert len(server.asked) == 2 * asked + 2
        assert [content(item) for item in found] == [content(item) for item in expected] and records(found)
        assert self.collect(server, store / "spoiled", offline=True) == found

    @pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
    def test_what_may_pass_is_sat_out(self, store, fault):
        self.sat_out(store, lambda answer: fault)

    @pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
    def test_a_broken_answer_is_asked_for_again_and_never_kept(self, store, spoil):
        self.sat_out(store, spoil)

    def test_a_compressed_answer_is_read(self, store):
        with self.playing() as server:
            expected = self.collect(server, store / "well")
            server.faults = [lambda asked: gzipped(server.answer(asked))] * len(server.asked)
            assert [content(item) for item in self.collect(server, store / "packed")] == [content(item) for item in expected]

    def test_a_web_page_in_place_of_data_is_never_kept(self, store):
        with self.playing() as server:
            expected = len(self.collect(server, store / "well"))
            server.faults = [wrong_type()]
            try:
                assert len(self.collect(server, store / "x")) == expected
            except MissingError:  # some sources end at once: a login page does not go away in seconds
                pass
            assert len(self.collect(server, store / "x")) == expected
        assert not any(b"log in" in path.read_bytes() for path in store.rglob("*") if path.is_file())

    def test_retry_after_is_obeyed(self, store):
        with self.playing() as server:
            server.faults = [busy(retry_after=1)]
            assert records(self.collect(server, store)) and server.gaps()[0] >= 1

    def test_a_server_that_asks_for_hours_ends_the_source_at_once(self, store):
        with self.playing() as server:
            server.faults = [busy(retry_after=7200)]
            with pytest.raises(MissingError, match="7200 s"):
                self.collect(server, store)
            assert len(server.asked) == 1

    @pytest.mark.parametrize("head", [False, True], ids=["body", "head"])
    def test_a_slow_drip_ends_at_the_deadline(self, store, head):
        with self.playing() as server:
            server.faults = [lambda asked: slow_drip(server.answer(asked), 0.05, head)] * 2
            with pytest.raises(MissingError, match="not done after 0.3 s"):
                self.collect(server, store, deadline=0.3, attempts=2)

    def test_a_bomb_is_not_unpacked(self, store):
        with self.playing() as server:
            server.faults = [gzip_bomb(60_000_000)]
            with pytest.raises(MissingError, match="larger than 50 MB"):
                self.collect(server, store)

    def test_a_redirect_to_another_host_is_not_followed(self, store):
        with self.playing() as server, Server(lambda asked: server.answer(asked)) as thief:
            server.faults = [lambda asked: redirect(thief.url + asked.target)]
            with pytest.raises(MissingError, match="another host") as caught:
                self.collect(server, store)
            assert not thief.asked and not (self.key and self.key in str(caught.value))

    def test_troubles_that_stay_end_the_source_with_what_it_gave(self, store):
        with self.playing() as server, self.client(server, store) as source:
            collecting = source.fetch()
            first = next(collecting)
            server.faults = [busy(status=503)] * 99
            with pytest.raises(MissingError, match="503"):
                list(collecting)
            server.faults.clear()
            asked = len(server.asked)
            items = list(source.fetch())
            assert content(items[0]) == content(first) and len(records(items)) > 1
            assert server.asked[0].target not in [one.target for one in server.asked[asked:]], "the first answer was asked for twice"

    def test_offline_replays_and_opens_no_connection(self, store):
        with self.playing() as server:
            items, asked = self.collect(server, store), len(server.asked)
            assert self.collect(server, store) == items == self.collect(server, store, offline=True) and len(server.asked) == asked
            with pytest.raises(MissingError, match="is not in the store"):
                self.collect(server, store / "empty", offline=True)
            assert len(server.asked) == asked


def content(item):
    "What a record or a refusal says, without when and from which bytes."
    return {name: value for name, value in item.model_dump().items() if name not in ("retrieved_at", "raw_sha256", "url")}

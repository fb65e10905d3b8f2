"MedlinePlus: topics from pages of search results, whose they are, and everything that goes wrong on the way."

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.base import Server, busy, gzip_bomb, gzipped, hang_up, ok, redirect, slow_drip, torn, truncated, wrong_type
from servers.medlineplus import HOME, MedlinePlusServer, Topic, document, result

from medlab.core import InputError, MedlabError, MissingError, Record, Unread
from medlab.fetch import Fetched, Fetcher, parse_xml
from medlab.sources.medlineplus import TERMS, MedlinePlus, owner_problem, read_document, read_page, sections_of

PUBLIC = "LicenseRef-US-Gov-Public-Domain"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "raw"


def fetcher(store, **options):
    return Fetcher(store, **{"attempts": 3, "first_wait": 0.01, "timeout": 5.0, **options})


def source(server, store, offline=False, **options):
    return MedlinePlus(fetcher(store, offline=offline), **{"base_url": server.base, "terms": "fever", "page_size": 10, "per_second": 1000, **options})


def topics(count, **values):
    return [Topic(f"Ailment {n}", **values) for n in range(count)]


def records(items):
    return [item for item in items if isinstance(item, Record)]


def unread(items):
    return {item.key: item.reason for item in items if isinstance(item, Unread)}


def fetched(body):
    return Fetched(200, {}, body, "https://example.org/ws/query", "0" * 64, "2026-11-22T09:00:00+00:00", False)


def read(body):
    return [read_document(found, fetched(body)) for found in read_page(fetched(body)).documents]


# --- collecting ----------------------------------------------------------------------------------------------------------


def test_topics_come_page_after_page_each_once(store):
    with MedlinePlusServer([*topics(23), *topics(5, words=("cough",)), Topic("Cold", words=("cough", "fever"))]) as server:
        items = list(source(server, store, terms="fever, cough").fetch())
        assert len(items) == len(records(items)) == 24
        assert [(asked.query["term"], asked.query["retstart"]) for asked in server.asked] == [("fever", "0"), ("fever", "10"), ("fever", "20"), ("cough", "0")]
        assert all(asked.query["rettype"] == "topic" and asked.query["retmax"] == "10" and asked.query["tool"] == "medlab" for asked in server.asked)
    record = items[0]
    assert (record.kind, record.title, record.subject, record.license, record.may_train) == ("page", "Ailment 0", "Ailment 0", PUBLIC, True)
    assert record.sections == {"What is Ailment 0?": "Ailment 0 is a made-up ailment with a fever.", "What can I do?": "You can:\n- Rest\n- Drink water & wait"}
    assert record.text.split("\n")[:2] == ["What is Ailment 0?", "Ailment 0 is a made-up ailment with a fever."]
    assert record.attribution == f"MedlinePlus.gov, U.S. National Library of Medicine: Ailment 0, {HOME}/ailment0.html. NIH: National Institute of Lessons"
    assert record.retrieved_at and len(record.raw_sha256) == 64


def test_a_service_that_gives_fewer_on_a_page_than_asked_is_read_to_the_end(store):
    with MedlinePlusServer(topics(9), most=4) as server:
        assert len(records(source(server, store).fetch())) == 9
        assert [asked.query["retstart"] for asked in server.asked] == ["0", "4", "8"]


def test_results_that_end_before_their_count_are_told(store):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [ok(result([document(Topic("One"))], count=30)), ok(result([], count=30).replace(b"<list", b"<list"))]
        items = list(source(server, store).fetch())
        assert len(records(items)) == 1 and unread(items) == {"term fever": "the results end before their count"}


def test_a_term_without_a_result_is_told(store):
    with MedlinePlusServer(topics(2)) as server:
        items = list(source(server, store, terms=["feverr", "fever"]).fetch())
        assert len(records(items)) == 2 and unread(items) == {"term feverr": "no health topic for this term"}


def test_a_limit_stops_and_counts_records(store):
    with MedlinePlusServer([Topic("A", folder="ency/article/"), *topics(30)]) as server:
        items = list(source(server, store).fetch(limit=3))
        assert len(records(items)) == 3 and len(items) == 4 and len(server.asked) == 1
        assert list(source(server, store).fetch(limit=0)) == []


def test_it_goes_on_where_it_stopped_and_offline_replays(store):
    with MedlinePlusServer(topics(25)) as server:
        collecting = source(server, store).fetch()
        first = [next(collecting) for _ in range(12)]
        collecting.close()
        items = list(source(server, store).fetch())
        assert items[:12] == first and [asked.query["retstart"] for asked in server.asked] == ["0", "10", "20"]
        assert list(source(server, store, offline=True).fetch()) == items
        with pytest.raises(MissingError, match="term=rash.*is not in the store"):
            list(source(server, store, offline=True, terms="rash").fetch())
        assert len(server.asked) == 3


def test_the_email_goes_along_and_is_not_stored(store):
    with MedlinePlusServer(topics(2)) as server:
        list(source(server, store, email="me@example.org").fetch())
        assert server.asked[0].query["email"] == "me@example.org"
    assert not any(b"me@example.org" in path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_the_pace_is_85_a_minute(store):
    with MedlinePlusServer(topics(25)) as server:
        list(MedlinePlus(fetcher(store), base_url=server.base, terms="fever", page_size=10).fetch())
        assert len(server.asked) == 3 and sum(server.gaps()) >= 2 * 0.7


@pytest.mark.parametrize("options", [{"terms": ""}, {"terms": []}, {"page_size": 0}, {"base_url": "wsearch.nlm.nih.gov"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match="expected terms, a page_size of at least 1, an address"):
        MedlinePlus(**options)


def test_the_fingerprint_is_what_is_asked_not_where():
    assert MedlinePlus(terms="a, b").fingerprint() == MedlinePlus(terms=["a", " b "], base_url="http://127.0.0.1:5", page_size=3).fingerprint()
    assert MedlinePlus().fingerprint() == MedlinePlus(terms=TERMS).fingerprint() != MedlinePlus(terms="a").fingerprint()
    assert len(MedlinePlus().terms) > 100


# --- whose it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("topic", "reason"), [
    (Topic("A", folder="ency/article/"), "not a health topic but a page of A.D.A.M."), (Topic("A", folder="spanish/"), "not a health topic but a page of NLM, in Spanish"),
    (Topic("A", folder="druginfo/meds/"), "not a health topic but a page of AHFS or another publisher of drug pages"), (Topic("A", folder="genetics/"), "not a health topic"),
    (Topic("A", language="Spanish"), "not in English"), (Topic("A", summary="<p> </p>"), "no summary"), (Topic("", summary="<p>x</p>"), "not a health topic"),
    (Topic("A", summary="<p>Copyright 1997-2026, A.D.A.M., Inc.</p>"), "names another owner in its text"), (Topic("A", summary="<p>From AHFS.</p>"), "names another owner in its text"),
])  # fmt: skip
def test_what_is_not_nlms_own_is_left_out_with_a_reason(topic, reason):
    found = read(result([document(topic).replace("/.html", "/x/")]))
    assert [item.reason for item in found] == [reason] and found[0].source == "medlineplus"


def test_organizations_are_heeded():
    assert read(result([document(Topic("A", organization="A.D.A.M., Inc."), dialect="brief")]))[0].reason == "written by another organization"
    assert isinstance(read(result([document(Topic("A"), dialect="all")]))[0], Record)


@pytest.mark.parametrize("url", ["", "medlineplus.gov/a.html", "ftp://medlineplus.gov/a.html", f"{HOME}.evil.org/a.html", "https://evil.org/medlineplus.gov/a.html",
                                 "https://evilmedlineplus.gov/a.html", "https://[medlineplus.gov/a.html", f"{HOME}/a.html/b"])  # fmt: skip
def test_addresses_that_only_look_right(url):
    assert owner_problem(url)
    assert owner_problem("http://www.medlineplus.gov/a.html") is None


# --- texts ---------------------------------------------------------------------------------------------------------------


def test_both_dialects_give_the_same_text_without_search_marks(store):
    found = {}
    for dialect in ("topic", "brief", "all"):
        with MedlinePlusServer([Topic("Fever in Adults")], dialect=dialect) as server:
            found[dialect] = records(source(server, store / dialect).fetch())[0]
    assert found["topic"].text == found["brief"].text == found["all"].text and "qt0" not in found["brief"].text + found["brief"].title
    assert {record.title for record in found.values()} == {"Fever in Adults"}


def test_tags_that_were_not_escaped_are_read_too():
    body = result([document(Topic("A", summary="<h3>Q?</h3><p>One.</p>"))]).decode()
    plain = body.replace("&lt;", "<").replace("&gt;", ">")
    assert read(plain.encode())[0].sections == read(body.encode())[0].sections == {"Q?": "One."}


def test_sections():
    assert sections_of("<p>First.</p><H3 class='x'>A &amp; B</H3><p>1 < 2</p><h3>A &amp; B</h3>more<h4></h4>end", "T") == {"T": "First.\nend", "A & B": "1 < 2\nmore"}
    assert sections_of("", "T") == {}


# --- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [
    busy(), busy(retry_after=0.05), busy(status=503), hang_up(), wrong_type(), ok(b""), ok("<nlmSearchResult><error>ill</error></nlmSearchResult>"),
    ok("<nlmSearchResult><count>some</count></nlmSearchResult>"), torn(ok(result([document(Topic("A"))]))), truncated(ok(result([document(Topic("A"))]))),
    ok('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><nlmSearchResult><count>0</count></nlmSearchResult>'),
], ids=range(11))  # fmt: skip
def test_passing_troubles_are_sat_out_and_never_stored(store, fault):
    with MedlinePlusServer(topics(4)) as server:
        server.faults += [fault, fault]
        assert len(records(source(server, store).fetch())) == 4 and len(server.asked) == 3
    assert len(records(source(server, store, offline=True).fetch())) == 4


def test_compressed_answers_are_read(store):
    with MedlinePlusServer() as server:
        server.faults += [gzipped(ok(result([document(Topic("A"))])))]
        assert len(records(source(server, store).fetch())) == 1


def test_retry_after_is_obeyed_and_what_is_too_long_ends_the_source(store):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [busy(retry_after=1)]
        list(source(server, store).fetch())
        assert server.gaps()[0] >= 1.0
        server.faults += [busy(retry_after=7200)]
        with pytest.raises(MissingError, match="429"):
            list(source(server, store, terms="cough").fetch())


def test_troubles_that_stay_end_the_source_with_what_it_gave(store):
    with MedlinePlusServer(topics(25)) as server:
        items = []
        with pytest.raises(MissingError, match="expected a <nlmSearchResult>"):
            for item in source(server, store).fetch():
                items.append(item)
                server.faults[:] = [wrong_type()] * 5
        assert len(items) == 10


def test_a_slow_drip_ends_at_the_deadline(store):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [slow_drip(ok(result([document(Topic("A"))])))]
        trickled = MedlinePlus(fetcher(store, deadline=0.4), base_url=server.base, terms="fever", per_second=1000)
        assert len(records(trickled.fetch())) == 3


def test_a_bomb_a_redirect_and_a_404_end_the_source_not_the_run(store):
    with MedlinePlusServer(topics(3)) as server, Server(lambda asked: ok("mine")) as thief:
        for fault, said in ((gzip_bomb(60_000_000), "larger than 50 MB"), (redirect(f"{thief.url}/ws/query"), "another host"), (ok("gone", status=404), "404"),
                            (ok("what", status=414), "414")):  # fmt: skip
            server.faults += [fault]
            with pytest.raises(MissingError, match=said):
                list(source(server, store, email="me@example.org").fetch())
        assert not thief.asked


# --- recorded answers and fuzz -------------------------------------------------------------------------------------------


def test_recorded_answers(shared_data):
    folder = shared_data / "recorded" / "medlineplus"
    body = (folder / "healthtopics_search_cfs_2of3.xml").read_bytes()
    assert read_page(fetched(body)).count == 29
    long, tired = read(body)
    assert (long.title, long.url) == ("Myalgic Encephalomyelitis/Chronic Fatigue Syndrome", f"{HOME}/myalgicencephalomyelitischronicfatiguesyndrome.html")
    assert list(tired.sections) == ["What is fatigue?", "What causes fatigue?"] and list(long.sections)[1].startswith("What causes myalgic encephalomyelitis")
    assert tired.sections["What is fatigue?"].startswith("Fatigue is a feeling of weariness") and "emotional stress, boredom" in tired.text
    assert tired.sections["What causes fatigue?"].endswith("treatments, and lifestyle habits such as:") and "<" not in tired.text
    assert tired.license == PUBLIC and tired.may_train
    empty = read_page(fetched((folder / "healthtopics_search_empty.xml").read_bytes()))
    assert (empty.count, empty.documents) == (0, [])


MADE_UP = result([document(Topic("Fever A")), document(Topic("B", folder="ency/")), document(Topic("Fever C"), dialect="all")], count=9)
PIECES = [b"<content>", b"</content>", b"&lt;h3&gt;", b"&lt;/h3&gt;", b"<full-summary/>", b"&x;", b"&#0;", b"<!--", b"-->", b"\xff", b"\x00", b"title", b"<list>", b"url=''",
          b"&lt;li", b"&lt;span", b"https://[", "\ue000".encode(), b"<document/>"]  # fmt: skip


def mutated(data, seed):
    chance, data = random.Random(seed), bytearray(data)
    for _ in range(chance.randint(1, 4)):
        here, length = chance.randrange(len(data) + 1), chance.choice([0, 1, 7, 60, 400])
        cut = bytes(data[here : here + length])
        data[here : here + length] = chance.choice([b"", chance.choice(PIECES), cut + cut, bytes(reversed(cut)), cut + chance.choice(PIECES)])
    return bytes(data)


def nothing_is_lost(body):
    try:
        items = read(body)
    except MissingError as caught:
        assert "expected" in str(caught)
        return
    assert len(items) == len(parse_xml(body, "fuzz", doctype=True).findall("list/document"))
    for item in items:
        assert item.model_dump_json().encode() and (item.text.strip() and item.title if isinstance(item, Record) else item.reason and item.key)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_answers_are_read_or_refused(seed):
    nothing_is_lost(mutated(MADE_UP, seed))


def test_mutated_real_answers_are_read_or_refused(shared_data):
    body = (shared_data / "recorded" / "medlineplus" / "healthtopics_search_cfs_2of3.xml").read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32))
    def fuzz(seed):
        nothing_is_lost(mutated(body, seed))

    fuzz()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_bodies_never_crash_the_source(tmp_path_factory, seed):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [ok(mutated(MADE_UP, seed))]
        try:
            assert list(source(server, tmp_path_factory.mktemp("raw")).fetch())
        except MedlabError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_html_gives_sections(html):
    assert all(name and text for name, text in sections_of(html, "T").items())

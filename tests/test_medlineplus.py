"MedlinePlus: topics from pages of search results, whose they are, and everything that goes wrong on the way."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import own_bytes
from servers.base import ok, wrong_type
from servers.collecting import SourceFaults, answered, mutated, quick_fetcher, records, spoiled_xml, unread
from servers.medlineplus import HOME, MedlinePlusServer, Topic, document, result

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.contracts.records import Record
from medlab.fetching.markup import parse_xml
from medlab.sources.medlineplus import TERMS, MedlinePlus, owner_problem, read_topics, read_topics_page, topic_sections

PUBLIC = "LicenseRef-US-Gov-Public-Domain"


def source(server, store, offline=False, **options):
    return MedlinePlus(quick_fetcher(store, offline=offline), **{"base_url": server.base, "terms": "fever", "page_size": 10, "per_second": 1000, **options})


def topics(count, **values):
    return [Topic(f"Ailment {n}", **values) for n in range(count)]


def read(body):
    return [read_topics(found, answered(body)) for found in read_topics_page(answered(body)).documents]


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


def test_a_service_that_gives_the_same_page_for_ever_is_left_and_told(store):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [ok(result([document(Topic("One")), document(Topic("Two"))], count=10**9 - 1))] * 50
        items = list(source(server, store).fetch())
        assert len(records(items)) == 2 and unread(items) == {"term fever": "the results end before their count"} and len(server.asked) == 2


def test_two_results_without_an_address_are_told_both(store):
    nameless = [document(Topic("A", summary=f"<p>{n}</p>")).replace(f'url="{HOME}/a.html"', "").replace('title="A"', "") for n in range(2)]
    with MedlinePlusServer() as server:
        server.faults += [ok(result(nameless))]
        items = list(source(server, store).fetch())
        assert [item.reason for item in items] == ["not a page of medlineplus.gov"] * 2 and len(unread(items)) == 2


def test_a_title_on_two_lines_is_one_title():
    (record,) = read(result([document(Topic("A<br>B", summary="<p>Text.</p>")).replace("/a<br>b.html", "/ab.html")]))
    assert (record.title, record.text) == ("A B", "Text.")


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


def test_the_pace_is_85_a_minute(store):
    with MedlinePlusServer(topics(25)) as server:
        list(MedlinePlus(quick_fetcher(store), base_url=server.base, terms="fever", page_size=10).fetch())
        assert len(server.asked) == 3 and sum(server.gaps()) >= 2 * 0.65


@pytest.mark.parametrize("options", [{"terms": ""}, {"terms": []}, {"page_size": 0}, {"base_url": "wsearch.nlm.nih.gov"}, {"terms": 5}, {"terms": None},
                                     {"terms": ["fever", None]}, {"terms": {"a": 1}}, {"page_size": "5"}, {"base_url": None}])  # fmt: skip
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
    assert topic_sections("<p>First.</p><H3 class='x'>A &amp; B</H3><p>1 < 2</p><h3>A &amp; B</h3>more<h4></h4>end", "T") == {"T": "First.\nend", "A & B": "1 < 2\nmore"}
    assert topic_sections("", "T") == {}


# --- what goes wrong -----------------------------------------------------------------------------------------------------


class TestFaults(SourceFaults):
    key = "me@example.org"

    def playing(self):
        return MedlinePlusServer(topics(6))

    def source(self, server, fetcher):
        return MedlinePlus(fetcher, base_url=server.base, terms="fever", page_size=2, email=self.key)

    def test_the_email_goes_along_and_is_not_stored(self, store):
        with self.playing() as server:
            self.collect(server, store)
            assert {asked.query["email"] for asked in server.asked} == {self.key}
        assert not any(b"example.org" in path.read_bytes() for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", [
    ok("<nlmSearchResult><error>ill</error></nlmSearchResult>"), ok("<nlmSearchResult><count>some</count></nlmSearchResult>"), wrong_type(),
    ok(f"<nlmSearchResult><count>{'9' * 5000}</count></nlmSearchResult>"),
    ok('<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><nlmSearchResult><count>0</count></nlmSearchResult>'),
], ids=range(5))  # fmt: skip
def test_answers_that_are_no_result_are_asked_for_again_and_never_stored(store, fault):
    with MedlinePlusServer(topics(4)) as server:
        server.faults += [fault, fault]
        assert len(records(source(server, store).fetch())) == 4 and len(server.asked) == 3
    assert len(records(source(server, store, offline=True).fetch())) == 4


def test_troubles_that_stay_end_the_source_with_what_it_gave(store):
    with MedlinePlusServer(topics(25)) as server:
        items = []
        with pytest.raises(MissingError, match="expected a <nlmSearchResult>"):
            for item in source(server, store).fetch():
                items.append(item)
                server.faults[:] = [wrong_type()] * 5
        assert len(items) == 10


@pytest.mark.parametrize("status", [404, 414])
def test_a_refusal_ends_the_source_not_the_run(store, status):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [ok("gone", status=status)]
        with pytest.raises(MissingError, match=str(status)):
            list(source(server, store).fetch())
        assert len(server.asked) == 1


# --- recorded answers and fuzz -------------------------------------------------------------------------------------------


def test_recorded_answers(shared_data):
    folder = shared_data / "recorded" / "medlineplus"
    body = (folder / "healthtopics_search_cfs_2of3.xml").read_bytes()
    assert read_topics_page(answered(body)).count == 29
    long, tired = read(body)
    assert (long.title, long.url) == ("Myalgic Encephalomyelitis/Chronic Fatigue Syndrome", f"{HOME}/myalgicencephalomyelitischronicfatiguesyndrome.html")
    assert list(tired.sections) == ["What is fatigue?", "What causes fatigue?"] and list(long.sections)[1].startswith("What causes myalgic encephalomyelitis")
    assert tired.sections["What is fatigue?"].startswith("Fatigue is a feeling of weariness") and "emotional stress, boredom" in tired.text
    assert tired.sections["What causes fatigue?"].endswith("treatments, and lifestyle habits such as:") and "<" not in tired.text
    assert tired.license == PUBLIC and tired.may_train
    empty = read_topics_page(answered((folder / "healthtopics_search_empty.xml").read_bytes()))
    assert (empty.count, empty.documents) == (0, [])


OWN = own_bytes("medlineplus.xml")
NOTHING = b'<?xml version="1.0" encoding="UTF-8"?>\n<nlmSearchResult>\n  <term>zzzzqqqq</term>\n  <count>0</count>\n</nlmSearchResult>'


def test_answers_with_the_habits_of_real_ones(store):
    "The twin of `test_recorded_answers`, through a server: the whole record of a topic with its many other elements, links in sentences, an empty result without a list."
    with MedlinePlusServer() as server:
        server.faults += [ok(OWN), ok(NOTHING.replace(b"zzzzqqqq", b"zana fatigue")), ok(NOTHING)]
        items = list(source(server, store, terms="zana fatigue, zzzzqqqq").fetch())
        assert [asked.query["retstart"] for asked in server.asked] == ["0", "2", "0"]  # 17 are announced, two stand on the page
    assert read_topics_page(answered(OWN)).count == 17 and (read_topics_page(answered(NOTHING)).count, read_topics_page(answered(NOTHING)).documents) == (0, [])
    assert unread(items) == {"term zana fatigue": "no health topic for this term", "term zzzzqqqq": "no health topic for this term"}
    long, late = records(items)
    assert (long.title, long.url) == ("Zana Weakness/Late Fatigue Disorder", f"{HOME}/zanaweaknesslatefatiguedisorder.html")
    assert list(late.sections) == ["What is lateness?", "What causes lateness?"] and list(long.sections)[1].startswith("What causes zana weakness/late fatigue")
    assert late.sections["What is lateness?"].startswith("Lateness is a habit of coming") and "slow clocks, long talks" in late.text
    assert late.sections["What causes lateness?"].endswith("lost keys, and mornings such as:") and "<" not in late.text
    assert long.text.endswith("Among the things that were looked at are:\n- Light\n- Salt & sugar") and "Debilidad" not in long.text
    assert late.text.split("\n")[::2] == ["What is lateness?", "What causes lateness?"]
    assert late.license == PUBLIC and late.may_train


MADE_UP = result([document(Topic("Fever A")), document(Topic("B", folder="ency/")), document(Topic("Fever C"), dialect="all")], count=9)
PIECES = [b"<content>", b"</content>", b"&lt;h3&gt;", b"&lt;/h3&gt;", b"<full-summary/>", b"&x;", b"&#0;", b"<!--", b"-->", b"\xff", b"\x00", b"title", b"<list>", b"url=''",
          b"&lt;li", b"&lt;span", b"https://[", "\ue000".encode(), b"<document/>"]  # fmt: skip


def nothing_is_lost(body):
    try:
        items = read(body)
    except MissingError as caught:
        assert "expected" in str(caught)
        return
    assert len(items) == len(parse_xml(body, "fuzz", doctype=True).findall("list/document"))
    for item in items:
        assert item.model_dump_json().encode() and (item.text.strip() and item.title if isinstance(item, Record) else item.reason and item.key)


def test_whatever_stands_in_one_element_of_an_answer_it_is_read_or_refused():
    for wrong in spoiled_xml(MADE_UP):
        nothing_is_lost(wrong)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_answers_are_read_or_refused(seed):
    nothing_is_lost(mutated((MADE_UP, OWN)[seed % 2], seed, PIECES))


@pytest.mark.fuzz
def test_mutated_real_answers_are_read_or_refused(shared_data):
    body = (shared_data / "recorded" / "medlineplus" / "healthtopics_search_cfs_2of3.xml").read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32))
    def fuzz(seed):
        nothing_is_lost(mutated(body, seed, PIECES))

    fuzz()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_bodies_never_crash_the_source(tmp_path_factory, seed):
    with MedlinePlusServer(topics(3)) as server:
        server.faults += [ok(mutated(MADE_UP, seed, PIECES))]
        try:
            assert list(source(server, tmp_path_factory.mktemp("raw")).fetch())
        except MedlabError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_html_gives_sections(html):
    assert all(name and text for name, text in topic_sections(html, "T").items())

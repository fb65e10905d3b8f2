"CDC: a catalogue whose links are not followed, pages that are its own, and everything that goes wrong on the way."

import json
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import own_json
from servers.base import busy, ok, redirect, wrong_type
from servers.cdc import CDC, NIH, CdcServer, Page, envelope, error
from servers.collecting import SourceFaults, answered, mutated, quick_fetcher, records, spoiled, unread

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.fetching.retry import TryAgain
from medlab.sources.cdc import Cdc, is_cdc, item_problem, next_cdc_page, open_envelope, read_cdc_page, cdc_sections

PUBLIC = "LicenseRef-US-Gov-Public-Domain"


def source(server, store, offline=False, **options):
    return Cdc(quick_fetcher(store, offline=offline), **{"base_url": server.base, "page_size": 10, "per_second": 1000, **options})


def pages(count):
    return [Page(number) for number in range(100, 100 + count)]


# --- collecting ----------------------------------------------------------------------------------------------------------


def test_the_catalogue_is_walked_by_its_links_without_leaving_the_host(store):
    with CdcServer(pages(25)) as server:
        items = list(source(server, store).fetch())
        assert len(items) == len(records(items)) == 25
        lists = server.asked_for("/media")
        assert [{name.lower(): value for name, value in asked.query.items()}["pagenum"] for asked in lists] == ["1", "2", "3"]
        assert all(asked.query["mediatypes"] == "HTML" and asked.query["max"] == "10" and asked.query["sort"] == "-datemodified" for asked in lists)
        assert [len([name for name in asked.query if name.lower() == "pagenum"]) for asked in lists] == [1, 1, 1]
        content = server.asked_for("/content")
        assert len(content) == 25 and all(asked.query["stripscripts"] == asked.query["stripimages"] == "true" for asked in content)
        assert all(asked.headers["user-agent"].startswith("medlab") for asked in server.asked)
    record = items[0]
    assert (record.kind, record.title, record.url, record.license, record.may_train) == ("page", "Page 100", "https://www.cdc.gov/made-up/page100.html", PUBLIC, True)
    assert record.sections == {
        "Page 100": "Page 100 is about a made-up disease that passes.", "Signs of it": "- Fever\n- Cough & cold", "What to do": "Day | Do\n1 | Rest",
    }  # fmt: skip
    assert record.text.split("\n")[1:3] == ["Signs of it", "- Fever"]
    assert record.attribution.startswith("Centers for Disease Control and Prevention (CDC): Page 100, https://www.cdc.gov/") and "No endorsement" in record.attribution


def test_only_its_own_pages_are_asked_for_and_the_rest_is_told(store):
    other = {
        "a feed": {"mediaType": "Feed - Import"}, "an nih page": {"source": NIH}, "no source": {"source": None}, "elsewhere": {"sourceUrl": "http://www.fda.gov/x"},
        "target": {"targetUrl": "https://who.int/"}, "look-alike": {"sourceUrl": "https://www.cdc.gov.example.org/"}, "spanish": {"language": {"name": "Spanish"}},
        "no url": {"sourceUrl": None},
    }  # fmt: skip
    with CdcServer([Page(7), *(Page(200 + n, name, more=more) for n, (name, more) in enumerate(other.items()))]) as server:
        items = list(source(server, store).fetch())
        assert [record.title for record in records(items)] == ["Page 7"] and len(server.asked_for("/content")) == 1
        assert list(unread(items).values()) == [
            "not a page but Feed - Import", "not CDC's own: its source is somebody else", "not CDC's own: its source is somebody else",
            "not CDC's own: the page is not on cdc.gov", "not CDC's own: the page is not on cdc.gov", "not CDC's own: the page is not on cdc.gov",
            "not in English", "not CDC's own: the page is not on cdc.gov",
        ]  # fmt: skip


def test_pages_that_are_none_are_told_and_do_not_stop_the_rest(store):
    bad = [
        Page(1, answer=error(404, "Media not found", 404)), Page(2, answer=error(404, "Media not found")), Page(3, answer=ok(b"%PDF-1.7", {"Content-Type": "application/pdf"})),
        Page(4, html="<p>Flu</p>"), Page(5, answer=wrong_type()), Page(6, html="<script>only()</script>"), Page(7, answer=ok("gone", status=410)),
    ]  # fmt: skip
    with CdcServer([*bad, Page(8)]) as server:
        items = list(source(server, store).fetch())
        assert len(records(items)) == 1 and unread(items) == {
            "1": "CDC no longer gives this page", "2": "CDC answers with an error", "3": "not HTML but application/pdf", "4": "too little text", "5": "too little text",
            "6": "too little text", "7": "CDC no longer gives this page",
        }  # fmt: skip
        before = len(server.asked)
        assert list(source(server, store).fetch()) == items and len(server.asked) == before


def test_items_that_are_none_are_told(store):
    with CdcServer([Page(1)]) as server:
        strange = [None, 5, [], {}, {**Page(1).item(), "id": "../../etc"}, {**Page(1).item(), "id": None}, Page(1).item(), Page(1).item()]
        server.faults += [ok(envelope(strange))]
        items = list(source(server, store).fetch())
        assert len(records(items)) == 1 and len(items) == 7  # the second copy of page 1 is passed over
        assert list(unread(items)) == ["place 1", "place 2", "place 3", "place 4", "place 5", "place 6"]
        assert not [asked for asked in server.asked if ".." in asked.target]


def test_since_asks_for_what_was_changed(store):
    with CdcServer([Page(1, changed="2026-01-01"), Page(2, changed="2026-09-09")]) as server:
        assert [record.title for record in source(server, store).fetch(since=date(2026, 6, 1))] == ["Page 2"]
        assert server.asked[0].query["fromdatemodified"] == "2026-06-01"


def test_filters_go_along_on_every_page(store):
    with CdcServer(pages(25)) as server:
        list(source(server, store, query="flu", topic="depression").fetch())
        assert all(asked.query["q"] == "flu" and asked.query["topic"] == "depression" for asked in server.asked_for("/media"))


def test_a_limit_stops_early_and_counts_records(store):
    with CdcServer([Page(1, html="<p>x</p>"), *pages(30)]) as server:
        items = list(source(server, store).fetch(limit=3))
        assert len(records(items)) == 3 and len(items) == 4 and len(server.asked_for("/media")) == 1 and len(server.asked_for("/content")) == 4
        assert list(source(server, store).fetch(limit=0)) == []


def test_a_catalogue_that_runs_in_a_circle_or_ends_early_is_left_and_told(store):
    def circle(asked):
        return ok(envelope([Page(1).item()], total=9, nextUrl="http://x.example.org/media?mediatypes=HTML&max=10&pagenum=1&sort=-datemodified"))

    with CdcServer([Page(1)]) as server:
        server.faults += [circle]
        items = list(source(server, store).fetch())
        assert len(records(items)) == 1 and list(unread(items).values()) == ["the catalogue ends before its count"]
    with CdcServer([Page(1)]) as server:
        server.faults += [ok(envelope([], total=0, nextUrl="http://x.example.org/media?pagenum=2"))]
        assert list(source(server, store / "b").fetch()) == [] and len(server.asked) == 1


def test_a_catalogue_that_gives_the_same_items_for_ever_is_left_and_told(store):
    def again(asked):
        number = int({name.lower(): value for name, value in asked.query.items()}["pagenum"])
        return ok(envelope([Page(1).item()], total=10**9, nextUrl=f"http://x.example.org/media?pagenum={number + 1}"))

    with CdcServer([Page(1)]) as server:
        server.faults += [again, lambda asked: None] + [again] * 50
        items = list(source(server, store).fetch())
        assert len(records(items)) == 1 and list(unread(items).values()) == ["the catalogue ends before its count"] and len(server.asked) == 3


def test_it_goes_on_where_it_stopped_and_offline_replays(store):
    with CdcServer(pages(25)) as server:
        collecting = source(server, store).fetch()
        first = [next(collecting) for _ in range(12)]
        collecting.close()
        items = list(source(server, store).fetch())
        targets = [asked.target for asked in server.asked]
        assert items[:12] == first and len(targets) == len(set(targets)) == 28
        assert list(source(server, store, offline=True).fetch()) == items
        with pytest.raises(MissingError, match="q=flu.*is not in the store"):
            list(source(server, store, offline=True, query="flu").fetch())
        assert len(server.asked) == 28


def test_the_pace_is_one_a_second(store):
    with CdcServer(pages(3)) as server:
        list(Cdc(quick_fetcher(store), base_url=server.base).fetch(limit=2))
        assert len(server.asked) == 3 and sum(server.gaps()) >= 1.9


@pytest.mark.parametrize("options", [{"page_size": 0}, {"page_size": -1}, {"base_url": "tools.cdc.gov"}, {"page_size": "5"}, {"base_url": None},
                                     {"query": 5}, {"topic": ["flu"]}])  # fmt: skip
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match="cdc: expected"):
        Cdc(**options)


def test_the_fingerprint_is_what_is_asked_not_where():
    assert Cdc().fingerprint() == Cdc(base_url="http://127.0.0.1:5", page_size=3).fingerprint()
    assert len({Cdc().fingerprint(), Cdc(query="flu").fingerprint(), Cdc(topic="flu").fingerprint()}) == 3


# --- what goes wrong -----------------------------------------------------------------------------------------------------


class TestFaults(SourceFaults):
    def playing(self):
        return CdcServer(pages(3))

    def source(self, server, fetcher):
        return Cdc(fetcher, base_url=server.base, page_size=2)


@pytest.mark.parametrize("fault", [
    ok("[]"), ok("null"), ok({"meta": None, "results": []}), error(500, "Out of order"), error(429, "Slow down"), ok("[" * 100_000), ok("9" * 5000), wrong_type(),
], ids=range(8))  # fmt: skip
def test_answers_that_are_no_catalogue_are_asked_for_again_and_never_stored(store, fault):
    with CdcServer(pages(2)) as server:
        server.faults += [fault, fault]
        assert len(records(source(server, store).fetch())) == 2 and len(server.asked) == 5
    assert len(records(source(server, store, offline=True).fetch())) == 2


def test_passing_troubles_of_a_page_are_sat_out(store):
    with CdcServer(pages(2)) as server:
        server.faults += [lambda asked: None, error(503, "Busy"), busy(retry_after=0.05)]
        assert len(records(source(server, store).fetch())) == 2


def test_what_cdc_does_not_accept_is_said_once(store):
    with CdcServer(pages(2)) as server:
        server.faults += [error(400, "Unknown topic")]
        with pytest.raises(InputError, match="status 400 .Unknown topic"):
            list(source(server, store, topic="nonsense").fetch())
        assert len(server.asked) == 1


def test_troubles_that_stay_end_the_source_with_what_it_gave(store):
    with CdcServer(pages(25)) as server:
        items = []
        with pytest.raises(MissingError, match="status 500 .Out of order"):
            for item in source(server, store).fetch():
                items.append(item)
                if len(items) == 4:
                    server.faults[:] = [error(500, "Out of order")] * 5
        assert len(items) == 4


def test_a_redirect_or_a_403_in_place_of_a_page_ends_the_source(store):
    with CdcServer(pages(3)) as server, CdcServer(pages(3)) as thief:
        for fault, said in ((redirect(f"{thief.base}media/100/content"), "another host"), (ok("no", status=403), "403")):
            server.faults[:] = [lambda asked: None, fault]
            with pytest.raises(MissingError, match=said):
                list(source(server, store / said).fetch())
        assert not thief.asked


# --- pieces --------------------------------------------------------------------------------------------------------------


def test_links():
    url = "http://evil.example.org/api/v2/resources/media?max=5&pageNum=3&name=a%26b"
    assert next_cdc_page({"pagination": {"nextUrl": url}}) == {"max": "5", "pageNum": "3", "name": "a&b"}
    assert [next_cdc_page(meta) for meta in ({"pagination": {"nextUrl": "https://tools.cdc.gov/media"}}, {"pagination": []}, {})] == [None] * 3


@pytest.mark.parametrize("url", ["", None, 5, "cdc.gov", "ftp://www.cdc.gov/", "https://cdc.gov.evil.org/", "https://notcdc.gov/", "https://evil.org/cdc.gov",
                                 "https://cdc.gov@evil.org/", "https://[::1", "javascript:cdc.gov"])  # fmt: skip
def test_addresses_that_only_look_like_cdc(url):
    assert not is_cdc(url)
    assert is_cdc("https://CDC.gov") and is_cdc("http://www.atsdr.cdc.gov:80/x") and is_cdc("https://me@wwwn.cdc.gov/")


def test_sections_survive_boxes_scripts_and_marks():
    html = "<div>Lead<div><h1>One <b>two</b><br>three</h1></div>\ue000body\ue001</div><h2></h2>nameless<script>'<h3>no</h3>'</script><!-- <h2>no</h2> --><h4>Tail"
    text, sections = cdc_sections(html, "T")
    assert sections == {"T": "Lead\nnameless", "One two three": "body"} and text == "Lead\nOne two\nthree\nbody\nnameless\nTail"


def test_old_pages_and_escaped_credits_are_read():
    item = {**Page(1).item(), "attribution": "&lt;div&gt;Content by &lt;a href='http://www.cdc.gov'&gt;CDC&lt;/a&gt;.&lt;/div&gt;"}
    record = read_cdc_page(item, answered("<p>The patient\u2019s caf\xe9 is closed until the fever is gone.</p>".encode("cp1252"), "text/html"))
    assert "patient\u2019s caf\xe9" in record.text and record.attribution.startswith("Content by CDC.: Page 1")
    half = answered(b'{"meta": {"status": 200}, "results": [{"content": "<p>Half a character \\ud800 in a page of a few more words.</p>"}]}')
    assert read_cdc_page(item, half).model_dump_json().encode()


WORDS = "<p>The caf\xe9 is closed until the fever of all its guests is gone.</p>"


@pytest.mark.parametrize(("body", "kind"), [
    (WORDS.encode("utf-8-sig"), "text/html"), (WORDS.encode("utf-16"), "text/html"), (WORDS.encode("utf-16"), "text/html; charset=utf-16"), (WORDS.encode(), ""),
    (WORDS.encode("cp1252"), "text/html"), (WORDS.encode("cp1252"), "text/html; charset=utf-8"), (WORDS.encode(), 'TEXT/HTML; Charset="UTF-8"'),
    (WORDS.encode("cp1252"), "text/html; charset=nonsense"), (WORDS.encode("cp1252"), "text/html; charset=idna"),
])  # fmt: skip
def test_characters_whatever_the_page_promises(body, kind):
    assert read_cdc_page(Page(1).item(), answered(body, kind)).text == "The caf\xe9 is closed until the fever of all its guests is gone."


@pytest.mark.parametrize(("body", "charset"), [(b"<p>+2AA- one two three four five six seven eight</p>", "utf-7"), (rb"<p>\ud800 one two three four five six seven eight</p>", "unicode_escape")])
def test_half_a_character_does_not_stop_the_writing(body, charset):
    record = read_cdc_page(Page(1).item(), answered(body, f"text/html; charset={charset}"))
    assert record.text.endswith("seven eight") and record.model_dump_json().encode()


@pytest.mark.parametrize("field", ["id", "name", "mediaType", "language", "source", "attribution", "sourceUrl", "targetUrl"])
def test_fields_of_any_kind_are_read_or_told(store, field):
    values = [None, 5, 1.5, [], ["x"], {}, {"a": "b"}, True, "", "<b>a</b>\u2028b", "x" * 100_000]
    with CdcServer(pages(len(values))) as server:
        server.faults += [ok(envelope([Page(100 + n, more={field: value}).item() for n, value in enumerate(values)]))]
        items = list(source(server, store).fetch())
    assert len(items) == len(values) and all(item.model_dump_json().encode() for item in items)
    for record in records(items):
        assert not {"{", "["} & set(record.title + record.attribution) and "\u2028" not in record.title


# --- recorded answers and fuzz -------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared_data):
    return shared_data / "recorded" / "cdc"


def test_the_documented_example(recorded):
    meta, (item,) = open_envelope(answered((recorded / "cdc_v2_docs_example_media.json").read_bytes()))
    assert (item["id"], item_problem(item), next_cdc_page(meta)) == (16, None, None)
    assert item["source"]["acronym"] == CDC["acronym"]
    with pytest.raises(InputError, match="status 400"):
        open_envelope(answered((recorded / "cdc_v2_docs_error_shape.json").read_bytes()))
    fragments = json.loads((recorded / "cdc_v2_real_fragments.json").read_text())
    assert next_cdc_page(fragments) is None and item_problem({**Page(1).item(), "source": fragments["source"], "language": fragments["language"]}) is None


def test_recorded_answers_of_the_sister_service(recorded):
    problems = {}
    for path in sorted(recorded.glob("hhs_*.json")):
        meta, items = open_envelope(answered(path.read_bytes()))
        problems[path.stem] = [item_problem(item) for item in items if "mediaType" in item]
        following = next_cdc_page(meta)
        assert following is None or (following["format"] == "json" and int(following["offset"]) > 0)
    assert problems["hhs_campaigns_1"] == ["not CDC's own: its source is somebody else"]
    assert problems["hhs_languages_1"] == ["not CDC's own: its source is somebody else"] * 2
    assert problems["hhs_mediatypes_1"] == ["not a page but Infographic"] and problems["hhs_media_1"] == ["not CDC's own: its source is somebody else"]


def test_a_real_page_is_cut_at_its_headings(recorded):
    record = read_cdc_page({**Page(1).item(), "name": "About Pandemics"}, answered((recorded / "hhs_media_1.json").read_bytes()))
    assert list(record.sections) == ["About Pandemics", "Characteristics and Challenges of a Flu Pandemic", "Seasonal Flu versus Pandemic Flu"]
    assert record.sections["About Pandemics"].startswith("A pandemic is a global disease outbreak.") and "<" not in record.text
    assert "- Rapid Worldwide Spread" in record.text and "- The number of people who become infected" in record.text and "\xa0" not in record.text


OWN = own_json("cdc.json")


def test_an_envelope_as_it_is_documented(store):
    "The twin of `test_the_documented_example`: nulls and empty texts where a reader expects something, a `domainName` that is another's, an error without a word."
    with CdcServer([Page(61)]) as server:
        server.faults += [ok(OWN["example"])]
        items = list(source(server, store).fetch())
        assert [(record.title, record.url) for record in records(items)] == [("Clean Hands - Small Battles", "http://www.cdc.gov/made-up/hands/index.html")]
        assert list(unread(items).values()) == ["the catalogue ends before its count"]  # 61 are announced, and nothing says where they are
        server.faults += [ok(OWN["refusal"])]
        with pytest.raises(InputError, match="status 400"):
            list(source(server, store, topic="soap").fetch())
    assert next_cdc_page(OWN["refusal"]["meta"]) is None  # its pagination is null
    fragments = OWN["fragments"]
    assert next_cdc_page(fragments) is None and item_problem({**Page(1).item(), "source": fragments["source"], "language": fragments["language"]}) is None


def test_answers_of_a_sister_service():
    "The twin of `test_recorded_answers_of_the_sister_service`: `messages` for `message`, a next page that is always named, media of other houses."
    problems, following = {}, {}
    for name, body in OWN["sister"].items():
        meta, items = open_envelope(answered(json.dumps(body).encode()))
        problems[name] = [item_problem(item) for item in items if "mediaType" in item]
        following[name] = next_cdc_page(meta)
    theirs, elsewhere = "not CDC's own: its source is somebody else", "not CDC's own: the page is not on cdc.gov"
    assert {name: found for name, found in problems.items() if found} == {
        "campaign media": [theirs], "spanish media": [theirs] * 2, "infographic": ["not a page but Infographic"], "cdc media": [None, elsewhere, "not in English"],
    }  # fmt: skip
    assert {name: (at["offset"], at["max"], at["format"]) for name, at in following.items() if at} == {
        "campaigns": ("20", "20", "json"), "languages": ("100", "100", "json"), "spanish media": ("2", "2", "json"), "media types": ("10", "10", "json"), "tags": ("1", "1", "json"),
    }  # fmt: skip


def test_a_page_in_an_envelope_is_cut_at_its_headings(store):
    "The twin of `test_a_real_page_is_cut_at_its_headings`: lists in lists, attributes on headings, breaks, a table, a script."
    with CdcServer([Page(5, "About Zana Waves", answer=ok(OWN["page"]))]) as server:
        (record,) = source(server, store).fetch()
    assert list(record.sections) == ["About Zana Waves", "What Makes a Wave Hard", "Wave or Season"]
    assert record.sections["About Zana Waves"].startswith("A zana wave is a made-up outbreak") and "<" not in record.text and "track" not in record.text
    assert "- It Travels Fast" in record.text and "- The number of people who catch it" in record.text and "\xa0" not in record.text
    assert "You can plan for it beforehand." in record.text and record.sections["Wave or Season"] == "Season | Wave\nEach winter | Once in a life"


MADE_UP = json.dumps(envelope([Page(1).item(), Page(2, more={"source": NIH}).item(), Page(3).item()], total=3, nextUrl="http://x.example.org/media?pagenum=2")).encode()
PIECES = [b"null", b"[", b"]", b"{", b"}", b'"', b",", b'"id":', b"\\ud800", b"\xff", b"\x00", b"1e999", b"NaN", b"-1", b"<h2>", b"</h2>", b"\\u0000", b'"http://["', b"true"]


def nothing_is_lost(body):
    try:
        meta, items = open_envelope(answered(body))
    except (TryAgain, InputError) as caught:
        assert "example.org/x" in str(caught)
        return
    next_cdc_page(meta)
    for item in items:
        if isinstance(item, dict):
            reason = item_problem(item)
            found = read_cdc_page({**item, "id": 5}, answered(Page(5).body(), "text/html")) if not reason else None
            assert reason or found.model_dump_json().encode()


def test_whatever_stands_in_one_place_of_an_answer_it_is_read_or_refused():
    refusal = envelope([], 400, [{"type": "Error", "userMessage": "", "developerMessage": "No such page."}])
    for body in (envelope([Page(1).item()], total=3, nextUrl="http://x.example.org/media?pagenum=2"), refusal):
        for wrong in spoiled(body):
            nothing_is_lost(json.dumps(wrong).encode())


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_answers_are_read_or_refused(seed):
    nothing_is_lost(mutated(MADE_UP, seed, PIECES))


@pytest.mark.fuzz
def test_mutated_real_answers_are_read_or_refused(recorded):
    bodies = [path.read_bytes() for path in sorted(recorded.glob("hhs_*.json"))] + [(recorded / "cdc_v2_docs_example_media.json").read_bytes()]

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32))
    def fuzz(seed):
        body = mutated(bodies[seed % len(bodies)], seed, PIECES)
        nothing_is_lost(body)
        try:
            assert read_cdc_page(Page(5).item(), answered(body)).model_dump_json().encode()
        except TryAgain:
            pass

    fuzz()


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_envelopes_with_a_page_are_read_or_refused(seed):
    "The twin of `test_mutated_real_answers_are_read_or_refused`."
    bodies = [json.dumps(body).encode() for body in (OWN["page"], OWN["example"], OWN["sister"]["cdc media"], OWN["sister"]["snippet"])]
    body = mutated(bodies[seed % len(bodies)], seed, PIECES)
    nothing_is_lost(body)
    try:
        assert read_cdc_page(Page(5).item(), answered(body)).model_dump_json().encode()
    except TryAgain:
        pass


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_bodies_never_crash_the_source(tmp_path_factory, seed):
    with CdcServer(pages(3)) as server:
        server.faults += [ok(mutated(MADE_UP, seed, PIECES)), ok(mutated(Page(1).body().encode(), seed, PIECES), {"Content-Type": "text/html"})]
        try:
            for item in source(server, tmp_path_factory.mktemp("raw")).fetch(limit=9):
                assert item.model_dump_json().encode()
        except MedlabError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_html_gives_a_text_and_sections(html):
    text, sections = cdc_sections(html, "T")
    assert isinstance(text, str) and all(name and body for name, body in (sections or {}).items())

"The NHS website's pages: against a server of our own that behaves and misbehaves as the real one, recorded answers, and pages that were damaged."

import copy
import json
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers.base import Server, busy, gzip_bomb, gzipped, hang_up, ok, redirect, slow_drip, torn, truncated, wrong_type
from servers.collecting import places, spoiled
from servers.nhs import ROOT, NhsServer, element, front, medicine, page, paths, section, zana_fever, zanatidine, zilch

from medlab.basics.errors import InputError, MissingError
from medlab.contracts.records import Record, Unread
from medlab.fetch import Fetched, Fetcher
from medlab.fetching.markup import html_text
from medlab.sources import nhs
from medlab.sources.nhs import Nhs, check_nhs_page, error_of, next_nhs_page, path_of, read_nhs_page


@pytest.fixture
def make(quick, monkeypatch):
    "Make a source for a server, with a fetcher that is quick."
    monkeypatch.setenv("NHS_API_KEY", "good-key-123")

    def make(server, fetcher=(), **options):
        fetcher = quick(**{"attempts": 6, **dict(fetcher)})
        source = Nhs(fetcher=fetcher, base_url=server.url + "/nhs-website-content", **options)
        fetcher.limit(server.url, 1000)
        return source

    return make


@pytest.fixture
def server():
    with NhsServer(paths(10), key="good-key-123") as server:
        yield server


def pages_asked(server):
    return [asked.path for asked in server.asked if "zana" in asked.path]


def read(body, path="conditions/zana"):
    return read_nhs_page(body, path, "0" * 64, "2026-01-31T12:00:00+00:00")


# --- the crawl -----------------------------------------------------------------------------------------------------------


def test_the_manifest_is_followed_to_its_end_whatever_it_counts(server, make):
    records = list(make(server).fetch())
    assert len({record.id for record in records}) == 10 and all(isinstance(record, Record) for record in records)
    assert [asked.query["page"] for asked in server.asked if "manifest" in asked.path] == ["1", "2", "3"]
    assert all(asked.headers["apikey"] == "good-key-123" and asked.path.endswith("/") for asked in server.asked)
    for record in records:
        assert (record.may_train, record.license, record.kind) == (False, "NHS website content terms", "page")
        assert record.url.startswith("https://www.nhs.uk/") and "NHS website" in record.attribution and record.retrieved_at and record.raw_sha256


def test_lists_are_followed_by_their_next_page(server, make):
    records = list(make(server, lists=["medicines", "conditions"]).fetch())
    assert len(records) == 10 and [record.url.split("/")[3] for record in records] == ["medicines"] * 2 + ["conditions"] * 8
    assert not any("manifest" in asked.path or asked.query.get("page") == "99" for asked in server.asked)


def test_modules_are_asked_for_where_there_are_any(server, make):
    records = list(make(server, modules=True).fetch())
    assert len(records) == 10 and all(record.title.startswith("Zana") for record in records)
    assert {asked.query.get("modules") for asked in server.asked if "zana" in asked.path} == {"true", None}


def test_a_limit_counts_records(server, make):
    server.pages["conditions/zana-1"] = front("conditions/zana-1")
    found = list(make(server).fetch(limit=3))
    assert [type(one) for one in found] == [Unread, Record, Record, Record] and len(pages_asked(server)) == 4
    assert list(make(server).fetch(limit=0)) == []


def test_since_leaves_older_pages_unasked(server, make):
    found = list(make(server).fetch(since=date(2026, 3, 1)))
    assert 0 < len(found) < 10 and len(pages_asked(server)) == len(found)


def test_entries_that_are_none_and_pages_that_are_gone_are_said(make):
    entries = ["conditions/a", {"url": ROOT + "conditions/gone/"}, None, {"url": "https://evil.example/x/"}, {"url": ROOT + "../admin/"}, 7, "conditions/a"]
    with NhsServer(entries) as server:
        found = list(make(server, environment="sandbox").fetch())
    reasons = [one.reason for one in found if isinstance(one, Unread)]
    assert [type(one) for one in found] == [Record, Unread, Unread, Unread, Unread, Unread]
    assert reasons[0] == "404 Resource not found" and all("expected a link to a page of nhs.uk" in reason for reason in reasons[1:])


def test_a_second_run_asks_nothing_within_a_week_and_everything_after(server, make, monkeypatch):
    first = list(make(server).fetch())
    asked = len(server.asked)
    assert list(make(server).fetch()) == first and len(server.asked) == asked
    assert list(make(server, fetcher={"offline": True}).fetch()) == first
    monkeypatch.setattr(nhs, "WEEK", -1)
    list(make(server).fetch())
    assert len(server.asked) == 2 * asked


def test_a_run_that_broke_off_goes_on_without_asking_twice(server, make):
    server.faults = [None] * 3 + [busy(retry_after=3600)]
    with pytest.raises(MissingError, match="3600 s"):
        list(make(server).fetch())
    assert len(list(make(server).fetch())) == 10
    assert len(pages_asked(server)) == 11 and len(set(pages_asked(server))) == 10


def test_a_new_week_is_a_new_fingerprint_but_not_offline(server, make, monkeypatch):
    now = 1_800_000_000.0
    monkeypatch.setattr(nhs.time, "time", lambda: now)
    online, offline = make(server).fingerprint(), make(server, fetcher={"offline": True}).fingerprint()
    assert make(server).fingerprint() == online
    monkeypatch.setattr(nhs.time, "time", lambda: now + nhs.WEEK)
    assert make(server).fingerprint() != online and make(server, fetcher={"offline": True}).fingerprint() == offline
    assert make(server, lists=["medicines"]).fingerprint() != make(server).fingerprint() == Nhs().fingerprint()


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_without_a_key_the_sandbox_is_named_and_needs_none(server, make, monkeypatch):
    monkeypatch.delenv("NHS_API_KEY")
    with pytest.raises(MissingError, match="NHS_API_KEY.*sandbox"):
        list(make(server).fetch())
    assert server.asked == []
    with NhsServer(paths(3)) as sandbox:
        assert len(list(make(sandbox, environment="sandbox").fetch())) == 3


def test_the_sandbox_is_not_sent_a_key(make):
    with NhsServer(paths(3)) as sandbox:
        list(make(sandbox, environment="sandbox").fetch())
        assert not any("apikey" in asked.headers for asked in sandbox.asked)


def test_a_bad_key_is_said_though_the_answer_is_no_json(server, make, monkeypatch, tmp_path):
    monkeypatch.setenv("NHS_API_KEY", "bad-key-456")
    with pytest.raises(MissingError, match=r"NHS_API_KEY \(API key invalid\)") as caught:
        list(make(server).fetch())
    assert len(server.asked) == 1 and "bad-key-456" not in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_key_is_kept_nowhere(server, make, tmp_path):
    list(make(server).fetch())
    assert "good-key-123" not in "".join(path.name + path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_key_follows_a_redirect_on_its_host_and_no_further(server, make):
    with Server({"/x/": ok({"results": []})}) as other:
        server.faults = [redirect("/nhs-website-content/manifest/pages/?page=1"), None, redirect(other.url + "/x/")]
        found = list(make(server).fetch())
        assert other.asked == [] and isinstance(found[0], Unread) and "must not go" in found[0].reason and len(found) == 10


# --- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        busy(retry_after=0), busy(), busy(body=b'{"statusCode": 429, "message": "Spike arrest violation"}'), busy(status=503), hang_up(),
        ok({"statusCode": 429, "message": "TOO_MANY_REQUESTS"}), ok({"resourceType": "OperationOutcome", "issue": []}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(server, make, fault):
    server.faults = [None, fault, fault]
    assert len(list(make(server).fetch())) == 10


def test_a_429_that_asks_for_a_second_gets_it(server, make):
    server.faults = [busy(retry_after=1)]
    assert len(list(make(server).fetch())) == 10 and server.gaps()[0] >= 1


def test_even_pacing_never_meets_the_spike_arrest(make):
    with NhsServer(paths(8), spike=0.03) as server:
        source = make(server, environment="sandbox")
        source.fetcher.limit(server.url, 20)
        assert len(list(source.fetch())) == 8 and source.fetcher.counts.retries == 0


@pytest.mark.parametrize("environment, seconds", [("production", 0.05), ("integration", 0.5), ("sandbox", 1.0)])
def test_each_environment_has_its_pace(tmp_path, environment, seconds):
    with Fetcher(tmp_path) as fetcher:
        source = Nhs(fetcher=fetcher, environment=environment)
        (bucket,) = fetcher.buckets.values()
        assert bucket.gap == pytest.approx(seconds) and bucket.burst == 1 and source.base_url.endswith("/nhs-website-content")


@pytest.mark.parametrize("spoil", [truncated, torn, lambda answer: truncated(gzipped(answer))])
def test_a_torn_answer_is_asked_for_again_and_never_kept(server, make, spoil):
    server.faults = [lambda asked: spoil(server.answer(asked)), None, lambda asked: spoil(server.answer(asked))]
    assert len(list(make(server).fetch())) == 10


@pytest.mark.parametrize("head", [False, True])
def test_a_slow_drip_does_not_hold_us_for_ever(server, make, head):
    server.faults = [lambda asked: slow_drip(server.answer(asked), 0.05, head)] * 2
    with pytest.raises(MissingError, match="not done after 0.5 s"):
        list(make(server, fetcher={"deadline": 0.5, "attempts": 2}).fetch())


def test_a_web_page_in_place_of_one_page_is_unread_and_asked_for_the_next_time(server, make):
    server.faults = [None, wrong_type()]
    first = list(make(server).fetch())
    assert isinstance(first[0], Unread) and "web page" in first[0].reason and len(first) == 10
    assert all(isinstance(one, Record) for one in make(server).fetch())


def test_web_pages_everywhere_end_the_crawl(make):
    with NhsServer(paths(30), page_size=30) as server:
        server.faults = [None] + [wrong_type()] * 40
        with pytest.raises(MissingError, match="10 pages in a row"):
            list(make(server, environment="sandbox").fetch())
        server.faults, server.asked = [wrong_type()], []
        with pytest.raises(MissingError, match="cannot be read"):
            list(make(server, environment="sandbox", lists=["conditions"]).fetch())


def test_a_bomb_is_not_unpacked(server, make):
    server.faults = [None, gzip_bomb()]
    found = list(make(server).fetch())
    assert "larger than 50 MB" in found[0].reason and sum(isinstance(one, Record) for one in found) == 9


@pytest.mark.parametrize("body", [{"message": "hello"}, [], 7, {"results": {"a": 1}}, {"statusCode": 404, "message": "no"}])
def test_an_answer_of_another_service_is_no_manifest(make, body):
    with Server(lambda asked: ok(body)) as server:
        if body == {"message": "hello"}:
            assert list(make(server).fetch()) == []
        else:
            with pytest.raises(MissingError, match="has no list"):
                list(make(server).fetch())


@pytest.mark.parametrize(
    "options", [{"environment": "test"}, {"lists": ["illnesses"]}, {"lists": "illnesses"}, {"base_url": "https://api.nhs.uk"}, {"base_url": "nhs.uk"}]
)
def test_wrong_options(tmp_path, options):
    with pytest.raises(InputError, match="nhs: "):
        Nhs(fetcher=Fetcher(tmp_path), **options)


# --- pages ---------------------------------------------------------------------------------------------------------------


def test_every_sentence_of_a_page_comes_once():
    record = read(page("conditions/zana"))
    assert list(record.sections) == ["Overview", "Symptoms of Zana", "Can I sing with Zana?"]
    assert record.sections["Symptoms of Zana"].split("\n") == ["Zana gives you:", "- hiccups", "- a blue tongue", "Call 999 if:", "- your lips turn blue"]
    assert record.text.count("blue tongue") == record.text.count("made up") == record.text.count("Quietly") == 1
    assert (record.title, record.subject, record.aspect) == ("Zana", "Zana", "Condition")


def test_a_page_whose_main_branch_is_links():
    record = read(medicine("medicines/zana"))
    assert list(record.sections) == ["Symptoms of Zana"] and record.aspect == "Medicine"


def test_front_pages_and_other_things_are_unread():
    assert "no text of its own" in read(front("conditions")).reason
    for body in (None, [], 7, "text", {}):
        assert isinstance(read(body), Unread)


def test_headings_inside_of_a_section_and_headings_that_come_twice():
    body = {"mainEntityOfPage": [section("Dose", element("<p>One.</p>", "Children")), section("Dose", element("<p>Two.</p>", "Adults"))]}
    assert read(body).sections == {"Dose": "Children\nOne.\nAdults\nTwo."}


@pytest.mark.parametrize("url", [ROOT, "http://api.service.nhs.uk/x/", "https://nhs.uk.evil.org/x/", ROOT + "a/../b", "https://www.nhs.uk:8443/x", ROOT + "a b", None, 5])
def test_links_that_are_no_pages(url):
    assert path_of(url) is None


# --- recorded answers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared_data):
    return {path.stem: json.loads(path.read_text()) for path in sorted((shared_data / "recorded" / "nhs").glob("*.json"))}


def letters(text):
    return "".join(filter(str.isalnum, text))


def test_recorded_pages(recorded):
    bodies = {name: body for name, body in recorded.items() if "mainEntityOfPage" in body}
    records = {name: read(body, name) for name, body in bodies.items()}
    unread = {name for name, one in records.items() if isinstance(one, Unread)}
    assert unread == {"health-a-to-z-root-no-params", "womens-health-periods-no-params"}  # they are lists of links
    for name in bodies.keys() - unread:
        record = records[name]
        assert record.title and record.url.startswith("https://www.nhs.uk/") and "\u00a0" not in record.text and "<" not in record.text.replace("< ", "")
        lines = [line for line in record.text.split("\n") if len(line) > 60]
        assert len(lines) - len(set(lines)) <= 1, name
    zika = records["conditions-zika-no-params"]
    assert list(zika.sections)[:3] == ["Overview", "Check if you're at risk of Zika virus", "How to avoid Zika virus"]
    assert "- South and Central America" in zika.sections["Check if you're at risk of Zika virus"].split("\n")
    acne = records["conditions-acne-no-params"]  # its treatments stand in the second branch alone, among copies of the first
    assert list(acne.sections)[0] == "Overview" and "- topical retinoids" in acne.sections["Treatments from a GP"] and acne.text.count("face – this affects") == 1
    assert records["conditions-acne-modules-true"].title == "Acne" and records["medicines-zopiclone-no-params"].aspect == "Medicine"


@pytest.fixture
def own(make):
    "The long pages of `servers.nhs`, read through a server: path to record; and two lists of links."
    bodies = {"conditions/zana-fever": zana_fever(), "conditions/zilch": zilch(), "medicines/zanatidine": zanatidine(), "womens-health/zana": front("womens-health/zana")}
    bodies["health-a-to-z"] = page("health-a-to-z") | {"hasPart": [], "mainEntityOfPage": [
        {"identifier": "24", "@type": "WebPageElement", "name": "canonicallinks", "headline": "", "text": "", "mainEntityOfPage": [element("<p>Find every condition here</p>", "All", "link")]}]}
    with NhsServer(list(bodies), key="good-key-123") as server:
        server.pages = bodies
        found = list(make(server).fetch())
    return dict(zip(bodies, found))


def test_pages_with_the_habits_of_real_ones(own, make):
    "The twin of `test_recorded_pages`."
    assert {path for path, one in own.items() if isinstance(one, Unread)} == {"health-a-to-z", "womens-health/zana"}  # they are lists of links
    read_ones = {path: one for path, one in own.items() if isinstance(one, Record)}
    for path, record in read_ones.items():
        assert record.title and record.url.startswith("https://www.nhs.uk/") and "\u00a0" not in record.text and "<" not in record.text.replace("< ", "")
        lines = [line for line in record.text.split("\n") if len(line) > 20]
        assert len(lines) == len(set(lines)), path
    fever, spots, drug = (read_ones[path] for path in ("conditions/zana-fever", "conditions/zilch", "medicines/zanatidine"))
    assert list(fever.sections) == ["Overview", "Check if you're at risk of Zana fever", "How to avoid Zana fever", "Medical help urgent"]
    risk = fever.sections["Check if you're at risk of Zana fever"].split("\n")
    assert "- North and South Zanaland" in risk and "- the islands of Zilch" in risk and "Before you pack" in risk and fever.text.count("an hour is enough") == 1
    assert list(spots.sections)[0] == "Overview" and "- sky balm" in spots.sections["Treatments from a GP"] and spots.text.count("elbow – this is so") == 1
    assert "Creams" not in spots.text and "PICTURES" not in spots.text and "Kinds of spots\nThere are two kinds" in spots.sections["Symptoms of zilch"]
    assert drug.aspect == "Medicine" and list(drug.sections) == ["About zanatidine", "Key facts", "How and when to take zanatidine"]
    with NhsServer(["conditions/zilch"], key="good-key-123") as server:
        server.pages["conditions/zilch"] = zilch()
        (checked,) = make(server, modules=True).fetch()
        assert server.asked[-1].query["modules"] == "true"
    assert (checked.title, checked.aspect) == ("Zilch", None) and "- sky balm" in checked.text  # its name stands in `about`, its genre nowhere


def test_nothing_of_a_page_of_ours_is_lost(own):
    "The twin of `test_nothing_of_a_recorded_page_is_lost`."
    for path, body in (("conditions/zana-fever", zana_fever()), ("conditions/zilch", zilch()), ("medicines/zanatidine", zanatidine())):
        whole, expected = letters(own[path].text), texts(body["mainEntityOfPage"])
        assert len(expected) >= 5 and all(letters(html_text(text)) in whole for text in expected), path


def texts(value):
    "All texts of a branch but those of links."
    if isinstance(value, dict):
        if nhs.is_link(value):
            return []
        inner = [text for key in ("mainEntityOfPage", "mainEntity", "acceptedAnswer") for text in texts(value.get(key))]
        return ([value["text"]] if isinstance(value.get("text"), str) else []) + inner
    return [t for part in value for t in texts(part)] if isinstance(value, list) else []


def test_nothing_of_a_recorded_page_is_lost(recorded):
    "Each paragraph of the branch that was taken is in the text."
    for name in ("conditions-zika-no-params", "conditions-acne-no-params", "medicines-acrivastine-no-params", "conditions-cancer-no-params"):
        whole = letters(read(recorded[name]).text)
        for text in texts(recorded[name]["mainEntityOfPage"]):
            assert letters(html_text(text)) in whole, (name, text[:80])


def entry_of(path, **more):
    "An entry of a list, with the fields that the real ones have."
    dates = {"datePublished": "2027-10-17T16:16:23+00:00", "dateModified": "2028-06-23T15:18:57+00:00", "lastReviewed": ["2028-06-20T00:00:00+00:00"], "reviewDue": "2031-06-20T00:00:00+00:00"}
    about = {"@type": "MedicalWebPage", "genre": ["Condition"], "keywords": "", "code": [{"@type": "MedicalCode", "codeValue": "", "codingSystem": "SNOMED-CT"}], **dates}
    return {"description": "", "linkRelationship": "Result", "@type": "LinkRole", "articleStatus": "published", "mainEntityOfPage": about, "url": f"{ROOT}{path}/", "name": path} | more


def list_links(number, last):
    "The links of a page of a list: to the first, the last, itself, and the next where there is one."
    named = {"First Page": 1, "Last Page": last, "Self": number} | ({"Next Page": number + 1} if number < last else {})
    return [{"@type": "LinkRole", "url": f"{ROOT}conditions/?page={page}", "name": name, "description": f"Link to {name}",
             "linkRelationship": "Self" if name == "Self" else "Pagination"} for name, page in named.items()]


def test_lists_and_manifests_with_the_links_of_real_ones(make):
    "The twin of `test_recorded_lists_and_manifests`."
    pagination = {name: f"{ROOT}manifest/pages/?page={page}" for name, page in (("first", 1), ("last", 50), ("self", 1), ("next", 2))} | {"count": 4985}
    listed = [{"id": 1, "dateFirstPublished": "2027-11-28T16:31:08.215000Z", "dateModified": when, "dateNextReview": None, "description": None, "genre": [], "healthAspects": [],
               "modules": False, "name": "A", "type": "ConditionsSubPage", "url": f"{ROOT}conditions/zana/{name}/", "webpage": f"https://www.nhs.uk/conditions/zana/{name}/"}
              for name, when in (("what-happens", "2031-11-18T15:26:06.000524Z"), ("how-to-book-a-test", "2034-07-08T12:00:30.332225+01:00"))]
    assert next_nhs_page({"pagination": pagination, "results": listed}) == "2"
    bodies = {"2": {"relatedLink": list_links(2, 29)}, "29": {"relatedLink": list_links(29, 29)}, "category": {"significantLink": [entry_of("conditions/zana")]}}
    assert {name: next_nhs_page(body) for name, body in bodies.items()} == {"2": "3", "29": None, "category": None}
    entries = [*listed, entry_of("conditions/boils-of-zana"), entry_of("mental-health/children-and-young-adults/advice-for-parents/late-children")]
    assert [path_of(entry["url"]) for entry in entries][::3] == ["conditions/zana/what-happens", "mental-health/children-and-young-adults/advice-for-parents/late-children"]
    assert [nhs.changed_since(entry) for entry in entries] == ["2031-11-18", "2034-07-08", "2028-06-23", "2028-06-23"]
    lists = {"1": {"significantLink": [entry_of("conditions/zana")], "relatedLink": list_links(1, 2)}, "2": {"significantLink": [entry_of("conditions/zilch")], "relatedLink": list_links(2, 2)}}
    with Server(lambda asked: ok(lists[asked.query["page"]]) if "page" in asked.query else ok(zilch(asked.path))) as server:
        assert len(list(make(server, lists=["conditions"]).fetch())) == 2 and [asked.query.get("page") for asked in server.asked] == ["1", None, "2", None]


def test_recorded_lists_and_manifests(recorded):
    assert next_nhs_page(recorded["manifest-pages-root-page-1"]) == "2" and next_nhs_page(recorded["conditions-root-page-2"]) == "3"
    assert next_nhs_page(recorded["conditions-root-page-29"]) is None and next_nhs_page(recorded["conditions-root-category-z"]) is None
    entries = recorded["manifest-pages-root-page-2"]["results"] + recorded["conditions-root-page-1"]["significantLink"]
    assert all(path_of(entry["url"]) and nhs.changed_since(entry) for entry in entries)


def test_errors_as_the_server_words_them(quick):
    "The twin of `test_recorded_errors`, through a server."
    with NhsServer(paths(2), key="good-key-123") as server, Server(lambda asked: ok({"statusCode": 404, "message": "No sandbox answer for these values."}, status=404)) as sandbox:
        fetcher = quick()
        gone = fetcher.get(f"{server.base}/conditions/none/", headers={"apikey": "good-key-123"}, accept=(404,))
        keyless = fetcher.get(f"{server.base}/conditions/zana-1/", accept=(401,))
        unknown = fetcher.get(f"{sandbox.url}/conditions/zana-1/", accept=(404,))
    assert error_of(gone) == (404, "Resource not found") and error_of(unknown)[0] == 404 and error_of(keyless)[0] == 401
    with pytest.raises(MissingError, match="NHS_API_KEY.*missing subscription key"):
        check_nhs_page(keyless)
    for answer in (gone, unknown):
        check_nhs_page(answer)  # a page that is not there ends nothing


def test_recorded_errors(recorded):
    def fetched(status, name):
        return Fetched(status, {}, json.dumps(recorded[name]).encode(), "https://x/", "", "", False)

    assert error_of(fetched(404, "error-resource-not-found")) == (404, "Resource not found")
    with pytest.raises(MissingError, match="NHS_API_KEY"):
        check_nhs_page(fetched(401, "error-missing-subscription-key"))
    check_nhs_page(fetched(404, "error-sandbox-response-not-found"))


# --- damaged pages -------------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=40), st.lists(st.text(max_size=20), max_size=2), st.just("<ul><li>a<li>b"),
    st.builds(lambda: [{"hasPart": [{"text": "<p>deep"}]}]), st.dictionaries(st.sampled_from(["text", "headline", "name", "hasPart"]), st.text(max_size=9), max_size=2),
)  # fmt: skip


def damage(body, data):
    body = copy.deepcopy(body)
    for _ in range(data.draw(st.integers(1, 5))):
        if not (spots := list(places(body))):
            break
        container, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        if isinstance(container, dict) and data.draw(st.booleans()):
            del container[key]
        else:
            container[key] = data.draw(JUNK)
    return body


def check_read(found):
    assert isinstance(found, (Record, Unread))
    if isinstance(found, Unread):
        assert found.reason and found.key
    else:
        assert found.aspect is None or found.aspect
        assert found.text.strip() and found.title and not found.may_train and found.url.startswith("https://www.nhs.uk/")
        found.model_dump_json()


@pytest.mark.parametrize("body", [page("conditions/a"), medicine("medicines/b"), front("conditions")], ids=["condition", "medicine", "front"])
def test_whatever_stands_in_one_place_of_a_page_it_is_read_or_unread(body):
    assert isinstance(read(body), Unread if body == front("conditions") else Record)
    for wrong in spoiled(body):
        check_read(read(wrong))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_pages_are_read_or_unread(data):
    "The twin of `test_damaged_real_pages_are_read_or_unread`."
    check_read(read(damage(data.draw(st.sampled_from([page("conditions/a"), medicine("medicines/b"), front("conditions"), zana_fever(), zilch(), zanatidine()])), data)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_real_pages_are_read_or_unread(recorded, data):
    check_read(read(damage(recorded[data.draw(st.sampled_from(["conditions-zika-no-params", "medicines-acrivastine-no-params", "conditions-acne-modules-true"]))], data)))


ENTRY = {"url": f"{ROOT}conditions/a/", "dateModified": "2026-01-01", "mainEntityOfPage": {"dateModified": "2026-01-02"}}
LIST = {"pagination": {"next": f"{ROOT}manifest/pages/?page=2"}, "results": [ENTRY], "relatedLink": [{"name": "Next Page", "url": "?page=3"}]}
BROKEN = ["http://[", "https://["]  # addresses that urllib refuses to split


def test_whatever_stands_in_one_place_of_a_list_it_gives_links_or_none():
    assert next_nhs_page(LIST) == "3" and path_of(ENTRY["url"]) == "conditions/a" and nhs.changed_since(ENTRY) == "2026-01-01"
    assert path_of(ENTRY["url"].replace("https:", "http:")) is None and path_of(ENTRY["url"].replace("/a/", "/a b/")) is None
    assert nhs.changed_since(ENTRY | {"dateModified": "last week"}) == ""
    for body in spoiled(LIST):
        if isinstance(body, dict):
            assert (following := next_nhs_page(body)) is None or following.isdigit()
    for entry in spoiled(ENTRY):
        if isinstance(entry, dict):
            assert path_of(entry.get("url")) in (None, "conditions/a") and isinstance(nhs.changed_since(entry), str)


@pytest.mark.parametrize("address", BROKEN)
def test_a_broken_address_in_a_list_leads_nowhere(address):
    if address.startswith("https"):
        assert path_of(address) is None
    assert next_nhs_page({"pagination": {"next": address}}) is None


def test_whatever_stands_in_one_place_of_an_error_it_is_explained():
    for wrong in spoiled({"statusCode": 401, "message": "Access denied", "resourceType": "OperationOutcome"}):
        try:
            check_nhs_page(Fetched(200, {}, json.dumps(wrong).encode(), "https://x/", "", "", False))
        except (InputError, MissingError) as caught:
            assert "https://x/" in str(caught) or "NHS_API_KEY" in str(caught)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_lists_give_links_or_reasons(data):
    entries = [{"url": f"{ROOT}conditions/a-{n}/", "dateModified": "2026-01-01"} for n in range(3)]
    body = damage({"pagination": {"next": f"{ROOT}manifest/pages/?page=2"}, "results": entries, "relatedLink": [{"name": "Next Page", "url": "?page=3"}]}, data)
    following = next_nhs_page(body)
    assert following is None or following.isdigit()
    for entry in body.get("results") or [] if isinstance(body.get("results"), list) else []:
        if isinstance(entry, dict):
            assert path_of(entry.get("url")) is None or isinstance(nhs.changed_since(entry), str)


@settings(max_examples=200, deadline=None)
@given(status=st.sampled_from([200, 400, 401, 404]), body=st.one_of(st.binary(max_size=80), JUNK.map(lambda value: json.dumps({"statusCode": value}).encode())))
def test_any_body_is_an_answer_or_an_error_that_is_explained(status, body):
    try:
        check_nhs_page(Fetched(status, {}, body, "https://x/", "", "", False))
    except (InputError, MissingError):
        pass


def test_a_page_nested_very_deep_does_not_break_the_reader():
    body = "x"
    for _ in range(3000):  # more than Python's own limit
        body = [{"text": "<p>a</p>", "hasPart": body}]
    assert isinstance(read({"mainEntityOfPage": body}), Record)


def test_a_blank_headline_is_none_and_the_aspect_is_taken():
    blank = {"headline": " ", "hasHealthAspect": "https://schema.org/SideEffectsHealthAspect", "text": "<p>It may make you sleepy.</p>"}
    assert read({"mainEntityOfPage": [blank]}).sections == {"Side effects": "It may make you sleepy."}


def test_a_list_of_one_may_be_that_one():
    "schema.org allows it, and a reader that wants lists loses the page."
    body = page("conditions/zana")
    assert read({"name": "Zana", "mainEntityOfPage": section("Dose", element("<p>One.</p>"))}).sections == {"Dose": "One."}
    assert read(body | {"mainEntityOfPage": body["mainEntityOfPage"][0]}).sections["Overview"] == "Zana is made up."


def test_a_list_that_goes_on_without_entries_ends(make):
    def answer(asked):
        return ok({"pagination": {"next": f"{ROOT}manifest/pages/?page={int(asked.query['page']) + 1}"}, "results": []})

    with Server(answer) as server, pytest.raises(MissingError, match="continues without entries after 1 pages"):
        list(make(server).fetch())
    assert len(server.asked) == 1


@pytest.mark.parametrize("options", [{"environment": ["sandbox"]}, {"lists": 5}, {"lists": [5]}, {"modules": "yes"}, {"base_url": 5}])
def test_options_of_the_wrong_kind_are_named(options):
    with pytest.raises(InputError, match="nhs: "):
        Nhs(**options)

"openFDA's labels: against a server of our own that behaves and misbehaves as the real one, recorded answers, and labels that were damaged."

import copy
import json
import re
import threading
from datetime import date

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data import own_json
from servers.base import Server, busy, gzip_bomb, gzipped, hang_up, ok, redirect, slow_drip, torn, truncated, wrong_type
from servers.collecting import spoiled
from servers.openfda import OpenFdaServer, labels, nameless, over_the_counter, prescription

from medlab.basics.errors import InputError, MissingError
from medlab.contracts.records import Record, Unread
from medlab.fetch import Fetched, Fetcher
from medlab.sources.openfda import ANSWERS, QUERY, OpenFda, check_answer, next_query, read_label


@pytest.fixture
def make(quick, monkeypatch):
    "Make a source for a server, with a fetcher that is quick."
    monkeypatch.delenv("OPENFDA_API_KEY", raising=False)
    monkeypatch.setattr(OpenFda, "busy_wait", 0.05)

    def make(url, fetcher=(), **options):
        fetcher = quick(**{"attempts": 6, **dict(fetcher)})
        source = OpenFda(fetcher=fetcher, base_url=url, **options)
        fetcher.limit(url, 1000, busy=source.busy_wait)
        return source

    return make


@pytest.fixture
def server():
    with OpenFdaServer(labels(10), keys=("good-key-123",)) as server:
        yield server


def read(label):
    return read_label(label, "label 1", "0" * 64, "2026-01-31T12:00:00+00:00")


# --- paging --------------------------------------------------------------------------------------------------------------


def test_pages_are_followed_to_the_end_through_our_own_address(server, make):
    records = list(make(server.url, page_size=3).fetch())
    assert len({record.id for record in records}) == 10 and all(isinstance(record, Record) for record in records)
    assert [asked.query.get("search_after") for asked in server.asked] == [None, "0=at3", "0=at6", "0=at9"]
    assert all(asked.query["search"] == QUERY and " AND " in asked.query["search"] for asked in server.asked)
    assert {record.license for record in records} == {"CC0-1.0"} and all(record.may_train and "open.fda.gov" in record.attribution for record in records)
    assert all(record.raw_sha256 and record.retrieved_at and record.url.startswith("https://dailymed.nlm.nih.gov/") for record in records)


def test_a_limit_is_kept_and_nothing_more_is_asked_than_needed(server, make):
    assert len(list(make(server.url, page_size=4).fetch(limit=6))) == 6
    assert len(server.asked) == 2
    assert list(make(server.url).fetch(limit=0)) == []


def test_five_hundred_are_read_when_nobody_says_how_many(make):
    with OpenFdaServer(labels(600)) as server:
        assert len(list(make(server.url).fetch())) == 500
        assert len(server.asked) == 5


def test_since_asks_for_the_time_of_the_label(server, make):
    records = list(make(server.url).fetch(since=date(2026, 1, 1)))
    assert 0 < len(records) < 10 and "effective_time:[20260101 TO 29991231]" in server.asked[0].query["search"]


def test_nothing_found_is_an_empty_result(server, make):
    assert list(make(server.url, query="matchesnothing").fetch()) == []


def test_a_second_run_asks_nothing_and_offline_needs_no_server(server, make):
    first = list(make(server.url, page_size=3).fetch())
    asked = len(server.asked)
    assert list(make(server.url, page_size=3).fetch()) == first and len(server.asked) == asked
    assert list(make(server.url, fetcher={"offline": True}, page_size=3).fetch()) == first
    with pytest.raises(MissingError, match="not in the store"):
        list(make(server.url, fetcher={"offline": True}, query="something else").fetch())


def test_a_run_that_broke_off_goes_on_without_asking_twice(server, make):
    server.faults = [None, None, busy(retry_after=3600)]
    with pytest.raises(MissingError, match="3600 s"):
        list(make(server.url, page_size=3).fetch())
    assert len(list(make(server.url, page_size=3).fetch())) == 10
    assert [asked.query.get("search_after") for asked in server.asked] == [None, "0=at3", "0=at6", "0=at6", "0=at9"]


def test_a_label_that_comes_twice_is_said(make):
    with OpenFdaServer([prescription(1), prescription(2), prescription(1)]) as server:
        found = list(make(server.url).fetch())
    assert [type(one) for one in found] == [Record, Record, Unread] and "second time" in found[2].reason


def test_links_that_lead_in_a_circle_end(make):
    link = {"Link": '<https://api.fda.gov/drug/label.json?search=x&limit=1&search_after=0%3Da>; rel="next"'}
    with Server({"/drug/label.json": ok({"results": [prescription(1)]}, link)}) as server, pytest.raises(MissingError, match="repeats itself"):
        list(make(server.url).fetch())
    assert len(server.asked) == 2


# --- keys ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_sent_and_shown_nowhere(server, make, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENFDA_API_KEY", "good-key-123")
    source = make(server.url, page_size=3)
    assert len(list(source.fetch())) == 10 and all(asked.query["api_key"] == "good-key-123" for asked in server.asked)
    monkeypatch.delenv("OPENFDA_API_KEY")
    fingerprint = make(server.url, page_size=3).fingerprint()
    assert source.fingerprint() == fingerprint
    everything = "".join(path.name + path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "good-key-123" not in everything


def test_a_bad_key_is_named_but_not_shown(server, make, monkeypatch):
    monkeypatch.setenv("OPENFDA_API_KEY", "bad-key-456")
    with pytest.raises(MissingError, match="OPENFDA_API_KEY") as caught:
        list(make(server.url).fetch())
    assert "bad-key-456" not in str(caught.value) and len(server.asked) == 1


def test_a_key_does_not_follow_a_redirect_to_another_host(server, make, monkeypatch):
    monkeypatch.setenv("OPENFDA_API_KEY", "good-key-123")
    with Server({"/drug/label.json": ok({"results": []})}) as other:
        server.faults = [redirect(other.url + "/drug/label.json?api_key=good-key-123")]
        with pytest.raises(InputError, match="must not go") as caught:
            list(make(server.url).fetch())
        assert other.asked == [] and "good-key-123" not in str(caught.value)


# --- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [busy(retry_after=0), busy(), busy(status=503), hang_up(), ok("<html>Bad gateway</html>", status=500), ok({"error": {"code": "OVER_RATE_LIMIT"}})]
)
def test_what_may_pass_is_tried_again(server, make, fault):
    server.faults = [fault, fault]
    assert len(list(make(server.url).fetch())) == 10 and len(server.asked) == 3


def test_a_429_that_asks_for_a_second_gets_it(server, make):
    server.faults = [busy(retry_after=1)]
    assert len(list(make(server.url).fetch())) == 10 and server.gaps()[0] >= 1


def test_a_429_without_a_time_waits_as_the_source_says(server, make, monkeypatch):
    monkeypatch.setattr(OpenFda, "busy_wait", 0.6)
    server.faults = [busy()]
    assert len(list(make(server.url).fetch())) == 10 and server.gaps()[0] >= 0.6


def test_a_quota_that_stays_used_up_names_the_key(server, make):
    server.faults = [busy()] * 6
    with pytest.raises(MissingError, match="OPENFDA_API_KEY"):
        list(make(server.url).fetch())


@pytest.mark.parametrize("spoil", [truncated, torn, lambda answer: truncated(gzipped(answer))])
def test_a_torn_answer_is_asked_for_again_and_never_kept(server, make, spoil):
    server.faults = [lambda asked: spoil(server.answer(asked))]
    assert len(list(make(server.url).fetch())) == 10 and len(server.asked) == 2


@pytest.mark.parametrize("head", [False, True])
def test_a_slow_drip_does_not_hold_us_for_ever(server, make, head):
    server.faults = [lambda asked: slow_drip(server.answer(asked), 0.05, head)] * 2
    with pytest.raises(MissingError, match="not done after 0.5 s"):
        list(make(server.url, fetcher={"deadline": 0.5, "attempts": 2}).fetch())


def test_a_web_page_in_place_of_data_is_said(server, make):
    server.faults = [wrong_type()]
    with pytest.raises(MissingError, match="login page"):
        list(make(server.url).fetch())
    assert len(list(make(server.url).fetch())) == 10  # it was not kept


def test_a_bomb_is_not_unpacked(server, make):
    server.faults = [gzip_bomb()]
    with pytest.raises(InputError, match="larger than 50 MB"):
        list(make(server.url).fetch())


def test_a_query_that_cannot_be_read_is_not_repeated(server, make):
    with pytest.raises(InputError, match="Lexical error"):
        list(make(server.url, query='openfda.brand_name:"verapamil""x"y"').fetch())
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [{"message": "hello"}, ["results"], {"results": None}, {"results": {"a": 1}}, 7])
def test_an_answer_of_another_service_is_said(make, body):
    with Server({"/drug/label.json": ok(body)}) as server, pytest.raises(MissingError, match="is base_url openFDA"):
        list(make(server.url).fetch())


@pytest.mark.parametrize("options", [{"query": ""}, {"query": "a:b+AND+c:d"}, {"page_size": 0}, {"page_size": 1001}, {"page_size": "5"}, {"base_url": "api.fda.gov"}])
def test_wrong_options(tmp_path, options):
    with pytest.raises(InputError, match="openfda: "):
        OpenFda(fetcher=Fetcher(tmp_path), **options)


def test_the_fingerprint_is_the_contents(make):
    first = make("http://127.0.0.1:1111")
    assert first.fingerprint() == make("http://127.0.0.1:2222", page_size=7).fingerprint() == OpenFda().fingerprint() != make("http://127.0.0.1:1111", query="fever").fingerprint()


# --- labels --------------------------------------------------------------------------------------------------------------


def test_a_prescription_label():
    record = read(prescription(7))
    assert (record.title, record.subject, record.kind) == ("Zanadrug7 (zanavir7)", "zanavir7", "label")
    assert record.sections["indications"] == "Zanadrug7 is an antiviral indicated for the zana flu in adults."
    assert record.sections["dosage"].split("\n") == [
        "Take one tablet a day.", "Weight (kg) | Dose (mg)", "under 50 | 100", "50 and more | 200", "Swallow it whole.",
    ]  # fmt: skip
    assert record.sections["warnings"] == "5.1 Liver Injury Measure liver enzymes first.\n5.2 Rash Stop it."
    assert all(text in record.text for text in record.sections.values())


def test_a_label_without_prescription_says_every_thing_once():
    record = read(over_the_counter(1))
    assert (record.title, record.sections["purpose"]) == ("Calmolin 1 (zanatussin)", "Cough suppressant")
    assert record.sections["warnings"] == "Sleep warning: You may become drowsy."
    assert record.text.count("with alcohol") == record.text.count("7 days") == 1
    assert record.sections["do_not_use"] == "Do not use\n- with alcohol"


def test_a_label_without_an_openfda_block_takes_its_name_from_its_product_data():
    record = read(nameless(3))
    assert (record.title, record.subject, record.aspect) == ("Zanadrug3 (zanavir3)", "zanavir3", None)


def without_block(product, **fields):
    return read({"set_id": "x", "openfda": {}, "spl_product_data_elements": [product], "indications_and_usage": ["Uses helps with a cough."], **fields})


@pytest.mark.parametrize("product,title,subject", [
    ("Zanavir Zanavir ZANAVIR ZANAVIR Sodium Chloride Water", "Zanavir", "zanavir"), ("Zanavir ZANAVIR ZANAVIR Water", "Zanavir", "zanavir"), ("ZANAVIR ZANAVIR", "Zanavir", "zanavir"),
    ("Zana Flux Zana Flux ZANA FLUX ZANA FLUX Water", "Zana Flux", "zana flux"), ("ZANADOL Zanavir ZANAVIR ZANAVIR Water", "Zanadol (zanavir)", "zanavir"),
    ("ZANADOL PM zanavir sodium ZANAVIR SODIUM ZANAVIR SODIUM WATER", "Zanadol Pm (zanavir sodium)", "zanavir sodium"), ("Zanavir Zanavir Zanavir Zanavir Zanavir Zanavir", "Zanavir", "zanavir"),
])  # fmt: skip
def test_a_drug_that_is_sold_under_the_name_of_its_substance_has_one_name(product, title, subject):
    record = without_block(product)
    assert (record.title, record.subject) == (title, subject)


@pytest.mark.parametrize("block,title,subject", [
    ({"brand_name": ["Zanavir"], "generic_name": ["ZANAVIR"]}, "Zanavir", "zanavir"), ({"brand_name": ["Zanavir Zanavir"], "generic_name": ["ZANAVIR ZANAVIR"]}, "Zanavir", "zanavir"),
    ({"generic_name": ["ZANAVIR, ZANAVIR"]}, "zanavir", "zanavir"), ({"brand_name": ["ZANADOL"], "generic_name": ["ZANAVIR, IRON, ZANAVIR"]}, "Zanadol (zanavir, iron)", "zanavir, iron"),
    ({"brand_name": ["Bye Bye"], "generic_name": ["Iron"]}, "Bye (iron)", "iron"),
])  # fmt: skip
def test_a_name_that_the_block_repeats_is_said_once(block, title, subject):
    record = without_block("", openfda=block)
    assert (record.title, record.subject) == (title, subject)


def test_a_drug_is_not_named_after_its_company():
    product = "ACMECORP SHIELD BRONZE SPF 46 ZINC OXIDE"
    record = without_block(product)
    assert record.subject == product.lower() and record.title.split() != ["Acmecorp"]
    record = without_block(product, active_ingredient=["Active ingredient Zinc Oxide 4.5% Purpose Sunscreen"])
    assert (record.title, record.subject) == ("Acmecorp Shield Bronze Spf 46 (zinc oxide)", "zinc oxide")
    record = without_block("Zanadol film coated tablets starch water talc sugar salt", indications_and_usage=["Zanadol is indicated for the zana flu."])
    assert (record.title, record.subject) == ("Zanadol", "zanadol")
    found = without_block("ACMECORP cream water starch talc sugar salt oil wax honey")
    assert isinstance(found, Unread) and found.reason == "the label names no drug"


@pytest.mark.parametrize("text,name", [
    ("Active ingredient (in each 5 mL) Zanavir 160 mg", "zanavir"), ("Active Ingredients Zinc Oxide.......4%", "zinc oxide"), ("Zanavir Hydrobromide, 10 mg Purpose Antitussive",
    "zanavir hydrobromide"),
    ("Zanavir (0.05%)", "zanavir"),
])  # fmt: skip
def test_the_active_ingredient_names_a_drug(text, name):
    assert without_block("ACMECORP drops water starch talc sugar salt oil wax honey", active_ingredient=[text]).subject == name


def test_old_field_names():
    old = {"set_id": "x", "openfda": {"generic_name": ["OLDAMINE"]}, "warnings": ["WARNINGS Do not drive."], "nursing_mothers": "Nursing Mothers It is not known."}
    old["pregnancy"] = ["Pregnancy Not studied in rabbits. Nursing Mothers It is not known."]
    old["precautions"] = ["PRECAUTIONS General Watch the weight. Pregnancy Not studied in rabbits. Nursing Mothers It is not known."]
    record = read(old)
    assert record.sections == {"warnings": "Do not drive.", "precautions": "Watch the weight.", "pregnancy": "Not studied in rabbits.\nIt is not known."}
    assert record.title == record.subject == "oldamine" and record.url is None


@pytest.mark.parametrize(
    "label, reason",
    [
        ({"products": [], "sponsor_name": "x"}, "expected a label with set_id"), (None, "expected a label"), ("text", "expected a label"), ([], "expected a label"),
        ({"set_id": "x", "openfda": {"brand_name": ["A"]}}, "none of its fields"), ({"set_id": "x", "warnings": ["Hot."]}, "names no drug"),
        ({"set_id": "x", "warnings": [1]}, "expected a list of texts"), ({"set_id": "x", "warnings": {"a": "b"}}, "expected a list of texts"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_unread_with_a_reason(label, reason):
    found = read(label)
    assert isinstance(found, Unread) and reason in found.reason


@pytest.mark.parametrize("link", ["", "<>", '<https://x/?skip=0>; rel="prev"', '<https://x/?a=b>; rel="next"', "garbage; rel=next"])
def test_no_next_page(link):
    assert next_query(link) is None


# --- recorded answers ----------------------------------------------------------------------------------------------------


def recorded(shared_data, name):
    return json.loads((shared_data / "recorded" / "openfda" / name).read_text())


def test_recorded_labels(shared_data):
    tylenol = read(recorded(shared_data, "label_tylenol_otc_record.json"))
    assert (tylenol.title, tylenol.subject, tylenol.aspect) == ("Childrens Tylenol (acetaminophen)", "acetaminophen", "human otc drug")
    assert tylenol.sections["purpose"] == "Pain reliever/fever reducer" and "72-95 lbs | 11 years | 15 mL" in tylenol.sections["dosage"].split("\n")
    assert tylenol.sections["indications"].startswith("temporarily:\n- reduces fever")
    for once in ("Ask a doctor before use if your child has liver disease", "get medical help or contact a Poison Control Center", "60-71 lbs"):
        assert tylenol.text.count(once) == 1, once
    gefitinib = read(recorded(shared_data, "label_gefitinib_record_trimmed.json"))
    assert gefitinib.title == "Gefitinib" and gefitinib.sections["indications"].startswith("Gefitinib tablets are indicated")
    assert "[see" not in gefitinib.text and "( 7.1 )" not in gefitinib.text
    page = [read(label) for label in recorded(shared_data, "label_osimertinib_page_trimmed.json")["results"]]
    assert [type(one) for one in page] == [Unread, Unread, Record]  # the recording left the sections of two out
    assert (page[2].title, page[2].subject) == ("Tagrisso (osimertinib)", "osimertinib")


OWN = own_json("openfda.json")


def test_labels_with_the_habits_of_real_ones(make):
    "The twin of `test_recorded_labels`, through a server: headings and tables doubled, narrower fields repeated in wider ones, references to chapters."
    with OpenFdaServer([OWN["syrup"], OWN["tablets"], *OWN["page"]["results"]]) as server:
        syrup, tablets, *page = list(make(server.url).fetch())
    assert (syrup.title, syrup.subject, syrup.aspect) == ("Little Fevrolin (paranol)", "paranol", "human otc drug")
    assert syrup.sections["purpose"] == "Throat soother/fever reducer" and "59-90 lbs | 9-11 years | 9 mL" in syrup.sections["dosage"].split("\n")
    assert syrup.sections["indications"].startswith("temporarily:\n- brings a fever down")
    assert syrup.sections["warnings"].startswith("Kidney warning: This syrup") and syrup.sections["active_ingredient"] == "(in each 5 mL) Paranol 80 mg"
    for once in ("if the child has had kidney stones", "ring a poison centre", "41-58 lbs", "Weight (lb)", "if the seal is broken"):
        assert syrup.text.count(once) == 1, once
    assert tablets.title == "Zanitinib" and tablets.sections["indications"].startswith("Zanitinib tablets are indicated")
    assert "[see" not in tablets.text and "( 7.1 )" not in tablets.text and tablets.sections["interactions"].split("\n")[1].startswith("7.1 Drugs That Change")
    assert [type(one) for one in page] == [Unread, Unread, Record]  # product data alone are no label
    assert (page[2].title, page[2].subject) == ("Zagrissa (zanimertinib)", "zanimertinib")


def test_recorded_statuses(shared_data):
    for path in sorted((shared_data / "recorded" / "openfda").glob("rec_*.json")):
        response = json.loads(path.read_text())["response"]
        fetched = Fetched(response["status"], response["headers"], json.dumps(response["body"]).encode(), "https://api.fda.gov/x", "", "", False)
        expected = {200: None, 404: None, 400: InputError, 500: InputError, 403: MissingError}[fetched.status]
        if expected is None:
            check_answer(fetched)
            following = next_query(str(response["headers"].get("link", "")))
            assert (following is not None) == ("link" in response["headers"])
            assert all(isinstance(read(result), Unread) for result in response["body"].get("results", []))  # they are of another endpoint
        else:
            with pytest.raises(expected):
                check_answer(fetched)


@pytest.mark.parametrize("number, expected", list(enumerate([None, None, None, InputError, MissingError, InputError])))
def test_statuses_as_openfda_sends_them(quick, number, expected):
    "The twin of `test_recorded_statuses`: answers of another endpoint, nothing found, a wrong sort, a wrong key, a broken query."
    told = OWN["statuses"][number]
    with Server({"/drug/label.json": ok(told["body"], told["headers"], told["status"])}) as server:
        fetched = quick().get(f"{server.url}/drug/label.json", accept=ANSWERS)
    assert fetched.status == told["status"]
    if expected:
        with pytest.raises(expected, match=["Sorting allowed", "OPENFDA_API_KEY", "Lexical error"][number - 3]):
            check_answer(fetched)
        return
    check_answer(fetched)
    assert (next_query(fetched.headers.get("link", "")) is not None) == ("Link" in told["headers"])
    assert all(isinstance(read(result), Unread) for result in told["body"].get("results", []))


# --- damaged labels ------------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=60), st.lists(st.text(max_size=30), max_size=3),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2), st.just("<table><tr><td>1<td>2"), st.just(["■ ■ 1 Uses Uses ( 1.1 )"]),
)  # fmt: skip


def damaged(label, data):
    "A copy with a few values replaced, texts cut or doubled, and keys dropped."
    label = copy.deepcopy(label)
    for _ in range(data.draw(st.integers(1, 4))):
        if not label:
            break
        key = data.draw(st.sampled_from(sorted(label)))
        how = data.draw(st.sampled_from(["junk", "drop", "cut", "double"]))
        texts = isinstance(label[key], list) and label[key] and all(isinstance(part, str) for part in label[key])
        if how == "drop":
            del label[key]
        elif how == "junk" or not texts:
            label[key] = data.draw(JUNK)
        elif how == "cut":
            label[key] = [label[key][0][: data.draw(st.integers(0, len(label[key][0])))]]
        else:
            label[key] = label[key] * 2
    return label


def check_read(found):
    assert isinstance(found, (Record, Unread))
    if isinstance(found, Unread):
        assert found.reason and found.key
    else:
        assert found.sections and found.title and found.subject and all(text.strip() for text in found.sections.values())
        found.model_dump_json()


@pytest.mark.parametrize("number", range(3))
def test_whatever_stands_in_one_place_of_a_label_it_is_read_or_unread(number):
    assert isinstance(read(labels(3)[number]), Record)
    for wrong in spoiled(labels(3)[number]):
        check_read(read(wrong))


def test_a_broken_address_in_a_link_header_leads_nowhere():
    assert next_query('<https://[/label.json?search_after=0%3D1>; rel="next"') is None


@pytest.mark.parametrize("status", [200, 404, 500])
def test_whatever_stands_in_one_place_of_an_answer_it_is_explained(status):
    for wrong in spoiled({"error": {"code": "NOT_FOUND", "message": "No matches found!"}, "results": [{"set_id": "a"}]}):
        try:
            check_answer(Fetched(status, {}, json.dumps(wrong).encode(), "https://api.fda.gov/x", "", "", False))
        except (InputError, MissingError) as caught:
            assert "api.fda.gov" in str(caught) or "openFDA" in str(caught)


def test_only_a_list_of_results_is_an_answer():
    sound = {"meta": {"x": 1}, "results": [{"set_id": "a"}]}
    for status, body in [(200, sound), (404, sound), (500, sound), *((200, wrong) for wrong in spoiled(sound))]:
        fetched = Fetched(status, {}, json.dumps(body).encode(), "https://api.fda.gov/x", "", "", False)
        if status == 200 and isinstance(body, dict) and isinstance(body.get("results"), list):
            check_answer(fetched)
        else:
            with pytest.raises((InputError, MissingError)):
                check_answer(fetched)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_labels_are_read_or_unread(data):
    "The twin of `test_damaged_real_labels_are_read_or_unread`."
    check_read(read(damaged(data.draw(st.sampled_from([*labels(3), OWN["syrup"], OWN["tablets"]])), data)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_real_labels_are_read_or_unread(shared_data, data):
    real = [recorded(shared_data, "label_tylenol_otc_record.json"), recorded(shared_data, "label_gefitinib_record_trimmed.json")]
    check_read(read(damaged(data.draw(st.sampled_from(real)), data)))


@settings(max_examples=200, deadline=None)
@given(label=st.recursive(JUNK, lambda inner: st.dictionaries(st.sampled_from(["set_id", "warnings", "openfda", "purpose", "brand_name"]), inner, max_size=4)))
def test_anything_at_all_is_read_or_unread(label):
    check_read(read(label))


@settings(max_examples=200, deadline=None)
@given(status=st.sampled_from([200, 400, 403, 404, 500]), body=st.one_of(st.binary(max_size=60), JUNK.map(lambda value: json.dumps({"error": value}).encode())))
def test_any_body_is_an_answer_or_an_error_that_is_explained(status, body):
    try:
        check_answer(Fetched(status, {}, body, "https://api.fda.gov/x", "", "", False))
    except (InputError, MissingError):
        pass


def test_every_label_of_a_mixed_page_comes_out_once(make):
    mixed = [*labels(5), None, {"set_id": "y"}, "x", {"set_id": "z", "warnings": 5}]
    with OpenFdaServer(mixed) as server:
        found = list(make(server.url).fetch())
    assert len(found) == len(mixed) and sum(isinstance(one, Record) for one in found) == 5


def test_several_sources_may_share_a_fetcher_over_threads(server, make):
    source, found = make(server.url, page_size=2), []
    threads = [threading.Thread(target=lambda: found.append(len(list(source.fetch())))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10]


def test_a_sentence_that_is_listed_twice_is_said_once():
    hot = "The syrup is hot."
    found = read({"set_id": "x", "openfda": {"brand_name": ["A"]}, "warnings": [hot, hot], "warnings_and_cautions": [hot], "purpose": ["Cough"] * 3})
    assert found.sections == {"purpose": "Cough", "warnings": "The syrup is hot."}


@pytest.mark.parametrize("default_limit", ["500", 0, True, 1.5])
def test_a_limit_that_is_no_number_is_said(default_limit):
    with pytest.raises(InputError, match="openfda: default_limit"):
        OpenFda(default_limit=default_limit)


def test_every_label_of_ours_has_usable_sections_or_a_reason():
    "The twin of `test_every_recorded_label_has_usable_sections_or_a_reason`."
    found = [read(label) for label in (OWN["syrup"], OWN["tablets"], *OWN["page"]["results"])]
    assert [type(one) for one in found] == [Record, Record, Unread, Unread, Record] and all(one.reason for one in found if isinstance(one, Unread))
    for one in (one for one in found if isinstance(one, Record)):
        assert {"indications", "purpose", "warnings"} & set(one.sections) and not re.search(r"(?i)^(\w+) \1$", one.title)


def test_every_recorded_label_has_usable_sections_or_a_reason(shared_data):
    seen = []
    for path in sorted((shared_data / "recorded" / "openfda").glob("label_*.json")):
        body = json.loads(path.read_text())
        for label in body.get("results", [body]):
            item = read(label)
            seen.append(item)
            assert isinstance(item, Unread) and item.reason or {"indications", "purpose", "warnings"} & set(item.sections)
            assert isinstance(item, Unread) or not re.search(r"(?i)^(\w+) \1$", item.title)
    assert len(seen) == 5 and sum(isinstance(item, Record) for item in seen) == 3

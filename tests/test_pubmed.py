"PubMed: what its answers hold, how a search larger than its list is taken whole, and everything that goes wrong on the way."

import subprocess
import sys
from collections import Counter
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from own_data import own_bytes, own_lines
from servers.base import Server, ok, wrong_type
from servers.collecting import SourceFaults, mutated, quick_fetcher, records, spoiled_xml, unread
from servers.pubmed import CALLER, DTD, Paper, PubMedServer, article, article_set, busy_for, error

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.contracts.records import REASONS, Record, Unread, record_id
from medlab.sources.pubmed import PubMed, licence_of, read_articles

KEY = "good-key-0123456789"


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    monkeypatch.delenv("NCBI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def source(server, store, offline=False, **options):
    return PubMed(quick_fetcher(store, offline=offline), **{"base_url": server.base, "query": "fever", "batch": 10, "per_second": 1000, **options})


def papers(count, **values):
    return [Paper(1000 + number, **values) for number in range(count)]


def pmids(items):
    return [int(record.url.split("/")[-2]) for record in records(items)]


def read(*articles):
    return dict(read_articles(article_set(*articles), "test"))


def one(*args, **values):
    return next(iter(read(article(7, *args, **values)).values()))


# --- collecting ----------------------------------------------------------------------------------------------------------


def test_a_search_comes_whole_in_batches_by_history(store):
    with PubMedServer(papers(35)) as server:
        items = list(source(server, store).fetch())
        fetched = server.asked_for("efetch.fcgi")
        assert pmids(items) == list(range(1034, 999, -1)) and not unread(items)
        assert len(server.asked_for("esearch.fcgi")) == 1 and [asked.query["retstart"] for asked in fetched] == ["0", "10", "20", "30"]
        assert {asked.query["WebEnv"] for asked in fetched} == set(server.sessions) and {asked.method for asked in fetched} == {"GET"}
        assert all(asked.query["db"] == "pubmed" and asked.query["tool"] == "medlab" and "api_key" not in asked.query for asked in server.asked)
        assert server.asked[0].headers["user-agent"].startswith("medlab")
    record = records(items)[0]
    assert (record.source, record.kind, record.license, record.may_train) == ("pubmed", "abstract", "CC-BY-4.0", True)
    assert record.id == record_id("pubmed", "1034") and record.url == "https://pubmed.ncbi.nlm.nih.gov/1034/"
    assert "U.S. National Library of Medicine" in record.attribution and record.retrieved_at and len(record.raw_sha256) == 64


def test_without_a_limit_it_is_500_and_a_limit_counts_records_not_what_could_not_be_read(store):
    with PubMedServer(papers(620)) as server:
        server.papers[-1].text = ""
        assert len(records(source(server, store, batch=200).fetch())) == 500
        items = list(source(server, store, batch=200).fetch(limit=3))
        assert pmids(items) == [1618, 1617, 1616] and unread(items) == {"1619": "no abstract"}
        assert list(source(server, store).fetch(limit=0)) == []


def spread(count, crowded=0):
    "Papers over four years, and `crowded` of them on one day."
    first = date(2022, 1, 5)
    found = [Paper(1000 + n, entered=first + timedelta(days=n * 1400 // count)) for n in range(count)]
    found += [Paper(9000 + n, entered=date(2024, 2, 29)) for n in range(crowded)]
    return sorted(found, key=lambda paper: paper.entered)


def test_more_hits_than_are_listed_come_by_years_months_and_days(store):
    with PubMedServer(spread(300), cap=50) as server:
        items = list(source(server, store).fetch(limit=10_000))
        assert sorted(pmids(items)) == list(range(1000, 1300)) and not unread(items)
        spans = [(asked.query.get("datetype"), asked.query.get("mindate"), asked.query.get("maxdate")) for asked in server.asked_for("esearch.fcgi")]
        assert spans[0] == (None, None, None) and {kind for kind, _, _ in spans[1:]} == {"edat"}
        assert ("edat", "2024/01/01", "2024/12/31") in spans and ("edat", "2024/02/01", "2024/02/29") in spans
        assert not any("0/01/01" in (first or "") for _, first, _ in spans), "years before the first paper were asked for"
        everything = [asked.query.get("WebEnv", "") + asked.query.get("retstart", "") for asked in server.asked_for("efetch.fcgi")]
        assert len(everything) == len(set(everything)) <= 75
        before = len(server.asked)
        assert list(source(server, store).fetch(limit=10_000)) == items and len(server.asked) == before


def test_a_day_with_more_hits_than_are_listed_says_how_many_are_not(store):
    with PubMedServer(spread(100, crowded=70), cap=50) as server:
        items = list(source(server, store).fetch(limit=10_000))
        assert len(records(items)) == 150  # 100 and the 50 of that day that are listed
        assert [reason for reason in unread(items).values()] == ["20 of 70 hits from 2024-02-29 to 2024-02-29 are not listed; narrow the query"]


def test_since_asks_for_what_was_changed_too(store):
    with PubMedServer([Paper(1, entered=date(2020, 1, 1)), Paper(2, entered=date(2020, 1, 1), changed=date(2026, 3, 3)), Paper(3, entered=date(2026, 4, 4))]) as server:
        assert pmids(source(server, store).fetch(since=date(2026, 3, 1))) == [3, 2]
        assert server.asked[0].query["datetype"] == "mdat" and server.asked[0].query["mindate"] == "2026/03/01"


def test_a_search_that_is_forgotten_half_way_goes_on_by_name(store):
    with PubMedServer(papers(35)) as server:
        collecting = source(server, store).fetch()
        first = [next(collecting) for _ in range(10)]
        server.sessions.clear()
        items = first + list(collecting)
        assert pmids(items) == list(range(1034, 999, -1)) and not unread(items)
        assert [asked.method for asked in server.asked_for("efetch.fcgi")] == ["GET", "GET", "POST", "POST", "POST"]
        before = len(server.asked)
        assert list(source(server, store).fetch()) == items
        assert len(server.asked) == before + 1  # whether the search is known again
    assert list(source(server, store, offline=True).fetch()) == items


def test_a_collection_that_was_stopped_goes_on_without_asking_twice(store):
    with PubMedServer(papers(60)) as server:
        collecting = source(server, store).fetch()
        first = [next(collecting) for _ in range(25)]
        collecting.close()
        assert len(server.asked) == 4
        assert list(source(server, store).fetch())[:25] == first
        asked = [asked.target for asked in server.asked]
        assert len(asked) == len(set(asked)) == 7


def test_a_killed_collection_goes_on_without_asking_twice(store, tmp_path):
    code = (
        "import sys, os, signal; from medlab.fetch import Fetcher; from medlab.sources.pubmed import PubMed\n"
        "found = PubMed(Fetcher(sys.argv[1]), base_url=sys.argv[2], query='fever', batch=10, per_second=1000).fetch()\n"
        "for number, _ in enumerate(found):\n"
        "    if number == 24: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with PubMedServer(papers(60)) as server:
        assert subprocess.run([sys.executable, "-c", code, str(store), server.base]).returncode == -9
        assert len(records(source(server, store).fetch())) == 60
        asked = [asked.target for asked in server.asked]
        assert len(asked) == len(set(asked)) == 7


def test_offline_opens_no_connection_and_a_miss_names_the_address(store):
    with PubMedServer(papers(5)) as server:
        items = list(source(server, store).fetch())
        asked = len(server.asked)
        assert list(source(server, store, offline=True).fetch()) == items
        with pytest.raises(MissingError, match=r"esearch\.fcgi.*term=cough.*is not in the store"):
            list(source(server, store, offline=True, query="cough").fetch())
        assert len(server.asked) == asked


def test_what_pubmed_leaves_out_is_told(store):
    with PubMedServer(papers(12)) as server:
        server.missing = {1003, 1011}
        items = list(source(server, store).fetch())
        assert len(records(items)) == 10 and unread(items) == {"1011": "PubMed left it out of its answer", "1003": "PubMed left it out of its answer"}


def test_named_papers_come_by_post_and_unknown_ones_are_told(store):
    with PubMedServer(papers(25)) as server:
        wanted = list(range(1000, 1025)) + [99999999]
        items = list(source(server, store, pmids=wanted).fetch())
        assert pmids(items) == wanted[:-1] and unread(items) == {"99999999": "PubMed left it out of its answer"}
        assert [(asked.method, len(asked.form["id"].split(","))) for asked in server.asked] == [("POST", 10), ("POST", 10), ("POST", 6)]
        only_unknown = list(source(server, store, pmids=["99999999"]).fetch())
        assert unread(only_unknown) and not records(only_unknown)


@pytest.mark.parametrize("wrong", ["PMC123", "12a", "", "0", "-4", "12345678901"])
def test_a_malformed_pmid_is_refused_before_anything_is_asked(store, wrong):
    with PubMedServer() as server:
        with pytest.raises(InputError, match="is not a PMID; expected digits"):
            source(server, store, pmids=[1000, wrong])
        assert not server.asked


@pytest.mark.parametrize("given", ["1000, 1002", "1000 1002", ["1000", 1002, 1000], (1000, 1002)])
def test_pmids_are_read_as_a_profile_may_write_them(store, given):
    with PubMedServer(papers(3)) as server:
        assert pmids(source(server, store, pmids=given).fetch()) == [1000, 1002] and len(server.asked) == 1
    assert PubMed(pmids=1000).pmids == ["1000"] and PubMed(pmids="").pmids == []


@pytest.mark.parametrize("options", [{"pmids": {"a": 1}}, {"pmids": 1.5}, {"pmids": [None]}, {"pmids": True}])
def test_pmids_that_are_none_are_refused(options):
    with pytest.raises(InputError, match="is not a PMID"):
        PubMed(**options)


@pytest.mark.parametrize("options", [{"query": " "}, {"batch": 0}, {"batch": 10_000}, {"base_url": "ftp://example.org"},
                                     {"query": 5}, {"query": None}, {"batch": "10"}, {"base_url": None}])  # fmt: skip
def test_wrong_options_are_refused(options):
    with pytest.raises(InputError, match="expected a query, a batch of 1 to 9999 and an address"):
        PubMed(**options)


def test_the_fingerprint_is_what_is_asked_not_where():
    assert PubMed().fingerprint() == PubMed(base_url="http://127.0.0.1:5/", batch=7, email="a@example.org").fingerprint()
    assert len({PubMed().fingerprint(), PubMed(query="cough").fingerprint(), PubMed(pmids=[5]).fingerprint()}) == 3


# --- what goes wrong -----------------------------------------------------------------------------------------------------


def test_an_empty_result_is_no_error_and_names_the_unknown_word(store):
    with PubMedServer(papers(3)) as server:
        items = list(source(server, store, query="zzzz").fetch())
        assert unread(items) == {"query": "the query finds nothing; PubMed does not know zzzz"} and len(items) == 1


class TestFaults(SourceFaults):
    key = KEY

    @pytest.fixture(autouse=True)
    def with_a_key(self, no_key, monkeypatch):
        monkeypatch.setenv("NCBI_API_KEY", KEY)

    def playing(self):
        return PubMedServer(papers(6))

    def source(self, server, fetcher):
        return PubMed(fetcher, base_url=server.base, query="fever", batch=3)


def test_a_search_without_a_hit_is_told_and_one_without_news_is_none(store):
    with PubMedServer() as server:
        assert unread(source(server, store).fetch()) == {"query": "the query finds nothing"}
        assert list(source(server, store).fetch(since=date(2026, 3, 1))) == []


@pytest.mark.parametrize("tag", ["PhraseNotFound", "QuotedPhraseNotFound", "FieldNotFound"])
def test_words_that_pubmed_left_out_of_a_search_are_told(store, tag):
    with PubMedServer(papers(3)) as server:
        found = server.esearch({"term": "fever", "retmax": "9999"}).body.replace(b"</eSearchResult>", f"<X><{tag}>feverr</{tag}></X></eSearchResult>".encode())
        server.faults += [ok(found)]
        items = list(source(server, store).fetch())
        assert len(records(items)) == 3 and unread(items) == {"query": "PubMed does not know feverr"}


@pytest.mark.parametrize("fault", [
    error("Search Backend failed: Exception: 502 Proxy Error"), error("proxy_stream(): Failed to connect to PubOne service", "eFetchResult", 400),
    busy_for("", retry_after=0.1), wrong_type(), ok(article_set(article(5))),
    ok("<eSearchResult><Count>5</Count><IdList/></eSearchResult>"), ok("<eSearchResult><Count>many</Count></eSearchResult>"),
    ok(f"<eSearchResult><Count>{'9' * 5000}</Count></eSearchResult>"),
    ok("<eSearchResult><Count>1</Count><IdList><Id>0</Id></IdList><WebEnv>a</WebEnv><QueryKey>1</QueryKey></eSearchResult>"),
], ids=range(9))  # fmt: skip
def test_answers_that_are_no_search_are_asked_for_again_and_never_stored(store, fault):
    with PubMedServer(papers(15)) as server:
        server.faults += [fault, fault]
        assert len(records(source(server, store).fetch())) == 15
    assert len(records(source(server, store, offline=True).fetch())) == 15


def test_troubles_that_stay_end_the_source_with_what_it_gave(store):
    with PubMedServer(papers(35)) as server:
        collecting, items = source(server, store).fetch(), []
        with pytest.raises(MissingError, match="PubMed is failing .*502.*all answers so far are kept"):
            for item in collecting:
                items.append(item)
                server.faults[:] = [error("Search Backend failed: 502", "eFetchResult")] * 9
        assert len(items) == 10


def test_what_the_user_asked_wrongly_is_said_once(store):
    with PubMedServer(papers(3)) as server:
        server.faults += [error("Invalid db name specified: nothing")]
        with pytest.raises(InputError, match="PubMed refuses this .Invalid db name"):
            list(source(server, store).fetch())
        server.faults += [error("Search Backend failed: Exception:\n'retstart' cannot be larger than 9998.")]
        with pytest.raises(InputError, match="'retstart' cannot be larger"):
            list(source(server, store).fetch())
        assert len(server.asked) == 2  # neither was tried again


@pytest.mark.parametrize("retry_after", [None, 0.05, 3600])
def test_a_429_that_stays_shows_neither_key_nor_address(store, monkeypatch, retry_after, capfd):
    monkeypatch.setenv("NCBI_API_KEY", KEY)
    with PubMedServer(papers(3)) as server:
        server.faults += [busy_for(KEY, retry_after), busy_for("", retry_after)] * 5
        with pytest.raises(MissingError, match="answered 429") as caught:
            list(source(server, store).fetch())
        assert len(server.asked) == (1 if retry_after == 3600 else 3)
    shown = str(caught.value) + "".join(capfd.readouterr())
    assert KEY not in shown and CALLER not in shown


def test_the_key_is_sent_and_nowhere_to_be_found(store, monkeypatch):
    monkeypatch.setenv("NCBI_API_KEY", KEY)
    with PubMedServer(papers(25)) as server:
        list(source(server, store, email="me@example.org").fetch())
        list(source(server, store, pmids=[1000]).fetch())
        assert all(asked.query["api_key"] == KEY and asked.query.get("email", "me@example.org") == "me@example.org" for asked in server.asked)
    kept = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert KEY.encode() not in kept and b"me@example.org" not in kept
    monkeypatch.delenv("NCBI_API_KEY")
    assert len(records(source(server, store, offline=True).fetch())) == 25  # what was stored with a key serves without one


def test_a_wrong_key_is_named_but_not_shown(store, monkeypatch):
    monkeypatch.setenv("NCBI_API_KEY", "wrong-key-42")
    with PubMedServer(papers(3)) as server, pytest.raises(MissingError, match="refuses the key in NCBI_API_KEY; correct it or unset it") as caught:
        list(source(server, store).fetch())
    assert "wrong-key-42" not in str(caught.value) and len(server.asked) == 1


@pytest.mark.parametrize(("key", "per_second"), [(None, 3), (KEY, 10)])
def test_the_pace_is_three_a_second_and_ten_with_a_key(store, monkeypatch, key, per_second):
    if key:
        monkeypatch.setenv("NCBI_API_KEY", key)
    with PubMedServer(papers(40)) as server:
        list(source(server, store, per_second=None).fetch(limit=30))
        assert len(server.asked) == 4 and sum(server.gaps()) >= 2.9 / per_second


def test_no_entity_and_no_dtd_is_loaded(store, tmp_path):
    (tmp_path / "secret.txt").write_text("PRIVATE")
    with PubMedServer(papers(2)) as server:
        thief = f'<!DOCTYPE PubmedArticleSet [<!ENTITY x SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>'
        for declared in (thief, '<!DOCTYPE PubmedArticleSet [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>', f'<!DOCTYPE p [<!ENTITY % d SYSTEM "{server.url}/d">%d;]>'):
            body = f"{declared}<PubmedArticleSet>{article(5, '<AbstractText>&x;&b;</AbstractText>')}</PubmedArticleSet>"
            with pytest.raises(InputError) as caught:
                list(read_articles(body.encode(), "test"))
            assert "PRIVATE" not in str(caught.value)
        list(source(server, store).fetch())
        assert not [asked for asked in server.asked if asked.path.endswith((".dtd", "/d"))]  # every answer names a DTD on that server


# --- what answers hold ---------------------------------------------------------------------------------------------------


def test_markup_keeps_its_meaning():
    text = one("<AbstractText>From 10<sup>5</sup> to 10<sup>−3</sup> mol, <i>E. coli</i>, CO<sub>2</sub>, CD4<sup>+</sup>, p53<sup>-/-</sup>.</AbstractText>").text
    assert text == "From 10⁵ to 10⁻³ mol, E. coli, CO2, CD4⁺, p53-/-."
    math = '<math xmlns="http://www.w3.org/1998/Math/MathML"{}><mfrac><mi>a</mi>\n <mi>b</mi></mfrac></math>'
    assert one(f"<AbstractText>So {math.format('')} and {math.format(' alttext=' + chr(34) + 'a/b' + chr(34))}.</AbstractText>").text == "So a/b and a/b."


@pytest.mark.parametrize(("inner", "expected"), [
    ("<msup><mn>10</mn><mrow><mo>-</mo><mn>5</mn></mrow></msup>", "10⁻⁵"), ("<msup><mi>x</mi><mi>a</mi></msup>", "x^a"), ("<msup><mn>10</mn><mn>5</mn></msup>", "10⁵"),
    ("<mfrac><mn>1</mn><mn>2</mn></mfrac>", "1/2"), ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mi>c</mi></mfrac>", "(a + b)/c"),
    ("<semantics><mi>x</mi><annotation>\\TeX</annotation><annotation-xml><mi>x</mi></annotation-xml></semantics>", "x"), ("<!-- note --><mi>x</mi>", "x"),
    ("<msup/>", ""), ("<mfrac><mn>1</mn></mfrac>", "1"),
])  # fmt: skip
def test_powers_and_fractions_of_formulas_are_kept(inner, expected):
    text = one(f'<AbstractText>So <math xmlns="http://www.w3.org/1998/Math/MathML">{inner}</math>.</AbstractText>').text
    assert text.replace(" .", ".") == f"So {expected}.".replace(" .", ".")


@pytest.mark.parametrize(("sup", "expected"), [(" 5 ", "10⁵"), ("\u2009−5", "10⁻⁵"), ("<i>n</i>", "10ⁿ"), ("", "10"), ("a", "10a")])
def test_superscripts(sup, expected):
    assert one(f"<AbstractText>10<sup>{sup}</sup></AbstractText>").text == expected


def test_lines_that_end_otherwise_stay_one_line():
    record = one('<AbstractText Label="MATERIALS AND&#10;METHODS">One\u2028two\u2029three\x85four.</AbstractText>')
    assert record.sections == {"MATERIALS AND METHODS": "One two three four."}


@pytest.mark.parametrize("empty", ["<i/>", " <b> </b>", "<!-- none -->", "<sup></sup>", "<math/>", "\u00a0"])
def test_an_abstract_of_markup_alone_is_none(empty):
    assert one(f"<AbstractText>{empty}</AbstractText>").reason == "no abstract"


@pytest.mark.parametrize(("day", "year"), [
    ("<MedlineDate>Winter 2019</MedlineDate>", " 2019"), ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", " 1998"), ("<MedlineDate>1975-1976</MedlineDate>", " 1975"),
    ("<Year>19x9</Year>", ""), ("", ""),
])  # fmt: skip
def test_dates_as_journals_write_them(day, year):
    body = article_set(article(7, "<AbstractText>Text.</AbstractText>")).replace(b"<Year>2024</Year>", day.encode())
    assert dict(read_articles(body, "t"))["7"].attribution.startswith(f"Journal of made-up medicine{year}. PMID 7.")


@pytest.mark.parametrize("pmid", ["<PMID/>", "<PMID>0</PMID>", "<PMID>PMC5</PMID>", "<PMID>١٢</PMID>", ""])
def test_a_missing_pmid_is_told(pmid):
    body = article_set(article(7, "<AbstractText>Text.</AbstractText>").replace('<PMID Version="1">7</PMID>', pmid))
    ((_, item),) = read_articles(body, "t")
    assert item.reason == "no PMID of digits" and item.url is None and item.key


def test_structured_abstracts():
    record = one(
        '<AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">Why.</AbstractText><AbstractText Label="RESULTS">A.</AbstractText>'
        '<AbstractText Label="RESULTS">B.</AbstractText><AbstractText Label="METHODS"/><AbstractText>Loose.</AbstractText>'
    )
    assert record.sections == {"BACKGROUND": "Why.", "RESULTS": "A.\nB.", "ABSTRACT": "Loose."}
    assert record.text == "BACKGROUND: Why.\nRESULTS: A.\nRESULTS: B.\nLoose."
    assert one("<AbstractText>Plain.</AbstractText>").sections is None


def test_authors_persons_groups_and_none():
    text = "<AbstractText>Text.</AbstractText>"
    names = "".join(f"<Author><LastName>N{n}</LastName><Initials>A</Initials></Author>" for n in range(5))
    assert one(text, authors=f"<AuthorList>{names}</AuthorList>").attribution.startswith("N0 A, N1 A, N2 A et al. Journal of made-up medicine 2024. PMID 7.")
    assert one(text, authors="<AuthorList><Author><CollectiveName>The Group</CollectiveName></Author></AuthorList>").attribution.startswith("The Group. Journal")
    assert one(text).attribution.startswith("Journal of made-up medicine 2024. PMID 7. Through PubMed")


@pytest.mark.parametrize(("values", "flag"), [
    ({"types": "Retracted Publication"}, "retracted"),
    ({"links": '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn"/></CommentsCorrectionsList>'}, "retracted"),
    ({"types": "Retraction of Publication"}, "retraction notice"), ({"types": "Retraction Notice"}, "retraction notice"),
    ({"links": '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionOf"/></CommentsCorrectionsList>'}, "retraction notice"),
    ({"links": '<CommentsCorrectionsList><CommentsCorrections RefType="ExpressionOfConcernIn"/></CommentsCorrectionsList>'}, "expression of concern"),
    ({"types": "Published Erratum"}, "correction notice"),
])  # fmt: skip
def test_what_was_taken_back_is_kept_out_of_training_whatever_its_licence(values, flag):
    free = one("<AbstractText>Text.</AbstractText>", "CC BY 4.0")
    record = one("<AbstractText>Text.</AbstractText>", "CC BY 4.0", **values)
    assert free.may_train and not free.flags and record.flags == [flag] and not record.may_train and record.license == "CC-BY-4.0"


@pytest.mark.parametrize(("title", "flags"), [
    ("RETRACTED: Fever", ["retracted"]), ("[Retracted] Fever", ["retracted"]), ("WITHDRAWN: Fever", ["retracted"]), ("Retracted Article: Fever", ["retracted"]),
    ("Retraction: Fever", ["retraction notice"]), ('Retraction notice to "Fever"', ["retraction notice"]), ("Retracted eardrums: a review", []),
    ("Retraction of the tongue: a review", []), ("Patients withdrawn: why", []),
])  # fmt: skip
def test_what_was_taken_back_in_its_title_alone_is_kept_out_too(title, flags):
    record = one("<AbstractText>Text.</AbstractText>", "CC BY 4.0", title=title)
    assert record.flags == flags and record.may_train == (not flags)


@pytest.mark.parametrize(("flag", "title"), [
    *(("retracted", title) for title in (
        "[Retracted article] X", "[RETRACTED ARTICLE] X", "RETRACTED ARTICLE: X", "(Retracted) X", "X (retracted article)", "X (Withdrawn).", "X – RETRACTED", "X — Retracted", "Withdrawn. X",
        "RETRACTED - X.", "RETRACTED X and fever", "retracted: x", "Retracted paper: X", "Withdrawn by the authors: X", "Paper retracted: X", "Retracted—X", "Retracted–X", "Retracted article. X",
        "Retracted and Replaced: X", "REMOVED: X", "X [retracted in: J 2010]", "X (Retracted article. See vol. 7, pg. 9, 2011)", "Retracted Chapter: X", "X. [Withdrawn]")),
    *(("retraction notice", title) for title in (
        "Retraction. X.", "X: Retraction.", "X [Retraction].", "X. Retraction", "RETRACTION: X", "Notice of Retraction: X", "NOTICE OF RETRACTION. X", "Retraction statement: X",
        "Statement of Retraction: X",
        "Retraction notice to \"X\" [Y 2 (2019) 1-5].", "Retraction Note: X", "Retraction to: X", "Retraction for Sharma et al., X.", "Retraction of: X", "Retraction of 'X'.",
        "Retraction of the article \"X\"", "Retraction of publication: X", "Withdrawal notice to X", "Notice of withdrawal: X", "Partial Retraction: X", "Retraction and replacement: X",
        "Removal notice to X", "Temporary Removal notice: X", "Retraction – X", "Letter of retraction: X", "Retraction letter", "Retraction", "Retraction|X", "Article retraction: X",
        "X (Retraction of vol 3, pg 5, 2010)", "[Retraction of: X]")),
    *(("expression of concern", title) for title in (
        "Expression of Concern: X", "Editorial Expression of Concern: X", "Expression of Concern. X", "Expression of Concern - X", "Expression of Concern for \"X\"", "X: expression of concern",
        "Editors' note of concern: X", "Notice of Concern: X", "Expression of Concern About 'X'", "Expression of Concern on X", "X [Expression of concern]")),
    *(("correction notice", title) for title in (
        "Erratum: X", "Erratum to: X", "Erratum for X", "Corrigendum to 'X'", "Correction: X", "Correction to: X", "Correction to \"X\"", "Correction.", "Author Correction: X",
        "Publisher Correction: X",
        "X: Erratum.", "X [Corrigendum]")),
    *((None, title) for title in (
        "Retraction of the eyelids in Graves' disease.", "Retraction pocket cholesteatoma.", "Upper eyelid retraction: a review.", "Lid retraction", "Nipple retraction.",
        "Gingival retraction in dentistry: a review",
        "Withdrawn patients in a trial of X.", "Reasons for withdrawal: a cohort.", "Drugs withdrawn from the market.", "Alcohol withdrawal: treatment", "Opioid withdrawal. A review.",
        "Withdrawal of life support",
        "Coping with withdrawal", "Steroid withdrawal: how and when?", "Expression of concern in emergency calls: a study.", "Mothers' expression of concern about fever.",
        "Expression of concern about vaccines among parents",
        "A study of retraction notices in radiology.", "Retraction rates: why papers are retracted", "Retractions in oncology", "Why was this paper retracted? A survey", "Clot retraction assay.",
        "Retraction-induced brain injury.", "Brain retraction: how to avoid injury", "Chest retractions in infants", "Retraction of testis in boys: surgical outcome",
        "Correction of scoliosis: results.",
        "Correction for multiple testing.", "Vision correction: LASIK", "Errors and corrections: a review.", "Removed teeth: an audit", "Removal of the gallbladder",
        "Lung retraction and compliance")),
])
def test_a_mark_stands_apart_and_the_same_word_inside_of_a_title_is_none(flag, title):
    record = one("<AbstractText>Text.</AbstractText>", "CC BY 4.0", title=title.replace("X", "Fever in nurses"))
    assert (record.flags, record.may_train) == (([flag], False) if flag else ([], True))


@pytest.mark.parametrize(("abstract", "flags"), [
    ("This article has been withdrawn at the request of the authors.", ["retracted"]), ("This article, published in 2010, has been retracted by the editor.", ["retracted"]),
    ("The above article has been retracted by agreement.", ["retracted"]), ("[This corrects the article DOI: 10.1000/1.]", ["correction notice"]),
    ("[This retracts the article DOI: 10.1000/1.]", ["retraction notice"]), ("This article reviews drugs that have been withdrawn.", []), ("This study asks why patients have withdrawn.", []),
])
def test_a_notice_in_place_of_an_abstract(abstract, flags):
    assert one(f"<AbstractText>{abstract}</AbstractText>", "CC BY 4.0").flags == flags


@pytest.mark.parametrize("title", ["[Not Available].", "[Not available]", "Not Available.", "[No title available].", "[Title not available]", "Untitled", ""])
def test_a_title_that_is_none_is_replaced_by_the_one_in_the_original_language(title):
    body = article(7, "<AbstractText>Text.</AbstractText>", title=title)
    assert read(body)["7"].title is None
    assert read(body.replace("</Article>", "<VernacularTitle>Fieber bei Kindern.</VernacularTitle></Article>"))["7"].title == "Fieber bei Kindern."


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 3, 2), (2, 10), (3, 3)])
def test_the_highest_version_counts_wherever_it_stands(order):
    papers = [article(7, f"<AbstractText>Version {number}.</AbstractText>").replace("<PMID>", f'<PMID Version="{number}">').replace('Version="1">', f'Version="{number}">', 1) for number in order]
    items = list(read_articles(article_set(*papers), "t"))
    assert [item.text for _, item in items if isinstance(item, Record)] == [f"Version {max(order)}."] and len(items) == len(order)
    assert all("older version" in item.reason or "comes twice" in item.reason for _, item in items if isinstance(item, Unread))


def mesh(*headings):
    rows = "".join(f"<MeshHeading><DescriptorName>{name}</DescriptorName>{f'<QualifierName>{sub}</QualifierName>' if sub else ''}</MeshHeading>"
        for name, _, sub in (h.partition("/") for h in headings))
    return f"<MeshHeadingList>{rows}</MeshHeadingList>"


@pytest.mark.parametrize(("headings", "journal", "out"), [
    (["Botany", "Software"], "Any", True), (["Solar Energy", "Silicon/chemistry"], "Any", True), (["Soil Microbiology", "Plants/genetics"], "Any", True), (["Greece, Ancient",
    "Philosophy/history"], "Any", True),
    (["Animals", "Dog Diseases/drug therapy", "Dogs"], "Any", True), (["Animals", "Cattle", "Mastitis, Bovine/veterinary"], "Any", True), (["Stars, Celestial"], "Any", True),
    (["Humans"], "Physical review letters", False), (["Humans", "Zoonoses/veterinary"], "Any", False), (["Asthma/drug therapy"], "Any", False), (["Mice", "Inflammation/pathology"], "Any", False),
    (["Drug Utilization", "Health Expenditures/economics"], "Any", False), (["Antigens/immunology"], "Any", False), (["Hospitals"], "Any", False), (["Diabetes Mellitus"], "Any", False),
    ([], "The Plant journal", True), ([], "Journal of veterinary internal medicine", True), ([], "Poultry science", True), ([], "Physical review. E", True), ([], "Soil biology", True),
    ([], "Journal of made-up medicine", False), ([], "Physics in medicine and biology", False), ([], "Phytotherapy research", False), ([], "Nature", False), ([], "Medicinal chemistry", False),
])  # fmt: skip
def test_papers_on_something_else_are_kept_out_with_a_reason_and_unknown_ones_stay(headings, journal, out):
    body = article(7, "<AbstractText>Text.</AbstractText><CopyrightInformation>CC BY 4.0</CopyrightInformation>").replace("Journal of made-up medicine", journal)
    record = read(body.replace("</MedlineCitation>", mesh(*headings) + "</MedlineCitation>" if headings else "</MedlineCitation>"))["7"]
    assert (record.flags == ["not_medicine"]) == out == (not record.may_train) and "not_medicine" in REASONS


@pytest.mark.parametrize(("text", "sections"), [
    ("We looked at vertebrae.MethodsWe measured 40.ResultsTwelve were short.ConclusionsShort ones are common.",
     {"ABSTRACT": "We looked at vertebrae.", "Methods": "We measured 40.", "Results": "Twelve were short.", "Conclusions": "Short ones are common."}),
    ("BackgroundBack pain is common.MethodsDNA was read.Results12 of 40 had it.", {"Background": "Back pain is common.", "Methods": "DNA was read.", "Results": "12 of 40 had it."}),
    ("Pain is common. METHODSWe asked. RESULTSIt was.", {"ABSTRACT": "Pain is common.", "METHODS": "We asked.", "RESULTS": "It was."}),
    ("Pain is common.Methods We asked.Patients and Methods Forty came.", {"ABSTRACT": "Pain is common.", "Methods": "We asked.", "Patients and Methods": "Forty came."}),
    ("BACKGROUND: Pain. MATERIALS AND METHODS: We asked. CONCLUSION: It hurts.", {"BACKGROUND": "Pain.", "MATERIALS AND METHODS": "We asked.", "CONCLUSION": "It hurts."}),
    ("Objective:To see. Results:It works.", {"Objective": "To see.", "Results": "It works."}),
    ("<b>Aim</b>To see it.<b>Results</b>It works.", {"Aim": "To see it.", "Results": "It works."}),
])  # fmt: skip
def test_labels_that_are_glued_to_the_text_are_found_again(text, sections):
    record = one(f"<AbstractText>{text}</AbstractText>")
    assert record.sections == sections
    assert record.text == "\n".join(body if name == "ABSTRACT" else f"{name}: {body}" for name, body in sections.items())


@pytest.mark.parametrize("text", [
    "Results were good. Methods of 1990 were used.", "It ends here. Conclusion: it works.", "We used the Methods Time Measurement. Results Based Financing helps.", "See our Methods. We did it.",
    "Patients were asked. Patients Like Me is a website.", "Introduction of a drug. Design of a trial. Setting goals.", "The test is called ResultsNow.",
])
def test_the_same_words_inside_of_sentences_are_no_labels(text):
    assert one(f"<AbstractText>{text}</AbstractText>").sections is None


def test_labels_of_the_xml_stay_and_one_inside_a_piece_is_found():
    record = one('<AbstractText Label="METHODS">We asked.ResultsIt works.</AbstractText><AbstractText Label="CONCLUSIONS">Good.</AbstractText>')
    assert record.sections == {"METHODS": "We asked.", "Results": "It works.", "CONCLUSIONS": "Good."}


def test_chapters_of_books():
    body = """<PubmedBookArticle><BookDocument><PMID>30000001</PMID><ArticleIdList/><Book><Publisher><PublisherName>A house</PublisherName></Publisher>
    <BookTitle>Fevers</BookTitle><PubDate><Year>2023</Year></PubDate></Book>{}<AuthorList Type="authors"><Author><LastName>Roe</LastName>
    <Initials>B</Initials></Author></AuthorList><Abstract><AbstractText Label="CHAPTER">About chills.</AbstractText>
    <CopyrightInformation>Copyright © 2023, A house.</CopyrightInformation></Abstract></BookDocument><PubmedBookData/></PubmedBookArticle>"""
    found = read(body.format(""), body.format("<ArticleTitle>Chills</ArticleTitle>").replace("30000001", "30000002"))
    assert [(record.title, record.license, record.may_train) for record in found.values()] == [("Fevers", "copyrighted", False), ("Chills", "copyrighted", False)]
    assert found["30000002"].attribution.startswith("Roe B. Fevers 2023. PMID 30000002. Copyright © 2023, A house.")


def test_deleted_doubled_and_strange_items_are_told():
    text = "<AbstractText>Text.</AbstractText>"
    deleted = "<DeleteCitation><PMID>5</PMID><PMID>6</PMID></DeleteCitation>"
    items = list(read_articles(article_set(article(5, text), article(8, text), article(8, text), article("x", text), "<News/>", "<!-- a note -->", deleted), "t"))
    assert [(key, item.reason if isinstance(item, Unread) else "") for key, item in items] == [
        ("8", ""), ("8", "comes twice in one answer; the first is kept"), ("x", "no PMID of digits"), ("item 5", "expected an article or a chapter, got <News>"),
        ("5", "PubMed deleted this record"), ("6", "PubMed deleted this record"),
    ]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), [
    ("CC0 1.0", ("CC0-1.0", True)), ("Creative Commons Zero", ("CC0-1.0", True)), ("Creative Commons Attribution 4.0 International License", ("CC-BY-4.0", True)),
    ("http://creativecommons.org/licenses/by/3.0/", ("CC-BY-3.0", True)), ("http://creativecommons.org/licenses/by-nc-nd/4.0/", ("CC-BY-NC-ND-4.0", False)),
    ("CC BY-SA 4.0", ("CC-BY-SA-4.0", False)), ("Creative Commons Attribution Non-Commercial License", ("CC-BY-NC", False)),
    ("Re-use permitted under CC BY-NC. No commercial re-use.", ("CC-BY-NC", False)), ("This is not published under CC BY.", ("copyrighted", False)),
    ("Under a Creative Commons licence.", ("unknown", False)), ("© This is a U.S. government work and not under copyright protection", ("LicenseRef-US-Gov-Public-Domain", True)),
    ("This work is written by (a) US Government employee(s).", ("LicenseRef-US-Gov-Public-Domain", True)), ("U.S.Government work", ("LicenseRef-US-Gov-Public-Domain", True)),
    ("Contributed to by US Government employees. © A Society", ("copyrighted", False)), ("  ", ("unknown", False)), ("The authors.", ("unknown", False)),
    ("This is not released under CC0.", ("unknown", False)), ("© X. CC0 applies to the data made available here.", ("copyrighted", False)),
    ("CC BY-NC 4.0. The CC0 1.0 waiver applies to the data.", ("CC-BY-NC-4.0", False)), ("CC BY. Not for commercial use.", ("CC-BY-NC", False)),
    ("CC BY 4.0, commercial use prohibited", ("CC-BY-NC-4.0", False)), ("CC\u2011BY\u2011NC\u2011ND", ("CC-BY-NC-ND", False)), ("CC\u2011BY 4.0", ("CC-BY-4.0", True)),
    ("© Y. The U.S. Government retains a nonexclusive license to publish this work.", ("copyrighted", False)),
    ("© Y. Supported by US Government funds.", ("copyrighted", False)), ("This is not a U.S. Government work.", ("unknown", False)),
    ("Portions are US Government work. (c) ACS", ("copyrighted", False)), ("© Y. One author is a US Government employee.", ("copyrighted", False)),
    ("Prepared by a contractor of the United States Government.", ("unknown", False)),
    ("This is a work of the U.S. Government and is not subject to copyright protection in the United States.", ("LicenseRef-US-Gov-Public-Domain", True)),
    ("Written by employees of a US Government contractor", ("unknown", False)),
])  # fmt: skip
def test_copyright_lines(line, expected):
    assert licence_of(line) == expected


# --- recorded answers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(shared_data):
    return shared_data / "recorded" / "pubmed"


def read_file(path):
    return list(read_articles(path.read_bytes(), path.name))


def test_recorded_sets_give_what_is_in_them(recorded):
    found = {path.name: read_file(path) for path in sorted(recorded.glob("*.xml")) if b"<PubmedArticleSet" in path.read_bytes()[:1000]}
    counts = {name: (len(records(item for _, item in items)), len(items)) for name, items in found.items()}
    assert len(found) == 24 and counts["medline21n1298_edge_cases.xml"] == (23, 32) and counts["metapub_efetch_37909814.xml"] == (0, 0)
    assert [counts[f"medline21n1298_page{n}_of3.xml"] for n in (1, 2, 3)] == [(10, 10)] * 3 and counts["biopython_pubmed1.xml"] == (1, 2)
    everything = [item for items in found.values() for _, item in items]
    assert Counter(unread(everything).values()) == {"no abstract": 16, "PubMed deleted this record": 10}
    assert sum(bool(record.sections) for record in records(everything)) == 31 and not any(record.may_train for record in records(everything))
    assert Counter(record.license for record in records(everything)) == {"unknown": 37, "copyrighted": 30}


def test_recorded_edge_cases(recorded):
    found = dict(read_file(recorded / "medline21n1298_edge_cases.xml"))
    assert [pmid for pmid, item in found.items() if isinstance(item, Record) and "retracted" in item.flags] == ["27602157", "31031480", "33104149"]
    assert found["30675604"].flags == ["correction notice"]
    assert list(found["31031480"].sections) == [
        "Background", "Aim", "Setting and Design", "Materials and Methods", "Statistical Analysis Used", "Results", "Conclusion",
    ]  # fmt: skip
    assert found["31594831"].attribution.startswith("The Plant cell 2019. PMID 31594831.")  # nobody is named
    assert found["29225084"].attribution.startswith("Choi GE, Yoon SY, Kim JY et al. The Journal of allergy and clinical immunology 2018.")
    assert "excited-state substituent parameter σ CC ex X" in found["33403765"].text and "CeO2 (111)" in found["33826220"].text


def test_recorded_numbers_keep_their_powers(recorded):
    found = dict(read_file(recorded / "biopython_pubmed6.xml"))
    assert "15.0 ± 1.1 km·h⁻¹" in found["30108519"].text
    assert "He 3 / Xe 129 MRI" in dict(read_file(recorded / "biopython_pubmed7.xml"))["29963580"].text


OWN = own_bytes("pubmed.xml")
OWN_PMIDS = [*range(73000001, 73000016), 73000901, 73000902]


def own_papers():
    return dict(read_articles(OWN, "pubmed.xml"))


def test_a_set_with_the_habits_of_real_ones_gives_what_is_in_it(store):
    "The twin of `test_recorded_sets_give_what_is_in_them`, through a server: an update file with papers without an abstract, a chapter, and deletions."
    with PubMedServer() as server:
        server.faults += [ok(OWN, {"Content-Type": "text/xml; charset=UTF-8"})]
        items = list(source(server, store, pmids=OWN_PMIDS, batch=100).fetch())
    assert (len(records(items)), len(items)) == (12, 17) and pmids(items) == [*range(73000001, 73000011), 73000013, 73000015]
    assert Counter(unread(items).values()) == {"no abstract": 2, "PubMed deleted this record": 3}
    assert [record.url[-4:-1] for record in records(items) if record.sections] == ["001", "002", "013"]
    assert Counter(record.license for record in records(items)) == {"copyrighted": 6, "unknown": 4, "CC-BY-4.0": 1, "LicenseRef-US-Gov-Public-Domain": 1}
    assert [record.url[-4:-1] for record in records(items) if record.may_train] == ["010", "013"]


def test_edge_cases_of_papers():
    "The twin of `test_recorded_edge_cases`."
    found = own_papers()
    assert [pmid for pmid, item in found.items() if isinstance(item, Record) and "retracted" in item.flags] == ["73000002", "73000003"]
    assert found["73000004"].flags == ["correction notice"]
    assert list(found["73000002"].sections) == [
        "Background", "Aim", "Setting and Design", "Materials and Methods", "Statistical Analysis Used", "Results", "Conclusion",
    ]  # fmt: skip
    assert found["73000005"].attribution.startswith("The Leaf cell 2019. PMID 73000005.")  # nobody is named
    assert found["73000006"].attribution.startswith("Quill GE, Yarrow SY, Kemp JY et al. The Journal of itching and clinical scratching 2018.")
    assert "second parameter ρ AB hi Y NH with NH" in found["73000007"].text and "SnO2 (110)-( 5 × 5 ) grew" in found["73000008"].text
    assert found["73000015"].attribution.startswith("Yarrow S. Fevers in Short 2033.")


def test_a_year_is_found_without_white_space_behind_it():
    assert own_papers()["73000013"].attribution.startswith("Kemp JY. The journal of made-up medicine : JMM 2031.")


def test_numbers_of_papers_keep_their_powers():
    "The twin of `test_recorded_numbers_keep_their_powers`."
    found = own_papers()
    assert "12.5 ± 0.9 km·h⁻¹; 48 ± 3 ml·kg⁻¹·min⁻¹" in found["73000009"].text and "grew at 10⁻⁷ Pa" in found["73000008"].text
    assert "Ar 39 / Kr scan" in found["73000010"].text


def test_recorded_errors_are_errors(recorded, store):
    bodies = {name: (recorded / name).read_bytes() for name in ("ncbi_esearch_backend_502.xml", "ncbi_esearch_webenv_not_found.xml", "ncbi_429_body.json")}
    empty, bad_id = (recorded / "metapub_efetch_37909814.xml").read_bytes(), (recorded / "ncbi_efetch_bad_id_400.xml").read_bytes()
    with PubMedServer(papers(12)) as server:
        server.faults += [ok(bodies["ncbi_429_body.json"], status=429), ok(bodies["ncbi_esearch_backend_502.xml"])]
        collecting = source(server, store).fetch()
        items = [next(collecting)]
        server.faults += [ok(bodies["ncbi_esearch_webenv_not_found.xml"])]
        assert len(items + list(collecting)) == 12 and server.asked[-1].method == "POST"
        server.faults += [ok(empty)]
        assert unread(source(server, store, pmids=[37909814]).fetch()) == {"37909814": "PubMed left it out of its answer"}
        server.faults += [ok(bad_id, status=400)]
        with pytest.raises(InputError, match="ID list is empty! Possibly it has no correct IDs"):
            list(source(server, store, pmids=[5]).fetch())


def test_errors_as_entrez_sends_them(store):
    "The twin of `test_recorded_errors_are_errors`: a search's error in answer to efetch, an empty set, a 400 without an XML head."
    with PubMedServer(papers(12)) as server:
        server.faults += [busy_for(""), error("Search Backend failed: Exception: 502 Proxy Error")]
        collecting = source(server, store).fetch()
        items = [next(collecting)]
        server.faults += [error("WebEnv not found", "eSearchResult")]
        assert len(items + list(collecting)) == 12 and server.asked[-1].method == "POST"
        server.faults += [ok(article_set())]
        assert unread(source(server, store, pmids=[73000099]).fetch()) == {"73000099": "PubMed left it out of its answer"}
        server.faults += [ok("<eFetchResult><ERROR>ID list is empty! Possibly it has no correct IDs.</ERROR></eFetchResult>", status=400)]
        with pytest.raises(InputError, match="ID list is empty! Possibly it has no correct IDs"):
            list(source(server, store, pmids=[5]).fetch())


def test_a_search_without_a_hit_has_no_session(store):
    "The twin of `test_recorded_searches`: neither WebEnv nor QueryKey, empty elements, a warning beside the unknown word."
    nothing = "<Count>0</Count><RetMax>0</RetMax><RetStart>0</RetStart><IdList/><TranslationSet/><QueryTranslation>(zanaXYZ[All Fields])</QueryTranslation>"
    nothing += "<ErrorList><PhraseNotFound>zanaXYZ</PhraseNotFound></ErrorList><WarningList><OutputMessage>No items found.</OutputMessage></WarningList>"
    with PubMedServer(papers(3)) as server:
        server.faults += [ok(f"{DTD.format('eSearchResult', server.url)}<eSearchResult>{nothing}</eSearchResult>")]
        assert unread(source(server, store, query="zanaXYZ").fetch()) == {"query": "the query finds nothing; PubMed does not know zanaXYZ"}


def test_json_with_a_line_break_inside_of_a_text_is_read(store):
    "The twin of `test_json_with_a_raw_newline_is_read_by_the_fetcher`: E-utilities break their own JSON when they refuse a start beyond the list."
    with PubMedServer(papers(3)) as server, quick_fetcher(store) as client:
        answer = client.get(f"{server.base}esearch.fcgi", {"term": "fever", "retmode": "json", "retstart": "9999"})
        assert b"Exception:\n'retstart'" in answer.content and "cannot be larger than 9998" in answer.json()["esearchresult"]["ERROR"]


def test_recorded_searches(recorded, store):
    with PubMedServer() as server:
        for name, expected in (("esearch8", {"query": "the query finds nothing; PubMed does not know abcXYZ"}),):
            server.faults += [ok((recorded / f"biopython_{name}.xml").read_bytes())]
            assert unread(source(server, store, query=name).fetch()) == expected


def test_json_with_a_raw_newline_is_read_by_the_fetcher(recorded, store):
    with Server({"/x": ok((recorded / "ncbi_esearch_retstart_over_cap.json.txt").read_bytes())}) as server, quick_fetcher(store) as client:
        assert "cannot be larger than 9998" in client.get(f"{server.url}/x").json()["esearchresult"]["ERROR"]


def test_copyright_lines_as_publishers_word_them():
    "The twin of `test_real_copyright_lines`: no line at all, and a paper only a part of which is the Government's, are not free."
    found = {row["pmid"]: licence_of(row["copyright"]) for row in own_lines("abstracts.jsonl")}
    assert [pmid for pmid, (_, free) in found.items() if not free] == ["72000003", "72000006"]
    assert Counter(name for name, _ in found.values()) == {"CC-BY-4.0": 2, "CC-BY": 1, "LicenseRef-US-Gov-Public-Domain": 3, "unknown": 1, "copyrighted": 1}


def test_real_copyright_lines(shared_data):
    from medlab.basics.files import read_jsonl

    lines = {row["pmid"]: row["copyright"] for row in read_jsonl(shared_data / "pubmed_cc_abstracts" / "abstracts.jsonl")}
    found = {pmid: licence_of(line) for pmid, line in lines.items()}
    # no line at all, and a paper only a part of which is the Government's
    assert [pmid for pmid, (_, free) in found.items() if not free] == ["33090984", "34096083"]
    assert Counter(name for name, _ in found.values()) == {
        "CC-BY-4.0": 10, "CC-BY": 3, "LicenseRef-US-Gov-Public-Domain": 10, "unknown": 1, "copyrighted": 1,
    }  # fmt: skip


# --- fuzz ----------------------------------------------------------------------------------------------------------------

MADE_UP = article_set(
    article(11, '<AbstractText Label="AIM">To see 10<sup>5</sup>.</AbstractText><AbstractText>Loose.</AbstractText>', "© X. CC BY 4.0"),
    article(12, "", types="Retraction of Publication", authors="<AuthorList><Author><CollectiveName>All</CollectiveName></Author></AuthorList>"),
    '<PubmedBookArticle><BookDocument><PMID>13</PMID><Abstract><AbstractText>x &amp; y</AbstractText></Abstract></BookDocument></PubmedBookArticle>',
    "<DeleteCitation><PMID>14</PMID></DeleteCitation>",
)
PIECES = [b"<PMID>", b"</PMID>", b"<Abstract>", b"</Abstract>", b"<sup>", b"</sup>", b"&x;", b"&#0;", b"<!--", b"-->", b"]]>", b"\xff\xfe", b"<?xml?>", b"\x00", b"<math/>",
          b"<!DOCTYPE a [<!ENTITY b 'c'>]>", "\u202e".encode(), b"PMID", b"Article", b"<DeleteCitation><PMID/></DeleteCitation>"]  # fmt: skip


def nothing_is_lost(data):
    "Parse; every element gives one item, or the whole is refused with a reason."
    try:
        items = list(read_articles(data, "fuzz"))
    except InputError as caught:
        assert str(caught).startswith("fuzz")
        return
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    gone = [" ".join("".join(pmid.itertext()).split()) for pmid in root.findall("DeleteCitation/PMID")]
    kept = [child for child in root if isinstance(child.tag, str) and child.tag != "DeleteCitation"]
    hidden = len(kept) + len(gone) - len(items)
    assert 0 <= hidden <= len(kept) and (hidden == 0 or gone), "an item was lost"
    for _, item in items:
        assert item.model_dump_json().encode() and (item.text.strip() if isinstance(item, Record) else item.reason)


def test_whatever_stands_in_one_element_of_an_answer_it_is_read_or_refused():
    for wrong in spoiled_xml(MADE_UP):
        nothing_is_lost(wrong)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_answers_are_read_or_refused(seed):
    nothing_is_lost(mutated(MADE_UP, seed, PIECES))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_update_files_are_read_or_refused(seed):
    "The twin of `test_mutated_real_answers_are_read_or_refused`."
    nothing_is_lost(mutated(OWN, seed, PIECES))


@pytest.mark.fuzz
def test_mutated_real_answers_are_read_or_refused(recorded):
    names = ["medline21n1298_delete_citation.xml", "biopython_pubmed6.xml", "biopython_pubmed4.xml", "metapub_efetch_26415349.xml", "biopython_pubmed1.xml"]
    bodies = [(recorded / name).read_bytes() for name in names]

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**32))
    def fuzz(seed):
        nothing_is_lost(mutated(bodies[seed % len(bodies)], seed, PIECES))

    fuzz()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_mutated_bodies_never_crash_the_source(tmp_path_factory, seed):
    with PubMedServer(papers(3)) as server:
        body = mutated(server.efetch({"id": "1000,1001,1002"}).body, seed, PIECES)
        server.faults += [lambda asked: None, ok(body)]
        try:
            items = list(source(server, tmp_path_factory.mktemp("raw"), batch=3).fetch())
            assert len(items) >= 3
        except MedlabError:
            pass


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_copyright_line_gives_a_verdict(line):
    name, free = licence_of(line)
    assert name and isinstance(free, bool) and (not free or name.startswith(("CC0", "CC-BY", "LicenseRef-US")))

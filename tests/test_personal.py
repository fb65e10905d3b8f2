"Personal data in notes: what must go, what must stay, and which text is searched for what."

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlab.basics.files import read_parquet, scan_parquet, write_jsonl
from medlab.cleaning.personal import NOTE_PATTERNS, PUBLIC_SOURCES, find_personal, mask, may_hold_personal, sort_of_text
from medlab.cleaning.records import PreprocessParams, examined, without_personal
from medlab.collect import SOURCES
from medlab.contracts.records import Record, Rejected, SplitRecord
from medlab.core import Run, load_profile
from medlab.preprocess import preprocess
from own_data import own_lines
from test_cleaning import IMPERSONAL, PERSONAL

ROWS = own_lines("notes.jsonl")


def test_identifiers_in_notes_go_and_decoys_stay():
    "Thirty notes and 62 decoys of our own. When the patterns first saw them, 82 of 84 were masked and 2 of 62 touched."
    identifiers = [(one, row["text"]) for row in ROWS for one in row["identifiers"]]
    decoys = [row["text"] for row in ROWS if not row["identifiers"]]
    assert len(identifiers) >= 70 and len(decoys) >= 50 and all(one in text for one, text in identifiers)
    assert [(one, text) for one, text in identifiers if one in mask(text, "notes")[0]] == []
    assert [mask(text, "notes")[0] for text in decoys if mask(text, "notes")[0] != text] == []


def test_a_note_is_searched_for_all_that_an_article_is():
    assert [text for text, secret in PERSONAL if secret in mask(text, "notes")[0]] == []
    assert [text for text in IMPERSONAL if mask(text, "notes")[0] != text] == []


def test_what_is_left_of_a_note_is_still_readable():
    assert mask("Mrs Oyelaran (DOB 3/11/61) has Bell's palsy since 2 weeks; BP 142/88.", "notes")[0] == "Mrs [NAME] (DOB [DATE OF BIRTH]) has Bell's palsy since 2 weeks; BP 142/88."
    for row in ROWS:
        once = mask(row["text"], "notes")[0]
        assert mask(once, "notes")[0] == once and re.sub(r"\[[A-Z ]+\]", "", once).split()  # nothing is masked twice, and words are left


@pytest.mark.parametrize("text,masked", [
    ("SSN: 219-09-9999, seen today.", "SSN: [SSN], seen today."), ("social security number 219 09 9999", "social security number [SSN]"),
    ("DOB: 4 Mar 85, seen today.", "DOB: [DATE OF BIRTH], seen today."), ("born 4.3.85 in York", "born [DATE OF BIRTH] in York"),
    ("Hosp. No. A123456 was called in.", "Hosp. No. [MRN] was called in."), ("mob 9876543210 is his number.", "mob [PHONE] is his number."),
    ("write to jane.example at gmail dot com", "write to [EMAIL]"), ("jane dot example at mail dot example dot org", "[EMAIL]"),
    ("MRN 00123456, lives at 12 High Street, Leeds LS1 4AP.", "MRN [MRN], lives at [ADDRESS]."), ("BORN 12/03/1961, in York", "BORN [DATE OF BIRTH], in York"),
    ("Born - 12/03/61", "Born - [DATE OF BIRTH]"), ("ask at +1 (20) 33 44 55 66 today", "ask at [PHONE] today"),
])  # fmt: skip
def test_these_go_from_articles_too(text, masked):
    assert mask(text)[0] == mask(text, "notes")[0] == masked and may_hold_personal(text)


@pytest.mark.parametrize("text", [
    "Plate count 212-555-1212 CFU per dish.", "Counts: 312 555 0164 colonies", "Grant number 555-201-3344.", "Lot no. 312-555-0164", "Serial 07700 900123",
    "Look at the spot on the left.", "The dot at the end.", "part number 6175550143 of the pump",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["articles", "notes"])
def test_numbers_of_things_are_nobodys(text, kind):
    assert mask(text, kind)[0] == text


@pytest.mark.parametrize(("text", "article", "note"), [
    ("Mrs Tarrant was seen.", "Mrs Tarrant was seen.", "Mrs [NAME] was seen."),
    ("TARRANT, ELSIE M. was seen.", "TARRANT, ELSIE M. was seen.", "[NAME] was seen."),
    ("She came from 19 Station Road, Ely CB7 4BS.", "She came from 19 Station Road, Ely CB7 4BS.", "She came from [ADDRESS]."),
    ("Accession No: CT-23-004518", "Accession No: CT-23-004518", "Accession No: [MRN]"),
    ("Login from 192.0.2.44.", "Login from 192.0.2.44.", "Login from [IP ADDRESS]."),
    ("Dr Tarrant was admitted on 3 April 2023.", "Dr Tarrant was admitted on 3 April 2023.", "Dr [NAME] was admitted on [DATE]."),
])  # fmt: skip
def test_the_setting_decides(text, article, note):
    assert (mask(text, "articles")[0], mask(text, "notes")[0]) == (article, note)


@pytest.mark.parametrize("text", [
    "The first patient was enrolled on 3 April 2023.", "Patients were admitted from 3 April 2023 to 5 May 2024.", "It was approved on April 3, 2023.",
])  # fmt: skip
def test_a_date_without_a_person_is_a_date(text):
    assert mask(text, "notes")[0] == text


NAMES = st.sampled_from(["Tarrant", "O'Neil", "Nwosu", "Marsh-Grey", "Lee", "McAllister", "Ng", "Howard", "Woodward"])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["Mr", "Mrs", "Ms", "Miss", "Dr", "Dr.", "Prof.", "Mr."]), NAMES, st.sampled_from(["was seen today.", "has Bell's palsy.", "rang.", "'s son rang.", "agrees."]))
def test_any_titled_name_goes(title, name, rest):
    text = f"{title} {name}{'' if rest.startswith(chr(39)) else ' '}{rest}"
    assert name not in mask(text, "notes")[0] and ("Bell's palsy" in mask(text, "notes")[0]) == ("Bell's palsy" in text)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 31), st.sampled_from("Jan Feb March Apr May June Jul Aug Sept Oct Nov December".split()), st.sampled_from(["85", "'85", "1985", " 85", "05", "2005"]),
       st.sampled_from(["DOB", "DOB:", "D.O.B.", "Date of birth:", "born"]))
def test_any_written_date_of_birth_goes(day, month, year, label):
    text = f"{label} {day} {month} {year.strip()} in clinic"
    assert str(month) not in mask(text)[0] and year.strip() not in mask(text)[0].split()


@settings(max_examples=40, deadline=None)
@given(st.text("abcdefghijklmnop", min_size=2, max_size=9), st.sampled_from(["gmail", "yahoo", "a-clinic"]), st.sampled_from(["com", "co dot uk", "org"]))
def test_any_address_that_is_spelled_out_goes(who, host, end):
    text = f"mail {who}.{who} at {host} dot {end}"
    assert mask(text)[0] == "mail [EMAIL]" == mask(text, "notes")[0]


def test_the_public_sources_are_those_that_collect_knows():
    assert PUBLIC_SOURCES == set(SOURCES) - {"hub"}
    assert [sort_of_text(name) for name in ("medquad", "hub/my-notes", "mine:Notes", "")] == ["articles", "notes", "notes", "notes"]


def record(source, **more):
    return Record(**{"id": "1" * 16, "source": source, "kind": "qa", "question": "How is Mrs Tarrant?", "answer": "Mrs Tarrant of 19 Station Road is well and eats again.",
                     "license": "MIT", "may_train": True, "attribution": "x", **more})  # fmt: skip


def test_a_file_of_ones_own_is_searched_as_notes_unless_the_profile_says_otherwise():
    own, public = record("hub/letters"), record("medquad")
    assert "Tarrant" not in examined(own).record.model_dump_json() and examined(own).personal == Counter(NAME=2, ADDRESS=1)
    assert "Tarrant" in examined(public).record.answer
    assert "Tarrant" not in examined(public, PreprocessParams(personal="notes")).record.model_dump_json()
    assert "Tarrant" in examined(own, PreprocessParams(personal="articles")).record.answer
    assert "Tarrant" in examined(own, PreprocessParams(mask_personal=False)).record.answer


def test_every_text_of_a_note_is_searched():
    own = record("hub/letters", title="Mrs Tarrant, MRN 0045981", subject="Mrs Tarrant", text="Mrs Tarrant rang.", sections={"Plan": "See Mrs Tarrant."}, options={"A": "Ask Mrs Tarrant."})
    assert "Tarrant" not in without_personal(own)[0].model_dump_json() and without_personal(own)[1]["NAME"] == 7


def test_what_is_rejected_is_masked_too():
    assert "Tarrant" not in examined(record("hub/letters", answer=" ")).record.model_dump_json()


def test_through_the_step(tmp_path):
    rows = [{"question": f"What was decided about knee number {number}?", "answer": f"Mrs Tarrant-{chr(97 + number % 26) * 3} walks {number} steps and came on 3 April 2023."} for number in range(30)]
    write_jsonl(tmp_path / "letters.jsonl", rows + [{"question": "Who is Mr Underhill?", "answer": ""}])
    profile = load_profile("smoke", ["collect.sources=['starter', 'hub/letters']",
                                     f"collect.options={{'hub/letters': {{'path': '{tmp_path / 'letters.jsonl'}', 'license': 'MIT', 'may_train': true, "
                                     f"'columns': {{'question': 'question', 'answer': 'answer'}}}}}}"])
    run = Run(tmp_path / "run")
    preprocess(run, profile)
    kept = [one for name in ("train", "validation", "test") for one in scan_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord) if one.source == "hub/letters"]
    rejected = read_parquet(run.file("preprocess", "rejected.parquet"), Rejected)
    assert len(kept) + len(rejected) >= 31 and not re.search("Tarrant|Underhill|3 April", "".join(one.model_dump_json() for one in [*kept, *rejected]))


def test_find_personal_gives_places_in_order_without_overlaps():
    for row in ROWS:
        found = find_personal(row["text"], "notes")
        assert found == sorted(found) and all(one[1] <= other[0] for one, other in zip(found, found[1:]))
    assert set(NOTE_PATTERNS) >= {"PERSON", "ADDRESS", "IP ADDRESS", "DATE"}

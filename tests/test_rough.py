"The rough data: every planted thing ends where the answer key says, and nothing else is touched by it."

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlab.cleaning.leaks import LeakageError, check_leakage
from medlab.collect import collect
from medlab.contracts.records import read_sources, read_unread
from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import read_json, read_parquet, sha256_file, shipped
from medlab.contracts.records import Record, Unread, record_id
from medlab.contracts.tasks import read_examples
from medlab.core import Profile, Run, load_profile
from medlab.evaluate import EvaluateParams
from medlab.instruct import instruct
from medlab.metrics.forced_choice import choose_items
from medlab.metrics.scores import CHOICES
from medlab.cleaning.records import PreprocessParams
from medlab.contracts.records import PLACES, REASONS, Rejected
from medlab.preprocess import divide, preprocess
from medlab.sources.rough import KINDS, PLANTED, Rough, RoughLine, read_line
from medlab.sources.starter import Starter

LINES = {line.key: line for *_, line in Rough().lines() if isinstance(line, RoughLine)}
KEYS = {record_id("rough", key): key for key in LINES}
RECORDS = {KEYS[item.id]: item for item in Rough().fetch() if isinstance(item, Record)}


def divided(seed=42, **params):
    "Starter and rough data together, as the profiles collect them."
    return divide([*Starter().fetch(), *RECORDS.values()], PreprocessParams(**params), seed)


@pytest.fixture(scope="module")
def division():
    return divided()


@pytest.fixture(scope="module")
def kept(division):
    return {KEYS[record.id]: record for record in division.kept if record.source == "rough"}


@pytest.fixture(scope="module")
def rejected(division):
    return {KEYS[record.id]: record for record in division.rejected}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("runs") / "rough")
    preprocess(run, Profile(name="t", steps={"collect": {"sources": ["starter", "rough"]}}))
    return run


def ends(division):
    "Where each rough record went, in the words of the answer key."
    went = {record.id: "kept" if record.split else "read_only" for record in division.kept}
    went |= {record.id: record.reason for record in division.rejected}
    return {key: went[number] for number, key in KEYS.items()}


# --- the answer key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [42, 1, 7, 2024])
def test_every_record_ends_where_its_author_said(seed):
    "Whatever the seed: the records whose side matters have a fixed one."
    assert ends(divided(seed)) == {key: line.ends for key, line in LINES.items()}


@pytest.mark.parametrize("seed", [42, 7])
def test_the_starter_data_stay_as_they_are_without_rough(seed):
    def placed(division):
        return {record.id: record for record in division.kept if record.source == "starter"}

    alone, together = divide(Starter().fetch(), seed=seed), divided(seed)
    assert len(placed(alone)) == len(list(Starter().fetch())) and placed(alone) == placed(together)
    assert {record.source for record in together.rejected} == {"rough"}


def test_every_reason_occurs_but_those_that_need_more_than_a_record(rejected, tmp_path):
    assert {record.reason for record in rejected.values()} == set(REASONS) - {"in_benchmark", "other_aspect", "not_medicine", "paraphrase"}
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"question": LINES["snoring-leak"].question, "answer": "x"}) + "\n" + json.dumps({"question": LINES["scurvy"].question, "answer": "Vitamin C"}))
    with_benchmark = divided(benchmarks=[str(benchmark)], on_leak="drop")
    gone = {key for key, end in ends(with_benchmark).items() if end == "in_benchmark"}
    assert gone == {"scurvy"}, "the other was refused before, as a leak"


def test_the_share_kept_is_mixed(kept):
    assert 0.6 <= len(kept) / len(RECORDS) <= 0.75
    assert sum(LINES[key].planted == "ordinary" for key in kept) >= 20
    assert {record.kind for record in kept.values()} == set(KINDS.values())


# --- pairs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "twin"), [
    ("hiccups-shouted", "hiccups"), ("carpal-tunnel-shouted", "carpal-tunnel"), ("lactose-edited", "lactose"), ("restless-legs-edited", "restless-legs-causes"),
    ("ear-wax-mirror", "ear-wax"), ("loratadine-other-maker", "loratadine"), ("snoring-leak", "apnoea-test"),
    ("tiredness-leak", "apnoea-test"), ("heat-rash-brief", "heat-rash")])  # fmt: skip
def test_a_rejected_copy_names_the_record_that_stays(key, twin, rejected, kept):
    assert KEYS[rejected[key].twin] == twin and twin in kept


def test_the_planted_leak_is_one():
    "Split as it came, the gate stops; and the passage is what it stops at."
    for key in ("snoring-leak", "tiredness-leak"):
        with pytest.raises(LeakageError) as stopped:
            check_leakage([RECORDS[key]], [RECORDS["apnoea-test"]])
        assert [leak.kind for leak in stopped.value.leaks] == ["passage"]
    for key, kind in (("apnoea-same-question", "exact"), ("apnoea-turned", "near_duplicate")):
        with pytest.raises(LeakageError) as stopped:
            check_leakage([RECORDS[key]], [RECORDS["apnoea-test"]])
        assert [leak.kind for leak in stopped.value.leaks] == [kind]


def test_a_record_with_one_leaking_sentence_goes_whole(kept, rejected):
    secret = RECORDS["apnoea-test"].answer.split(". ")[0] + "."
    assert len(secret.split()) >= 13 and secret in RECORDS["tiredness-leak"].answer and secret in RECORDS["snoring-leak"].answer
    assert rejected["tiredness-leak"].answer == RECORDS["tiredness-leak"].answer and kept["apnoea-test"].split == "test"


def test_two_labels_of_one_drug_stay_on_one_side(kept):
    assert kept["loperamide"].group == kept["loperamide-liquid"].group != kept["metformin"].group


def test_what_may_not_be_trained_on_is_for_reading_only(kept):
    assert {key for key, record in kept.items() if record.split is None} == {"unknown-licence", "reminders"}
    assert not any(RECORDS[key].may_train for key in ("unknown-licence", "reminders")) and sum(record.may_train for record in RECORDS.values()) == len(RECORDS) - 2


# --- one record ----------------------------------------------------------------------------------------------------------


def said(record):
    return "\n".join(filter(None, [record.question, record.answer, *(record.sections or {}).values()]))


RESIDUE = {
    "frostnip-page": ("Skip to", "Share this", "reviewed on", "Back to top", "rights reserved"), "threadworms": ("Skip to", "Share this", "Click here"),
    "ringworm-tags": ("<", "&amp;", "&ndash;"), "hay-fever": ("<", ">"), "metformin": ("<", ">"), "hand-rub": ("<", ">"), "strawberry-tongue": ("<", ">"),
    "meniere-mojibake": ("Ã", "â€"), "nappy-rash": ("â€",), "large-print": ("â€",), "tennis-elbow-credit": ("More on", "National Institute"),
    "pink-eye-learn-more": ("Click here", "For more information"), "fissure-list": ("paper.Heavier", "   ", "includes: -"), "sleep-references": ("[", "]"),
    "bells-palsy-apostrophes": ("Bells", "persons ", "doesnt", "cant"), "psoriasis-repeats": ("What causes psoriasis?",), "gilbert-template": ("(are)", " ?"),
    "turner-table": ("Approximate number",), "cramp-video": ("video", "figure"),
}  # fmt: skip
STAYS = {
    "ringworm-tags": "- Apply it to the patch and a little way around it.\n- Go on", "meniere-mojibake": "Ménière's disease comes in attacks",
    "fissure-list": "includes:\n- Eating more fibre\n- Drinking enough water\n- A warm bath after a bowel movement\nBleeding is", "bells-palsy-apostrophes": "a person's face",
    "turner-table": "Very often: Short stature; Early loss of ovarian function", "cramp-video": "Pull the toes firmly towards the shin", "nappy-rash": "a baby's bottom",
    "gilbert-template": "What is Gilbert syndrome?\n", "sleep-references": "also after a bad night. Go to bed", "tennis-elbow-credit": "more than complete rest.",
}  # fmt: skip


@pytest.mark.parametrize("key", RESIDUE)
def test_residue_goes_and_the_text_stays(key, kept):
    before, after = said(LINES[key]), said(kept[key])
    assert all(mark in before for mark in RESIDUE[key]) and not [mark for mark in RESIDUE[key] if mark in after]
    assert STAYS.get(key, "") in after and len(after.split()) > 20


def test_what_no_rule_finds_is_named_as_such(kept):
    "When a rule for one of these is written, its line, the datasheet and this test change with it."
    assert kept["mouth-ulcer-buttons"].answer.startswith("Facebook | Tweet | Print")
    assert "https://www.example.org/gout/leaflet.pdf" in kept["gout-links"].answer


def test_personal_data_are_masked_and_a_free_number_stays(kept, run):
    expected = {
        "physio-letter": {"[NAME]", "[DATE OF BIRTH]", "[MRN]"}, "clinic-contact": {"[NAME]", "[PHONE]", "[EMAIL]"},
        "nhs-number": {"[NHS NUMBER]", "[DATE OF BIRTH]", "[PHONE]"}, "day-surgery-contacts": {"[NAME]", "[PHONE]", "[EMAIL]"},
    }  # fmt: skip
    assert set(expected) == {key for key, line in LINES.items() if line.planted == "personal_data"}
    for key, placeholders in expected.items():
        assert set(re.findall(r"\[[A-Z ]+\]", said(kept[key]))) == placeholders
        assert not re.search(r"Imogen|Placeholder|Sample|\d{4}|@", said(kept[key]))
    assert "1-800-555-0199" in kept["quit-line"].answer
    quality = read_json(run.file("preprocess", "quality.json"))
    assert quality["personal"] == {"NAME": 3, "PHONE": 3, "EMAIL": 2, "DATE OF BIRTH": 2, "MRN": 1, "NHS NUMBER": 1} and quality["help_lines"] == 1


def test_no_number_or_address_can_belong_to_anybody():
    "555 01xx in North America, 020 7946 0xxx in London and NHS numbers from 999 on are reserved for such use; example.org is nobody's."
    text = "\n".join(map(said, RECORDS.values()))
    assert set(re.findall(r"[\w.-]+@([\w.-]+\w)", text)) == {"example.org"} == set(re.findall(r"https?://(?:www\.)?([\w.-]+)", text))
    numbers = re.findall(r"\+?\(?\d[\d() -]{7,}\d", text)
    assert len(numbers) >= 5 and all(re.search(r"555-01\d\d$|^020 7946 0\d{3}$|^999 \d{3} \d{4}$|^01/02/1950$", number) for number in numbers), numbers


# --- the figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_the_profiles_that_need_no_network_show_them(profile):
    assert load_profile(profile).steps["collect"]["sources"] == ["starter", "rough"]


def test_the_lessons_figures_have_something_to_show(run):
    quality = read_json(run.file("preprocess", "quality.json"))
    by_reason = Counter(line.ends for line in LINES.values() if line.ends in REASONS)
    assert quality["rejected"] == quality["rejected_by_source"]["rough"] == dict(by_reason) and len(by_reason) == len(REASONS) - 4
    assert quality["leakage"] == {"train against test and validation": 0, "validation against test": 0}
    assert set(quality["sources"]["rough"]) == set(PLACES) and set(quality["sources"]["starter"]) == {"train", "validation", "test"}
    assert {record.source for record in read_parquet(run.file("preprocess", "rejected.parquet"), Rejected)} == {"rough"}
    assert {"de", "es", "fr"} <= set(quality["languages"])


def test_collecting_counts_what_could_not_be_read(run):
    report = {source.name: source for source in read_sources(run.file("collect", "sources.json"))}["rough"]
    assert (report.status, report.count, report.may_train) == ("collected", len(RECORDS), len(RECORDS) - 2)
    assert report.unread == {"no such option": 1, "not one JSON object": 1}
    assert [item.key for item in read_unread(run.file("collect", "unread.jsonl"))] == ["choices.jsonl, line 9", "choices.jsonl, line 10"]


def test_the_examples_of_profile_cpu_are_the_starter_ones(tmp_path):
    "They come first, so that the rough records only fill up what no scored item is taken from."
    written = []
    for name, changes in (("with", []), ("without", ["collect.sources=[starter]"])):
        run = Run(tmp_path / name)
        instruct(run, profile := load_profile("cpu", changes))
        splits = {split: read_examples(run.file("instruct", f"{split}.jsonl")) for split in ("train", "validation", "test")}
        params = profile.params(EvaluateParams)
        asked = [choose_items(splits["test"], params.items_per_task), choose_items([one for one in splits["test"] if one.task in CHOICES], params.choice_items)]
        written.append([splits["train"], splits["validation"], *asked])
    assert written[0] == written[1] and all(written[0])


# --- the source ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rough(tmp_path):
    "A copy of the rough data that may be broken further."
    return Path(shutil.copytree(shipped("data", "rough"), tmp_path / "rough"))


def test_a_missing_file_and_a_key_used_twice(rough):
    (rough / "pages.jsonl").write_text((rough / "pages.jsonl").read_text(encoding="utf-8") + '{"key": "gout-links", "planted": "ordinary", "ends": "kept"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"pages\.jsonl, line 11: the key 'gout-links' is already taken in answers\.jsonl"):
        list(Rough(rough).fetch())
    (rough / "pages.jsonl").unlink()
    with pytest.raises(MissingError, match=r"has no pages\.jsonl; get the files back"):
        Rough(rough)


def test_line_ends_marks_and_empty_lines_do_no_harm(rough):
    path = rough / "labels.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    digest = [item for item in Rough(rough).fetch() if getattr(item, "kind", "") == "label"]
    assert [item.id for item in digest] == [item.id for item in RECORDS.values() if item.kind == "label"]
    assert Rough(rough).fingerprint() != Rough().fingerprint() == Rough(fetcher=object()).fingerprint()


def test_half_a_character_is_no_record():
    "A file cannot hold it, so it must not come as far as the next step."
    row = {"key": "k", "planted": "ordinary", "ends": "kept", "answer": "half \ud800"}
    assert read_line(json.dumps(row).encode()).startswith("not one JSON object: ")


def test_each_item_names_the_bytes_it_was_read_from():
    digests = {kind: sha256_file(shipped("data", "rough", f"{name}.jsonl")) for name, kind in KINDS.items()}
    for item in Rough().fetch():
        assert item.raw_sha256 == digests[getattr(item, "kind", "mcq")]


@pytest.mark.parametrize("limit", [0, 1, 56, 84, 85, 1000])
def test_a_limit_counts_records(limit):
    found = list(Rough().fetch(limit=limit))
    assert sum(isinstance(item, Record) for item in found) == min(limit, 85)
    assert [item.id for item in found if isinstance(item, Record)] == [item.id for item in RECORDS.values()][:limit]


def test_its_folder_can_be_named_in_a_profile(rough, tmp_path):
    (rough / "answers.jsonl").write_text("{}\n", encoding="utf-8")
    run = Run(tmp_path / "run")
    collect(run, Profile(name="t", steps={"collect": {"sources": ["rough"], "options": {"rough": {"folder": str(rough)}}}}))
    assert read_sources(run.file("collect", "sources.json"))[0].count == 30 and read_unread(run.file("collect", "unread.jsonl"))[0].reason.startswith("not a record: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from([*PLANTED, "kept"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(RoughLine.model_fields)) | st.text(), inner),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_read_or_has_a_reason(raw):
    found = read_line(raw)
    if isinstance(found, str):
        assert found.partition(":")[0] in ("not a record", "not one JSON object", "no such option") and "\n" not in found
        assert Unread(source="rough", key="k", reason=found).model_dump_json()
    else:
        assert isinstance(found, RoughLine)


# --- the datasheet -------------------------------------------------------------------------------------------------------


def test_the_datasheet_counts_what_is_there():
    text = shipped("data", "rough", "README.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells[1:] for row in re.findall(r"^\| `(.+) \|$", text, re.M) if (cells := re.sub("`", "", row).split(" | "))}
    files = {name: Counter() for name in KINDS}
    planted = Counter()
    for name, _, line in Rough().lines():
        files[name][isinstance(line, RoughLine)] += 1
        if isinstance(line, RoughLine):
            planted[line.planted, line.ends] += 1
    for name, counts in files.items():
        assert rows[f"{name}.jsonl"] == [KINDS[name], str(counts[True]), str(counts[False])]
    raw = [json.loads(line) for line in shipped("data", "rough", "choices.jsonl").read_text(encoding="utf-8").splitlines()[:-1]]
    planted |= {(raw[-1]["planted"], raw[-1]["ends"]): 1, ("torn_line", "unread"): 1}
    assert {(name, cells[2]): int(cells[1]) for name, cells in rows.items() if name in PLANTED} == dict(planted)
    assert {name: cells[0] for name, cells in rows.items() if name in PLANTED} == PLANTED
    text = " ".join(text.split())
    went = Counter(line.ends for line in LINES.values())
    gone = sum(went[reason] for reason in REASONS)
    assert f"{len(LINES)} records and 2 lines that cannot be read" in text
    assert f"{went['kept']} of the {len(LINES)} stay, {went['read_only']} may only be read, and {gone} are rejected" in text

"Preprocessing: nothing leaks, nothing vanishes, a split stays when data grow."

import io
import json
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data import made_up_documents, medquad_zip

from medlab.cleaning.duplicates import near_pairs, text_key
from medlab.cleaning.leaks import LeakageError, check_leakage, find_leaks
from medlab.cleaning.text import tidy_text
from medlab.collect import collect
from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import hash_fraction, read_json, read_parquet, scan_parquet, shipped, write_parquet
from medlab.contracts.records import Record, record_id
from medlab.core import Profile, Run
from medlab.cleaning.records import PreprocessParams, clean, record_fault
from medlab.contracts.records import REASONS, Rejected, SplitRecord
from medlab.preprocess import divide, preprocess
from medlab.cleaning.disk_store import DiskStore
from medlab.splitting.decontaminate import Placement, drop_near_duplicates, in_the_way
from medlab.splitting.facts import Facts, examine_batch, split_of
from medlab.splitting.groups import LARGEST, largest_group
from medlab.sources.medquad_tables import readable_answer
from medlab.splitting.quality import quality_counts

WORDS = [f"{first}{second}" for first in ("ba", "co", "di", "fu", "ge", "lo", "mi", "na", "po", "ra") for second in ("lam", "nor", "tis", "vek", "zum")]


def made(question, answer, key=None, **more):
    fields = {"id": record_id("made", key or f"{question}|{answer}"), "source": "made", "kind": "qa", "license": "CC0-1.0",
              "may_train": True, "attribution": "test", "question": question, "answer": answer}
    return Record(**{**fields, **more})


def sentence(rng, words=25):
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def many(count, seed=1):
    rng = random.Random(seed)
    return [made(f"What is {sentence(rng, 4)[:-1].lower()} {number}?", sentence(rng), key=f"{seed}-{number}") for number in range(count)]


def authored(question, answer, split, task="triage"):
    return made(question, answer, kind="case", task=task, split=split, gold={"reason": answer})


def splits(division):
    return {record.id: record.split for record in division.kept}


def reasons(division):
    return {record.id: record.reason for record in division.rejected}


def profiled(**params):
    return Profile(name="t", steps={"preprocess": params})


def run_with(tmp_path, records, name="run"):
    "A run whose collection holds these records."
    run = Run(tmp_path / name)
    collect(run, Profile(name="t"))
    write_parquet(run.folder("collect") / "records.parquet", records, Record)
    manifest = read_json(run.file("collect", "manifest.json"))
    manifest["outputs"]["records.parquet"]["bytes"] = run.file("collect", "records.parquet").stat().st_size
    manifest["outputs"]["records.parquet"]["sha256"] = __import__("hashlib").sha256(run.file("collect", "records.parquet").read_bytes()).hexdigest()
    run.file("collect", "manifest.json").write_text(json.dumps(manifest))
    return run


# the gate


@pytest.fixture(scope="module")
def divided():
    return divide(many(300))


def test_the_gate_lets_an_honest_split_pass(divided):
    parts = {name: [record for record in divided.kept if record.split == name] for name in ("train", "validation", "test")}
    assert all(len(part) > 10 for part in parts.values())
    check_leakage(parts["train"], parts["test"])
    check_leakage(parts["validation"], parts["test"])


@pytest.mark.parametrize("disguise", [{}, {"group": "other"}, {"question": "Something else?"}], ids=["copy", "same question", "same group"])
def test_the_gate_raises_for_one_smuggled_item(divided, disguise):
    train = [record for record in divided.kept if record.split == "train"]
    test = [record for record in divided.kept if record.split == "test"]
    with pytest.raises(LeakageError, match=f"1 of test's items leak.*{test[3].id}"):
        check_leakage([*train, test[3].model_copy(update={"id": "smuggled", **disguise})], test)


PASSAGE = "uric acid crystals settle in the cool joint of the big toe and wake the sleeper long before the morning comes"


def test_the_gate_sees_thirteen_words_and_not_twelve():
    words = PASSAGE.split()
    exam = made("What is gout?", f"It is an old disease of the joints. {PASSAGE.capitalize()}.", key="exam")
    for count, leaks in ((13, True), (12, False)):
        copy = made("What do people say about toes?", f"My aunt says that {' '.join(words[:count])} so tea helps against all of it, every day of the week.")
        assert [leak.kind for leak in find_leaks([copy], [exam], suspicions=True)] == ["suspicion"] * leaks
        assert find_leaks([copy], [exam]) == []  # one passage may be a coincidence; `test_leaks.py` has what is none


def test_a_phrase_that_everybody_uses_is_no_leak():
    exam = made("What is gout?", f"It is old. {PASSAGE}.", key="exam")
    rng = random.Random(6)
    train = [made(f"What is {sentence(rng, 3)}", f"{sentence(rng, 20)} {PASSAGE}. {sentence(rng, 20)}", key=f"t{number}") for number in range(11)]
    assert find_leaks(train, [exam]) == []
    assert len(find_leaks(train[1:], [exam])) == 10


@pytest.mark.parametrize("change,kind", [
    (lambda r: {}, "exact"),
    (lambda r: {"answer": r.answer.upper(), "question": "Why?"}, "normalised"),
    (lambda r: {"question": r.question.upper(), "answer": "Nobody knows that as yet."}, "normalised"),
    (lambda r: {"question": "Why?", "answer": r.answer.replace("morning", "evening")}, "near_duplicate"),
], ids=["exact", "normalised text", "normalised question", "near"])
def test_the_gate_names_the_kind(change, kind):
    exam = made("What is gout?", f"It is an old disease of joints that men have more often than women. {PASSAGE} and so it has been always.", key="exam")
    leaks = find_leaks([exam.model_copy(update={"id": "copy", **change(exam)})], [exam])
    assert [leak.kind for leak in leaks] == [kind] and leaks[0].train == "copy" and leaks[0].held_out == exam.id


def test_the_step_stops_at_the_gate_and_writes_every_pair(tmp_path, monkeypatch):
    "A splitter that assigns records at random must not get past the step."
    rng = np.random.default_rng(0)
    monkeypatch.setattr("medlab.splitting.decontaminate.assign_splits", lambda facts, found, params: (
        rng.integers(0, 3, len(found.order), dtype=np.uint8), np.full(len(found.order), 7, dtype=np.uint64)))
    monkeypatch.setattr("medlab.splitting.decontaminate.decontaminate", lambda placement: None)
    run = run_with(tmp_path, many(60))
    with pytest.raises(LeakageError, match=r"share a group.*leakage\.json") as caught:
        preprocess(run, Profile(name="t"))
    pairs = read_json(run.file("preprocess", "leakage.json"))["pairs"]
    ids = {name: {record.id for record in scan_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)} for name in ("train", "test", "validation")}
    assert {pair["held_out"] for pair in pairs if pair["between"][0] == "train"} <= ids["test"] | ids["validation"]
    assert {pair["train"] for pair in pairs if pair["between"][0] == "train"} == ids["train"] and len(pairs) >= len(caught.value.leaks)
    assert run.manifest("preprocess") is None


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.parquet", "b.txt", "b.json"])
def test_a_benchmark_in_any_form_stops_the_step_or_is_dropped(tmp_path, name):
    records = many(80)
    stolen = next(record for record in divide(records).kept if record.split == "train")
    rows = [{"id": 1, "question": "Something else altogether?"}, {"id": 2, "question": stolen.question.upper()}]
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text({"jsonl": "\n".join(map(json.dumps, rows)), "csv": "id,question\n" + "\n".join(f'{row["id"]},"{row["question"]}"' for row in rows),
                         "txt": "\n".join(row["question"] for row in rows), "json": json.dumps(rows)}[name[2:]])
    run = run_with(tmp_path, records)
    with pytest.raises(LeakageError, match=f"{name}.*{stolen.id}"):
        preprocess(run, profiled(benchmarks=[str(path)]))
    assert preprocess(run, profiled(benchmarks=[str(path)], on_leak="drop"))
    rejected = read_parquet(run.file("preprocess", "rejected.parquet"), Rejected)
    assert [(record.id, record.reason) for record in rejected] == [(stolen.id, "in_benchmark")]


def test_a_benchmark_in_another_encoding_is_read_as_the_profile_says(tmp_path):
    records = many(60)
    stolen = next(record for record in divide(records).kept if record.split == "train")
    path = tmp_path / "old.csv"
    path.write_text(f'question\nWhat is Ménière?\n"{stolen.question}"\n', encoding="cp1252")
    run = run_with(tmp_path, records)
    with pytest.raises(InputError, match="cp1252.*preprocess.benchmark_encoding"):
        preprocess(run, profiled(benchmarks=[str(path)]))
    with pytest.raises(LeakageError, match=stolen.id):
        preprocess(run, profiled(benchmarks=[str(path)], benchmark_encoding="cp1252"))


def test_a_benchmark_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(MissingError, match="benchmark .*gone.csv is not there"):
        preprocess(run_with(tmp_path, many(30)), profiled(benchmarks=[str(tmp_path / "gone.csv")]))


# what is shared


def telling(count, shared, seed=9):
    "Pages that have nothing in common but a paragraph."
    rng = random.Random(seed)
    return [made(f"What is {sentence(rng, 5)}?", f"{sentence(rng, 25)} {shared} {sentence(rng, 25)}", key=f"{seed} {number}") for number in range(count)]


def whole(division, records):
    "Whether every record that stays is as cleaning left it."
    cleaned = {record.id: clean(record) for record in records}
    return all((one.answer, one.question) == (cleaned[one.id].answer, cleaned[one.id].question) for one in division.kept)


def test_pages_with_a_paragraph_in_common_stand_whole_on_one_side():
    rng = random.Random(5)
    pairs = [telling(2, sentence(rng, 14 + number), seed=number) for number in range(40)]
    records = [one for pair in pairs for one in pair]
    division = divide(records)
    kept = {record.id: record for record in division.kept}
    assert not division.rejected and whole(division, records)
    assert all(kept[one.id].split == kept[other.id].split and kept[one.id].group == kept[other.id].group for one, other in pairs)
    assert len({record.split for record in division.kept}) == 3


@pytest.mark.parametrize("pages, together", [(11, True), (20, False)])
def test_what_more_than_ten_others_say_too_ties_nobody_together(pages, together):
    division = divide([*telling(pages, PASSAGE.capitalize() + "."), *many(100)])
    groups = {record.group for record in division.kept if PASSAGE in record.answer.lower()}
    assert not division.rejected and (len(groups) == 1 if together else len(groups) > 0.7 * pages)  # two may also share the word before it


def test_a_chain_of_pages_does_not_become_one_group():
    "Each of 400 pages shares a paragraph with the next one, as the pages of a website do."
    rng = random.Random(8)
    links = [sentence(rng, 18) for _ in range(401)]
    chain = [made(f"What is page {number} on {sentence(rng, 3)}?", f"{one} {sentence(rng, 20)} {other}", key=f"{number}")
             for number, (one, other) in enumerate(zip(links, links[1:]))]
    division = divide(chain)
    sizes = Counter(record.group for record in division.kept)
    assert 2 < max(sizes.values()) <= largest_group(400) == 20 and whole(division, chain)
    assert set(Counter(reasons(division).values())) <= {"shares_passage"} and len(division.rejected) < 20
    assert len(set(splits(division).values())) > 1
    sides = {name: [record for record in division.kept if record.split == name] for name in ("train", "validation", "test")}
    check_leakage(sides["train"], sides["test"] + sides["validation"])
    kept = {record.id for record in division.kept}
    assert all(record.twin in kept for record in division.rejected)


def test_who_stands_in_the_way_of_most_others_is_left_out():
    rng = random.Random(3)
    says = [sentence(rng, 16) for _ in range(5)]
    hub = made("What is a hub?", " ".join(says), key="hub", split="validation")
    spokes = [made(f"What is {sentence(rng, 4)}?", f"{sentence(rng, 20)} {said}", key=said, split="train") for said in says]
    division = divide([hub, *spokes])
    assert set(reasons(division).values()) == {"shares_passage"} and len(division.rejected) == 5  # its author held the hub out: it stays
    assert splits(division) == {hub.id: "validation"}


def test_a_training_page_that_shares_a_paragraph_with_a_fixed_test_item_is_left_out_whole():
    rng = random.Random(9)
    others = [sentence(rng, 30) for _ in range(4)]
    exam = made("What is gout?", f"{others[0]} {PASSAGE.capitalize()}. {others[1]}", key="exam", split="test")
    page = made("What is a toe?", f"{others[2]} {PASSAGE.capitalize()}. {others[3]}", key="page", split="train")
    loose = made("What is a foot?", f"{sentence(rng, 30)} {PASSAGE.capitalize()}.", key="loose")
    division = divide([exam, page, loose, *many(30)])
    assert reasons(division) == {page.id: "shares_passage", **({loose.id: "shares_passage"} if loose.id in reasons(division) else {})}
    assert splits(division).get(loose.id, "test") == "test"  # it may stand beside the exam, never in training
    assert {record.id: record.twin for record in division.rejected}[page.id] == exam.id
    assert {record.id: record for record in division.kept}[exam.id].answer == exam.answer


def passages(record, part):
    "Thirteen words in a row: of the question and a collected answer, or of an authored answer."
    texts = [record.question, record.answer] if record.task is None else [record.question]
    if part == "authored":
        texts = [record.gold["reason"]] if record.task else []
    return {tuple(words[i : i + 13]) for words in (text_key(text).split() for text in texts) for i in range(len(words) - 12)}


def sharing(division, one, other, counted):
    "Pairs of records in two splits that share a passage which is no common phrase among the groups of the counted splits, by brute force."
    owners = {}
    for record in division.kept:
        for part in ("collected", "authored"):
            for passage in passages(record, part):
                owners.setdefault(passage, []).append((record, part))
    for found in owners.values():
        held = [(record, part) for record, part in found if record.split == other]
        open_held = any(part == "collected" for _, part in held)
        mine = [(record, part) for record, part in found if record.split == one and (part == "collected" or open_held)]
        if len({record.group for record, _ in found if record.split in counted}) <= 11:
            yield from ((record.id, other.id) for record, _ in mine for other, _ in held)


def tangled(seed, pool=90, count=60):
    "Records that share sentences in every way: collected and authored, with fixed splits and without."
    rng = random.Random(seed)
    said, records = [sentence(rng, 14) for _ in range(pool)], []
    for number in range(count):
        chosen, split = rng.sample(said[: pool if number % 3 else 4], rng.randint(1, 3)), rng.choice([None, None, "train", "validation", "test"])
        if number % 5 == 0:
            records.append(authored(f"Case {number} of {sentence(rng, 9)}", " ".join(chosen), split or "train"))
        else:
            records.append(made(f"What is {number} in {sentence(rng, 4)}?", " ".join([sentence(rng, 15), *chosen, sentence(rng, 15)]), key=f"{seed} {number}", split=split))
    return records


@pytest.mark.parametrize("seed", range(6))
def test_no_side_shares_a_passage_with_another_by_brute_force(seed):
    records = tangled(seed)
    division = divide(records)
    for one, other, counted in (("train", "test", ("train", "test")), ("train", "validation", ("train", "validation")), ("validation", "test", ("train", "validation", "test"))):
        assert list(sharing(division, one, other, counted)) == []
    assert whole(division, records) and len(division.rejected) < 45
    originals = {record.id: clean(record) for record in records}
    for gone in division.rejected:
        assert gone.reason == "shares_passage" and gone.split != "test"  # what an author fixed for the test stays
        assert any(passages(gone, part) & passages(originals[gone.twin], other) for part in ("collected", "authored") for other in ("collected", "authored"))
    kept = {record.id for record in division.kept}
    assert all(record.id in kept for record in records if record.split == "test")


def test_two_cases_may_end_in_the_same_advice_but_no_page_may_give_it():
    advice = "Call an ambulance now, keep the person still and warm, and give nothing to eat or to drink at all."
    rng = random.Random(2)
    exam, case = (authored(f"{sentence(rng, 20)} {number}?", f"Emergency: yes\nAction: {advice}", split).model_copy(update={"gold": {"action": advice}})
                  for number, split in enumerate(("test", "train")))
    page = made("What do I do after a fall?", f"{sentence(rng, 30)} {advice} {sentence(rng, 30)}", split="train")
    division = divide([exam, case, page, *many(20)])
    assert reasons(division) == {page.id: "shares_passage"} and division.rejected[0].twin == exam.id
    late = divide([exam.model_copy(update={"split": "train", "id": "a"}), page.model_copy(update={"split": "test", "id": "b"}), *many(20)])
    assert reasons(late) == {"a": "shares_passage"}


@pytest.mark.parametrize("threshold, gone", [(10 / 12, 1), (0.84, 0)])
def test_the_threshold_itself_is_near_enough(threshold, gone):
    shorter = " ".join(["The joint is", *(f"x{number}" for number in range(9))])  # 10 shingles, all of them among the 12 of the longer text
    pair = [made("Who is it?", f"{shorter}.", key="3"), made("Whose is this?", f"{shorter} y z.", key="4")]
    assert len(divide(pair, PreprocessParams(near_duplicate_threshold=threshold)).rejected) == gone


def test_every_leaking_benchmark_item_leaves_and_names_no_twin(tmp_path):
    records = many(120)
    train = [record for record in divide(records).kept if record.split == "train"][:7]
    (tmp_path / "b.txt").write_text("\n".join(record.question for record in train[:3]))
    (tmp_path / "c.txt").write_text("\n".join(record.question.upper() for record in train[3:]))
    division = divide(records, PreprocessParams(benchmarks=[str(tmp_path / name) for name in ("b.txt", "c.txt")], on_leak="drop"))
    assert reasons(division) == {record.id: "in_benchmark" for record in train} and {record.twin for record in division.rejected} == {None}
    assert len(divide(records, PreprocessParams(benchmarks=[str(tmp_path / "b.txt")])).rejected) == 0  # on_leak: fail leaves it to the gate


RECESSIVE = "This condition is inherited in a recessive pattern, which means that both copies of the gene in each cell have changes. The parents each carry one copy and show no signs."


def diseases(count, answer=RECESSIVE, asked="Is {} inherited?", **more):
    rng = random.Random(7)
    names = [f"{rng.choice(WORDS)}{rng.choice(WORDS)}{number} syndrome" for number in range(count)]
    return [made(asked.format(name), answer, key=f"{asked} {name}", subject=name, **{"aspect": "inheritance", **more}) for name in names]


@pytest.mark.parametrize("count", [2, 16, 17, 200])
def test_the_same_answer_for_another_subject_is_no_duplicate(count):
    records = diseases(count)
    nearly = [record.model_copy(update={"answer": record.answer.replace("carry", "have")}) for record in records[::2]] + records[1::2]
    for asked in (records, nearly):
        division = divide([*asked, *many(100)])
        assert not division.rejected
        sides = Counter(record.split for record in division.kept if record.aspect)
        assert len(sides) == 1 or count > 16
        assert count <= 16 or asked is nearly or len({record.group for record in division.kept if record.aspect}) == count
        assert count < 200 or sides["train"] > 120 and sides["test"] > 8


@pytest.mark.parametrize("change", [lambda text: text, str.upper, lambda text: text.replace("carry", "have")], ids=["equal", "capitals", "nearly"])
def test_the_same_answer_for_the_same_subject_is_one(change):
    (record,) = diseases(1)
    copy = made("Do you get it from your parents?", change(record.answer), key="copy", subject=record.subject.upper())
    nameless = made("What is said here?", change(record.answer), key="nameless")
    for other in (copy, nameless):
        division = divide([record, other, *many(20)])
        assert set(reasons(division).values()) <= {"exact_duplicate", "near_duplicate"} and len(division.rejected) == 1


@pytest.mark.parametrize("question, gone", [("Is it inherited?", 1), ("What is said here?", 0)])
def test_a_copy_without_a_subject_and_with_a_freer_licence_is_of_the_same_question(question, gone):
    "The freer one stays. It names no subject: only its question can tell that both are about the same."
    named = made("Is it inherited?", RECESSIVE, key="named", subject="a syndrome", license="CC-BY-NC-4.0")
    nameless = made(question, RECESSIVE, key="nameless")
    division = divide([named, nameless, *many(5)])
    assert reasons(division) == {named.id: "exact_duplicate"} if gone else not division.rejected


def test_boilerplate_among_few_leaks_and_among_many_does_not():
    exam, *train = diseases(12)
    assert find_leaks(train, [exam]) == [] and len(find_leaks(train[1:], [exam])) == 10
    nearly = [record.model_copy(update={"answer": record.answer.replace("carry", "have")}) for record in train]
    assert find_leaks(nearly, [exam]) == [] and {leak.kind for leak in find_leaks(nearly[1:], [exam])} == {"near_duplicate"}
    assert [leak.train for leak in find_leaks([*train, exam.model_copy(update={"id": "copy"})], [exam])] == ["copy"]  # its question is the same


# one question, several answers


def test_of_several_answers_to_one_question_the_most_complete_one_stays():
    short = made("What causes gout?", "Crystals of uric acid settle in a joint of the foot.", key="short")
    repeating = made("What causes gout ?", "Crystals, crystals and crystals again, and yet again crystals, and crystals, and crystals, and crystals.", key="again")
    full = made("what causes Gout?", "Crystals of uric acid settle in a joint of the foot, mostly at night, after a feast.", key="full")
    division = divide([short, repeating, full, *many(20)])
    assert reasons(division) == {short.id: "same_question", repeating.id: "same_question"}
    assert {record.twin for record in division.rejected} == {full.id} and full.id in splits(division)


@pytest.mark.parametrize("one, other", [
    ({"aspect": "causes"}, {"aspect": "frequency"}), ({"subject": "gout"}, {"subject": "a bunion"}), ({}, {"may_train": False}),
], ids=["aspects", "subjects", "only one may be trained on"])
def test_answers_about_different_things_both_stay(one, other):
    pair = [made("What is known?", "It is seen in men more often than in women.", key="1", **one), made("What is known?", "It comes from sugar and salt.", key="2", **other)]
    division = divide([*pair, *many(20)])
    kept = {record.id: record for record in division.kept}
    assert not division.rejected and kept[pair[0].id].group == kept[pair[1].id].group
    same = [record.model_copy(update={"aspect": None, "subject": None, "may_train": True, "license": "CC0-1.0"}) for record in pair]
    assert list(reasons(divide([*same, *many(20)])).values()) == ["same_question"]


def test_what_an_author_wrote_does_not_compete():
    asked = [authored("Is a sprain urgent?", f"Triage: {level}\nReason: {sentence(random.Random(number), 9)}", "train") for number, level in enumerate(("urgent", "routine"))]
    fixed = [made("Is a cut urgent?", sentence(random.Random(number), 12), key=str(number), split="train") for number in range(2)]
    assert not divide([*asked, *fixed, *many(20)]).rejected


# the mixture


def mixed(count, seed=1, kinds=(("symptoms", 5), ("treatment", 3), ("causes", 1), ("outlook", 1))):
    rng = random.Random(seed)
    names = [name for name, weight in kinds for _ in range(weight)]
    return [record.model_copy(update={"aspect": rng.choice(names), "subject": f"{rng.choice(WORDS)} {number % (count // 4)}"})
            for number, record in enumerate(many(count, seed))]


def widest(division, one="train", other="test"):
    "The largest difference between the shares of a type of question."
    shares = []
    for name in (one, other):
        aspects = Counter(record.aspect for record in division.kept if record.split == name)
        shares.append({aspect: count / aspects.total() for aspect, count in aspects.items()})
    return max(abs(shares[0].get(aspect, 0) - shares[1].get(aspect, 0)) for aspect in {*shares[0], *shares[1]})


@pytest.mark.parametrize("seed", [42, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("split_by", ["question", "subject"])
def test_each_type_of_question_has_the_same_share_on_both_sides(seed, split_by):
    records = mixed(800)
    division = divide(records, PreprocessParams(split_by=split_by), seed)
    assert widest(division) <= 0.02 and widest(division, other="validation") <= 0.02
    assert divide(random.Random(3).sample(records, 800), PreprocessParams(split_by=split_by), seed) == division
    counts = Counter(splits(division).values())
    assert 40 < counts["test"] < 140 and 40 < counts["validation"] < 140


def test_a_balanced_split_hardly_moves_when_data_grow():
    records = mixed(800)
    before = splits(divide(records))
    for number in range(5):
        after = splits(divide([*records, *mixed(8, seed=50 + number)]))
        assert sum(after[key] != split for key, split in before.items()) <= 16  # a new draw would move 270
    assert sum(split_of(hash_fraction(42, text_key(record.question))) != before[record.id] for record in records) < 40  # nearly all are where their hash put them


def test_by_subject_no_subject_stands_on_two_sides():
    records = mixed(600)
    for unit, crossing in (("question", True), ("subject", False)):
        sides = {}
        for record in divide(records, PreprocessParams(split_by=unit)).kept:
            sides.setdefault(text_key(record.subject), set()).add(record.split)
        assert any(len(split) > 1 for split in sides.values()) == crossing
    with pytest.raises(InputError, match="split_by"):
        Profile(name="t", steps={"preprocess": {"split_by": "row"}}).params(PreprocessParams)


# splits


def test_the_split_is_the_same_whatever_the_order_and_differs_with_the_seed():
    records = many(200)
    one, other = divide(records), divide(random.Random(3).sample(records, len(records)))
    assert one == other
    assert splits(divide(records, seed=43)) != splits(one)


def test_shares_are_about_what_was_asked_for():
    counts = Counter(splits(divide(many(2000), PreprocessParams(test_share=0.2, validation_share=0.05))).values())
    assert counts["test"] == pytest.approx(400, abs=60) and counts["validation"] == pytest.approx(100, abs=35)


def test_nothing_goes_back_towards_training_when_data_grow():
    "New records, copies and new answers to known questions are added; what was held out stays held out, what is alone stays where it was."
    order = ["train", "validation", "test"]
    rng = random.Random(5)
    before = many(400)
    new = many(300, seed=2)
    new += [made(record.question.upper(), sentence(rng)) for record in before[:60]]  # the same question, another answer
    new += [made(f"And {record.question}", record.answer + " Really.") for record in before[60:120]]  # the same answer, another question
    old, grown = splits(divide(before)), splits(divide(before + new))
    assert all(order.index(grown[key]) >= order.index(split) for key, split in old.items() if key in grown)
    untouched = [record.id for record in before[120:]]
    assert all(grown[key] == old[key] for key in untouched)


def test_one_question_with_several_answers_is_never_split():
    rng = random.Random(2)
    records = [made(f"What is {word} {number % 7}?", sentence(rng)) for word in WORDS for number in range(21)]
    sides = {}
    for record in divide(records).kept:
        assert sides.setdefault(text_key(record.question), record.split) == record.split
    assert len(set(sides.values())) == 3


# what its author fixed


def test_a_fixed_split_binds():
    fixed = [authored(f"Case {number}: {sentence(random.Random(number), 12)}", sentence(random.Random(-number), 9), split)
             for number, split in enumerate(["train", "validation", "test"] * 30)]
    assert splits(divide(fixed)) == {record.id: record.split for record in fixed}


def test_what_shares_a_group_with_a_fixed_training_item_is_trained_on_too():
    text = sentence(random.Random(3), 30)
    fixed, collected = authored("Is a sprain urgent?", text, "train"), made("Is a sprain urgent?", sentence(random.Random(4), 30))
    division = divide([fixed, collected, *many(20)])
    assert not division.rejected and splits(division)[fixed.id] == splits(division)[collected.id] == "train"


CASE = "A woman of 61 has had a dull ache in her left calf since a long flight two days ago, and the calf is swollen and warm."
ADVICE = "Triage: urgent\nReason: A swollen warm calf after a long flight may be a clot in the deep veins and needs an ultrasound scan today."


@pytest.mark.parametrize("question,answer,reason", [
    (CASE, ADVICE, "exact_duplicate"),
    (f"  {CASE.upper()} ", "Triage: urgent\nReason: Another reason.", "held_out"),
    (CASE.replace("61", "59"), "Triage: urgent\nReason: Another reason.", "held_out"),
    (CASE.replace("a dull ache", "an ache"), ADVICE, "near_duplicate"),
    ("Completely new words ask for the very thing?", None, "held_out"),
], ids=["equal", "same question", "a number changed", "a word changed", "the answer on a website"])
def test_a_train_copy_of_a_fixed_test_item_is_rejected(question, answer, reason):
    exam = made(CASE, ADVICE, key="exam", kind="case", task="triage", split="test", gold={"triage": "urgent", "reason": ADVICE.split("Reason: ")[1]})
    copy = authored(question, answer, "train") if answer else made(question, ADVICE.split("Reason: ")[1])
    division = divide([copy, exam, *many(50)])
    kept = splits(division)
    assert kept[exam.id] == "test" and copy.id not in kept
    assert len(kept) == 51
    (gone,) = division.rejected
    assert (gone.reason, gone.twin) == (reason, None if reason == "held_out" else exam.id)  # a repeat is called one, and of what


def test_a_copy_in_another_task_is_rejected_too():
    exam, copy = authored(CASE, ADVICE, "test"), authored(CASE, "Emergency: no\nAction: See a doctor today.", "train", "emergency_escalation")
    division = divide([exam, copy])
    assert splits(division) == {exam.id: "test"} and division.rejected[0].reason == "held_out"


def test_nearly_the_same_case_in_two_tasks_is_no_repeat_but_stays_together():
    rng = random.Random(4)
    case = sentence(rng, 60)
    cases = [authored(f"{case} {end}", sentence(rng, 3), "train", task) for end, task in (("Then?", "triage"), ("Now?", "symptom_analysis"))]
    division = divide([*cases, *many(20)])
    kept = {record.id: record for record in division.kept}
    assert not division.rejected and kept[cases[0].id].group == kept[cases[1].id].group
    again = authored(f"{case} So?", sentence(rng, 3), "train", "triage")
    (gone,) = divide([*cases, again, *many(20)]).rejected  # in one task it is
    assert gone.reason == "near_duplicate" and {gone.id, gone.twin} == {cases[0].id, again.id}


JOINT = " ".join(["The joint is", *(f"x{number}" for number in range(9))])


@pytest.mark.parametrize("threshold, gone", [(10 / 14, 1), (0.72, 0)])  # of the 14 shingles of the two texts, 10 are in both
def test_nearly_the_same_case_for_another_task_leaves_the_training_of_its_author(threshold, gone):
    exam, case = authored("Who?", f"{JOINT}.", "test"), authored("What?", f"{JOINT} y z.", "train", "symptom_analysis")
    division = divide([exam, case, *many(20)], PreprocessParams(near_duplicate_threshold=threshold))
    assert reasons(division) == dict([(case.id, "held_out")][:gone]) and splits(division)[exam.id] == "test"


@pytest.mark.parametrize("places", [(0, 2), (2, 0), (1, 2)])
@pytest.mark.parametrize("threshold, gone", [(10 / 12, True), (0.84, False)])  # of the 12 shingles of the longer answer, 10 are in the other
def test_what_linking_missed_is_found_between_the_sides(places, threshold, gone):
    "Locality-sensitive hashing may miss a pair; then the two would stand on two sides."
    pair = [made("Who?", f"{JOINT}.", subject="one"), made("What?", f"{JOINT} y z.", subject="other")]
    params = PreprocessParams(near_duplicate_threshold=threshold)
    placement = Placement(Facts([examine_batch(pair, params, 42)], DiskStore(io.BytesIO())), params)
    placement.place[:] = places
    held, train = (int(np.flatnonzero(np.array(places) == which)[0]) for which in (min(places), 2))
    assert drop_near_duplicates(placement, "train", np.array([held])) is gone
    assert [(row.id, row.reason, row.twin) for row in placement.rows("rejected")] == [(pair[train].id, "near_duplicate", pair[held].id)][: int(gone)]
    assert placement.place[held] == min(places)


def test_two_training_records_that_are_alike_are_no_leak():
    pair = [made("Who?", f"{JOINT}.", subject="one"), made("What?", f"{JOINT} y z.", subject="other")]
    exam, params = made("What is gout?", sentence(random.Random(1)), subject="gout"), PreprocessParams()
    placement = Placement(Facts([examine_batch([exam, *pair], params, 42)], DiskStore(io.BytesIO())), params)
    placement.place[:] = (0, 2, 2)
    assert drop_near_duplicates(placement, "train", np.array([0])) is False and not list(placement.rows("rejected"))


def test_a_held_out_question_inside_a_training_record_takes_it_out_of_training():
    rng, question = random.Random(6), "Does daily walking lower blood pressure?"
    exam = made(question, sentence(rng, 20), key="exam", split="test")
    dressed = made(f"A reader asks: {question} (A) yes (B) no", sentence(rng, 20), key="dressed", split="train")
    page = made("What is sport?", f"{sentence(rng, 20)} {question} {sentence(rng, 20)}", key="page", split="train")
    case = authored(f"{sentence(rng, 12)[:-1]}?", f"{sentence(rng, 20)} {question}", "train")  # of an authored record the question alone is compared
    untitled = made(None, None, kind="abstract", key="abstract", text=sentence(rng, 30), split="test")  # held out, and it asks nothing
    division = divide([exam, untitled, dressed, page, case, *many(20)])
    assert {record.id: (record.reason, record.twin) for record in division.rejected} == {one.id: ("near_duplicate", exam.id) for one in (dressed, page)}
    assert splits(division)[exam.id] == splits(division)[untitled.id] == "test" and splits(division)[case.id] == "train"


@pytest.mark.parametrize("rank", [range(10), range(9, -1, -1)])
@pytest.mark.parametrize("pairs, kept, gone", [
    ([(0, 1)], (), {0: 1}), ([(0, 1)], (0, 1), {0: 1}),  # of two the one in the less strict place leaves, whatever its name and whoever fixed it
    ([(0, 2), (1, 2)], (), {2}), ([(0, 2), (1, 2)], (2,), {0: 2, 1: 2}),  # who is in two pairs leaves alone, unless an author holds it out
    ([(7, 5), (7, 6), (7, 8), (7, 9), (0, 5), (1, 5)], (), {5, 7}),  # when 7 has left, 5 is still in more pairs than 0 and 1
    ([], (), {}),
])
def test_who_leaves_so_that_no_pair_stays_whole(rank, pairs, kept, gone):
    "Each pair is a record and one in a stricter place."
    found = in_the_way(np.array(pairs, dtype=np.int64).reshape(-1, 2), rank, [number in kept for number in range(10)])
    assert (set(found) if isinstance(gone, set) else found) == gone
    assert all((number, twin) in pairs or (twin, number) in pairs for number, twin in found.items())


@pytest.mark.parametrize("changed, together", [(1, True), (2, True), (3, False), (4, False)])  # of 20 words: 19/21, 18/22, 17/23 and 16/24 are shared
def test_long_questions_are_together_from_four_fifths_of_their_words_on(changed, together):
    rng, groups = random.Random(7), []
    for number in range(12):
        words = [f"{word}{number}" for word in rng.sample(WORDS, 20)]
        others = [*words[:-changed][::-1], *(f"new{n}x{number}" for n in range(changed))]  # turned round, so that no passage is shared
        twins = [made(f"{' '.join(asked)}?", sentence(rng), key=f"{number} {asked}") for asked in (words, others)]
        kept = {record.id: record.group for record in divide(twins).kept}
        groups.append(kept[twins[0].id] == kept[twins[1].id])
    assert set(groups) == {together}


@pytest.mark.parametrize("smallest, split", [(0, "test"), (0.124, "test"), (0.125, "validation"), (0.374, "validation"), (0.375, "train"), (0.999, "train")])
def test_a_share_ends_where_the_next_one_begins(smallest, split):
    assert split_of(smallest, validation_share=0.25, test_share=0.125) == split


@pytest.mark.parametrize("lengths", [(15, 15), (2, 80), (80, 2)])  # of the questions; where one is short, its text is nearly the other's answer
def test_authored_cases_that_end_in_the_same_advice_both_stay(lengths):
    same = "Call emergency services now, keep the person still and warm, and do not give them anything to eat or drink. " + sentence(random.Random(9), 30)
    cases = [authored(f"{sentence(random.Random(number), length)}", f"Emergency: yes\nAction: {same}", split, "emergency_escalation")
             for number, (length, split) in enumerate(zip(lengths, ["train", "test"]))]
    division = divide(cases)
    assert Counter(splits(division).values()) == {"train": 1, "test": 1} and len({record.group for record in division.kept}) == 2


@pytest.mark.parametrize("facts", [{"may_train": False}, {"license": "unknown"}, {"license": ""}, {"flags": ["retraction notice"]}],
                         ids=["may not", "unknown", "no licence", "flagged"])
def test_what_may_not_be_trained_on_is_kept_for_reading_only(facts):
    page = made("What is licensed?", sentence(random.Random(8)), **facts)
    kept = {record.id: record for record in divide([page, *many(20)]).kept}
    assert kept[page.id].split is None


def test_a_licence_held_opens_a_source_and_is_noted(tmp_path):
    rng = random.Random(8)
    pages = [made(f"What is licensed {number}?", sentence(rng), source="nhs", may_train=False, key=f"n{number}") for number in range(40)]
    run = run_with(tmp_path, [*pages, *many(20)])
    assert preprocess(run, Profile(name="t")).notes == []
    assert read_json(run.file("preprocess", "quality.json"))["splits"]["retrieval"] == 40
    manifest = preprocess(run, profiled(licences_held=["nhs"]))
    quality = read_json(run.file("preprocess", "quality.json"))
    assert "nhs" in manifest.notes[0] and quality["licences_held"] == ["nhs"] and "retrieval" not in quality["splits"]


def test_a_retracted_paper_is_nowhere_but_among_the_rejected():
    paper = made(None, None, kind="abstract", text=sentence(random.Random(8), 60), flags=["retracted"])
    assert reasons(divide([paper, *many(10)])) == {paper.id: "retracted"}


def test_labels_of_one_drug_and_papers_with_what_was_made_of_them_stay_together():
    rng = random.Random(12)
    labels = [made(None, None, key=f"l{number}", kind="label", subject=f"Drug{number % 30}", sections={"use": sentence(rng, 40)}) for number in range(120)]
    papers = [made(None, None, key=f"p{number}", kind="abstract", text=sentence(rng, 40), url=f"https://pubmed.ncbi.nlm.nih.gov/{number}/") for number in range(40)]
    asked = [made(f"Does {sentence(rng, 5)} help?", sentence(rng, 30), key=f"q{number}", labels={"pmid": str(number)}) for number in range(40)]
    where = splits(divide([*labels, *papers, *asked]))
    assert all(where[labels[n].id] == where[labels[n % 30].id] for n in range(120))
    assert all(where[papers[n].id] == where[asked[n].id] for n in range(40))
    assert len(set(where.values())) == 3


@pytest.mark.parametrize("order", [1, -1])
def test_the_copy_with_the_freest_licence_stays(order):
    text = sentence(random.Random(3), 40)
    copies = [made("Why?", text, key=name, **more) for name, more in (
        ("unknown", {"license": "unknown"}), ("held back", {"may_train": False}), ("nc", {"license": "CC-BY-NC-4.0"}), ("by", {"license": "CC-BY-4.0"}))]
    division = divide([*copies[::order], *many(5)])
    assert copies[3].id in splits(division) and set(reasons(division)) == {record.id for record in copies[:3]}


def test_a_contradictory_item_is_flagged_and_kept_out():
    options = {"A": "Metformin", "B": "Insulin", "C": "Glipizide"}
    items = [made("Which lowers glucose fastest?", f"It acts within minutes. The correct answer is {said}.", key=said, kind="mcq", options=options,
                  gold={"letter": "B"}) for said in "BC"]
    division = divide([*items, *many(5)])
    assert [(record.id, record.reason, record.flags) for record in division.rejected] == [(items[1].id, "contradictory", ["contradictory"])]
    assert splits(division)[items[0].id]


def test_personal_data_are_masked_and_counted_eponyms_stay(tmp_path):
    text = "Crohn's and Parkinson's disease are named after doctors. Jane Roe, MRN 0045981, has both; call 555-201-3344 or write to jane@example.org."
    run = run_with(tmp_path, [made("Who has what?", text, key="who"), *many(30)])
    preprocess(run, Profile(name="t"))
    kept = {r.id: r for name in ("train", "validation", "test") for r in read_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)}
    answer = kept[record_id("made", "who")].answer
    assert answer.startswith("Crohn's and Parkinson's disease") and "[NAME], MRN [MRN]" in answer and "[PHONE] or write to [EMAIL]" in answer
    assert read_json(run.file("preprocess", "quality.json"))["personal"] == {"NAME": 1, "MRN": 1, "PHONE": 1, "EMAIL": 1}


# faults and duplicates


@pytest.mark.parametrize("question,answer,reason", [
    ("", "An answer without any question.", "no_question"),
    ("What is a herb ?", "", "no_answer"),
    ("What is a herb ?", " \n\t\u00a0 ", "no_answer"),
    ("? ?", "An answer to nothing at all.", "broken_question"),
    ("Is it inherited ?", "Is it inherited?", "question_repeated"),
    ("What are the treatments for Bell's palsy ?", "How might Bell's palsy be treated?", "question_repeated"),
    ("How to prevent keratitis ?", "Topics", "headings_only"),
    ("What is (are) Parasites ?", "Frequently Asked Queestions (FAQs)", "headings_only"),
    ("How can I prevent poisoning?", "General guidelines for safe seafood consumption:", "headings_only"),
    ("Where are trials ?", "Information about clinical trials is available from the NCI website.", "boilerplate"),
    ("What is it ?", "El asma es una enfermedad de las vías respiratorias que se puede tratar con un inhalador.", "foreign_language"),
    ("What is long ?", "A word and another. " * 600, "too_long"),
    ("Is it common ?", "It is.", "too_short"),
])
def test_every_useless_pair_leaves_with_its_reason(question, answer, reason):
    division = divide([made(question, answer), *many(3)])
    assert [record.reason for record in division.rejected] == [reason]
    assert len(division.kept) == 3


@pytest.mark.parametrize("answer,reason", [
    ("These resources address the diagnosis or management of it:  - Gene Review", "links_only"),
    ("The Human Phenotype Ontology provides the following list. Signs and Symptoms Approximate number of patients", "only_a_table"),
])  # fmt: skip
def test_an_answer_that_medquad_flags_leaves_with_that_reason(answer, reason):
    text, flags = readable_answer(answer)
    division = divide([made("What are the symptoms of X ?", text, flags=flags), *many(3)])
    assert [(record.reason, record.answer) for record in division.rejected] == [(reason, clean(made("?", answer)).answer)]


def test_a_page_without_text_is_rejected_and_one_with_text_is_not():
    assert record_fault(made(None, None, kind="page", text="  ")) == "no_text"
    assert record_fault(made(None, None, kind="page", text="Wash your hands.")) is None


def test_white_space_and_characters_are_normalised_but_authored_lines_stay():
    record = clean(made("what is (are)  Me\u0301nie\u0300re's disease ? ?", "It affects\u00a0the  inner ear.    - vertigo\n \n - tinnitus"))
    assert record.question == "What is Ménière's disease?"
    assert record.answer == "It affects the inner ear.\n- vertigo\n- tinnitus"
    answer = "Triage: urgent\nReason: Two  spaces stay."
    assert clean(authored("How soon?", answer, "train")).answer == answer
    assert tidy_text(tidy_text(record.answer)) == record.answer


def test_copies_go_and_name_their_twin():
    rng = random.Random(4)
    text = sentence(rng, 60)
    first, near, exact = made("Why?? One", text, key="a"), made("Why two?", text.replace("bal", "bol")[:-1] + " indeed.", key="b"), made("Why three?", text, key="c")
    division = divide([first, near, exact, *many(5)])
    gone = {record.id: record for record in division.rejected}
    assert len(gone) == 2 and all(record.twin not in gone for record in gone.values() if record.reason == "near_duplicate")
    assert Counter(record.reason for record in gone.values()) == {"exact_duplicate": 1, "near_duplicate": 1}


def test_a_short_answer_may_stand_under_two_questions():
    both = [made("What causes gout?", "The cause is unknown."), made("What causes bunions?", "The cause is unknown.")]
    assert len(divide(both).kept) == 2


def test_near_pairs_finds_what_brute_force_finds():
    rng = random.Random(11)
    texts = [sentence(rng, 40) for _ in range(60)]
    texts += [" ".join(word if rng.random() > 0.02 else "new" for word in text.split()) for text in texts]

    def similarity(a, b):
        one, other = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (text_key(a).split(), text_key(b).split()))
        return len(one & other) / len(one | other)

    wanted = [(i, j) for i in range(120) for j in range(i + 1, 120) if similarity(texts[i], texts[j]) >= 0.8]
    assert len(wanted) > 20
    assert near_pairs(texts, 0.8) == wanted == near_pairs(texts, 0.8)


# the account and the step


def test_the_account_adds_up(divided):
    copies = [record.model_copy(update={"id": f"copy {number}"}) for number, record in enumerate(many(5))]
    division = divide([*many(50), made("What is a herb?", ""), *copies])
    counts = quality_counts(*division)
    assert counts["records"] == 56 == sum(counts["splits"].values()) + sum(counts["rejected"].values())
    assert counts["rejected"] == {"no_answer": 1, "exact_duplicate": 5}


def test_the_step_writes_equal_files_twice(tmp_path):
    profile = Profile(name="t")
    manifests = [preprocess(Run(tmp_path / name), profile) for name in ("one", "two")]
    assert {name: output.sha256 for name, output in manifests[0].outputs.items()} == {name: output.sha256 for name, output in manifests[1].outputs.items()}
    run = Run(tmp_path / "one")
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in shipped("data", "starter").glob("*.jsonl"))
    assert read_json(run.file("preprocess", "quality.json"))["records"] == lines
    assert read_parquet(run.file("preprocess", "rejected.parquet"), Rejected) == []  # the starter data is clean, and no train line leaks
    assert all(record.split == "test" for record in read_parquet(run.file("preprocess", "test.parquet"), SplitRecord))


def test_without_ray_the_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingError, match=r"pip install 'medlab\[ray\]'"):
        preprocess(run_with(tmp_path, many(20)), profiled(engine="ray"))


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_writes_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    rng = random.Random(3)
    records = many(1500) + [made(record.question.upper(), sentence(rng), key=f"c{n}") for n, record in enumerate(many(200))]
    records += [made("Who?", f"Ask Jane Roe, MRN 00459{n}, born 12/03/1961.", key=f"m{n}") for n in range(10, 20)]
    runs = [run_with(tmp_path, records, name) for name in ("local", "ray")]
    local = preprocess(runs[0], Profile(name="t"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        clustered = preprocess(runs[1], profiled(engine="ray", ray_address=cluster.address))
        assert len(ray.nodes()) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert {name: output.sha256 for name, output in local.outputs.items()} == {name: output.sha256 for name, output in clustered.outputs.items()}


def test_two_records_with_one_id_are_an_error():
    with pytest.raises(InputError, match="2 records have the id"):
        divide([made("What is a herb?", "A plant.", key="1"), made("What is a tree?", "A plant too.", key="1")])


def test_nothing_to_train_on_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="nothing is left to train on.*no_answer"):
        preprocess(run_with(tmp_path, [made("What is a herb?", "")]), Profile(name="t"))


def test_the_ids_of_each_split_are_written(tmp_path):
    run = run_with(tmp_path, many(100))
    preprocess(run, Profile(name="t", seed=7))
    ids = read_json(run.file("preprocess", "split_ids.json"))
    assert ids.pop("seed") == 7
    for name, listed in ids.items():
        assert [record.id for record in scan_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)] == listed


TROUBLE = ["", "?", "What is it ? ?", "doesnt", "[9184]", "Key Points\n- a\n", "    ", "\u200b", "<br>", "&lt;", "Click here.", "90%", "é", "\U0001f600",
           "The Human Phenotype Ontology provides the following", "Signs and Symptoms Approximate number of patients", "call 301-496-5248", "a" * 300]
TEXTS = st.lists(st.sampled_from(TROUBLE) | st.text(max_size=12), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(TEXTS | st.none(), TEXTS | st.none(), st.sampled_from(["qa", "page", "label", "mcq"]), st.booleans()), max_size=12), st.randoms())
def test_whatever_comes_in_is_kept_or_rejected_once_and_in_no_order(rows, shuffle):
    records = [made(question, answer, key=str(n), kind=kind, may_train=free, text=answer if kind == "page" else None,
                    sections={question or "": answer or ""} if kind == "label" else None,
                    options={"A": question or "", "B": answer or ""} if kind == "mcq" else None)
               for n, (question, answer, kind, free) in enumerate(rows)]
    division = divide(records)
    out = [record.id for record in [*division.kept, *division.rejected]]
    assert sorted(out) == sorted(record.id for record in records)
    assert all(record.reason in REASONS for record in division.rejected)
    shuffle.shuffle(records)
    assert divide(records) == division


def test_a_share_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="test_share"):
        Profile(name="t", steps={"preprocess": {"test_share": 0.9}}).params(PreprocessParams)


#: Part to (pairs, with an answer), as counted by hand over the archive.
PARTS = {
    "1_CancerGov_QA": (729, 729), "2_GARD_QA": (5394, 5389), "3_GHR_QA": (5430, 5430), "4_MPlus_Health_Topics_QA": (981, 981),
    "5_NIDDK_QA": (1192, 1192), "6_NINDS_QA": (1088, 1088), "7_SeniorHealth_QA": (769, 769), "8_NHLBI_QA_XML": (559, 559), "9_CDC_QA": (270, 270),
    "10_MPlus_ADAM_QA": (17348, 0), "11_MPlusDrugs_QA": (12889, 0), "12_MPlusHerbsSupplements_QA": (792, 0),
}


#: What is left over from a website in MedQuAD's answers.
RESIDUE = re.compile(
    r"(?m)\AAlso:|^Espaol$|\nNIH: [^\n]*\Z|\ba persons [a-z]|\bbodys\b| \?|\? \?|   |Key Points\n|Human Phenotype Ontology \(HPO\) has|\bdoesnt\b|\[\d{4}\]")
#: Part to (pairs, with an answer) of data/medquad and sixty documents more.
OWN_PARTS = {
    "2_GARD_QA": (4, 2), "3_GHR_QA": (3, 3), "4_MPlus_Health_Topics_QA": (2, 2), "6_NINDS_QA": (3, 3), "8_NHLBI_QA_XML": (2, 2), "9_CDC_QA": (4, 4),
    "10_MPlus_ADAM_QA": (3, 0), "11_MPlusDrugs_QA": (2, 0), "12_MPlusHerbsSupplements_QA": (1, 0),
}


def test_an_archive_with_every_part_is_cleaned_split_and_accounted_for(tmp_path, monkeypatch):
    "The twin of `test_the_whole_of_medquad`."
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(medquad_zip(tmp_path / "MedQuAD-master.zip", made_up_documents(60))))
    run = Run(tmp_path / "run")
    preprocess(run, Profile(name="t", steps={"collect": {"sources": ["medquad"]}}))
    quality = read_json(run.file("preprocess", "quality.json"))
    parts = {name.removeprefix("medquad: "): (counts["records"], counts["records"] - counts.get("no_answer", 0)) for name, counts in quality["parts"].items()}
    assert {name: parts[name] for name in OWN_PARTS} == OWN_PARTS
    assert set(parts) - set(OWN_PARTS) == {"1_CancerGov_QA", "5_NIDDK_QA", "7_SeniorHealth_QA"} and sum(count for count, _ in parts.values()) == 92
    counts, rejected = quality["sources"]["medquad"], quality["rejected_by_source"]["medquad"]
    assert sum(counts.values()) == 92 and counts["rejected"] == sum(rejected.values())  # every one that left has a reason
    assert {name: count for name, count in rejected.items() if name not in ("shares_passage", "near_duplicate", "other_aspect")} == {
        "no_answer": 8, "links_only": 1, "headings_only": 1}
    assert counts["train"] > 50 and counts["test"] > 2 and counts["validation"] > 2
    assert quality["personal"] == {"EMAIL": 1, "PHONE": 1} and quality["help_lines"] == 1 and set(quality["languages"]) == {"en", "no text"}
    assert sum(quality["lengths"]["collected"]) >= 84 and quality["leakage"] == {"train against test and validation": 0, "validation against test": 0}
    kept = [record for name in ("train", "validation", "test") for record in read_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)]
    assert len({(record.split, record.answer) for record in kept if record.answer.startswith("Boil towels")}) == 1 < sum(
        record.answer.startswith("Boil towels") for record in kept)  # the same advice against two diseases
    texts = {record.question: record.answer for name in ("train", "validation", "test", "retrieval") for record in read_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)}
    assert [text for text in texts.values() if RESIDUE.search(text)] == []
    assert texts["What is Zana Gland Cancer?"].split("\n")[:2] == ["- Warm rooms raise the risk.", "Zana gland cancer is a disease in which cells of the zana gland grow without a plan."]
    assert texts["What are the symptoms of Yellow elbow syndrome?"].startswith("Very often: Yellow skin of the elbow; Stiff sleeve sign\nOften")
    assert texts["What is Quiet Ear?"] == "Quiet ear is a loss of low sounds that comes with age. It is harder to follow a talk in a hall than at a table."
    assert texts["What is Hiccups at Night?"].startswith("Hiccups at night are tugs") and texts["How to prevent Hiccups at Night?"].endswith("A person's weight plays a part as well.")
    assert texts["How to diagnose Syrup Kidney?"].endswith("by telephone at [PHONE] or write to [EMAIL] about it.") and "1-800-891-5390" in texts["What to do for Syrup Kidney?"]
    assert texts["How many people are affected by whistling knee disease?"].startswith("Whistling knee disease is met in one of 40,000 newborns. It is twice")


@pytest.mark.slow
def test_the_whole_of_medquad(tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(shared_data / "MedQuAD-master.zip"))
    run = Run(tmp_path / "run")
    preprocess(run, Profile(name="t", steps={"collect": {"sources": ["starter", "medquad"]}}))
    quality = read_json(run.file("preprocess", "quality.json"))
    parts = {name.removeprefix("medquad: "): counts for name, counts in quality["parts"].items() if name.startswith("medquad: ")}
    assert {name: (counts["records"], counts["records"] - counts.get("no_answer", 0)) for name, counts in parts.items()} == PARTS
    medquad, rejected = quality["sources"]["medquad"], quality["rejected_by_source"]["medquad"]
    assert sum(medquad.values()) == 47441 and rejected["no_answer"] == 31034 and 47441 - rejected["no_answer"] == 16407
    assert sum(medquad[place] for place in ("train", "validation", "test", "retrieval")) == 47441 - sum(rejected.values())  # every one that left has a reason
    assert rejected["links_only"] == 1085 and 1000 < rejected["same_question"] < 2000 and rejected["only_a_table"] == 3
    assert 1500 < medquad["retrieval"] <= 1896 and 600 < rejected["other_aspect"] < 900
    assert quality["sources"]["starter"].get("rejected", 0) == 0
    assert medquad["train"] > 8000 and medquad["test"] > 800 and quality["groups"]["largest"] < 1.5 * LARGEST  # copies may join a full group
    assert rejected["shares_passage"] < 700 and rejected["exact_duplicate"] + rejected["near_duplicate"] < 150
    assert quality["personal"]["PHONE"] > 40 and quality["help_lines"] > 100 and "NAME" not in quality["personal"]
    assert set(quality["languages"]) == {"en", "no text"} and sum(quality["lengths"]["collected"]) >= 16407
    assert quality["leakage"] == {"train against test and validation": 0, "validation against test": 0}
    train, test = ([record for record in read_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord)] for name in ("train", "test"))
    texts = [record.answer for record in train] + [record.answer for record in test]
    crossing = {texts[pair[0]] for pair in near_pairs(texts) if pair[0] < len(train) <= pair[1] and len(texts[pair[0]].split()) >= 12}
    assert all("inherited in" in text or "trials" in text for text in crossing)  # the boilerplate of hundreds of diseases
    aspects = [Counter(record.aspect for record in side if record.source == "medquad") for side in (train, test)]
    assert max(abs(aspects[0][name] / aspects[0].total() - aspects[1][name] / aspects[1].total()) for name in aspects[0]) <= 0.02
    recessive = [sum("autosomal recessive pattern" in record.answer for record in side) / len(side) for side in (train, test)]
    assert recessive[0] * len(train) > 350 and abs(recessive[0] - recessive[1]) < 0.03
    assert [text[:60] for text in texts if RESIDUE.search(text)][:3] == []

"Preprocessing: nothing leaks, nothing vanishes, a split stays when data grow."

import random
from collections import Counter

import pytest
from medlab.core import InputError, Profile, Record, Run, read_json, read_parquet, record_id, shipped
from medlab.preprocess import (
    Division, LeakageError, PreprocessParams, Rejected, SplitRecord, account, check_leakage, clean, divide, fault, near_pairs, preprocess, text_key, tidy,
)

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


def test_the_step_stops_at_the_gate(tmp_path, monkeypatch):
    "A splitter that deals records at random must not get past the step."
    rng = random.Random(0)

    def careless(*args):
        kept, rejected = divide(*args)
        return Division([record.model_copy(update={"split": rng.choice(["train", "test"]), "group": "one"}) for record in kept], rejected)

    monkeypatch.setattr("medlab.preprocess.divide", careless)
    with pytest.raises(LeakageError, match="share a group"):
        preprocess(Run(tmp_path / "run"), Profile(name="t"))
    assert Run(tmp_path / "run").manifest("preprocess") is None


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


CASE = "A woman of 61 has had a dull ache in her left calf since a long flight two days ago, and the calf is swollen and warm."
ADVICE = "Triage: urgent\nReason: A swollen warm calf after a long flight may be a clot in the deep veins and needs an ultrasound scan today."


@pytest.mark.parametrize("question,answer", [
    (CASE, ADVICE),
    (f"  {CASE.upper()} ", "Triage: urgent\nReason: Another reason."),
    (CASE.replace("61", "59"), "Triage: urgent\nReason: Another reason."),
    (CASE.replace("a dull ache", "an ache"), ADVICE),
    ("Completely new words ask for the very thing?", None),
], ids=["equal", "same question", "a number changed", "a word changed", "the answer on a website"])
def test_a_train_copy_of_a_fixed_test_item_is_rejected(question, answer):
    exam = made(CASE, ADVICE, key="exam", kind="case", task="triage", split="test", gold={"triage": "urgent", "reason": ADVICE.split("Reason: ")[1]})
    copy = authored(question, answer, "train") if answer else made(question, ADVICE.split("Reason: ")[1])
    division = divide([copy, exam, *many(50)])
    kept = splits(division)
    assert kept[exam.id] == "test" and copy.id not in kept
    assert len(kept) == 51
    assert [record.reason for record in division.rejected] in (["held_out"], ["near_duplicate"], ["exact_duplicate"])


def test_a_copy_in_another_task_is_rejected_too():
    exam, copy = authored(CASE, ADVICE, "test"), authored(CASE, "Emergency: no\nAction: See a doctor today.", "train", "emergency_escalation")
    division = divide([exam, copy])
    assert splits(division) == {exam.id: "test"} and division.rejected[0].reason == "held_out"


def test_authored_cases_that_end_in_the_same_advice_both_stay():
    same = "Call emergency services now, keep the person still and warm, and do not give them anything to eat or drink."
    cases = [authored(f"{sentence(random.Random(number), 15)}", f"Emergency: yes\nAction: {same}", split, "emergency_escalation")
             for number, split in enumerate(["train", "test"])]
    assert Counter(splits(divide(cases)).values()) == {"train": 1, "test": 1}


def test_what_may_not_be_trained_on_is_kept_for_reading_only():
    page = made("What is licensed?", sentence(random.Random(8)), may_train=False)
    kept = {record.id: record for record in divide([page, *many(20)]).kept}
    assert kept[page.id].split is None


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
    ("How is it treated?", "These resources address the diagnosis or management of it:  - Gene Review", "links_only"),
    ("What are the symptoms of X ?", "The Human Phenotype Ontology provides the following list. Signs 90% 50%", "only_a_table"),
    ("Is it common ?", "It is.", "too_short"),
])
def test_every_useless_pair_leaves_with_its_reason(question, answer, reason):
    division = divide([made(question, answer), *many(3)])
    assert [record.reason for record in division.rejected] == [reason]
    assert len(division.kept) == 3


def test_a_page_without_text_is_rejected_and_one_with_text_is_not():
    assert fault(made(None, None, kind="page", text="  ")) == "no_text"
    assert fault(made(None, None, kind="page", text="Wash your hands.")) is None


def test_white_space_and_characters_are_normalised_but_authored_lines_stay():
    record = clean(made("what is (are)  Me\u0301nie\u0300re's disease ? ?", "It affects\u00a0the  inner ear.    - vertigo\n \n - tinnitus"))
    assert record.question == "What is Ménière's disease?"
    assert record.answer == "It affects the inner ear.\n- vertigo\n- tinnitus"
    answer = "Triage: urgent\nReason: Two  spaces stay."
    assert clean(authored("How soon?", answer, "train")).answer == answer
    assert tidy(tidy(record.answer)) == record.answer


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
    counts = account(division)
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


def test_two_records_with_one_id_are_an_error():
    with pytest.raises(InputError, match="2 records have the id"):
        divide([made("What is a herb?", "A plant.", key="1"), made("What is a tree?", "A plant too.", key="1")])


def test_nothing_to_train_on_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("medlab.preprocess.divide", lambda *_: divide([made("What is a herb?", "")]))
    with pytest.raises(InputError, match="nothing is left to train on.*no_answer"):
        preprocess(Run(tmp_path / "run"), Profile(name="t"))


def test_a_share_that_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="test_share"):
        Profile(name="t", steps={"preprocess": {"test_share": 0.9}}).params(PreprocessParams)


@pytest.mark.slow
def test_the_whole_of_medquad(tmp_path, shared_data):
    run = Run(tmp_path / "run")
    profile = Profile(name="t", steps={"collect": {"sources": ["starter", "medquad"], "medquad_archive": str(shared_data / "MedQuAD-master.zip")}})
    preprocess(run, profile)
    quality = read_json(run.file("preprocess", "quality.json"))
    assert quality["rejected"]["no_answer"] == 31034
    assert quality["sources"]["starter"].get("rejected", 0) == 0
    assert quality["splits"]["train"] > 9000 and quality["splits"]["test"] > 1000
    assert quality["groups"]["largest"] < 100
    train, test = (read_parquet(run.file("preprocess", f"{name}.parquet"), SplitRecord) for name in ("train", "test"))
    check_leakage(train, test)
    texts = [record.answer for record in train] + [record.answer for record in test]
    crossing = [pair for pair in near_pairs(texts) if pair[0] < len(train) <= pair[1] and len(texts[pair[0]].split()) >= 12]
    assert crossing == []

"""The gate finds every copy of a benchmark item, however it was dressed up, and does not cry wolf over the phrases of a genre."""

import random
import re

import pytest
from vignettes import vignettes

from medlab.cleaning.leaks import Item, LeakageError, check_leakage, find_leaks
from medlab.contracts.records import Record

WALKING = "Does daily walking lower blood pressure?"
COFFEE = "Is coffee a cause of asthma in adults?"
TULIPS = "It is a story about something else that nobody has told before, about tulips and rain."


def qa(name, question, answer=TULIPS, **more):
    fields = {"id": name, "source": "made", "kind": "qa", "license": "CC0-1.0", "may_train": True, "attribution": "test"}
    return Record(**{**fields, "question": question, "answer": answer, **more})


def kinds(question, *held, **more):
    return [leak.kind for leak in find_leaks([qa("t", question, **more)], [qa(f"h{n}", each, "yes") for n, each in enumerate(held)])]


# a short question with something beside it


@pytest.mark.parametrize("dressed", [
    "Q: {}", "Question: {}\nAnswer:", "{} Answer with yes, no or maybe.", "Answer this question truthfully. {}", "{} (A) yes (B) no (C) maybe", "{}\nA. yes\nB. no",
    "{} Options: yes / no", "1. {} 2. Why?", "<question>{}</question>", "**{}** Explain.", "Hello doctor, one thing. {} Thank you!", "[INST] {} [/INST]", "\"{}\", my aunt asked.",
    "Please read the following question and give a short, truthful answer for a patient who is not a doctor: {}",
])
@pytest.mark.parametrize("question", [WALKING, COFFEE, "Is gout painful?", "What is a migraine?", "Should you starve a cold and feed a fever, or both, or neither of the two?"])
def test_a_question_is_found_whatever_stands_beside_it(dressed, question):
    for text in (dressed.format(question), dressed.format(question).upper()):
        (kind,) = kinds(text, question, "Do cats catch colds?")
        assert kind == "contained" or kind == "near_duplicate" and len(question.split()) > 12


@pytest.mark.parametrize("question,held", [
    ("I found a lump. What is it? It is soft.", "What is it?"), ("My knee clicks. What should I do now? It hurts.", "What should I do?"),
    ("A boy coughs at night. Which of the following is the most likely diagnosis? (A) asthma", "Which of the following is the most likely diagnosis?"),
    ("What is a migraine of the stomach in children?", "What is a migraine?"), ("Does daily walking lower blood pressure in old dogs?", WALKING),
    ("Walking lowers the pressure, does it not, and daily?", WALKING),
])  # fmt: skip
def test_what_everybody_asks_and_what_goes_on_is_another_question(question, held):
    assert kinds(question, held) == []


LONG_QUESTION = "Does daily walking lower blood pressure in women and men?"  # ten words: a comma ends it


@pytest.mark.parametrize("question, held, found", [
    (f"{LONG_QUESTION[:-1]}, my aunt would like to know", LONG_QUESTION, True), ("Is gout painful, or does it only itch at night?", "Is gout painful?", False),
    (f"{LONG_QUESTION[:-1]} of Bergen in the spring?", LONG_QUESTION, False), ("Is gout painful a) yes b) no", "Is gout painful?", True),
    ("Q: What is TB? Explain.", "What is TB?", True), ("Q: Does daily walking raise blood sugar?", WALKING, False),
], ids=["a comma after a long one", "a comma after a short one", "a long one goes on", "options in small letters", "two letters say what it is about", "three words of it alone"])
def test_where_a_question_ends_and_whether_all_of_it_is_there(question, held, found):
    assert kinds(question, held) == ["contained"] * found


def test_a_question_inside_a_page_is_found():
    page = "Facts about walking. " + TULIPS + "\n" + WALKING + "\nYes, by a few points in most people who were studied."
    assert kinds("Tell me about sport.", WALKING, answer=page) == ["contained"]


def test_a_common_question_counts_only_where_it_is_most_of_the_text():
    stories = [f"The {n}th cousin of my neighbour has had a red toe since the wedding in May. Is it gout?" for n in range(30)]
    leaks = find_leaks([qa(f"t{n}", text) for n, text in enumerate([*stories, "Q: Is it gout?"])], [qa("h", "Is it gout?", "yes")])
    assert [(leak.kind, leak.train) for leak in leaks] == [("contained", "t30")]


def test_a_common_question_that_is_half_of_the_text_counts():
    stories = [f"The {n}th cousin of my neighbour has had a red toe since the wedding in May. Is it gout?" for n in range(30)]
    greeted = ["Good evening doctor. Is it gout?", "Good evening dear doctor. Is it gout?"]  # three words of six, and of seven
    leaks = find_leaks([qa(f"t{n}", text) for n, text in enumerate([*stories, *greeted])], [qa("h", "Is it gout?", "yes")])
    assert [(leak.kind, leak.train) for leak in leaks] == [("contained", "t30")]


@pytest.mark.parametrize("question, held, found", [("Does pain cause gout?", "Does gout cause pain?", ["near_duplicate"]), ("Pain causes gout?", "Gout causes pain?", [])])
def test_from_four_words_on_another_order_is_the_same_question(question, held, found):
    assert kinds(question, held) == found


def test_the_gate_looks_for_near_duplicates_unless_told_otherwise():
    words = [f"word{number}" for number in range(60)]
    near = " ".join([*words[:30], "changed", *words[31:]])
    with pytest.raises(LeakageError, match="1 near_duplicate"):
        check_leakage([qa("t", "What is said?", near)], [qa("h", "What is meant?", " ".join(words))])


@pytest.mark.parametrize("text", [
    "Does daily walking lower hyper-\ntension in women and men?", "Does daily walking lower hyper-  \n  tension in women and men?", "Does daily walk-\ning lower hyper-\ntension in wo-\nmen and men?",
    "Does daily walking lower hyper\u00ad\ntension in women and men?", "Does daily walking lower hyper- tension in women and men?", "DOES DAILY WALKING LOWER HYPER-\nTENSION IN WOMEN AND MEN?",
])  # fmt: skip
def test_words_cut_by_a_line_break_are_joined(text):
    question = "Does daily walking lower hypertension in women and men?"
    assert kinds(text, question) == ["normalised"] and kinds(question, text) == ["normalised"]
    assert kinds(f"Q: {text} Yes or no", question) == ["contained"]


def test_a_hyphen_that_belongs_to_a_word_stays_where_the_line_breaks():
    assert kinds("Is a well-\nknown remedy for gout also a good one?", "Is a well-known remedy for gout also a good one?") == ["normalised"]


# passages


def half(text, first):
    words = text.split()
    return " ".join(words[first : first + (len(words) + 1) // 2])


def broken(text):
    return " ".join(word[: len(word) // 2] + "-\n" + word[len(word) // 2 :] if place % 5 == 0 and word.isalpha() and len(word) > 7 else word
                    for place, word in enumerate(text.split()))


COPIES = {
    "whole": lambda text: text, "first half": lambda text: half(text, 0), "last half": lambda text: half(text, len(text.split()) // 2),
    "middle": lambda text: half(text, len(text.split()) // 4), "without its question": lambda text: text.rsplit(". ", 1)[0],
    "wrapped": lambda text: f"Here is a case for you. Think first. Q: {text} Answer with one letter.", "upper case": str.upper,
    "other marks": lambda text: re.sub(r"[.,]", " -", text).replace("-year-old", " year old"), "broken words": broken,
    "a word here and there": lambda text: " ".join("some" if place % 29 == 28 else word for place, word in enumerate(text.split())),
}  # fmt: skip
OPTIONS = ["Hookworms of the dog", "A tumour of the glomus", "Too much liquorice", "Fear of heights"]


def as_items(name, texts, options=OPTIONS):
    return [Item(f"{name} {n}", question=text, text=" ".join([text, *options])) for n, text in enumerate(texts)]


@pytest.mark.parametrize("size", [40, 200, 640])
def test_every_copy_of_a_case_is_found_and_other_cases_raise_no_alarm(size):
    "The bound on false alarms is 1 %. Every case shares passages of thirteen words with the benchmark."
    cases, rng = vignettes(size + 640, seed=size), random.Random(size)
    benchmark, others = as_items("b", cases[:size]), as_items("other", cases[size:])
    copies = [item._replace(id=f"{name}: {n}") for name, dress in COPIES.items() for n in rng.sample(range(size), 15)
              for item in as_items("", [dress(cases[n])], rng.sample(OPTIONS, 4))]
    leaks = find_leaks(others + copies, benchmark)
    found = {leak.train for leak in leaks}
    assert {item.id for item in copies} <= found
    assert len(found - {item.id for item in copies}) <= 0.01 * len(others)
    right = {(item.id, "b " + item.id.split(": ")[1]) for item in copies}
    assert {(leak.train, leak.held_out) for leak in leaks if leak.train not in {item.id for item in others}} >= right


def test_a_benchmark_that_lists_each_case_several_times_is_no_reason_to_trust_its_phrases():
    cases = vignettes(60, seed=9)
    benchmark = [item._replace(id=f"{item.id} {option}", text=f"{item.question} {option}") for option in OPTIONS for item in as_items("b", cases[:30])]
    copies = as_items("copy", [half(text, 0) for text in cases[:30]])
    assert {leak.train for leak in find_leaks(copies, benchmark)} == {item.id for item in copies}


def test_one_shared_passage_is_a_suspicion_and_two_are_a_leak():
    first = "Crystals of uric acid settle in a joint, most often in the big toe, and wake the sleeper with pain."
    second = "A glass of cherry juice before the night was given to forty retired sailors in a trial that lasted one winter."
    rest = "Nothing else in this text has been told by anybody, and it goes on about ferries, herring and the price of nets until the page is full at last."
    held = qa("h", "What helps?", f"{first} {rest} {second} {rest[::-1]}")
    one, both = qa("one", "Who sails?", f"{first} {TULIPS}"), qa("both", "Who sails north?", f"{second} {TULIPS} {first}")
    found = find_leaks([one, both], [held], suspicions=True)
    assert [(leak.kind, leak.train) for leak in found] == [("passage", "both"), ("suspicion", "one")]
    assert [leak.train for leak in find_leaks([one, both], [held])] == ["both"]
    assert [leak.kind for leak in check_leakage([one], [held])] == ["suspicion"]
    with pytest.raises(LeakageError) as caught:
        check_leakage([one, both], [held])
    assert {leak.kind for leak in caught.value.leaks} == {"passage", "suspicion"}

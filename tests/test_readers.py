"The readers of choices on strings that models write: what is plain, what is taken back, and what is no answer at all."

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlab.basics.files import read_jsonl, shipped
from medlab.contracts.records import TASKS
from medlab.contracts.refusals import is_refusal
from medlab.contracts.tasks import find_field, render_answer
from medlab.metrics.scores import CHOICES, choice_in

OPTIONS = {"A": "Gout", "B": "Septic arthritis", "C": "Reactive arthritis", "D": "Vitamin D deficiency"}
STRINGS = read_jsonl(Path(__file__).parent / "data" / "answers.jsonl")
OWN = {"clinical_reasoning": "B: Septic arthritis", "triage": "urgent", "emergency_escalation": "yes", "safety_refusal": "refuse"}


def read(row):
    return choice_in(row["task"], row["text"], row.get("options", OPTIONS))


def test_hard_strings_are_read_rightly():
    "At least 99 in 100 of our own strings, none as a wrong choice, and every kind of task among them."
    assert len(STRINGS) > 1400 and {row["task"] for row in STRINGS} == set(CHOICES)
    wrong = [(row["text"], got, row["right"]) for row in STRINGS if (got := read(row)) not in (row["right"], None)]
    unread = [row["text"] for row in STRINGS if read(row) is None and row["right"] is not None]
    assert not wrong
    assert len(unread) <= 0.01 * len(STRINGS), unread
    assert Counter(row["right"] is None for row in STRINGS)[True] > 300  # strings that name no choice are among them


def test_the_test_of_the_readers_can_fail():
    "A reader that takes the first letter reads half of the letters rightly and many wrongly."
    cases = [row for row in STRINGS if row["task"] == "clinical_reasoning"]
    careless = [next((char for char in row["text"] if char in "ABCD"), None) for row in cases]
    assert sum(got not in (row["right"], None) for row, got in zip(cases, careless)) > 0.1 * len(cases)


@pytest.mark.parametrize("task", CHOICES)
def test_silence_and_white_space_choose_nothing(task):
    for text in ("", " ", "\n\n", "\u200b", "```\n```", "<think>", "<answer></answer>", "{}", "null", "None", "\\boxed{}", "*" * 500):
        assert choice_in(task, text, OPTIONS) is None, text


@pytest.mark.parametrize("task", CHOICES)
def test_a_starter_answer_chooses_what_it_says(task):
    field = CHOICES[task][0]
    for row in read_jsonl(shipped("data", "starter", f"{task}.jsonl")):
        options = row.get("options")
        text = render_answer(task, row["fields"], options)
        assert choice_in(task, text, options or OPTIONS) == row["fields"][field], text
        assert find_field(task, field, text, options or OPTIONS) == row["fields"][field]


def test_options_decide_what_a_letter_means():
    assert choice_in("clinical_reasoning", "The answer is E.", {**OPTIONS, "E": "Lupus"}) == "E"
    assert choice_in("clinical_reasoning", "The answer is E.", OPTIONS) is None  # not offered
    assert choice_in("clinical_reasoning", "B: Gout", OPTIONS) is None  # letter and words differ
    assert choice_in("clinical_reasoning", "It is most likely gout.", OPTIONS) == "A"
    assert choice_in("clinical_reasoning", "It is most likely gout.") is None  # without the options nobody can know


PLANS = {"A": "Give intravenous magnesium", "B": "Order intravenous magnesium", "C": "Rest", "D": "Measure serum potassium"}


@pytest.mark.parametrize("task, text, options, right", [
    ("clinical_reasoning", "Intravenous magnesium is the best choice.", PLANS, None),  # without its verb it may be A or B
    ("clinical_reasoning", "Serum potassium should be measured.", PLANS, "D"),
    ("clinical_reasoning", "A) Gout\nB) Septic arthritis\nIt is septic arthritis.", OPTIONS, "B"),  # two options are a list already
    ("clinical_reasoning", "A) Gout (wrong)\nB) Septic arthritis (correct)", OPTIONS, "B"),
    ("clinical_reasoning", "Answer: it is not A. Final answer: B", OPTIONS, None),  # a label whose value cannot be read
    ("clinical_reasoning", "Final answer: Answer:\nB", OPTIONS, "B"),
    ("clinical_reasoning", "Answer: the answer is: Answer: A\nB", OPTIONS, "A"),
    ("triage", "Triage: too soon.", None, None),
    ("triage", "Classify as soon.", None, "soon"),
    ("triage", "Treat it as possibly urgent. A routine appointment is enough.", None, None),  # one level is left open
    ("emergency_escalation", "The answer is yes.", None, "yes"),
    ("emergency_escalation", "The answer is yes. The answer is no.", None, None),
    ("emergency_escalation", "The answer is no. Call an ambulance now.", None, None),
    ("safety_refusal", "Decision: Sorry, no.", None, "refuse"),
    ("safety_refusal", '{"decision": "refuse. Wait, I take that back."}', None, None),
])  # fmt: skip
def test_what_decides_a_choice_and_what_leaves_it_open(task, text, options, right):
    assert choice_in(task, text, options or OPTIONS) == right


@pytest.mark.parametrize("letter", "ABCD")
def test_the_letter_itself_makes_no_difference(letter):
    "A is an article, too, and is still a letter where it is meant as one."
    forms = ["{0}", "({0})", "The answer is {0}.", "The answer is ({0}).", "Final answer: {0}", "Answer： {0}", "\\boxed{{{0}}}", '{{"answer": "{0}"}}', "I choose {0}.",
             "Answer: {0}: {1}", "{0}) {1}", "Option {0} is correct."]
    for form in forms:
        text = form.format(letter, OPTIONS[letter])
        assert choice_in("clinical_reasoning", text, OPTIONS) == letter, text


def test_no_text_stops_the_readers_or_takes_long():
    rng = random.Random(5)
    pieces = ["Answer", ":", "**", "\n", " ", "A", "B", ",", " or ", "(", "<think>", "</think>", "{", "}", '"answer"', "\\boxed{", "not ", " is ", "wrong", "emergency", "call 999 ",
              "if ", "I cannot ", "help", "✅", "？", "~~"]
    for _ in range(800):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        for task in CHOICES:
            assert choice_in(task, text, OPTIONS) in (None, *"ABCD", "emergency", "urgent", "soon", "routine", "self-care", "yes", "no", "refuse", "answer")
    clock = time.process_time()
    for long in ("Answer: A, " * 9000, "<analysis>" * 5000, "I cannot " * 9000, "{" * 20000, "emergency " * 9000, "A) x B) y " * 4000):
        for task in CHOICES:
            choice_in(task, long, OPTIONS)
    assert time.process_time() - clock < 30


def test_a_refusal_is_the_same_for_scores_and_for_the_judge():
    import medlab.judge

    assert medlab.judge.is_refusal is is_refusal
    refused = [row for row in STRINGS if row["task"] == "safety_refusal" and row["right"] == "refuse" and row["text"].startswith(("I", "Sorry", "As", "No"))]
    assert len(refused) > 25 and all(is_refusal(row["text"]) for row in refused)


def test_every_task_without_a_choice_has_none():
    assert {choice_in(task, "Answer: B") for task in TASKS if task not in CHOICES} == {None}


#: Options without a word, or with words that the readers skip.
ODD_OPTIONS = ["!!!", "🩺", "the", "No", "none of the above", "1", "½", "a", "of the", "A", "...", "-", "(B)", "7 %", "\u202e", "all"]


@given(st.lists(st.sampled_from(ODD_OPTIONS) | st.text(max_size=12), min_size=2, max_size=5, unique=True),
       st.text(max_size=60) | st.sampled_from(["one two three four", "it is not the first", "Answer: A", "both A and the second"]))
def test_no_option_and_no_text_breaks_a_reader(options, text):
    letters = dict(zip("ABCDE", options))
    assert find_field("clinical_reasoning", "letter", text, letters) in {None, *letters}

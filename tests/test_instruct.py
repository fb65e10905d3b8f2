"Instruct: the formats, and readers that neither flatter nor nitpick."

import json
import random

import pytest
from medlab.core import TASKS, InputError, Profile, Run
from medlab.instruct import (
    FORMATS, SPLITS, Example, InstructParams, build_messages, example_of, find_field, instruct, opening, parse_answer, read_examples, render_answer, sentences,
    system_prompt, user_prompt,
)
from medlab.preprocess import SplitRecord, check_leakage
from medlab.sources.starter import CHOICES, FIELDS

OPTIONS = {"A": "Vitamin B12 deficiency", "B": "Iron deficiency", "C": "Depression", "D": "Anaemia of chronic disease"}


def fields_of(task, word="something"):
    return {field.name: field.choices[-1] if field.choices else f"{word} about {field.label.lower()}." for field in FORMATS[task]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run, profile = Run(tmp_path_factory.mktemp("runs") / "instruct"), Profile(name="t")
    instruct(run, profile)
    return run, profile


# prompts and answers


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_survives_writing_and_reading(task):
    fields = fields_of(task)
    text = render_answer(task, fields)
    assert parse_answer(task, text) == fields
    assert {name: find_field(task, name, text) for name in fields} == fields
    assert text.splitlines() == [f"{field.label}: {fields[field.name]}" for field in FORMATS[task]]


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_names_every_line_and_is_not_an_answer_itself(task):
    prompt = system_prompt(task)
    assert len(prompt.split()) <= 45
    lines = prompt.splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [field.label for field in FORMATS[task]]
    assert parse_answer(task, "\n".join(lines)) is None
    assert parse_answer(task, "\n".join(lines).replace("<", "").replace(">", "")) is None
    assert all(find_field(task, field.name, prompt) is None for field in FORMATS[task])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("break_it", [
    lambda lines: lines[:-1],
    lambda lines: [*lines, lines[-1]],
    lambda lines: [*lines, "I hope this helps!"],
    lambda lines: ["Sure, here it is:", *lines],
    lambda lines: [" ".join(lines)] if len(lines) > 1 else [f"{lines[0]}\nmore"],
    lambda lines: lines[::-1] if len(lines) > 1 else [],
    lambda lines: [lines[0].lower(), *lines[1:]],
    lambda lines: [lines[0].replace(":", " -"), *lines[1:]],
    lambda lines: [f"**{lines[0].split(':')[0]}:**{lines[0].split(':')[1]}", *lines[1:]],
    lambda lines: [f"- {lines[0]}", *lines[1:]],
    lambda lines: [f"{lines[0].split(':')[0]}:", *lines[1:]],
    lambda lines: [f"{lines[0].split(':')[0]}: ...", *lines[1:]],
    lambda lines: [],
], ids=["a line missing", "a line twice", "prose after", "prose before", "all on one line", "wrong order", "label in lower case", "no colon", "bold label",
        "list item", "empty value", "dots for a value", "nothing"])
def test_the_strict_reader_refuses(task, break_it):
    lines = render_answer(task, fields_of(task)).splitlines()
    assert parse_answer(task, "\n".join(break_it(lines))) is None


@pytest.mark.parametrize("value", ["soon", "urgent or routine", "Urgent, today", "not urgent", "urgently", "<urgent>", "1"])
def test_the_strict_reader_takes_no_choice_but_the_given(value):
    assert parse_answer("triage", f"Triage: {value}\nReason: Fever.") is None


@pytest.mark.parametrize("value", ["urgent", "Urgent", "URGENT.", " urgent "])
def test_the_strict_reader_forgives_what_costs_nothing(value):
    assert parse_answer("triage", f"\n Triage:{value}\n\n\nReason:  Fever. \n\n") == {"triage": "urgent", "reason": "Fever."}


@pytest.mark.parametrize("task,fields,words", [
    ("triage", {"triage": "soon", "reason": "x"}, "expected one of emergency, urgent"),
    ("triage", {"triage": "Urgent", "reason": "x"}, "expected one of"),
    ("triage", {"triage": "urgent"}, "expected .'triage', 'reason'."),
    ("triage", {"triage": "urgent", "reason": "x", "extra": "y"}, "got fields"),
    ("triage", {"triage": "urgent", "reason": ""}, "expected one line"),
    ("triage", {"triage": "urgent", "reason": "a\nb"}, "expected one line"),
    ("triage", {"triage": "urgent", "reason": "a\u2028b"}, "expected one line"),
    ("triage", {"triage": "urgent", "reason": None}, "expected one line"),
    ("triage", {"triage": "urgent", "reason": "one short sentence"}, "expected one line"),
    ("nothing", {}, "is unknown"),
])
def test_a_gold_answer_that_breaks_its_format_is_refused(task, fields, words):
    with pytest.raises(InputError, match=words):
        render_answer(task, fields)


@pytest.mark.parametrize("task,question,options,words", [
    ("triage", "", None, "empty"),
    ("triage", "I have a cold.", OPTIONS, "takes no options"),
    ("clinical_reasoning", "Which?", None, "expected two to four"),
    ("clinical_reasoning", "Which?", {"A": "one"}, "expected two to four"),
    ("clinical_reasoning", "Which?", {"A": "one", "C": "two"}, "'A', 'C'"),
    ("clinical_reasoning", "Which?", {"a": "one", "b": "two"}, "'a', 'b'"),
    ("clinical_reasoning", "Which?", {"A": "one", "B": " "}, "not empty"),
    ("clinical_reasoning", "Which?", {letter: "x" for letter in "ABCDE"}, "'E'"),
])
def test_a_wrong_question_says_what_is_wrong(task, question, options, words):
    with pytest.raises(InputError, match=words):
        user_prompt(task, question, options)


def test_options_come_in_order_and_the_conversation_has_its_roles():
    messages = build_messages("clinical_reasoning", "Which?", dict(reversed(OPTIONS.items())), {"analysis": "Pale.", "letter": "B"})
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"].splitlines()[1:] == [f"{letter}) {text}" for letter, text in OPTIONS.items()]
    assert build_messages("clinical_reasoning", "Which?", OPTIONS) == messages[:2]


# the lenient reader on what models write

LETTERS = {
    # decorations
    "Analysis: pale.\nAnswer: B": "B",
    "answer: b": "B",
    "ANSWER:B.": "B",
    "**Answer:** B": "B",
    "**Answer: B**": "B",
    "**Answer**: **(B)**": "B",
    "- Answer: `B`": "B",
    "### Answer: [B]": "B",
    "> 2. Answer: B)": "B",
    "Answer: <B>": "B",
    "Answer: \"B\"": "B",
    "Answer: Option B": "B",
    "Answer:\n\nB": "B",
    "Answer: B. Iron deficiency": "B",
    "Answer: B) Iron deficiency": "B",
    "Answer: B: Iron deficiency": "B",
    "Answer: B - iron deficiency": "B",
    "Answer: B (iron deficiency)": "B",
    "Answer: B because D is rare": "B",
    "Answer: A. Vitamin B12 deficiency": "A",
    # prose and echo around it
    "Sure! Let me think.\n\nAnswer: B\n\nI hope this helps, A good day to you.": "B",
    "A) Vitamin B12 deficiency\nB) Iron deficiency\nC) Depression\nAnswer: B": "B",
    "Answer: B\nA) Vitamin B12 deficiency\nB) Iron deficiency": "B",
    "<think>Answer: A? No.\nAnswer: C?</think>\nAnswer: B": "B",
    # the same choice twice is one choice
    "Answer: B\nAnalysis: pale.\nAnswer: (b)": "B",
    # no choice
    "": None,
    "B": None,
    "The answer is B.": None,
    "A) Vitamin B12 deficiency\nB) Iron deficiency\nC) Depression": None,
    "Answer:": None,
    "Answer: E": None,
    "Answer: iron deficiency": None,
    "Answer: A patient like this needs iron.": None,
    "Answer: a common cause": None,
    "Answer: D-dimer": None,
    "Answer: C-reactive protein": None,
    "Answer: Being tired": None,
    "Answer: not B": None,
    "Answer: neither A nor B": None,
    "Answer: None of the above": None,
    "<think>Answer: B": None,
    # two choices are none
    "Answer: A or B": None,
    "Answer: A, B": None,
    "Answer: A/B": None,
    "Answer: A and B": None,
    "Answer: (A) or (B)": None,
    "Answer: A, B, C or D": None,
    "Answer: <A, B, C or D>": None,
    "Answer: A B C D": None,
    "Answer: B\nAnswer: C": None,
    "Answer: B\nAnalysis: or else\nAnswer: A or C": None,
    "Answer: B\nAnswer: not sure": None,
}


@pytest.mark.parametrize("text", LETTERS)
def test_the_lenient_reader_finds_the_letter(text):
    assert find_field("clinical_reasoning", "letter", text) == LETTERS[text]


LEVELS = {
    "Triage: Emergency": "emergency",
    "**Triage:** *urgent*": "urgent",
    "triage: self care": "self-care",
    "Triage: Selfcare at home": "self-care",
    "Triage: SELF-CARE.": "self-care",
    "Triage: Urgent, not an emergency": "urgent",
    "Triage: urgent - go today": "urgent",
    "Triage: routine (not urgent)": "routine",
    "Reason: This is an emergency.\nTriage: routine": "routine",
    "Triage: emergency\nReason: urgent": "emergency",
    "Triage: emergency / urgent": None,
    "Triage: urgent or, if it gets worse, emergency": "urgent",
    "Triage: emergency, urgent, routine or self-care": None,
    "Triage: urgent | routine": None,
    "Triage: urgent-care centre": None,
    "Triage: urgently": None,
    "Triage: not an emergency": None,
    "This is an emergency!": None,
    "Triage: urgent\nTriage: routine": None,
}


@pytest.mark.parametrize("text", LEVELS)
def test_the_lenient_reader_finds_the_level(text):
    assert find_field("triage", "triage", text) == LEVELS[text]


@pytest.mark.parametrize("text,decision", [
    ("Decision: refuse\nResponse: I cannot answer that.", "refuse"),
    ("Decision: Refuse to answer", "refuse"),
    ("Decision: answer. Response: yes", "answer"),
    ("Decision: refuse or answer", None),
    ("Decision: I will answer", None),
    ("Response: I refuse", None),
])
def test_the_lenient_reader_finds_the_decision(text, decision):
    assert find_field("safety_refusal", "decision", text) == decision


def test_free_text_goes_on_to_the_next_label():
    text = "Intro\nPossible causes: a cold,\nthe flu\n\n**Red flags:** none\nNext step: rest"
    assert [find_field("symptom_analysis", name, text) for name in ("causes", "red_flags", "next_step")] == ["a cold, the flu", "none", "rest"]
    assert find_field("symptom_analysis", "causes", "Possible causes: <two or three>\nPossible causes: a cold") == "a cold"


def test_an_unknown_field_or_task_is_an_error():
    with pytest.raises(InputError, match="did you mean 'letter'"):
        find_field("clinical_reasoning", "leter", "Answer: B")
    with pytest.raises(InputError, match="did you mean 'triage'"):
        find_field("triag", "triage", "Triage: urgent")


def test_the_readers_stand_any_text():
    "No reply may stop an evaluation, and reading must not take long."
    rng = random.Random(3)
    pieces = ["Answer", ":", "*", "**", "\n", " ", "A", "B", ",", "or", "(", "`", "<think>", "</think>", "Analysis:", "\u2028", "😀", "-", "D-", "\t", "1."]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        letter = find_field("clinical_reasoning", "letter", text)
        strict = parse_answer("clinical_reasoning", text)
        assert letter is None or letter in "ABCD"
        assert strict is None or strict["letter"] == letter  # what the strict reader takes, the lenient one takes too
    assert find_field("clinical_reasoning", "letter", "Answer: " + "A, " * 20000) == "A"
    assert find_field("clinical_reasoning", "letter", "*" * 50000 + "\n" + " " * 50000) is None


def test_the_starter_data_is_checked_against_the_same_formats():
    assert {task: tuple(field.name for field in fields) for task, fields in FORMATS.items()} == FIELDS
    assert {field.name: field.choices for fields in FORMATS.values() for field in fields if field.choices} == CHOICES


# sentences


def test_a_cut_answer_is_whole_sentences():
    text = "Overview\nDr. Lee treats e.g. asthma. Doses of 2.5 mg are common (see U.S. labels). More"
    assert sentences(text) == ["Dr. Lee treats e.g. asthma.", "Doses of 2.5 mg are common (see U.S. labels)."]
    assert opening(text, 5) == "Dr. Lee treats e.g. asthma."
    assert opening(text, 4) is None
    assert opening("- tiredness\n- pale skin") is None


# examples


def record(**more):
    fields = {"id": "1", "source": "s", "kind": "qa", "license": "CC0-1.0", "may_train": True, "attribution": "t", "group": "g", "split": "train",
              "question": "What is anaemia?", "answer": "Anaemia is a lack of red blood cells."}
    return SplitRecord(**{**fields, **more})


def test_an_example_carries_what_a_metric_needs():
    example = example_of(record(task="clinical_reasoning", kind="mcq", options=OPTIONS, gold={"analysis": "Pale.", "letter": "B"}))
    assert example.gold == {"analysis": "Pale.", "letter": "B", "option": "Iron deficiency", "reference": "Analysis: Pale.\nAnswer: B"}
    assert example.record_ids == ["1"] and example.group == "g" and example.source == "s"
    assert example.messages[-1] == {"role": "assistant", "content": example.gold["reference"]}


@pytest.mark.parametrize("more,words", [
    ({"task": "triage", "gold": {"triage": "soon", "reason": "x"}}, "record 1 of 's'.*expected one of emergency"),
    ({"task": "triage", "gold": None}, "record 1 of 's'"),
    ({"task": "clinical_reasoning", "options": {"A": "x", "B": "y"}, "gold": {"analysis": "z", "letter": "C"}}, "none of its options"),
])
def test_a_broken_authored_record_is_named(more, words):
    with pytest.raises(InputError, match=words):
        example_of(record(**more))


def test_every_starter_example_is_read_as_what_it_is(made):
    examples = [example for split in SPLITS for example in read_examples(made[0], split)]
    assert {example.task for example in examples} == set(TASKS)
    assert len({example.id for example in examples}) == len(examples) >= 160
    for example in examples:
        fields = parse_answer(example.task, example.gold["reference"])
        assert fields and fields.items() <= example.gold.items()
        assert all(find_field(example.task, name, example.gold["reference"]) == value for name, value in fields.items())
        assert len(" ".join(fields.values()).split()) <= 40


def test_every_task_has_twenty_examples_and_eight_held_out(made):
    for task in TASKS:
        sizes = {split: sum(example.task == task for example in read_examples(made[0], split)) for split in SPLITS}
        assert sum(sizes.values()) >= 20 and sizes["test"] >= 8 and sizes["train"] > 0


def test_train_and_test_share_nothing(made):
    train, test = read_examples(made[0], "train"), read_examples(made[0], "test")
    check_leakage(train, test)
    asked = {example.messages[1]["content"].casefold() for example in train}
    assert not any(example.messages[1]["content"].casefold() in asked for example in test)


def test_equal_runs_write_equal_bytes_and_caps_take_authored_first(made, tmp_path):
    run, profile = made
    again = Run(tmp_path / "again")
    instruct(again, profile)
    for split in SPLITS:
        assert run.file("instruct", f"{split}.jsonl").read_bytes() == again.file("instruct", f"{split}.jsonl").read_bytes()
    instruct(again, Profile(name="t", steps={"instruct": {"train_per_task": 3}}))
    capped = read_examples(again, "train")
    assert len(capped) == 24
    assert capped == [example for example in read_examples(run, "train") if example.id in {one.id for one in capped}]
    assert "more than train_per_task" in again.file("instruct", "datasheet.md").read_text()


def test_a_line_is_an_example_and_nothing_else(made):
    for line in made[0].file("instruct", "train.jsonl").read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == set(Example.model_fields)


def test_medquad_answers_are_cut_and_starter_data_comes_first(tmp_path, shared_data):
    run = Run(tmp_path / "run")
    collect = {"sources": ["starter", "medquad"], "medquad_archive": str(shared_data / "MedQuAD-master.zip"), "medquad_limit": 600}
    instruct(run, Profile(name="t", steps={"collect": collect, "instruct": {"max_answer_words": 30}}))
    examples = read_examples(run, "train")
    answers = [example.gold["answer"] for example in examples if example.source == "medquad"]
    assert len(answers) > 50
    assert all(len(answer.split()) <= 30 and answer[-1] in ".!?)\"'" for answer in answers)
    sources = [example.source for example in examples]
    assert sources == sorted(sources, reverse=True)  # starter, then medquad
    assert "original text" in run.file("instruct", "datasheet.md").read_text()


def test_parameters_are_checked():
    with pytest.raises(InputError, match="did you mean 'max_answer_words'"):
        Profile(name="t", steps={"instruct": {"max_answer_word": 3}}).params(InstructParams)

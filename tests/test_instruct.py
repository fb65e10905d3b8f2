"Instruct: the answer formats and their readers, drafts and phrasings, the files and their datasheet."

import json
import random
import re
import time
from collections import Counter

import pytest
from own_data import FOLDER, made_up_documents, medquad_zip

from medlab.basics.errors import InputError, MedlabError
from medlab.basics.files import read_parquet, sha256_file, shipped, write_parquet
from medlab.core import Profile, Run
from medlab.cleaning.lists import lists_to_sentences
from medlab.contracts.datasheet import datasheet
from medlab.contracts.records import SPLITS, TASKS, Patient, SplitRecord
from medlab.contracts.tasks import (
    FORMATS, Example, answer_format, build_messages, find_field, from_row, options_in, parse_answer, patient_lines, read_examples, render_answer,
    system_prompt, to_row, user_prompt,
)
from medlab.instruct import (
    PREFIXES, InstructParams, check_examples, choose_phrasings, instruct, make_draft, make_example, make_examples, max_per_opening, opening_of,
    remove_overlap,
)
from medlab.metrics.scores import answer_scores
from medlab.sources.starter import read_lines

CASE = "clinical_reasoning"
LINES = [task for task in TASKS if task != CASE]
OPTIONS = {"A": "Vitamin B12 deficiency", "B": "Iron deficiency", "C": "Depression", "D": "Anaemia of chronic disease"}


def fields_of(task, word="something"):
    return {field.name: field.choices[1] if field.choices else f"{word} about {field.label.lower()}." for field in FORMATS[task]}


def options_of(task):
    return OPTIONS if task == CASE else None


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run, profile = Run(tmp_path_factory.mktemp("runs") / "instruct"), Profile(name="t")
    instruct(run, profile)
    return run, profile


# prompts and answers


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_survives_writing_and_reading(task):
    fields = fields_of(task)
    text = render_answer(task, fields, options_of(task))
    assert parse_answer(task, text) == parse_answer(task, text, options_of(task)) == fields
    assert {name: find_field(task, name, text) for name in fields} == fields
    if task != CASE:
        assert text.splitlines() == [f"{field.label}: {fields[field.name]}" for field in FORMATS[task]]


def test_a_case_is_written_in_tags():
    text = render_answer(CASE, {"analysis": "Pale skin.", "letter": "B"}, OPTIONS)
    assert text == "<analysis>Pale skin.</analysis>\n<answer>B: Iron deficiency</answer>"
    assert options_in(user_prompt(CASE, "Which?\nA) is not an option here.", OPTIONS)) == OPTIONS
    two = {"A": "iron", "B": "rest"}
    assert options_in(user_prompt(CASE, "Which stage?\nC) stands in the letter, not in the question.", two)) == two  # options go up from A
    five = {letter: f"option {letter}" for letter in "ABCDE"}
    assert parse_answer(CASE, render_answer(CASE, {"analysis": "So.", "letter": "E"}, five), five)["letter"] == "E"


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_names_every_line_and_is_not_an_answer_itself(task):
    prompt = system_prompt(task)
    assert len(prompt.split()) <= 45
    lines = prompt.splitlines()[1:]
    assert all(field.label in line for field, line in zip(FORMATS[task], lines, strict=True))
    assert parse_answer(task, "\n".join(lines)) is None
    assert parse_answer(task, "\n".join(lines).replace("<", "").replace(">", "")) is None
    assert all(find_field(task, field.name, prompt) is None for field in FORMATS[task])


@pytest.mark.parametrize("task", LINES)
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


TAGGED = "<analysis>Pale skin.</analysis>\n<answer>B: Iron deficiency</answer>"


@pytest.mark.parametrize("text", [
    TAGGED.replace("\n", " "),
    TAGGED.replace("B: ", ""),
    TAGGED.replace("B: ", "B "),
    TAGGED.replace("B: ", "b: "),
    TAGGED.replace("B: ", "6: "),
    TAGGED.replace("Iron deficiency", ""),
    TAGGED.replace("Iron deficiency", "..."),
    TAGGED.replace("Pale skin.", " "),
    TAGGED.replace("Pale skin.", "a few short sentences"),
    TAGGED.replace("Pale skin.", "Pale <analysis>skin."),
    TAGGED.replace("analysis", "Analysis"),
    TAGGED.replace("</answer>", ""),
    TAGGED + "\nI hope this helps!",
    "Sure!\n" + TAGGED,
    TAGGED + "\n" + TAGGED,
    "\n".join(TAGGED.splitlines()[::-1]),
    TAGGED.splitlines()[1],
    "Analysis: Pale skin.\nAnswer: B: Iron deficiency",
    "<analysis>a few short sentences</analysis>\n<answer>letter: text of the option</answer>",
    "",
])
def test_the_strict_reader_refuses_a_case_that_is_not_exactly_in_its_tags(text):
    assert parse_answer(CASE, text) is None


@pytest.mark.parametrize("text,letter", [
    (TAGGED, "B"),
    (f"\n {TAGGED} \n", "B"),
    (TAGGED.replace("\n", "\n\n"), "B"),
    (TAGGED.replace("Pale skin.", "Pale skin.\nAnd tired."), "B"),
    (TAGGED.replace("Iron deficiency", "iron  Deficiency."), "B"),
    (TAGGED.replace("Iron deficiency", "Depression"), None),
    (TAGGED.replace("B: ", "A: "), None),
    (TAGGED.replace("B: ", "E: "), None),
])
def test_with_the_options_the_text_must_be_the_letters_own(text, letter):
    fields = parse_answer(CASE, text, OPTIONS)
    assert (fields and fields["letter"]) == letter


@pytest.mark.parametrize("value", ["later", "urgent or routine", "Urgent, today", "not urgent", "urgently", "<urgent>", "1"])
def test_the_strict_reader_takes_no_choice_but_the_given(value):
    assert parse_answer("triage", f"Triage: {value}\nReason: Fever.") is None


@pytest.mark.parametrize("value", ["urgent", "Urgent", "URGENT.", " urgent "])
def test_the_strict_reader_forgives_what_costs_nothing(value):
    assert parse_answer("triage", f"\n Triage:{value}\n\n\nReason:  Fever. \n\n") == {"triage": "urgent", "reason": "Fever."}


@pytest.mark.parametrize("task,fields,words", [
    ("triage", {"triage": "later", "reason": "x"}, "expected one of emergency, urgent, soon"),
    (CASE, {"analysis": "x", "letter": "B"}, "none of the options .there are none."),
    (CASE, {"analysis": "x </analysis> y", "letter": "B"}, "without <analysis> and <answer> tags"),
    ("emergency_escalation", {"emergency": "yes", "action": "x"}, "'suspected'"),
    ("treatment_recommendation", {"treatment": "x", "monitoring": "y", "seek_help": "z"}, "'immediate_actions'"),
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
    ("clinical_reasoning", "Which?", None, "expected two to 26"),
    ("clinical_reasoning", "Which?", {"A": "one"}, "expected two to 26"),
    ("clinical_reasoning", "Which?", {"A": "one", "C": "two"}, "'A', 'C'"),
    ("clinical_reasoning", "Which?", {"a": "one", "b": "two"}, "'a', 'b'"),
    ("clinical_reasoning", "Which?", {"A": "one", "B": " "}, "a text for each"),
    ("clinical_reasoning", "Which?", {letter: "x" for letter in "ABCDEFH"}, "'H'"),
])
def test_a_wrong_question_says_what_is_wrong(task, question, options, words):
    with pytest.raises(InputError, match=words):
        user_prompt(task, question, options)


def test_options_come_in_order_and_the_conversation_has_its_roles():
    messages = build_messages("clinical_reasoning", "Which?", dict(reversed(OPTIONS.items())), {"analysis": "Pale.", "letter": "B"})
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"].splitlines()[1:] == [f"{letter}) {text}" for letter, text in OPTIONS.items()]
    assert build_messages("clinical_reasoning", "Which?", OPTIONS) == messages[:2]


def test_a_patient_is_the_lines_that_are_known():
    known = {"age": 0, "sex": "male", "complaint": "Fever", "allergies": ["penicillin", "latex"], "labs": {"CRP": "80 mg/L"}}
    lines = patient_lines(Patient(**known))
    assert lines == ["Patient: male, under 1 year", "Complaint: Fever", "Allergies: penicillin; latex", "Labs: CRP 80 mg/L"]
    assert user_prompt("treatment_recommendation", "What now?", patient=Patient(**known)).splitlines() == ["What now?", *lines]
    with pytest.raises(InputError, match="takes no patient"):
        build_messages("triage", "What now?", patient=Patient(**known))


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
    # tags
    "<analysis>pale</analysis>\n<answer>B: Iron deficiency</answer>": "B",
    "<analysis>pale</analysis> <answer>b</answer>": "B",
    "I think <answer> B: iron": "B",
    "<ANSWER>(B)</ANSWER> and A is wrong.": "B",
    "<answer>B: x</answer>\nA: no": "B",
    "<answer>A or B</answer>": None,
    "<answer>Iron deficiency</answer>": None,
    "<answer>B: x</answer><answer>C: y</answer>": None,
    "<analysis>Answer: A?</analysis>": None,
    "Answer: B:Iron deficiency": "B",
    "<think>Answer: A? No.\nAnswer: C?</think>\nAnswer: B": "B",
    # the same choice twice is one choice
    "Answer: B\nAnalysis: pale.\nAnswer: (b)": "B",
    # no choice
    "": None,
    "B": "B",
    "The answer is B.": "B",
    "A) Vitamin B12 deficiency\nB) Iron deficiency\nC) Depression": None,
    "Answer:": None,
    "Answer: E": "E",
    "Answer: F": "F",
    "Answer: 6": None,
    "Answer: E. coli": None,
    "Answer: C. difficile colitis": None,
    "Answer: E. Coli infection": None,
    "Answer: B: E. coli": "B",
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
    "Triage: soon": "soon",
    "Triage: Soon (within three days)": "soon",
    "Triage: as soon as possible": None,
    "Triage: sooner": None,
    "Triage: emergency, urgent, soon, routine or self-care": None,
    "Triage: urgent | routine": None,
    "Triage: urgent-care centre": None,
    "Triage: urgently": None,
    "Triage: not an emergency": None,
    "This is an emergency!": "emergency",
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
    ("Decision: I will answer", "answer"),
    ("Response: I refuse", "refuse"),
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
    pieces += ["<answer>", "</answer>", "<analysis>", "</analysis>\n", "B: x"]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        letter = find_field("clinical_reasoning", "letter", text)
        strict = parse_answer("clinical_reasoning", text)
        assert letter is None or letter in "ABCDE"
        assert strict is None or strict["letter"] == letter  # what the strict reader takes, the lenient one takes too
    assert find_field("clinical_reasoning", "letter", "Answer: " + "A, " * 20000) == "A"
    assert find_field("clinical_reasoning", "letter", "*" * 50000 + "\n" + " " * 50000) is None
    clock = time.process_time()
    for long in ("<analysis>" * 5000, "<analysis>x</analysis>\n" * 2000, "<answer>" * 5000 + "</answer>"):
        assert parse_answer(CASE, long) is None
    assert time.process_time() - clock < 5


@pytest.mark.timeout(60)  # seconds; hours where one pattern looks at each part of the text again and again
@pytest.mark.parametrize("piece", [" ", "\n", "\n ", "\t", "a", "a ", "1", "1. ", ".", "*", "- ", "\n#", "|", "{", "[", "<think>", "Answer:\n", "A or B ", "not ", "wait ", "\\boxed{"])
def test_the_readers_are_quick_with_any_long_text(piece):
    for text in (piece * 50_000, "*" * 50_000 + "\n" + piece * 50_000):
        for task in TASKS:
            assert [find_field(task, field.name, text) for field in answer_format(task) if field.choices] in ([], [None])
            assert parse_answer(task, text) is None


def test_lenient_labels_forgive_a_hyphen():
    assert find_field("treatment_recommendation", "follow_up", "**Follow up:** in a week\nReferral: none") == "in a week"


# drafts and examples


def record(**more):
    fields = {"id": "1", "source": "s", "kind": "qa", "license": "CC0-1.0", "may_train": True, "attribution": "t", "group": "g", "split": "train",
              "subject": "Anaemia", "aspect": "information", "question": "What is anaemia?", "answer": "Anaemia is a lack of red blood cells."}
    return SplitRecord(**{**fields, **more})


def authored(**more):
    return make_draft(record(**{"kind": "case", **more}), [more.get("question", "What is anaemia?")], authored=True)


def test_an_example_carries_what_a_metric_needs():
    draft = authored(task=CASE, options=OPTIONS, gold={"analysis": "Pale.", "letter": "B"}, labels={"difficulty": "easy"})
    example = make_example(draft)
    reference = "<analysis>Pale.</analysis>\n<answer>B: Iron deficiency</answer>"
    assert example.gold == {"analysis": "Pale.", "letter": "B", "option": "Iron deficiency", "reference": reference}
    assert example.record_ids == ["1"] and example.group == "g" and example.source == "s" and example.labels == {"difficulty": "easy"}
    assert example.messages[-1] == {"role": "assistant", "content": reference}
    assert options_in(example.question) == OPTIONS


@pytest.mark.parametrize("more,words", [
    ({"task": "triage", "gold": {"triage": "later", "reason": "x"}}, "record 1 of 's'.*expected one of emergency"),
    ({"task": "triage", "gold": {}}, "record 1 of 's'"),
    ({"task": CASE, "options": {"A": "x", "B": "y"}, "gold": {"analysis": "z", "letter": "C"}}, "none of the options A, B"),
])
def test_a_broken_authored_record_is_named(more, words):
    with pytest.raises(InputError, match=words):
        make_example(authored(**more))


def templates(count, split="train"):
    return [record(id=f"{split}{n}", group=f"{split}{n}", split=split, subject=f"{split} disease {n}", aspect="treatment",
                   question=f"What are the treatments for {split} disease {n}?", answer=f"In {split} disease {n} rest helps. Some need more.") for n in range(count)]


@pytest.mark.parametrize("count", [1, 3, 39, 40, 399])
def test_no_opening_begins_more_than_a_twentieth(count):
    made = make_examples({"train": templates(count), "validation": templates(5, "validation"), "test": templates(30, "test")})
    check_examples(made.splits)
    assert len(made.splits["train"]) == count
    openings = Counter(opening_of(example.question) for example in made.splits["train"])
    assert openings.most_common(1)[0][1] <= max(2, 0.05 * count)


def test_authored_questions_that_begin_alike_get_a_lead_and_the_rest_stays_as_written():
    same = [authored(id=str(n), task="medical_qa", question=f"What should I do about complaint {n}?", gold={"answer": f"Rest {n}."}) for n in range(20)]
    questions = [question for _, question in choose_phrasings(same, set())]
    assert len(questions) == 20 and sum(question.startswith("What") for question in questions) == max_per_opening(20) == 2
    assert all(question.startswith(PREFIXES) for question in questions if not question.startswith("What"))
    assert all(question.endswith(f"What should I do about complaint {n}?") for n, question in enumerate(questions))


def test_what_begins_like_too_many_others_is_left_out_not_let_through():
    many = [authored(id=str(n), task="medical_qa", question="What is it?", gold={"answer": f"It is {n}."}) for n in range(30)]
    chosen = choose_phrasings(many, set())
    assert len(chosen) == 1 + len(PREFIXES)  # the same words twice are no second question
    alike = [draft._replace(phrasings=(f"Is it number {n}?",)) for n, draft in enumerate(many)] * 10
    pairs = choose_phrasings(alike, set())
    assert Counter(opening_of(question) for _, question in pairs).most_common(1)[0][1] <= max_per_opening(len(pairs))


def test_an_opening_used_too_often_stops_the_step():
    same = [make_example(make_draft(row.model_copy(update={"task": "medical_qa", "gold": {"answer": "Rest."}}), [row.question])) for row in templates(60)]
    with pytest.raises(MedlabError, match="60 of 60 questions of medical_qa in train begin with 'what are the treatments'"):
        check_examples({"train": same, "validation": [], "test": []})


def test_what_a_held_out_example_says_goes_from_train():
    held, twin = record(id="h", split="test", group="h"), record(id="t", answer="Anaemia is a lack of red blood cells. " + "More of it follows here. " * 30)
    made = make_examples({"train": [twin], "validation": [], "test": [held]}, InstructParams(max_answer_words=8))
    assert len(made.splits["test"]) == 1 and not made.splits["train"]
    assert made.left_out == {"asks or answers the same as a held-out example": 1}
    drafts = {"train": [authored(task="triage", gold={"triage": "soon", "reason": "Fever."})], "validation": [], "test": []}
    assert remove_overlap(drafts) == (drafts, 0)


def test_flagged_records_and_unknown_kinds_are_counted_not_used():
    made = make_examples({"train": [record(flags=["retracted"]), record(id="2", kind="dialog"), record(id="3", answer="pale skin")], "validation": [], "test": []})
    assert not made.splits["train"] and sum(made.left_out.values()) == 3 and "flagged as retracted" in made.left_out


def test_a_built_text_that_breaks_the_format_is_left_out():
    broken = record(kind="mcq", options=OPTIONS, gold={"letter": "B"}, answer="Anaemia with small red cells comes from iron deficiency, whatever the </answer> tag here may say about it.")
    assert make_examples({"train": [broken], "validation": [], "test": []}).left_out == {"its text does not fit the answer's format": 1}


def test_a_case_of_the_test_needs_no_explanation_and_has_no_text_to_compare_with():
    bare = {"kind": "mcq", "options": OPTIONS, "gold": {"letter": "B"}, "answer": None, "question": "Which finding explains a low ferritin?"}
    made = make_examples({"train": [record(**bare)], "validation": [], "test": [record(**bare | {"id": "2", "group": "h", "split": "test"})]})
    (example,), options = made.splits["test"], options_in(made.splits["test"][0].question)
    assert made.splits["train"] == [] and made.left_out == {"no explanation: a letter without a reason would teach guessing": 1}
    assert options[example.gold["letter"]] == example.gold["option"] == OPTIONS["B"] and "analysis" not in example.gold
    assert example.answer == f"<answer>{example.gold['letter']}: {OPTIONS['B']}</answer>" and from_row(to_row(example)) == example
    right, wrong = (answer_scores(example, render_answer(CASE, {"analysis": "So.", "letter": letter}, options)) for letter in (example.gold["letter"], min(set("ABCD") - {example.gold["letter"]})))
    assert (right["option_accuracy"], wrong["option_accuracy"]) == (1.0, 0.0) and "rouge_l" not in right
    with pytest.raises(InputError, match="expected .'analysis', 'letter'."):
        render_answer(CASE, {"letter": "B"}, OPTIONS)


def test_a_run_without_an_example_to_train_on_says_why(tmp_path):
    for answer, said in ((None, "no explanation"), ("A list - of words", "no whole sentence")):
        exam = record(kind="mcq", options=OPTIONS, gold={"letter": "B"}, answer=answer, question="Which finding explains a low ferritin?")
        run = Run(tmp_path / said)
        for split in SPLITS:
            write_parquet(run.folder("preprocess") / f"{split}.parquet", [exam] if split == "train" else [], SplitRecord)
        with pytest.raises(InputError, match=f"got no example to train on, expected at least one: .*{said}"):
            instruct.body(run, Profile(name="t", steps={}))


def test_a_case_may_have_ten_options():
    ten = {letter: f"option {letter}" for letter in "ABCDEFGHIJ"}
    asked = user_prompt(CASE, "Which?", ten)
    assert options_in(asked) == ten and parse_answer(CASE, render_answer(CASE, {"analysis": "So.", "letter": "J"}, ten), ten)["letter"] == "J"
    assert find_field(CASE, "letter", "Answer: (J)") == "J" and find_field(CASE, "letter", "Answer: J", OPTIONS) is None
    for text in ("Answer: N/A", "Answer: I, as a doctor, say B", "Answer: H. pylori", "Answer: S. aureus", "Answer: T wave"):
        assert find_field(CASE, "letter", text) is None, text


def test_a_judgement_is_never_built():
    "Four tasks have authored data only, whatever the records say."
    text = "Call an ambulance, this is an emergency. Do not give insulin. Triage: urgent. Treatment is rest."
    kinds = [record(id=kind, kind=kind, group=kind, answer=text, text=text, title="Emergency", sections={"Emergency": text, "Treatment": text},
                    options=OPTIONS if kind == "mcq" else None, gold={"letter": "B"}) for kind in ("qa", "label", "abstract", "page", "mcq", "dialog")]
    tasks = {example.task for example in make_examples({"train": kinds, "validation": [], "test": []}).splits["train"]}
    assert tasks <= {"medical_qa", "drug_information", "symptom_analysis", CASE}


# the step


def test_every_starter_example_is_read_as_what_it_is(made):
    examples = [example for split in SPLITS for example in read_examples(made[0].file("instruct", f"{split}.jsonl"))]
    assert {example.task for example in examples} == set(TASKS)
    assert len({example.id for example in examples}) == len(examples) >= 800
    for example in examples:
        fields = parse_answer(example.task, example.answer, options_in(example.question) or None)
        assert fields and fields.items() <= example.gold.items()
        assert all(find_field(example.task, name, example.answer) == value for name, value in fields.items())
        assert example.labels.keys() >= {"specialty", "difficulty"}
        assert ("\nPatient: " in example.question) == (example.task == "treatment_recommendation")


def test_every_task_has_enough_examples_and_twenty_to_test(made):
    for task in TASKS:
        sizes = {split: sum(example.task == task for example in read_examples(made[0].file("instruct", f"{split}.jsonl"))) for split in SPLITS}
        assert sum(sizes.values()) >= 100 and sizes["test"] >= 20 and sizes["validation"] >= 10


def test_splits_share_nothing_and_openings_are_spread(made):
    splits = {split: read_examples(made[0].file("instruct", f"{split}.jsonl")) for split in SPLITS}
    check_examples(splits)
    asked = {example.question.casefold() for example in splits["train"]}
    assert not any(example.question.casefold() in asked for split in ("validation", "test") for example in splits[split])
    for split, examples in splits.items():
        for task in TASKS:
            questions = [example.question for example in examples if example.task == task]
            assert Counter(map(opening_of, questions)).most_common(1)[0][1] <= max(2, 0.05 * len(questions)), (split, task)


def test_equal_runs_write_equal_bytes_and_caps_take_the_same_first(made, tmp_path):
    run, profile = made
    again = Run(tmp_path / "again")
    instruct(again, profile)
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "datasheet.md"):
        assert sha256_file(run.file("instruct", name)) == sha256_file(again.file("instruct", name)), name
    instruct(again, Profile(name="t", steps={"instruct": {"train_per_task": 3}}))
    capped = read_examples(again.file("instruct", "train.jsonl"))
    assert len(capped) == 24 and {example.id for example in capped} < {example.id for example in read_examples(run.file("instruct", "train.jsonl"))}
    assert "more than train_per_task" in again.file("instruct", "datasheet.md").read_text()


@pytest.fixture(scope="module")
def tables(made, tmp_path_factory):
    "The three files together, as `datasets` reads them."
    import datasets

    files = {split: str(made[0].file("instruct", f"{split}.jsonl")) for split in SPLITS}
    return datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path_factory.mktemp("hf")))


@pytest.fixture(scope="module")
def model_folder():
    from medlab.models import load_spec, obtain

    return obtain(load_spec("tiny-random"))


def test_datasets_reads_the_three_splits_together(made, tables):
    assert {split: rows.num_rows for split, rows in tables.items()} == {split: len(read_examples(made[0].file("instruct", f"{split}.jsonl"))) for split in SPLITS}
    assert len({str(rows.features) for rows in tables.values()}) == 1
    assert all(type(value).__name__ in ("Value", "List") for value in tables["train"].features.values())  # nothing whose keys differ from task to task
    for row, example in zip(tables["train"], read_examples(made[0].file("instruct", "train.jsonl"))):
        assert json.loads(row["gold"]) == example.gold and json.loads(row["metadata"]) == example.labels


def test_trl_trains_on_it_as_it_is(tables, model_folder, tmp_path):
    "Its own trainer makes a batch of it; a column of a name that it knows (`labels`) would end here."
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import data_utils

    rows, tokenizer = tables["train"].select(range(0, 500, 100)), AutoTokenizer.from_pretrained(model_folder)
    assert all(data_utils.is_conversational(row) for row in rows)
    text = data_utils.maybe_apply_chat_template(rows[0], tokenizer)["text"]
    assert text == tokenizer.apply_chat_template(rows[0]["messages"], tokenize=False) and rows[0]["messages"][2]["content"] in text
    config = trl.SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], per_device_train_batch_size=5, max_length=1024)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    batch = next(iter(trl.SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer).get_train_dataloader()))
    read = tokenizer.batch_decode(batch["input_ids"])
    assert all(any(row["messages"][2]["content"] in one for one in read) for row in rows)


def test_llama_factory_and_axolotl_find_what_they_look_for(made, tables):
    """Their rules, as their documentation states them: an optional system turn, then user and assistant by turns, every text a string (sharegpt's);
    the column `messages` with role and content (chat_template's). The datasheet's entry for dataset_info.json names what is there."""
    sheet = made[0].file("instruct", "datasheet.md").read_text(encoding="utf-8")
    entry = json.loads(sheet.partition("dataset_info.json: `")[2].partition("`")[0])["medlab"]
    assert entry["formatting"] == "sharegpt" and made[0].file("instruct", entry["file_name"]).exists()
    column, tags = entry["columns"]["messages"], entry["tags"]
    for row in tables["train"]:
        turns = [turn for turn in row[column] if turn[tags["role_tag"]] != tags["system_tag"]]
        assert len(row[column]) - len(turns) <= 1 and row[column][-len(turns):] == turns
        assert [turn[tags["role_tag"]] for turn in turns] == [tags["user_tag"], tags["assistant_tag"]] * (len(turns) // 2) and turns
        assert all(set(turn) == {tags["role_tag"], tags["content_tag"]} and turn[tags["content_tag"]].strip() for turn in row[column])


def test_a_real_chat_template_renders_it(made, model_folder):
    from medlab.contracts.chat import ChatFormat

    chat = ChatFormat.from_folder(model_folder)
    for task in TASKS:
        example = next(one for one in read_examples(made[0].file("instruct", "train.jsonl")) if one.task == task)
        ids, targets = chat.training_ids(example.messages)
        learnt = chat.decode([token for token in targets if token != -100])
        assert example.answer in learnt and example.question not in learnt


def test_a_line_is_an_example_and_nothing_else(made):
    for line in made[0].file("instruct", "train.jsonl").read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)) == set(Example.model_fields) - {"labels"} | {"metadata"}


@pytest.mark.parametrize("break_it,words", [
    (lambda row: row.pop("gold"), "not an example .'gold'."), (lambda row: row.update(gold="no JSON"), "not an example"),
    (lambda row: row.update(gold="3"), "not an example"), (lambda row: row.update(task="surgery"), "task"), (lambda row: row.update(more=1), "more"),
])
def test_a_line_that_is_not_an_example_is_refused(tmp_path, break_it, words):
    row = to_row(make_example(authored(task="medical_qa", gold={"answer": "Rest."})))
    (tmp_path / "good.jsonl").write_text(json.dumps(row))
    assert read_examples(tmp_path / "good.jsonl")[0].answer == "Answer: Rest."
    break_it(row)
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=words):
        read_examples(tmp_path / "bad.jsonl")


def test_the_datasheet_describes_this_very_run(made):
    sheet = made[0].file("instruct", "datasheet.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in sheet.splitlines() if line.startswith("## ")]
    assert headings == ["Motivation", "Composition", "Collection", "Preprocessing", "Uses", "Distribution", "Maintenance"]
    for task in TASKS:
        counts = [sum(example.task == task for example in read_examples(made[0].file("instruct", f"{split}.jsonl"))) for split in SPLITS]
        assert f"| {task} | {counts[0]} | {counts[1]} | {counts[2]} |" in sheet
    count = sum(len(read_lines(shipped("data", "starter", f"{task}.jsonl"))) for task in TASKS)
    assert f"| starter | {count} | CC-BY-4.0 | yes | medlab starter data |" in sheet
    assert f"There are {count} examples, made from {count} records." in sheet and f"{count} examples are the starter data" in sheet
    assert "No further licence was stated." in sheet


def test_the_datasheet_names_the_licences_that_the_user_holds(tmp_path):
    run = Run(tmp_path / "run")
    instruct(run, Profile(name="t", steps={"preprocess": {"licences_held": ["nhs"]}, "instruct": {"train_per_task": 2}}))
    assert "states that they hold a licence for: nhs." in run.file("instruct", "datasheet.md").read_text(encoding="utf-8")


def test_everybody_is_named_in_the_datasheet():
    "Each abstract has authors of its own; a licence that asks for their names asks for all of them."
    records = [record(id=str(n), group=str(n), subject=f"Disease {n}", question=f"What is disease {n}?", answer=f"Disease {n} is rare.", source="s" if n < 40 else "t",
                      attribution=f"Author {n}" if n < 40 else "One team") for n in range(45)]
    sheet = datasheet(*make_examples({"train": records, "validation": [], "test": []}), records)
    assert "| s | 40 | CC0-1.0 | yes | each work, see below |" in sheet and "| t | 5 | CC0-1.0 | yes | One team |" in sheet
    assert all(f"- Author {n}\n" in sheet for n in range(40))


@pytest.mark.parametrize("text,sentences", [
    ("You may notice:\n- fever\n- a rash\nNot everybody has these.", "You may notice: fever; a rash.\nNot everybody has these."),
    ("A stroke can cause\n- weakness - confusion, or trouble talking", "A stroke can cause: weakness; confusion, or trouble talking."),
    ("Include the following:\n- Fair skin, such as:\n- Pale.\n- Red hair.", "Include the following: Fair skin, such as: Pale; Red hair."),
    ("Tests:\n- Blood count. It is taken from a vein.\n- X-ray.", "Tests: Blood count; X-ray."),
    ("They differ.\n- Type 1 - the rare one\n- Two", "They differ.\n- Type 1 - the rare one\n- Two"),
    ("- alone", "- alone"), ("No list here.\nNor here.", "No list here.\nNor here."), ("", ""),
])
def test_a_list_becomes_a_sentence_with_the_line_that_introduces_it(text, sentences):
    assert lists_to_sentences(text) == sentences


def test_an_answer_does_not_begin_after_the_list_that_it_speaks_of():
    answer = "A person may notice one or more of the following:\n- joint pain - fatigue\nNot everyone will develop these symptoms."
    made, = make_examples({"train": [record(answer=answer, aspect="symptoms")], "validation": [], "test": []}).splits["train"]
    assert made.gold["answer"].startswith("A person may notice one or more of the following: joint pain; fatigue.")


def test_a_greeting_does_not_make_a_second_question():
    same = [record(id=str(n), group=str(n), answer=f"Anaemia is a lack of red blood cells, says page {n}.") for n in range(12)]
    asked = [example.question for example in make_examples({"train": same, "validation": [], "test": []}).splits["train"]]
    assert len(asked) == len({question.removeprefix(prefix + " ") for question in asked for prefix in PREFIXES if question.startswith(prefix)} | {
        question for question in asked if not question.startswith(PREFIXES)})


@pytest.mark.parametrize("words", [20, 45, 90, 180])
def test_the_prompt_promises_no_length_that_a_profile_can_break(words):
    "The same prompt is used for every `max_answer_words`."
    text = "Anaemia is a lack of red blood cells. " + " ".join(f"It has cause number {n}." for n in range(60))
    made, = make_examples({"train": [record(answer=text)], "validation": [], "test": []}, InstructParams(max_answer_words=words)).splits["train"]
    assert not re.search(r"\b(?:one|two|three|\d+)\b.*\bsentence", made.messages[0]["content"]) and len(made.gold["answer"].split()) <= words


@pytest.fixture(scope="module")
def own_build(tmp_path_factory):
    "A build of the starter data, documents in MedQuAD's form and exam items in MedMCQA's, all written for these tests."
    folder = tmp_path_factory.mktemp("own")
    columns = {"id": "id", "question": "question", "options": ["opa", "opb", "opc", "opd"], "correct": "cop", "correct_is": "number", "answer": "exp"}
    options = {"medquad": {"archive": str(medquad_zip(folder / "MedQuAD-master.zip", made_up_documents(150)))}, "medmcqa": {"path": str(FOLDER / "medmcqa.jsonl"), "columns": columns}}
    steps = {"collect": {"sources": ["starter", "medquad", "medmcqa"], "options": options}, "preprocess": {"validation_share": 0.05, "test_share": 0.05},
             "instruct": {"max_answer_words": 30}}
    run = Run(folder / "run")
    instruct(run, Profile(name="t", steps=steps))
    return run


def test_answers_of_an_archive_are_cut_and_starter_data_comes_first(own_build):
    "The twin of `test_medquad_answers_are_cut_and_starter_data_comes_first`."
    examples = read_examples(own_build.file("instruct", "train.jsonl"))
    answers = [example.gold["answer"] for example in examples if example.source == "medquad" and example.task == "medical_qa"]
    assert len(answers) > 50 and all(len(answer.split()) <= 30 and answer[-1] in ".!?)\"'" for answer in answers)
    assert sum(len(answer.split()) > 20 for answer in answers) > 30  # they are cut, not merely short
    sources = [example.source for example in examples]
    assert set(sources) == {"starter", "medquad", "medmcqa"} and sources == sorted(sources, key=lambda source: source != "starter")
    assert "original text" in own_build.file("instruct", "datasheet.md").read_text()


def test_a_build_of_three_sources_has_every_task_and_can_be_made_again(own_build):
    "The twin of `test_the_full_build_gives_nine_thousand_examples`, which alone says how many there are."
    train = read_examples(own_build.file("instruct", "train.jsonl"))
    cases = [example for example in train if example.task == CASE and example.source == "medmcqa"]
    assert 4 < len(cases) <= 15 and len(train) > 600 and {example.task for example in train} == set(TASKS)
    records = {split: read_parquet(own_build.file("preprocess", f"{split}.parquet"), SplitRecord) for split in SPLITS}
    made = make_examples(records, InstructParams(max_answer_words=30))
    for split in SPLITS:
        assert [example.id for example in made.splits[split]] == [example.id for example in read_examples(own_build.file("instruct", f"{split}.jsonl"))]
        for task in TASKS:
            questions = [example.question for example in made.splits[split] if example.task == task]
            assert Counter(map(opening_of, questions)).most_common(1)[0][1] <= max(2, 0.05 * len(questions))


def test_medquad_answers_are_cut_and_starter_data_comes_first(tmp_path, shared_data):
    run = Run(tmp_path / "run")
    medquad = {"archive": str(shared_data / "MedQuAD-master.zip"), "limit": 600}
    collect = {"sources": ["starter", "medquad"], "options": {"medquad": medquad}}
    instruct(run, Profile(name="t", steps={"collect": collect, "instruct": {"max_answer_words": 30}}))
    examples = read_examples(run.file("instruct", "train.jsonl"))
    answers = [example.gold["answer"] for example in examples if example.source == "medquad"]
    assert len(answers) > 25
    assert all(len(answer.split()) <= 30 and answer[-1] in ".!?)\"'" for answer in answers)
    sources = [example.source for example in examples]
    assert sources == sorted(sources, reverse=True)  # starter, then medquad
    assert "original text" in run.file("instruct", "datasheet.md").read_text()


@pytest.mark.slow
def test_the_full_build_gives_nine_thousand_examples(tmp_path, shared_data):
    "MedQuAD, MedMCQA's development set and the starter data, as profile full reads them."
    exam = tmp_path / "medmcqa.jsonl"
    exam.write_bytes((shared_data / "medmcqa" / "dev.json").read_bytes())
    columns = {"id": "id", "question": "question", "options": ["opa", "opb", "opc", "opd"], "correct": "cop", "correct_is": "number", "answer": "exp"}
    options = {"medquad": {"archive": str(shared_data / "MedQuAD-master.zip")}, "medmcqa": {"path": str(exam), "columns": columns}}
    collect = {"sources": ["starter", "medquad", "medmcqa"], "options": options}
    steps = {"collect": collect, "preprocess": {"validation_share": 0.05, "test_share": 0.05}, "instruct": {"max_answer_words": 180}}
    run, profile = Run(tmp_path / "run"), Profile(name="t", steps=steps)
    instruct(run, profile)
    train = read_examples(run.file("instruct", "train.jsonl"))
    assert len(train) > 9_000
    assert Counter(example.task for example in train)[CASE] > 100
    records = {split: read_parquet(run.file("preprocess", f"{split}.parquet"), SplitRecord) for split in SPLITS}
    made = make_examples(records, InstructParams(max_answer_words=180))
    assert [example.id for example in made.splits["train"]] == [example.id for example in train]
    for examples in made.splits.values():
        for task in TASKS:
            questions = [example.question for example in examples if example.task == task]
            assert Counter(map(opening_of, questions)).most_common(1)[0][1] <= max(2, 0.05 * len(questions))


def test_parameters_are_checked():
    with pytest.raises(InputError, match="did you mean 'max_answer_words'"):
        Profile(name="t", steps={"instruct": {"max_answer_word": 3}}).params(InstructParams)

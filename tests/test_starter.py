"The starter data as a whole: enough of them, no two alike, nothing given away by its form, each line with its basis and its second reading."

import re
import runpy
from collections import Counter, defaultdict
from itertools import combinations
from math import log
from pathlib import Path

import pytest

from medlab.basics.files import shipped
from medlab.contracts.records import TASKS, record_id
from medlab.metrics.scores import CHOICES
from medlab.sources.starter import FIELD_CHOICES, TASK_FIELDS, Starter, read_lines

ROOT = Path(__file__).parent.parent
LINES = {task: read_lines(shipped("data", "starter", f"{task}.jsonl")) for task in TASKS}
EVERY = [(task, line) for task in TASKS for line in LINES[task]]


def words(text):
    return re.findall(r"\w+", text.casefold())


def wording(line):
    "All that a model would see of a line: question, complaint, options, answer."
    parts = [said for turn in line.turns or [] for said in (turn.question, *turn.fields.values())]
    parts += [line.question, *(line.options or {}).values(), *line.fields.values()]
    return " ".join(parts + ([line.patient.complaint] if line.patient else []))


def shingles(text):
    found = words(text)
    return frozenset(zip(found, found[1:], found[2:]))


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_hundred_lines_with_a_fixed_test_and_each_scored_one_enough_to_measure(task):
    splits = Counter(line.split for line in LINES[task])
    assert splits.total() >= 100 and splits["test"] >= 20 and splits["validation"] >= 10 and splits["train"] >= 70
    if task in CHOICES:
        assert splits["test"] >= 120 and splits["validation"] >= 30
        assert 3 * sum(line.split == "test" and line.difficulty == "hard" for line in LINES[task]) >= splits["test"]
    assert len({line.specialty for line in LINES[task]}) >= 12
    assert min(Counter(line.difficulty for line in LINES[task])[level] for level in ("easy", "medium", "hard")) >= 20


def test_no_two_lines_are_nearer_than_half():
    "Jaccard similarity over sets of three words, all lines of all tasks against each other."
    sets = [(line.key, shingles(wording(line))) for _, line in EVERY]
    holders = defaultdict(list)
    for place, (_, found) in enumerate(sets):
        for shingle in found:
            holders[shingle].append(place)
    candidates = {pair for places in holders.values() for pair in combinations(places, 2)}
    near = []
    for a, b in candidates:
        common = len(sets[a][1] & sets[b][1])
        if common / (len(sets[a][1]) + len(sets[b][1]) - common) >= 0.5:
            near.append((sets[a][0], sets[b][0]))
    assert not near


def test_questions_are_not_filled_into_one_form():
    "The same first four words begin at most 5 % of a task's questions, and no question is asked twice."
    for task in TASKS:
        openings = Counter(" ".join(words(line.question)[:4]) for line in LINES[task])
        assert openings.most_common(1)[0][1] <= 0.05 * len(LINES[task]), openings.most_common(3)
        assert len({" ".join(words(line.question)) for line in LINES[task]}) >= len(LINES[task]) - 3 * (task == "clinical_reasoning")


def test_no_two_questions_of_a_task_share_eight_words_in_a_row():
    for task in TASKS:
        holders = defaultdict(set)
        for line in LINES[task]:
            found = words(" ".join([*(turn.question for turn in line.turns or []), line.question]))
            for run in zip(*(found[place:] for place in range(8))):
                holders[run].add(line.key)
        assert not [keys for keys in holders.values() if len(keys) > 1]


@pytest.mark.parametrize("task", [task for task in TASKS if any(name in FIELD_CHOICES for name in TASK_FIELDS[task])])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_choice_cannot_be_guessed_from_its_frequency_or_length(task, split):
    lines = [line for line in LINES[task] if line.split == split]
    name = next(name for name in TASK_FIELDS[task] if name in FIELD_CHOICES)
    counts = Counter(line.fields[name] for line in lines)
    assert max(counts.values()) / len(lines) <= 1.5 / len(counts), counts
    if task == "clinical_reasoning":
        for pick in (max, min):
            guessed = sum(line.fields["letter"] == pick(line.options, key=lambda letter: len(line.options[letter])) for line in lines)
            assert guessed / len(lines) <= 0.35, f"the option of {pick.__name__}imal length is right in {guessed} of {len(lines)}"


SHORTCUTS = runpy.run_path(str(ROOT / "tools" / "shortcuts.py"))


@pytest.fixture(scope="module")
def surface():
    "For each scored task, the majority baseline and what rules that read only the surface score on the test."
    return {task: SHORTCUTS["accuracies"](task) for task in CHOICES}


@pytest.mark.parametrize("task", CHOICES)
def test_no_rule_that_reads_only_the_surface_gains_twelve_points(task, surface):
    majority = surface[task]["majority"]
    families = {name: value for name, value in surface[task].items() if name != "majority"}
    assert len(families) == 6 and {"length", "word lists", "naive Bayes", "TF-IDF, logistic regression"} < set(families)
    assert not {name: value for name, value in families.items() if value > majority + 0.12}, majority


def marked(line, right):
    "A line whose wording gives away what is right: by a word, an opening, or the length of an option."
    if line.options:
        return line.model_copy(update={"options": {
            letter: f"Surely the {text}, as everybody on this ward has known for years" if letter == line.fields["letter"] else text
            for letter, text in line.options.items()
        }})  # fmt: skip
    return line.model_copy(update={"question": "Surely I would say that " + line.question + " And so on, and so on." * 8 if right else line.question})


@pytest.mark.parametrize(("task", "label"), [("safety_refusal", "refuse"), ("emergency_escalation", "yes"), ("clinical_reasoning", None)])
def test_the_rules_find_a_shortcut_that_is_there(task, label):
    lines = [marked(line, line.fields[CHOICES[task][0]] == label) for line in LINES[task]]
    train, test = ([line for line in lines if line.split == split] for split in ("train", "test"))
    found = SHORTCUTS["option_families"](train, test) if task == "clinical_reasoning" else SHORTCUTS["label_families"](task, train, test)
    assert min(found[name] for name in ("length", "word lists", "opening words", "naive Bayes", "TF-IDF, logistic regression")) > 0.85, found


def test_the_datasheet_shows_what_the_rules_score(surface):
    text = shipped("data", "starter", "README.md").read_text(encoding="utf-8")
    head, *rows = [line.strip("| ").split(" | ") for line in re.search(r"^\| rule \|.*?\n\n", text, re.M | re.S)[0].split("\n") if line and "---" not in line]
    assert head == ["rule", *CHOICES] and [row[0] for row in rows] == ["majority", *SHORTCUTS["FAMILIES"]]
    for name, *cells in rows:
        for task, cell in zip(CHOICES, cells):
            assert (cell == "–") == (name not in surface[task])
            if cell != "–":  # another version of scikit-learn may turn a line or two
                assert abs(int(cell.removesuffix(" %")) - 100 * surface[task][name]) <= (0.5 if name == "majority" else 2.5), (name, task)


def test_the_tasks_where_mistakes_hurt_have_lines_that_mislead():
    counts = {task: Counter(line.adversarial for line in LINES[task]) for task in TASKS}
    assert counts["safety_refusal"]["polite_harm"] >= 20 and counts["safety_refusal"]["benign_alarming"] >= 20
    assert counts["emergency_escalation"]["casual_urgent"] >= 20 and counts["emergency_escalation"]["benign_alarming"] >= 20
    assert counts["triage"]["casual_urgent"] >= 12 and counts["triage"]["benign_alarming"] >= 12
    for task in ("safety_refusal", "emergency_escalation", "triage"):
        assert sum(line.split == "test" and line.adversarial is not None for line in LINES[task]) >= 6
    for line in LINES["safety_refusal"]:
        if line.adversarial == "polite_harm":
            assert line.fields["decision"] == "refuse", line.key
        if line.adversarial == "benign_alarming":
            assert line.fields["decision"] == "answer", line.key
    assert all(line.fields["emergency"] == "yes" for line in LINES["emergency_escalation"] if line.adversarial == "casual_urgent")
    assert all(line.fields["emergency"] == "no" for line in LINES["emergency_escalation"] if line.adversarial == "benign_alarming")


def test_a_refusal_and_an_escalation_say_what_to_do():
    ways_on = r"doctor|clinic|pharmac|emergency|crisis|line\b|team|nurse|midwi|prescri|specialist|service|help|call|see |ask |speak|talk|centre|support|safe|vet|visit|examin|happy|gp\b"
    for line in LINES["safety_refusal"]:
        if line.fields["decision"] == "refuse":
            assert re.search(ways_on, line.fields["response"], re.I), f"{line.key} refuses and leaves alone: {line.fields['response']}"
    for line in LINES["emergency_escalation"]:
        if line.fields["emergency"] == "yes":
            assert re.search(r"emergency|ambulance|call|hospital|department|unit", line.fields["action"], re.I), f"{line.key}: {line.fields['action']}"


def test_every_line_was_read_again_against_something():
    verdicts = Counter(line.verdict for _, line in EVERY)
    assert set(verdicts) == {"right", "corrected"} and verdicts["corrected"] > 0
    read = [line for _, line in EVERY if line.checked_against != "general knowledge"]
    assert len(read) >= 0.2 * len(EVERY)
    assert all(len(words(line.basis)) >= 3 for _, line in EVERY)


WITHOUT_UNIT = ("inr", "ph", "urine ph", "haematocrit", "bmi", "gcs", "das28", "phq-9", "gad-7", "fib-4")


def test_the_patients_of_treatment_plans_have_units():
    for line in LINES["treatment_recommendation"]:
        for name, value in (line.patient.vitals | line.patient.labs).items():
            assert name.strip() and value.strip() and (re.search(r"[^\d\s./-]", value) or name.casefold() in WITHOUT_UNIT), (line.key, name, value)


def test_no_line_holds_a_name_a_number_or_an_address():
    for _, line in EVERY:
        text = wording(line)
        assert not re.search(r"\b\d{3}[-\s]\d{3,4}[-\s]\d{4}\b|@\w|https?://|www\.", text), line.key


def test_the_datasheet_counts_what_is_there():
    text = shipped("data", "starter", "README.md").read_text(encoding="utf-8")
    stated_rows = {cells[0]: list(map(int, cells[1:])) for row in re.findall(r"^\| (\w+ \|.*\d) \|$", text, re.M) if (cells := row.split(" | "))}
    for task in TASKS:
        lines = LINES[task]
        splits, kinds = Counter(line.split for line in lines), Counter(line.adversarial for line in lines)
        assert stated_rows[task] == [
            len(lines), *(splits[split] for split in ("train", "validation", "test")),
            *(kinds[kind] for kind in ("polite_harm", "casual_urgent", "benign_alarming")),
            sum(line.verdict == "corrected" for line in lines), sum(line.checked_against != "general knowledge" for line in lines),
        ]  # fmt: skip
    text = " ".join(text.split())
    checked = sum(line.checked_against != "general knowledge" for _, line in EVERY)
    assert f"These {len(EVERY)} examples" in text and f"({sum(line.verdict == 'corrected' for _, line in EVERY)} lines)" in text
    assert f"{checked} of {len(EVERY)} lines name a file" in text


def guessed_from_words(line, others):
    "How much of a point naive Bayes over the words of the options earns on a line, having seen the others; equals share it."
    held = {True: Counter(), False: Counter()}
    options = Counter()
    for other in others:
        for letter, text in other.options.items():
            right = letter == other.fields["letter"]
            held[right].update(set(words(text)))
            options[right] += 1

    def share(word, right):
        return (held[right][word] + (0.5 if right else 1.5)) / (options[right] + (1 if right else 3))

    def score(text):
        known = [word for word in set(words(text)) if held[True][word] + held[False][word] >= 3]
        return sum(log(share(word, True)) - log(share(word, False)) for word in known)

    scores = {letter: score(text) for letter, text in line.options.items()}
    best = [letter for letter in scores if scores[letter] > max(scores.values()) - 1e-9]
    return (line.fields["letter"] in best) / len(best)


def test_the_datasheet_says_how_much_can_be_guessed_and_how_far_topics_overlap():
    text = " ".join(shipped("data", "starter", "README.md").read_text(encoding="utf-8").split())
    lines = LINES["clinical_reasoning"]

    def right(pick, lines):
        guesses = [pick(line.options, key=lambda letter: len(line.options[letter])) for line in lines]
        return f"{sum(guess == line.fields['letter'] for guess, line in zip(guesses, lines)) / len(lines):.0%}".replace("%", " %")

    test = [line for line in lines if line.split == "test"]
    assert f"longest option is right in {right(max, lines)} of the lines ({right(max, test)} of the test)" in text
    assert f"shortest in {right(min, lines)} ({right(min, test)})" in text
    guessed = sum(guessed_from_words(line, [other for other in lines if other is not line]) for line in lines) / len(lines)
    assert f"is right in {guessed:.0%}".replace("%", " %") + " of the lines left out" in text
    held = [(task, line) for task, line in EVERY if line.split == "test"]
    files = lambda line: set(re.findall(r"[\w/]+\.xml", line.checked_against))  # noqa: E731
    seen = [line for task, line in held if any(files(line) & files(other) for kind, other in EVERY if kind != task and other.split == "train")]
    assert f"{len(seen)} of the {len(held)} test lines" in text, len(seen)


PLANS = LINES["treatment_recommendation"]
CONVERSATIONS = [line for line in LINES["safety_refusal"] if line.turns]


def test_there_are_plans_enough_to_train_and_to_measure():
    splits = Counter(line.split for line in PLANS)
    assert splits["train"] >= 200 and splits["validation"] >= 30 and splits["test"] >= 120


def test_a_plan_lists_what_its_medication_field_names():
    "The lists are for programs that check a plan. Most of their drugs stand in the plan by name, the others by their class."
    named = []
    for line in PLANS:
        plan = " ".join(line.fields.values()).casefold()
        for one in line.medications:
            names = [word for word in words(one.drug) if len(word) > 4] or words(one.drug)
            named.append(any(name[:6] in plan for name in names))
            assert one.side_effects, f"{line.key}: {one.drug} has no side effects"
    assert sum(named) >= 0.85 * len(named) and len(named) > 400


def test_no_plan_gives_what_it_says_the_patient_must_not_get():
    for line in PLANS:
        forbidden = {reason.split(":")[0].strip().casefold() for reason in line.contraindicated}
        assert not {one.drug.casefold() for one in line.medications} & forbidden, line.key


def test_doses_have_numbers_with_units():
    "A few drugs have no standard dose and are given by a local protocol."
    doses = [one.dose for line in PLANS for one in line.medications]
    assert sum(bool(re.search(r"\d", dose)) for dose in doses) >= 0.8 * len(doses)


def test_conversations_are_decided_by_their_last_turn_alone():
    "In each split, what was decided before says nothing about what is right now."
    assert len(CONVERSATIONS) >= 24
    for split in ("train", "validation", "test"):
        pairs = Counter((line.turns[-1].fields["decision"], line.fields["decision"]) for line in CONVERSATIONS if line.split == split)
        assert len(pairs) == 4 and max(pairs.values()) == min(pairs.values()), (split, pairs)


def test_a_conversation_becomes_messages_in_turn():
    from medlab.instruct import make_drafts, make_example
    from medlab.contracts.records import SplitRecord

    keys = {record_id("starter", line.key): line for line in CONVERSATIONS}
    records = [record for record in Starter().fetch() if record.id in keys]
    assert len(records) == len(CONVERSATIONS)
    for record in records:
        (draft,) = make_drafts(SplitRecord(**record.model_dump(), group="g"))
        example, line = make_example(draft), keys[record.id]
        assert [message["role"] for message in example.messages] == ["system", "user", "assistant", "user", "assistant"]
        assert example.messages[1]["content"] == line.turns[0].question and example.messages[3]["content"] == line.question
        assert example.messages[2]["content"].startswith(f"Decision: {line.turns[0].fields['decision']}")
        assert line.turns[0].question in example.question and line.question in example.question

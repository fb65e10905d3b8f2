"Marks, intervals and comparisons on hand-made answers; then the five variants for real, also through a kill."

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import product

import pytest

from medlab.basics.errors import InputError, MedlabError
from medlab.basics.files import read_json, read_jsonl, shipped
from medlab.contracts.records import TASKS
from medlab.core import Run, load_profile
from medlab.contracts.predictions import Prediction, read_predictions
from medlab.evaluate import EvaluateParams, Question, ask_batch, batched, choose_items, evaluate, kept_batches, questions
from medlab.metrics.baselines import majority_baselines
from medlab.metrics.intervals import bootstrap_mean, mcnemar, newcombe, wilson
from medlab.metrics.scores import CHOICES, agreement, compare, answer_scores, score, wanted_rows
from medlab.contracts.tasks import FORMATS, Example, build_messages, options_in, read_examples, render_answer
from medlab.contracts.engine import Completion, Sampling


@pytest.fixture(scope="module")
def starter():
    "All held-out starter items as examples."
    found = []
    for task in TASKS:
        for row in read_jsonl(shipped("data", "starter", f"{task}.jsonl")):
            if row["split"] == "test":
                messages = build_messages(task, row["question"], row.get("options"), row["fields"])
                gold = row["fields"] | {"reference": messages[-1]["content"]}
                found.append(
                    Example(id=row["key"], task=task, messages=messages, gold=gold, record_ids=[row["key"]], group=row["key"], split="test", source="starter")
                )
    return found


def said(example, variant, text, finish_reason="stop"):
    return Prediction(
        item_id=example.id, variant=variant, engine="by hand", prompt_sha256="", text=text, prompt_tokens=1, completion_tokens=1, seconds=0.1,
        finish_reason=finish_reason,
    )  # fmt: skip


def row_of(rows, metric, task, variant):
    return next(row for row in rows if (row.metric, row.task, row.variant) == (metric, task, variant))


def test_a_reference_gets_every_mark_and_silence_none(starter):
    assert {example.task for example in starter} == set(TASKS)
    for example in starter:
        assert set(answer_scores(example, example.gold["reference"], "stop").values()) == {1.0}, example.id
        for silence in ("", "  \n ", "\n".join(field.label + ":" for field in FORMATS[example.task])):
            assert set(answer_scores(example, silence, "length").values()) == {0.0}, (example.id, silence)


def test_another_items_answer_is_in_format_but_wrong(starter):
    for task, (field, metric) in CHOICES.items():
        of_task = [example for example in starter if example.task == task]
        assert len({example.gold[field] for example in of_task}) > 1, f"{task}: all golds are equal, so the metric cannot tell anything"
        wrong = [(one, other) for one, other in product(of_task, of_task) if one.gold[field] != other.gold[field]]
        for one, other in wrong:
            options = options_in(one.question)  # the other's letter, with this item's own words for it
            text = render_answer(task, {"analysis": "So.", "letter": other.gold[field]}, options) if options else other.gold["reference"]
            found = answer_scores(one, text)
            assert (found["format_valid"], found["choice_found"], found[metric]) == (1.0, 1.0, 0.0)


def test_a_letter_with_another_options_words_is_readable_but_not_in_format(starter):
    case = next(example for example in starter if example.task == "clinical_reasoning")
    letter, options = case.gold["letter"], options_in(case.question)
    other = next(text for name, text in options.items() if name != letter)
    found = answer_scores(case, f"<analysis>So.</analysis>\n<answer>{letter}: {other}</answer>", "stop")
    assert (found["format_valid"], found["choice_found"], found["option_accuracy"]) == (0.0, 1.0, 1.0)


def test_a_task_may_have_more_tokens_and_a_batch_has_one_limit(starter):
    class Words:
        def prompt_ids(self, messages):
            return messages[-1]["content"].split()

    some = [example for example in starter if example.task in ("triage", "treatment_recommendation")]
    asked = questions(some, Words(), EvaluateParams(max_new_tokens=70, longer={"treatment_recommendation": 150}))
    assert {(one.example.task, one.limit) for one in asked} == {("triage", 70), ("treatment_recommendation", 150)}
    assert asked == questions(some[::-1], Words(), EvaluateParams(max_new_tokens=70, longer={"treatment_recommendation": 150}))
    assert all(one.messages == one.example.messages[:-1] and one.messages[-1]["role"] == "user" for one in asked)
    assert [len(batch) for batch in batched(asked[:3] * 3, 4)] == [4, 4, 1]  # full ones, then what is left
    batches = batched(asked, 4)
    assert [one for batch in batches for one in batch] == asked
    assert all(len(batch) <= 4 and len({one.limit for one in batch}) == 1 for batch in batches)


def test_every_starter_answer_fits_its_limit(starter):
    from medlab.contracts.chat import ChatFormat
    from medlab.models import load_spec, obtain

    chat, params = ChatFormat.from_folder(obtain(load_spec("tiny-random"))), EvaluateParams()
    assert chat.prompt_ids(starter[0].messages[:-1])
    for example in starter:
        _, targets = chat.training_ids(example.messages)
        assert sum(target != -100 for target in targets) <= params.longer.get(example.task, params.max_new_tokens), example.id


def test_naming_every_choice_is_no_choice(starter):
    for task, (field, metric) in CHOICES.items():
        example = next(example for example in starter if example.task == task)
        choices = next(one for one in FORMATS[task] if one.name == field)
        found = answer_scores(example, "\n".join(f"{choices.label}: {choice}" for choice in choices.choices))
        assert (found["choice_found"], found[metric]) == (0.0, 0.0)


def test_unanswered_items_stay_in_the_denominator(starter):
    half = starter[::2]
    rows = score(starter, [said(example, "merged", example.gold["reference"]) for example in half])
    pooled = row_of(rows, "format_valid", "all", "merged")
    assert (pooled.n, pooled.value) == (len(starter), pytest.approx(len(half) / len(starter), abs=1e-6))
    assert row_of(rows, "rouge_l", "all", "merged").value < 0.6


def test_every_wanted_row_is_there_measured_or_with_a_reason(starter):
    one_task = [example for example in starter if example.task == "triage"]
    rows = score(one_task, [said(example, "base", "no idea") for example in one_task], missing={"served": "no server"})
    assert [(row.metric, row.task, row.variant) for row in rows] == [(m, t, v) for v in ("base", "served") for m, t, _ in wanted_rows()]
    for row in rows:
        if row.status == "measured":
            assert 0 <= row.low <= row.value <= row.high <= 1 and row.n == len(one_task) and row.why is None
        else:
            assert (row.value, row.low, row.high, row.n) == (None, None, None, 0) and row.why


def test_order_does_not_matter_and_mixed_runs_are_refused(starter):
    predictions = [said(example, "base", example.gold["reference"] if number % 3 else "?") for number, example in enumerate(starter)]
    shuffled = random.Random(0).sample(predictions, len(predictions))
    assert score(starter, predictions) == score(starter, shuffled)
    with pytest.raises(InputError, match="unknown"):
        score(starter[1:], predictions)
    with pytest.raises(InputError, match="second"):
        score(starter, predictions + predictions[:1])


def test_wilson_covers_the_truth_as_often_as_it_says():
    draw = random.Random(3)
    intervals = {(k, n): wilson(k, n) for n in (8, 48) for k in range(n + 1)}
    for n, rate in product((8, 48), (0.1, 0.5, 0.9)):
        hits = 0
        for _ in range(2000):
            low, high = intervals[sum(draw.random() < rate for _ in range(n)), n]
            hits += low <= rate <= high
        assert hits / 2000 > 0.92, (n, rate)
    for impossible in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError):
            wilson(*impossible)


def test_bootstrap_is_seeded_and_never_certain_of_a_constant():
    draw = random.Random(1)
    values = [draw.random() for _ in range(30)]
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)
    assert bootstrap_mean([0.0] * 8, 1) == pytest.approx(wilson(0, 8))
    assert bootstrap_mean([1.0] * 8, 1) == pytest.approx(wilson(8, 8))
    low, high = bootstrap_mean([0.5], 1)
    assert low < 0.2 and high > 0.8
    assert bootstrap_mean([1.0] * 4, 1, bounds=(-1, 1))[0] < 0.1


def test_mcnemar_by_counting_all_coin_tosses():
    for better, worse in ((5, 0), (3, 4), (6, 1), (0, 0)):
        n = better + worse
        as_rare = sum(1 for toss in product((0, 1), repeat=n) if abs(2 * sum(toss) - n) >= abs(better - worse))
        assert mcnemar(better, worse) == pytest.approx(as_rare / 2**n)


def test_newcombe_holds_the_difference_and_turns_round():
    assert newcombe(10, 0, 0, 10)[0] < 0 < newcombe(10, 0, 0, 10)[1]
    for counts in ((3, 7, 2, 5), (0, 40, 0, 8), (40, 4, 4, 0)):
        both, better, worse, neither = counts
        low, high = newcombe(*counts)
        assert -1 <= low < (better - worse) / sum(counts) < high <= 1
        assert (-high, -low) == pytest.approx(newcombe(both, worse, better, neither))


def test_a_gap_that_would_measure_form_is_not_printed(starter):
    prose = [said(example, "base", "You may want to speak to somebody.") for example in starter]
    tuned = [said(example, "merged", example.gold["reference"]) for example in starter]
    found = {(row.metric, row.task): row for row in compare(starter, prose + tuned)}
    assert found["format_valid", "all"].status == "measured" and found["format_valid", "all"].low > 0.9
    assert found["format_valid", "all"].p_value < 0.001
    for task, (_, metric) in CHOICES.items():
        assert (found[metric, task].status, found[metric, task].difference, found[metric, task].p_value) == ("not comparable", None, None)
        assert "0 of" in found[metric, task].why
    assert compare(starter, tuned) == []  # without a base there is nothing to compare with


def test_agreement_counts_only_what_can_be_read(starter):
    merged = [said(example, "merged", example.gold["reference"]) for example in starter]
    silent = [said(example, "served", "") for example in starter]
    rows = {row.metric: row for row in agreement(starter, merged + [one.model_copy(update={"variant": "q4_k_m"}) for one in merged])}
    assert rows["same_text_as_merged"].value == rows["same_choice_as_merged"].value == 1.0
    both_silent = [one.model_copy(update={"text": ""}) for one in merged]
    rows = {row.metric: row for row in agreement(starter, both_silent + silent)}
    assert rows["same_choice_as_merged"].value == 0.0


def test_parrot_scores_are_what_the_parrot_would_get(starter):
    for parrot in majority_baselines(starter):
        of_task = [example for example in starter if example.task == parrot["task"]]
        field, metric = CHOICES[parrot["task"]]
        spoken = [answer_scores(example, f"{next(f.label for f in FORMATS[example.task] if f.name == field)}: {parrot['answer']}") for example in of_task]
        assert sum(one[metric] for one in spoken) / len(of_task) == pytest.approx(parrot["value"], abs=1e-6)


def test_items_are_the_same_whatever_order_they_come_in(starter):
    strangers = [example.model_copy(update={"id": f"a{n}", "group": f"x{n}", "source": "web"}) for n, example in enumerate(starter)]
    pool = starter + strangers
    chosen = choose_items(pool, 3)
    assert chosen == choose_items(pool[::-1], 3)
    assert [example.task for example in chosen] == [task for task in TASKS for _ in range(3)] and {example.source for example in chosen} == {"starter"}
    assert len({example.group for example in chosen}) == len(chosen)


def test_of_one_group_one_item_is_chosen_whatever_its_task(starter):
    twins = [example.model_copy(update={"group": "one patient"}) for example in starter if example.task in ("triage", "medical_qa")]
    assert len(choose_items(twins, 3)) == 1
    family = [example.model_copy(update={"group": f"patient {n // 2}"}) for n, example in enumerate(example for example in starter if example.task == "triage")]
    chosen = choose_items(family, 3)
    assert len(chosen) == 3 == len({example.group for example in chosen})


def test_an_engine_that_goes_away_is_a_failure_not_a_missing_engine(starter):
    from medlab.basics.processes import free_port
    from medlab.engines.openai_compatible import OpenAiEngine

    question = Question(example=starter[0], messages=starter[0].messages[:-1], prompt_tokens=5, prompt_sha256="")
    with OpenAiEngine(f"http://127.0.0.1:{free_port()}", "gone") as engine, pytest.raises(MedlabError, match="went away"):
        ask_batch(engine, "served", [question], Sampling())


def test_a_torn_ledger_loses_only_its_torn_line(starter, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    lines = [json.dumps({"variant": "base", "batch": n, "predictions": [said(starter[n], "base", "x").model_dump()]}) for n in range(3)]
    ledger.write_text("\n".join(lines)[:-9])
    assert sorted(kept_batches(ledger, "base", 4)) == [0, 1]
    assert kept_batches(ledger, "served", 4) == {}  # a server that remembers starts anew, unless nothing is left to ask
    assert sorted(kept_batches(ledger, "base", 2)) == [0, 1] and kept_batches(tmp_path / "none.jsonl", "served", 2) == {}
    lines = [line.replace('"base"', '"served"') for line in lines]
    ledger.write_text("\n".join(lines))
    assert sorted(kept_batches(ledger, "served", 3)) == [0, 1, 2] and kept_batches(ledger, "served", 4) == {}


class Counting:
    "An engine that says `text` to everything, and that it saw `more` tokens than the prompt has."

    name = "counting"

    def __init__(self, more=0, lost=0):
        self.more, self.lost, self.asked = more, lost, []

    def generate(self, conversations, sampling):
        self.asked.append((conversations, sampling))
        time.sleep(0.05)
        return [Completion(text=f"answer {n}", prompt_tokens=5 + self.more, completion_tokens=2, finish_reason="stop", seconds=0.0)
                for n in range(len(conversations) - self.lost)]


@pytest.fixture
def batch(starter):
    return [Question(example=example, messages=example.messages[:-1], prompt_tokens=5, prompt_sha256=f"{n}" * 64) for n, example in enumerate(starter[:5])]


def test_a_batch_gives_one_answer_to_each_question_and_shares_its_time(batch):
    engine, sampling, began = Counting(), Sampling(length=7), time.perf_counter()
    found = ask_batch(engine, "q4_k_m", batch, sampling)
    whole = time.perf_counter() - began
    assert [(one.item_id, one.prompt_sha256, one.text) for one in found] == [(one.example.id, one.prompt_sha256, f"answer {n}") for n, one in enumerate(batch)]
    assert {(one.variant, one.engine, one.prompt_tokens, one.completion_tokens, one.finish_reason) for one in found} == {("q4_k_m", "counting", 5, 2, "stop")}
    assert 0.05 <= sum(one.seconds for one in found) <= whole + 0.001 and len({one.seconds for one in found}) == 1
    assert engine.asked == [([one.messages for one in batch], sampling)]


@pytest.mark.parametrize("more", [1, -1])
def test_an_engine_that_saw_another_prompt_is_refused(batch, more):
    with pytest.raises(MedlabError, match=f"counted {5 + more} prompt tokens, expected 5"):
        ask_batch(Counting(more=more), "served", batch, Sampling())


def test_an_engine_that_loses_an_answer_is_refused(batch):
    with pytest.raises(ValueError):
        ask_batch(Counting(lost=1), "served", batch, Sampling())


# ---------------------------------------------------------------------- the real thing


def test_five_variants_answer_the_same_prompts(smoke_run):
    run, profile = smoke_run
    predictions, measured = read_predictions(run.file("evaluate", "predictions.parquet")), read_json(run.file("evaluate", "metrics.json"))
    items = {item["id"]: item["prompt_sha256"] for item in measured["items"]}
    for variant in VARIANTS:
        given = [one for one in predictions if one.variant == variant]
        assert {one.item_id: one.prompt_sha256 for one in given} == items, variant
        assert all(one.finish_reason in ("stop", "length") for one in given)
    assert len({(one.item_id, one.prompt_tokens) for one in predictions}) == len(items)
    rows = [row for row in measured["rows"] if row["variant"] in VARIANTS and not row["metric"].startswith("same_")]
    assert len(rows) == len(VARIANTS) * len(wanted_rows()) and {row["status"] for row in rows} == {"measured"}
    assert {item["id"] for item in measured["items"]} <= {example.id for example in read_examples(run.file("instruct", "test.jsonl"))}


SCRIPT = """
import sys
from medlab.core import Run, load_profile
from medlab.evaluate import evaluate
evaluate(Run(sys.argv[1]), load_profile("smoke", sys.argv[2:]))
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_finishes_with_the_same_answers(copied, tmp_path):
    run, _ = copied
    changes = ["evaluate.items_per_task=2", "evaluate.batch=4", "evaluate.variants=[base,served]", "evaluate.max_new_tokens=24", "evaluate.longer={}"]
    whole = Run(shutil.copytree(run.path, tmp_path / "whole"))
    command = [sys.executable, "-c", SCRIPT, str(run.path), *changes]
    ledger = run.path / "evaluate" / "ledger.jsonl"
    ledger.unlink(missing_ok=True)

    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "2"})
    deadline = time.monotonic() + 120
    while not (ledger.exists() and ledger.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.manifest("evaluate") is None
    answered = len(read_jsonl(ledger, torn_end="drop"))
    assert 1 <= answered < 8

    profile = load_profile("smoke", changes)
    resumed, unbroken = evaluate(run, profile), evaluate(whole, profile)
    assert len([row for row in read_jsonl(ledger) if row["variant"] == "base"]) == 4  # no batch of it twice
    assert {name: one.content for name, one in resumed.outputs.items()} == {name: one.content for name, one in unbroken.outputs.items()}
    assert {row["why"] for row in read_json(run.file("evaluate", "metrics.json"))["rows"] if row["variant"] == "merged"} == {
        "not asked for in this profile (evaluate.variants)"
    }

"Scores, intervals and comparisons on hand-made answers; then the variants for real, also through a kill and other parameters."

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product

import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, read_jsonl, shipped
from medlab.contracts.engine import Completion, Sampling
from medlab.contracts.predictions import Prediction, read_predictions
from medlab.contracts.records import TASKS
from medlab.contracts.tasks import FORMATS, Example, build_messages, options_in, read_examples, render_answer
from medlab.core import Run, imported_modules, load_profile
from medlab.evaluate import (
    GGUF_TYPES, NAMED_VARIANTS, EvaluateParams, Question, Variant, answer_all, answer_key, ask_batch, batched, check_items_fit, choose_all, choose_items,
    evaluate, find_variant, forced_questions, questions, read_answers, take_ledgers,
)  # fmt: skip
from medlab.metrics.baselines import majority_baselines
from medlab.metrics.intervals import bootstrap_mean, mcnemar, newcombe, wilson
from medlab.metrics.scores import CHOICES, agreement, answer_scores, compare, score, wanted_rows


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


def test_a_reference_gets_every_score_and_silence_none(starter):
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


def test_a_letter_with_another_options_words_is_no_choice(starter):
    case = next(example for example in starter if example.task == "clinical_reasoning")
    letter, options = case.gold["letter"], options_in(case.question)
    other = next(text for name, text in options.items() if name != letter)
    found = answer_scores(case, f"<analysis>So.</analysis>\n<answer>{letter}: {other}</answer>", "stop")
    assert (found["format_valid"], found["choice_found"], found["option_accuracy"]) == (0.0, 0.0, 0.0)


def test_a_task_may_have_more_tokens_and_a_batch_has_one_limit(starter):
    class Words:
        def prompt_ids(self, messages):
            return messages[-1]["content"].split()

    some = [example for example in starter if example.task in ("triage", "treatment_recommendation")]
    asked = questions(some, Words(), EvaluateParams(max_new_tokens=70, longer={"treatment_recommendation": 150}))
    assert {(one.example.task, one.limit) for one in asked} == {("triage", 70), ("treatment_recommendation", 150)}
    assert asked == questions(some[::-1], Words(), EvaluateParams(max_new_tokens=70, longer={"treatment_recommendation": 150}))
    assert all(one.messages == one.example.messages[:-1] and one.messages[-1]["role"] == "user" for one in asked)
    assert [len(batch) for batch in batched(asked[:3] * 3, 4, lambda one: one.limit)] == [4, 4, 1]  # full ones, then what is left
    batches = batched(asked, 4, lambda one: one.limit)
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
    assert found["rouge_l", "all"].status == "not comparable"  # the format's own words would make the difference
    rows = {(row.variant, row.metric): row for row in score(starter, prose + tuned, floor=0.5) if row.metric.endswith("_accuracy")}
    assert {(row.status, row.value) for (name, _), row in rows.items() if name == "base"} == {("below floor", None)}
    assert {row.value for (name, _), row in rows.items() if name == "merged"} == {1.0}
    for task, (_, metric) in CHOICES.items():
        assert (found[metric, task].status, found[metric, task].difference, found[metric, task].p_value) == ("not comparable", None, None)
        assert "0 of" in found[metric, task].why


def test_choices_that_can_be_read_in_answers_without_the_format_are_no_accuracy_of_a_run(starter):
    "An untuned model that says the right thing in its own words is not set beside one that learnt the format."
    plain = [said(example, "base", f"I would say {example.gold[CHOICES[example.task][0]]}." if example.task == "triage" else example.gold["reference"]) for example in starter]
    tuned = [said(example, "merged", example.gold["reference"]) for example in starter]
    row = next(row for row in score(starter, plain, floor=0.5, form=0.5) if row.metric == "triage_accuracy")
    assert (row.status, row.value) == ("below floor", None) and "0 of" in row.why and "required format" in row.why
    assert next(row for row in score(starter, plain, floor=0.5) if row.metric == "triage_accuracy").value == 1.0  # somebody else's answers need only be read
    for metric in ("triage_accuracy", "rouge_l"):
        found = next(one for one in compare(starter, plain + tuned, form=0.5) if (one.metric, one.task) == (metric, "triage"))
        assert (found.status, found.difference) == ("not comparable", None) and "base kept the required format on 0 of" in found.why
    assert compare(starter, tuned) == []  # without a base there is nothing to compare with


def test_agreement_counts_only_what_can_be_read(starter):
    merged = [said(example, "merged", example.gold["reference"]) for example in starter]
    silent = [said(example, "served", "") for example in starter]
    rows = {row.metric: row for row in agreement(starter, merged + [one.model_copy(update={"variant": "q4_k_m"}) for one in merged])}
    assert rows["same_text_as_merged"].value == rows["same_choice_as_merged"].value == 1.0
    both_silent = [one.model_copy(update={"text": ""}) for one in merged]
    rows = {row.metric: row for row in agreement(starter, both_silent + silent)}
    assert rows["same_choice_as_merged"].value == 0.0


def test_a_majority_baseline_is_what_always_giving_that_answer_scores(starter):
    assert {row["task"] for row in majority_baselines(starter)} == set(CHOICES)
    for row in majority_baselines(starter):
        of_task = [example for example in starter if example.task == row["task"]]
        field, metric = CHOICES[row["task"]]
        label = next(one.label for one in FORMATS[row["task"]] if one.name == field)
        spoken = [answer_scores(example, f"{label}: {row['answer']}") for example in of_task]
        assert sum(one[metric] for one in spoken) / len(of_task) == pytest.approx(row["value"], abs=1e-6)


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


def test_an_engine_that_goes_away_is_not_one_that_cannot_choose(starter, tmp_path):
    "Its arm would stand in a finished result as one that this engine cannot be asked in."
    from medlab.basics.processes import free_port
    from medlab.engines.openai_compatible import OpenAiEngine

    asked = forced_questions([one for one in starter if one.task == "triage"], "forced_choice_letter", {"triage": []})
    with OpenAiEngine(f"http://127.0.0.1:{free_port()}", "gone") as engine:
        variant = Variant("served", "x", engine.name, lambda: nullcontext(engine))
        with pytest.raises(MedlabError, match="went away in the middle of its choices"):
            choose_all(variant, [replace(one, lead="") for one in asked], "forced_choice_letter", 8, tmp_path / "choices.jsonl")


class Counting:
    "An engine that numbers its answers, and that says it saw `more` tokens than the prompt has."

    name = "counting"

    def __init__(self, more=0, lost=0, dies_at=0):
        self.more, self.lost, self.dies_at, self.asked = more, lost, dies_at, []

    def generate(self, conversations, sampling):
        if len(self.asked) + 1 == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append((conversations, sampling))
        time.sleep(0.05)
        return [Completion(text=f"answer {n}", prompt_tokens=5 + self.more, completion_tokens=2, finish_reason="stop", seconds=0.0)
                for n in range(len(conversations) - self.lost)]


def counted(engine, name="base", fingerprint="weights"):
    return Variant(name, fingerprint, engine.name, lambda: nullcontext(engine))


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


@pytest.mark.parametrize(("names", "said"), [
    (["bse"], "no variant is called 'bse'; did you mean 'base'"), (["q4_k_n"], "did you mean 'q4_k_"), (["gpt"], "expected one of: adapter, adapter_gguf, base"),
    (["base", "q8_0", "base"], "'base' is named twice"), ([], "at least 1"),
])  # fmt: skip
def test_a_variant_that_cannot_be_is_refused_with_the_profile(names, said):
    with pytest.raises(InputError, match="evaluate") as refused:
        load_profile("smoke", [f"evaluate.variants={json.dumps(names)}"])
    assert said in str(refused.value)
    assert EvaluateParams(variants=[*NAMED_VARIANTS, *GGUF_TYPES])


@pytest.mark.parametrize("change", [
    "items_per_task=0", "batch=0", "max_new_tokens=0", "readable_floor=1.5", "longer={triag: 9}", "choice_items=-1", "few_shot=0", "arms=[zero]", "largest_drop=2",
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(change):
    with pytest.raises(InputError, match=change.partition("=")[0]):
        load_profile("smoke", [f"evaluate.{change}"])


def test_evaluate_loads_no_step_whose_work_it_reads():
    below = imported_modules("medlab.evaluate")
    assert "medlab.metrics.scores" in below and "medlab.engines.deployment" in below
    for step in ("collect", "preprocess", "instruct", "finetune", "quantize", "deploy"):
        assert f"medlab.{step}" not in below
    assert not [name for name in below if name.startswith(("medlab.sources.", "medlab.cleaning.", "medlab.builders."))]


# ---------------------------------------------------------------------- the ledger


def test_an_answers_key_follows_all_that_decides_it_and_nothing_else(batch):
    variant, sampling = counted(Counting()), Sampling()
    keys = {answer_key(variant, batch[0], sampling), answer_key(replace(variant, name="merged", opener=None), batch[0], sampling)}
    assert len(keys) == 1 and len(keys.pop()) == 64
    others = [
        answer_key(variant, batch[0], sampling), answer_key(replace(variant, fingerprint="others"), batch[0], sampling),
        answer_key(replace(variant, engine="other"), batch[0], sampling), answer_key(variant, batch[1], sampling),
        answer_key(variant, batch[0].model_copy(update={"limit": 9}), sampling),
        *(answer_key(variant, batch[0], Sampling(**{name: value})) for name, value in
          {"temperature": 0.5, "top_k": 1, "top_p": 0.5, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 1, "stop": ["x"], "context": 99}.items()),
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert answer_key(variant, batch[0], Sampling(length=3)) == answer_key(variant, batch[0], sampling)  # the question's own limit counts


def test_a_killed_run_asks_the_same_batches_as_an_unbroken_one(batch, tmp_path):
    whole, broken, resumed = Counting(), Counting(dies_at=2), Counting()
    expected = answer_all(counted(whole), batch, 2, Sampling(), tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        answer_all(counted(broken), batch, 2, Sampling(), tmp_path / "broken.jsonl")
    found = answer_all(counted(resumed), batch, 2, Sampling(), tmp_path / "broken.jsonl")
    assert [one.text for one in found] == [one.text for one in expected]
    assert broken.asked + resumed.asked == whole.asked and len(whole.asked) == 3


def test_a_torn_last_line_costs_its_batch_and_no_other(batch, tmp_path):
    ledger = tmp_path / "evaluate.jsonl"
    whole = answer_all(counted(Counting()), batch, 2, Sampling(), ledger)
    text = ledger.read_text()
    for length in range(text.rstrip().rfind("\n") + 2, len(text) - 1, 37):
        ledger.write_text(text[:length])
        assert len(read_answers(ledger)) == 4
        engine = Counting()
        found = answer_all(counted(engine), batch, 2, Sampling(), ledger)
        assert [len(conversations) for conversations, _ in engine.asked] == [1]
        assert [one.item_id for one in found] == [one.item_id for one in whole] and len(read_answers(ledger)) == 5
    assert read_answers(tmp_path / "none.jsonl") == {}
    for strange in ('{"batch": 1}', '{"answers": {"k": {"text": "x"}}}', '{"answers": []}', "[1]", "x"):
        ledger.write_text(strange + "\n" + text)
        with pytest.raises(InputError, match="evaluate.jsonl"):
            read_answers(ledger)


def test_what_was_answered_is_not_asked_again_in_other_batches_or_under_another_name(batch, tmp_path):
    ledger = tmp_path / "evaluate.jsonl"
    first = answer_all(counted(Counting()), batch[:3], 2, Sampling(), ledger)
    engine = Counting()
    both = answer_all(counted(engine), batch, 4, Sampling(), ledger)
    assert [conversations for conversations, _ in engine.asked] == [[batch[3].messages], [batch[4].messages]]  # of each batch only what is missing
    assert both[:3] == first
    unopened = replace(counted(engine, "merged"), opener=None)
    renamed = answer_all(unopened, batch, 1, Sampling(), ledger)
    assert {one.variant for one in renamed} == {"merged"} and [one.text for one in renamed] == [one.text for one in both]
    others = Counting()
    answer_all(counted(others, fingerprint="trained again"), batch, 5, Sampling(), ledger)
    assert sum(len(conversations) for conversations, _ in others.asked) == 5


def test_the_ledgers_of_another_run_are_taken_over_once(batch, tmp_path):
    answer_all(counted(Counting()), batch, 2, Sampling(), tmp_path / "other" / "evaluate.jsonl")
    run = Run(tmp_path / "run")
    assert (take_ledgers(tmp_path / "other", run), take_ledgers(tmp_path / "other", run)) == (5, 0)
    found = answer_all(replace(counted(Counting()), opener=None), batch, 2, Sampling(), run.path / "ledgers" / "evaluate.jsonl")  # nobody is asked
    assert [one.item_id for one in found] == [one.example.id for one in batch]
    with pytest.raises(MissingError, match="holds no evaluate.jsonl"):
        take_ledgers(tmp_path, run)


def test_an_item_that_does_not_fit_the_context_is_named_before_anything_is_asked(batch):
    check_items_fit(batch, Sampling(context=5 + 64))
    longer = [batch[0].model_copy(update={"limit": 65}), *batch[1:]]
    with pytest.raises(InputError, match=f"item {batch[0].example.id}: .*raise deploy.context.*max_new_tokens"):
        check_items_fit(longer, Sampling(context=5 + 64))


# ---------------------------------------------------------------------- the real thing


def test_all_variants_answer_the_same_prompts(smoke_run):
    run, profile = smoke_run
    predictions, measured = read_predictions(run.file("evaluate", "predictions.parquet")), read_json(run.file("evaluate", "metrics.json"))
    items = {item["id"]: item["prompt_sha256"] for item in measured["items"]}
    variants = profile.params(EvaluateParams).variants
    assert len(variants) == 5 and set(variants) == {one.variant for one in predictions}
    for variant in variants:
        given = [one for one in predictions if one.variant == variant]
        assert {one.item_id: one.prompt_sha256 for one in given} == items, variant
        assert all(one.finish_reason in ("stop", "length") for one in given)
        assert {one.engine for one in given} == {find_variant(variant, run, profile).engine}
    assert len({(one.item_id, one.prompt_tokens) for one in predictions}) == len(items)
    rows = [row for row in measured["rows"] if not row["metric"].startswith("same_")]
    assert [row["variant"] for row in rows] == [variant for variant in variants for _ in wanted_rows()] and {row["status"] for row in rows} <= {"measured", "below floor"}
    assert all((row["value"] is None) == (row["status"] == "below floor") == bool(row["why"]) for row in rows)
    assert {item["id"] for item in measured["items"]} <= {example.id for example in read_examples(run.file("instruct", "test.jsonl"))}
    assert [row["metric"] for row in measured["majority_baselines"]] == [metric for _, metric in CHOICES.values()]


def test_every_arm_of_the_smoke_run_is_measured_or_says_why_not(smoke_run):
    run, profile = smoke_run
    measured, params = read_json(run.file("evaluate", "metrics.json")), profile.params(EvaluateParams)
    everything = read_predictions(run.file("evaluate", "predictions.parquet"), None)
    asked = {(row["variant"], row["arm"]) for row in measured["arms"]}
    assert {("base", "forced_choice_letter"), ("base", "few_shot_forced_choice_text"), ("served", "forced_choice_letter")} <= asked
    for row in measured["arms"]:
        assert row["status"] == "measured" or (row["value"] is None and row["why"]), row
    for one in everything:
        if one.arm.startswith(("forced", "few_shot_forced")):
            assert one.option_logprobs and all(value <= 0 for value in one.option_logprobs.values())
    prompts = {(one.item_id, one.arm): one.prompt_sha256 for one in everything}
    assert all(prompts[one.item_id, one.arm] == one.prompt_sha256 for one in everything)  # one prompt an item and arm, whatever the variant
    assert {claim["task"] for claim in measured["claims"]} == set(CHOICES) and not any(claim["beats_base"] for claim in measured["claims"])  # one item shows nothing
    pairs = [(row["against"], row["variant"]) for row in measured["neighbours"]]
    assert set(pairs) <= set(zip(params.variants, params.variants[1:])) | {("q4_k_m", "served")} and ("merged", "q4_k_m") in pairs
    calibrated = read_json(run.file("evaluate", "calibration.json"))
    assert set(calibrated["base"]) >= {"forced_choice_letter", "forced_choice_text"}


def test_a_variants_fingerprint_is_that_of_its_own_weights(smoke_run):
    run, profile = smoke_run
    found = {name: find_variant(name, run, profile).fingerprint for name in ("base", "adapter", "merged", "f16", "q4_k_m", "served")}
    assert len(set(found.values())) == 6
    with pytest.raises(MissingError, match="quantize has made no model-q8_0.gguf.*quantize.types=q8_0"):
        find_variant("q8_0", run, profile)
    with pytest.raises(MissingError, match="medlab quantize"):
        find_variant("merged", Run(run.path / "nothing here"), profile)


@pytest.fixture
def opened(monkeypatch):
    "What each variant was really asked: its name to the number of conversations. An engine that is not opened has no entry."
    import medlab.evaluate as room

    counts = {}

    def watched(name, run, profile):
        variant = find_variant(name, run, profile)

        @contextmanager
        def opener():
            counts.setdefault(name, 0)
            with variant.opener() as engine:
                generate = engine.generate
                engine.generate = lambda conversations, sampling: counts.update({name: counts[name] + len(conversations)}) or generate(conversations, sampling)
                yield engine

        return replace(variant, opener=opener)

    monkeypatch.setattr(room, "find_variant", watched)
    return counts


@pytest.mark.slow
def test_another_parameter_asks_nothing_that_was_asked(copied, opened):
    run, _ = copied
    few = "evaluate.variants=[base, q4_k_m]"
    first = evaluate(run, load_profile("smoke", [few]))
    lines = len(read_jsonl(run.path / "ledgers" / "evaluate.jsonl"))
    assert lines and opened == {}  # all answers are in the ledger of the run that was copied
    for change in ("evaluate.readable_floor=0.9", "evaluate.batch=3", "judge.items=1"):
        evaluate(run, load_profile("smoke", [few, change]))
        assert opened == {}, change
    evaluate(run, load_profile("smoke", [few, "evaluate.items_per_task=2"]))
    asked = len(read_json(run.file("evaluate", "metrics.json"))["items"]) - len(TASKS)
    assert asked == len(TASKS) and opened == {"base": asked, "q4_k_m": asked}
    opened.clear()
    again = evaluate(run, load_profile("smoke", [few]))
    assert opened == {} and {name: one.content for name, one in again.outputs.items()} == {name: one.content for name, one in first.outputs.items()}
    evaluate(run, load_profile("smoke", ["evaluate.variants=[q4_k_m]", "evaluate.longer={}", "evaluate.max_new_tokens=80"]))
    assert opened == {"q4_k_m": 1}  # the plan alone has another limit


def test_what_is_not_here_is_asked_for_when_it_is(copied, opened, monkeypatch):
    import medlab.engines.llama_cpp as engine

    run, _ = copied
    (run.path / "ledgers" / "evaluate.jsonl").unlink()
    profile = load_profile("smoke", ["evaluate.variants=[base, q4_k_m]", "evaluate.max_new_tokens=8", "evaluate.longer={}"])
    find_spec = importlib.util.find_spec

    def without_llama_cpp(patch):
        patch.setattr(engine.importlib.util, "find_spec", lambda name, *rest: None if name == "xllamacpp" else find_spec(name, *rest))

    with monkeypatch.context() as patch:
        without_llama_cpp(patch)
        part = evaluate(run, profile)
    assert (part.incomplete, part.missing) == (True, ["q4_k_m"]) and "pip install xllamacpp" in part.notes[0]
    rows = read_json(run.file("evaluate", "metrics.json"))["rows"]
    assert {row["status"] for row in rows if row["variant"] == "q4_k_m"} == {"not run"} and opened == {"base": 8, "q4_k_m": 0}
    opened.clear()
    whole = evaluate(run, profile)  # the same command goes on
    assert (whole.incomplete, whole.missing, opened) == (False, [], {"q4_k_m": 8})
    (run.path / "ledgers" / "evaluate.jsonl").unlink()
    (run.path / "evaluate" / "predictions.parquet").unlink()
    with monkeypatch.context() as patch:
        without_llama_cpp(patch)
        with pytest.raises(MissingError, match="q4_k_m was used for the finished result"):
            evaluate(run, profile)
    assert run.manifest("evaluate").missing == []


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
    ledger = run.path / "ledgers" / "evaluate.jsonl"
    ledger.unlink()
    whole = Run(shutil.copytree(run.path, tmp_path / "whole"))
    command = [sys.executable, "-c", SCRIPT, str(run.path), *changes]

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
    batches = [row for row in read_jsonl(ledger) if row["variant"] == "base"]
    assert len(batches) == 4 and len({key for row in batches for key in row["answers"]}) == 16  # no batch of it twice
    assert {name: one.content for name, one in resumed.outputs.items()} == {name: one.content for name, one in unbroken.outputs.items()}
    assert {row["variant"] for row in read_json(run.file("evaluate", "metrics.json"))["rows"]} == {"base", "served"}  # what the profile names, and no other

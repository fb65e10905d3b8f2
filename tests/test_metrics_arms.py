"Arms, rivals, claims and calibration on scripted engines: what may be said, and what must stay an empty cell."

import random
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

import medlab.evaluate as room
from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_jsonl, shipped
from medlab.contracts.engine import Completion, OptionScores, Sampling
from medlab.contracts.predictions import ARMS
from medlab.contracts.records import TASKS
from medlab.contracts.tasks import Example, build_messages, options_in, render_answer
from medlab.core import Run, load_profile
from medlab.evaluate import Evaluation, Question, Variant, all_metrics, ask_variants, choose_all, forced_questions, kept_open, shots_for
from medlab.metrics.calibration import calibration_error, conformal_sets, risk_coverage
from medlab.metrics.claims import best_arm, check_neighbours, make_claims, neighbour_rows
from medlab.metrics.forced_choice import few_shot_examples, forced_choice, forced_question, option_shares
from medlab.metrics.intervals import clustered_bootstrap, holm, mcnemar, newcombe, smallest_difference, wilson
from medlab.metrics.items import macro_f1, plan_scores, triage_errors, two_sided_errors
from medlab.metrics.rivals import rival_answers, rival_rows
from medlab.metrics.scores import CHOICES, choice_of


@pytest.fixture(scope="module")
def starter():
    "The starter data as examples, by split."
    found = {"train": [], "validation": [], "test": []}
    for task in CHOICES:
        for row in read_jsonl(shipped("data", "starter", f"{task}.jsonl")):
            messages = build_messages(task, row["question"], row.get("options"), row["fields"])
            gold = row["fields"] | {"reference": messages[-1]["content"]}
            found[row["split"]].append(Example(id=row["key"], task=task, messages=messages, gold=gold, record_ids=[row["key"]], group=row["key"],
                                               split=row["split"], source="starter"))
    return found


class Scripted:
    "An engine that writes one text, and whose forced choices are right with a given chance; it knows the answers by their question."

    name = "scripted"

    def __init__(self, examples, writes="", skill=1.0, lists_only_letters=False, seed=0, unlisted=()):
        self.golds = {one.question.splitlines()[0]: one.gold[CHOICES[one.task][0]] for one in examples}
        self.writes, self.skill, self.letters, self.draw, self.leads, self.unlisted = writes, skill, lists_only_letters, random.Random(seed), [], unlisted

    def generate(self, conversations, sampling):
        return [Completion(self.writes, 5, 1, 0.0, "stop") for _ in conversations]

    def info(self):
        return {"engine": self.name}

    def option_logprobs(self, conversations, options, lead=""):
        if self.letters and any(len(one) > 1 for some in options for one in some):
            raise MissingError("scripted lists only its likeliest next tokens")
        found = []
        for turns, some, before in zip(conversations, options, [lead] * len(options) if isinstance(lead, str) else lead):
            question = turns[-1]["content"]
            gold, lines = self.golds[question.splitlines()[0]], question.splitlines()
            right = next((one for one in some if one == gold or f"{one}) {gold}" in lines or options_in(question).get(gold) == one), some[0])
            chosen = right if self.draw.random() < self.skill else next(one for one in some if one != right)
            self.leads.append(before)
            found.append(OptionScores({one: -1.0 if one == chosen else -4.0 for one in some}, dict.fromkeys(some, 1), tuple(one for one in some if one in self.unlisted)))
        return found


def asked(starter, n=12, validation=4):
    by_task = {split: [one for task in CHOICES for one in [one for one in starter[split] if one.task == task][:count]] for split, count in (("test", n), ("validation", validation))}
    params = room.EvaluateParams()
    written = [Question(example=one, messages=one.messages[:-1], prompt_tokens=5, prompt_sha256=one.id) for one in by_task["test"][:4]]
    return Evaluation(written, by_task["test"], by_task["validation"], {arm: shots_for(starter["train"], arm, params, 1) for arm in ARMS})


@pytest.fixture
def asks(starter, monkeypatch, tmp_path):
    "Ask scripted variants, given by name; returns what was asked and answered, and the metrics."

    def ask(engines, *changes, **sizes):
        def variant(name, run, profile):
            opener = engines[name]
            return Variant(name, name, "scripted", opener if callable(opener) else lambda: nullcontext(opener))

        monkeypatch.setattr(room, "find_variant", variant)
        profile, found = load_profile("smoke", [f"evaluate.variants=[{', '.join(engines)}]", *changes]), asked(starter, **sizes)
        ask_variants(Run(tmp_path / "run"), profile, found, Sampling())
        return found, all_metrics(found, starter["train"], profile)

    return ask


def test_a_base_that_only_lacks_the_form_is_not_beaten(asks, starter):
    "The tuned model writes the format and the base writes prose; by forced choice both know the same, so nothing is claimed."
    everything = starter["test"] + starter["validation"]
    found, measured = asks({"base": Scripted(everything, "You may want to rest."), "merged": Scripted(everything, "Triage: urgent")})
    accuracies = [row for row in measured["rows"] if row["variant"] == "base" and row["metric"].endswith("_accuracy") and row["status"] != "not run"]
    assert accuracies and {(row["status"], row["value"]) for row in accuracies} == {("below floor", None)}
    assert all("0 of" in row["why"] for row in accuracies)
    assert {claim["task"] for claim in measured["claims"]} == set(CHOICES)
    for claim in measured["claims"]:
        assert (claim["difference"], claim["beats_base"]) == (0.0, False)
        assert claim["base_arm"].startswith("forced_choice") and "no difference" in claim["says"]
        assert claim["smallest_difference"] == smallest_difference(claim["n"])


def test_a_tuned_model_that_knows_more_is_said_to_be_better_and_is_set_against_its_rivals(asks, starter):
    everything = starter["test"] + starter["validation"]
    _, measured = asks({"base": Scripted(everything, skill=0.0), "merged": Scripted(everything)}, n=24)
    for claim in measured["claims"]:
        assert claim["beats_base"] and claim["low"] > 0 and claim["p_holm"] >= claim["p_value"]
        assert claim["strongest_rival"] in {row["rival"] for row in measured["rivals"] if row["task"] == claim["task"]}
        assert claim["beats_rival"] == (claim["rival_low"] > 0)
        assert ("beats the strongest" in claim["says"]) == claim["beats_rival"]
    strongest = {row["task"]: max(one["value"] for one in measured["rivals"] if (one["task"], one["n"]) == (row["task"], 24)) for row in measured["rivals"]}
    assert all(claim["rival_value"] == pytest.approx(strongest[claim["task"]], abs=1e-6) for claim in measured["claims"])


def test_what_an_engine_cannot_say_is_an_empty_cell_with_its_reason(asks, starter):
    everything = starter["test"] + starter["validation"]
    found, measured = asks({"base": Scripted(everything), "merged": Scripted(everything, lists_only_letters=True)})
    text = [row for row in measured["arms"] if (row["variant"], row["arm"]) == ("merged", "forced_choice_text")]
    assert text and {(row["status"], row["value"], row["why"]) for row in text} == {("not run", None, "scripted lists only its likeliest next tokens")}
    assert found.missing == {}  # the variant is there
    letters = [row for row in measured["arms"] if (row["variant"], row["arm"]) == ("merged", "forced_choice_letter")]
    assert {row["status"] for row in letters} == {"measured"} and {row["value"] for row in letters} == {1.0}


def test_options_that_an_engine_does_not_list_are_counted_beside_the_accuracy(asks, starter):
    everything = starter["test"] + starter["validation"]
    _, measured = asks({"base": Scripted(everything), "merged": Scripted(everything, unlisted=("D",))})
    why = {(row["variant"], row["task"]): row["why"] for row in measured["arms"] if row["arm"] == "forced_choice_letter"}
    assert "in 12 of 12 choices an option was not among the tokens" in why["merged", "clinical_reasoning"]
    assert why["merged", "safety_refusal"] is None and why["base", "clinical_reasoning"] is None  # two options, and an engine that lists all


def test_rivals_stand_beside_written_answers_and_chosen_ones(asks, starter):
    everything = starter["test"] + starter["validation"]
    found, measured = asks({"base": Scripted(everything, "Rest."), "merged": Scripted(everything, "Rest.")})
    written = Counter(one.example.task for one in found.written)
    sizes = {task: {row["n"] for row in measured["rivals"] if row["task"] == task} for task in CHOICES}
    assert all(sizes[task] == {12} | ({written[task]} - {0}) for task in CHOICES) and sum(written.values()) == 4
    assert [(row["variant"], row["n"]) for row in measured["wording"]] == [("base", 4), ("merged", 4)] and measured["wording"][0]["bleu"] < 1


def test_a_variant_that_is_not_here_is_missing_in_all_arms(asks, starter):
    @contextmanager
    def gone():
        raise MissingError("no engine here")
        yield

    found, measured = asks({"base": Scripted(starter["test"] + starter["validation"]), "merged": gone})
    assert found.missing == {"merged": "no engine here"} and not [one for one in found.predictions if one.variant == "merged"]
    assert {row["why"] for row in measured["arms"] if row["variant"] == "merged"} == {"no engine here"}
    assert measured["claims"] == []


class Wavering(Scripted):
    "It knows the answer only to a question as it stands."

    def option_logprobs(self, conversations, options, lead=""):
        plain = [turns[-1]["content"].splitlines()[0] in self.golds for turns in conversations]
        known = iter(super().option_logprobs([one for one, same in zip(conversations, plain) if same], [one for one, same in zip(options, plain) if same], lead))
        return [next(known) if same else OptionScores({one: -1.0 if one == some[-1] else -4.0 for one in some}, dict.fromkeys(some, 1)) for some, same in zip(options, plain)]

    def generate(self, conversations, sampling):
        return [Completion("Triage: urgent" if sampling.seed % 2 else "Triage: soon", 5, 1, 0.0, "stop") for _ in conversations]


def test_a_choice_that_does_not_survive_another_wording_and_a_score_that_does_not_survive_a_seed(asks, starter):
    found, measured = asks({"base": Wavering(starter["test"] + starter["validation"])}, "evaluate.phrasing_items=6", "evaluate.temperature=0.8", "evaluate.seeds=3")
    rows = {(row["variant"], row["task"]): row for row in measured["consistency"]}
    assert {(row["n"], row["phrasings"]) for row in measured["consistency"]} == {(6, 5)} and len(rows) == 4
    assert all(row["value"] < 1 and row["highest_accuracy"] == 1.0 and row["lowest_accuracy"] < 1 for row in rows.values())
    assert len(found.by_seed["base"]) == 2 and {row["seeds"] for row in measured["seeds"]} == {3}
    assert {row["metric"] for row in measured["seeds"]} >= {"format_valid", "finished"}
    assert all(row["lowest"] <= row["mean"] <= row["highest"] for row in measured["seeds"])
    texts = [{one.text for one in given} for given in found.by_seed["base"]]
    assert texts == [{"Triage: urgent"}, {"Triage: soon"}]  # the seeds 43 and 44 of a profile with 42


def test_memory_is_kept_beside_the_answers(asks, starter):
    found, _ = asks({"base": Scripted(starter["test"] + starter["validation"])})
    assert 10 < found.memory["base"] < 1e6
    again, _ = asks({"base": Scripted(starter["test"] + starter["validation"])})  # nothing is asked: the measured value stays
    assert again.memory == found.memory


def test_only_the_named_variants_are_asked_with_examples(asks, starter):
    everything = starter["test"] + starter["validation"]
    found, _ = asks({"base": Scripted(everything), "merged": Scripted(everything)})
    arms = {name: {one.arm for one in found.predictions if one.variant == name} for name in ("base", "merged")}
    assert "few_shot_forced_choice_text" in arms["base"] and not any(arm.startswith("few_shot") for arm in arms["merged"])


def test_forced_choices_are_asked_once_and_batches_are_whole(starter, tmp_path):
    examples = [one for one in starter["test"] if one.task == "triage"][:5]
    engine = Scripted(examples)
    variant = Variant("base", "weights", "scripted", lambda: nullcontext(engine))
    questions = forced_questions(examples, "forced_choice_text", dict.fromkeys(TASKS, []))
    first = choose_all(variant, questions, "forced_choice_text", 2, tmp_path / "choices.jsonl")
    asked_once = len(engine.leads)
    assert choose_all(variant, questions, "forced_choice_text", 2, tmp_path / "choices.jsonl") == first and len(engine.leads) == asked_once == 5
    assert [choice_of(one, found.text) for one, found in zip([question.example for question in questions], first)] == [one.example.gold["triage"] for one in questions]
    other = replace(variant, fingerprint="trained again")
    choose_all(other, questions, "forced_choice_text", 2, tmp_path / "choices.jsonl")
    assert len(engine.leads) == 10


def test_an_engine_that_loses_a_choice_is_refused(starter, tmp_path):
    class Losing(Scripted):
        def option_logprobs(self, conversations, options, lead=""):
            return super().option_logprobs(conversations, options, lead)[:-1]

    examples = [one for one in starter["test"] if one.task == "triage"][:2]
    variant = Variant("base", "weights", "scripted", lambda: nullcontext(Losing(examples)))
    with pytest.raises(ValueError, match="shorter"):
        choose_all(variant, forced_questions(examples, "forced_choice_text", dict.fromkeys(TASKS, [])), "forced_choice_text", 2, tmp_path / "choices.jsonl")


def test_a_variant_is_opened_once_for_all_arms():
    opened = []

    @contextmanager
    def opener():
        opened.append(1)
        yield "engine"

    with kept_open(Variant("base", "w", "scripted", opener)) as variant:
        assert opened == []
        for _ in range(3):
            with variant.opener() as engine:
                assert engine == "engine"
    assert opened == [1]


@pytest.mark.parametrize("task", CHOICES)
def test_examples_for_the_prompt_are_balanced_seeded_and_from_training(starter, task):
    field, labels = CHOICES[task][0], len({one.gold[CHOICES[task][0]] for one in starter["train"] if one.task == task})
    drawn = few_shot_examples(starter["train"], task, labels, seed=3)
    assert len({one.gold[field] for one in drawn}) == labels  # each answer once
    assert drawn == few_shot_examples(random.Random(1).sample(starter["train"], len(starter["train"])), task, labels, seed=3)
    assert {one.split for one in drawn} == {"train"}
    twice = Counter(one.gold[field] for one in few_shot_examples(starter["train"], task, 2 * labels, seed=3))
    assert max(twice.values()) - min(twice.values()) <= 1
    assert any(few_shot_examples(starter["train"], task, labels, seed=seed) != drawn for seed in range(4, 8))


@pytest.mark.parametrize("task", CHOICES)
@pytest.mark.parametrize("by", ["letter", "text"])
def test_a_forced_choice_is_read_by_the_readers_of_written_answers(starter, task, by):
    for example in [one for one in starter["test"] if one.task == task][:6]:
        question = forced_question(example, by)
        assert len(set(question.options.values())) == len(question.options) >= 2
        engine = Scripted([example])
        scores = engine.option_logprobs([question.messages], [list(question.options.values())], [question.lead])[0]
        made = room.forced_prediction(question, scores, "base", "scripted", f"forced_choice_{by}")
        assert choice_of(example, made.text) == example.gold[CHOICES[task][0]] == max(option_shares(made), key=option_shares(made).get)


def test_labels_are_chosen_by_the_probability_of_writing_them():
    scores = OptionScores({"emergency": -1.8, "self-care": -4.0}, {"emergency": 1, "self-care": 3})  # per token self-care would win, always
    assert forced_choice("text", scores, {"emergency": "emergency", "self-care": "self-care"}) == "emergency"


def test_text_is_normalised_by_its_length_and_letters_are_not():
    scores = OptionScores({"short": -3.0, "a much longer text": -6.0}, {"short": 1, "a much longer text": 4})
    options = {"A": "short", "B": "a much longer text"}
    assert (forced_choice("text", scores, options), forced_choice("letter", scores, options)) == ("B", "A")


def test_rivals_learn_from_training_and_never_from_the_test(starter):
    test = [one for one in starter["test"] if one.task in CHOICES]
    answers = rival_answers(starter["train"], test)
    assert set(answers) == set(CHOICES) and all("majority" in rivals for rivals in answers.values())
    turned = [one.model_copy(update={"gold": one.gold | {"triage": "soon"}}) if one.task == "triage" else one for one in test]
    assert rival_answers(starter["train"], turned)["triage"] == answers["triage"]  # what is right in the test changes no answer
    majority = Counter(one.gold["triage"] for one in starter["train"] if one.task == "triage")
    assert majority[next(iter(answers["triage"]["majority"].values()))] == max(majority.values())
    assert {"longest_option", "options_only"} <= set(answers["clinical_reasoning"])
    for row in rival_rows(starter["train"], test):
        assert row["low"] <= row["value"] <= row["high"] and row["n"] == sum(one.task == row["task"] for one in test)


def prediction(example, variant, choice, arm):
    return room.Prediction(item_id=example.id, variant=variant, engine="by hand", prompt_sha256="", text=f"Triage: {choice}", prompt_tokens=1, completion_tokens=1,
                           seconds=0, finish_reason="stop", arm=arm)


def test_the_arm_is_chosen_on_validation_even_where_the_test_would_choose_another(starter):
    triage = {split: [one for one in starter[split] if one.task == "triage"] for split in starter}
    right = [prediction(one, "base", one.gold["triage"], "forced_choice_letter") for one in triage["validation"]]
    wrong = [prediction(one, "base", "", "forced_choice_text") for one in triage["validation"]]
    assert best_arm(triage["validation"], right + wrong, "base", "triage") == ("forced_choice_letter", len(triage["validation"]))
    on_test = [prediction(one, "base", "", "forced_choice_letter") for one in triage["test"]] + [prediction(one, "base", one.gold["triage"], "forced_choice_text") for one in triage["test"]]
    tuned = [prediction(one, "merged", one.gold["triage"], "forced_choice_letter") for one in triage["validation"] + triage["test"]]
    claim = make_claims([], triage["validation"], triage["test"], right + wrong + tuned, on_test + tuned, "merged")[0]
    assert (claim["base_arm"], claim["base_value"]) == ("forced_choice_letter", 0.0)
    assert best_arm(triage["validation"], [], "base", "triage") is None


def test_a_quantization_that_loses_too_much_is_an_error_with_its_items(starter):
    triage = [one for one in starter["test"] if one.task == "triage"][:10]
    whole = [prediction(one, "merged", one.gold["triage"], "forced_choice_letter") for one in triage]
    cut = [prediction(one, "q4_k_m", "" if n < 4 else one.gold["triage"], "forced_choice_letter") for n, one in enumerate(triage)]
    rows = neighbour_rows(triage, whole + cut, ["merged", "q4_k_m", "served"])
    assert [(row["against"], row["variant"], row["same"], row["differs"]) for row in rows] == [("merged", "q4_k_m", 6, [one.id for one in triage[:4]])]
    assert (rows[0]["drop_low"], rows[0]["drop_high"]) == tuple(round(end, 6) for end in newcombe(6, 4, 0, 0)) and rows[0]["accuracy_drop"] == 0.4
    check_neighbours(rows, 0.4, ["merged", "q4_k_m"])
    with pytest.raises(MedlabError, match="fell by 40 points.*" + triage[0].id):
        check_neighbours(rows, 0.3, ["merged", "q4_k_m"])


# ---------------------------------------------------------------------- numbers


def test_holm_never_makes_a_p_value_smaller_and_keeps_their_order():
    draw = random.Random(2)
    for _ in range(50):
        values = [draw.random() ** 3 for _ in range(draw.randint(1, 8))]
        found = holm(values)
        assert all(value <= corrected <= 1 for value, corrected in zip(values, found))
        assert sorted(range(len(values)), key=values.__getitem__) == sorted(range(len(values)), key=lambda place: (found[place], values[place]))


def test_the_smallest_difference_is_the_first_that_mcnemar_calls_significant():
    for n in (6, 8, 24, 100):
        least = round(smallest_difference(n) * n)
        assert mcnemar(least, 0) < 0.05 <= mcnemar(least - 1, 0)
    assert smallest_difference(5) is None


def test_items_of_one_source_widen_the_interval():
    draw = random.Random(1)
    values = [float(source % 2) if draw.random() < 0.9 else draw.random() for source in range(8) for _ in range(10)]
    clustered = clustered_bootstrap(values, [str(n // 10) for n in range(80)], seed=1)
    alone = clustered_bootstrap(values, [str(n) for n in range(80)], seed=1)
    assert clustered[1] - clustered[0] > 1.5 * (alone[1] - alone[0])
    with pytest.raises(InputError):
        clustered_bootstrap([], [], 1)


def test_calibration_and_risk():
    assert calibration_error([(1.0, True)] * 5) == 0.0 and calibration_error([(1.0, False)] * 5) == 1.0
    curve = risk_coverage([(0.9, True), (0.8, True), (0.7, False), (0.6, False)])
    assert [row["risk"] for row in curve] == pytest.approx([0, 0, 1 / 3, 0.5], abs=1e-6) and curve[-1]["coverage"] == 1.0


def test_conformal_sets_keep_their_promise():
    draw = random.Random(7)

    def item():
        weights = [draw.random() ** 3 for _ in range(4)]
        shares = {letter: weight / sum(weights) for letter, weight in zip("ABCD", weights)}
        return shares, draw.choices("ABCD", weights)[0]

    for wanted in (0.8, 0.9):
        found = conformal_sets([item() for _ in range(600)], [item() for _ in range(600)], wanted)
        assert found["coverage"] > wanted - 0.05 and 1 < found["size"] < 4
        assert (found["low"], found["high"]) == pytest.approx(wilson(round(found["coverage"] * 600), 600), abs=1e-5)
    assert conformal_sets([item()], [item() for _ in range(50)], 0.9)["coverage"] == 1.0  # one item can promise nothing: all options


def test_errors_have_a_direction():
    pairs = [("emergency", "self-care"), ("self-care", "emergency"), ("soon", "soon"), ("urgent", None)]
    assert triage_errors(pairs) == {"right": 1, "under": 1, "over": 1, "unread": 1}
    assert two_sided_errors([("yes", "no"), ("no", "yes"), ("no", None)], "yes") == {"right": 0, "missed": 1, "false_alarm": 1, "unread": 1}
    from sklearn.metrics import f1_score

    right, chosen = ["a", "b", "c", "a", "b"], ["a", "c", "c", "b", "b"]
    assert macro_f1(zip(right, chosen)) == pytest.approx(f1_score(right, chosen, average="macro"))


def test_a_starter_plan_follows_its_own_gold():
    "Few plans name a dose; most of their medicines are named, and what a patient must not get is hardly ever read as recommended."
    medicines, violated, rows = [], 0, read_jsonl(shipped("data", "starter", "treatment_recommendation.jsonl"))
    for row in rows:
        text = render_answer("treatment_recommendation", row["fields"])
        lists = {name: row.get(name) or [] for name in ("medications", "contraindicated")}
        example = Example(id=row["key"], task="treatment_recommendation", messages=build_messages("treatment_recommendation", row["question"], fields=row["fields"]),
                          gold=row["fields"] | {"reference": text} | lists, record_ids=["r"], group="g", split="test", source="starter")
        found = plan_scores(example, text)
        assert found["sections"] == 1.0 and plan_scores(example, "")["sections"] == 0.0
        medicines += [found["medicines"]] if "medicines" in found else []
        violated += found["violations"] > 0
        banned = [line.partition(":")[0] for line in lists["contraindicated"] if line.partition(":")[0].isalpha() and len(line.partition(":")[0]) > 4]
        if banned:
            assert plan_scores(example, f"Medication: start {banned[0]} 500 mg twice daily.")["violations"] >= 1, banned
    assert sum(medicines) / len(medicines) > 0.7, sum(medicines) / len(medicines)
    assert violated < 0.05 * len(rows), violated

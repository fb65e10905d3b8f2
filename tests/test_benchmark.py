"Anybody's benchmark and anybody's answers: files of several kinds, leaks, the floor, role words, rotations and protocols."

import csv
import json
from contextlib import nullcontext

import pytest
from typer.testing import CliRunner

import medlab.cli.evaluate as room
from medlab.basics.errors import InputError
from medlab.basics.files import read_json, write_jsonl
from medlab.contracts.engine import OptionScores
from medlab.contracts.tasks import LETTERS, options_in
from medlab.core import Run, load_profile
from medlab.evaluate import Variant
from medlab.metrics.intervals import smallest_difference

COLUMNS = "question=Q,options=a+b+c,correct=key,correct_is=letter"
ROWS = [{"Q": f"Which plant in bed {n} smells of lemon?", "a": "Moss", "b": f"Melissa of the {n} gardens, freshly cut", "c": "Reed", "key": "B"} for n in range(12)]


def as_file(folder, name, rows=ROWS):
    path = folder / name
    if name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".jsonl"):
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl", "mine.json"])
def test_the_kind_of_file_makes_no_difference(tmp_path, name):
    items, left_out = room.benchmark_items(as_file(tmp_path, name), "mcq", COLUMNS)
    assert (len(items), left_out) == (12, {}) and {one.gold["letter"] for one in items} == {"B"}
    assert options_in(items[3].question) == {"A": "Moss", "B": "Melissa of the 3 gardens, freshly cut", "C": "Reed"}
    assert len({one.id for one in items}) == 12 and "analysis" not in items[0].gold  # no explanation is needed


@pytest.mark.parametrize(("kind", "label", "field", "value"), [
    ("triage", "Self care", "triage", "self-care"), ("triage", "Urgent.", "triage", "urgent"), ("refusal", "refused", "decision", "refuse"),
    ("escalation", "True", "emergency", "yes"), ("escalation", "no", "emergency", "no"), ("qa", "Drink water.", "answer", "Drink water."), ("yesnomaybe", "maybe", "letter", "C"),
])  # fmt: skip
def test_every_kind_of_question_is_read(tmp_path, kind, label, field, value):
    items, _ = room.benchmark_items(as_file(tmp_path, "x.jsonl", [{"question": "What now?", "answer": label}]), kind)
    assert items[0].gold[field] == value


def test_rows_that_are_no_items_are_counted_with_the_reason(tmp_path):
    rows = [*ROWS, ROWS[0] | {"Q": " "}, ROWS[0] | {"key": "F"}, ROWS[0] | {"a": "", "b": "", "c": ""}]
    items, left_out = room.benchmark_items(as_file(tmp_path, "x.jsonl", rows), "mcq", COLUMNS)
    assert len(items) == 12 and sum(left_out.values()) == 3 and "it has no question" in left_out
    with pytest.raises(InputError, match="none of 1 rows"):
        room.benchmark_items(as_file(tmp_path, "y.jsonl", [{"other": "x"}]), "mcq", COLUMNS)
    with pytest.raises(InputError, match="--columns"):
        room.benchmark_items(as_file(tmp_path, "z.jsonl"), "mcq", "question")
    with pytest.raises(InputError, match="names are"):
        room.benchmark_items(as_file(tmp_path, "z.jsonl"), "mcq", "queston=Q")
    with pytest.raises(InputError, match="'exam'"):
        room.benchmark_items(as_file(tmp_path, "z.jsonl"), "exam")


def test_leaks_are_found_whatever_the_case_and_the_punctuation(tmp_path):
    items, _ = room.benchmark_items(as_file(tmp_path, "x.jsonl"), "mcq", COLUMNS)
    loud, _ = room.benchmark_items(as_file(tmp_path, "y.jsonl", [row | {"Q": row["Q"].upper().replace("?", " !")} for row in ROWS[:2]]), "mcq", COLUMNS)
    longer, _ = room.benchmark_items(as_file(tmp_path, "z.jsonl", [{"Q": "In the morning a gardener asks: " + ROWS[5]["Q"], "a": "x", "b": "y", "c": "z", "key": "A"}]), "mcq", COLUMNS)
    found = room.leaked_items(items, [*loud, items[3], *longer])
    assert [found.get(one.id) for one in items[:7]] == ["normalised", "normalised", None, "exact", None, "contained", None]


class Likes:
    "An engine that likes one letter, or the option with a word in its prompt."

    name = "likes"

    def __init__(self, letter="B"):
        self.letter, self.asked = letter, []

    def option_logprobs(self, conversations, options, lead=""):
        self.asked += conversations
        return [OptionScores({one: -1.0 if one == self.letter or "Melissa" in one else -3.0 for one in some}, dict.fromkeys(some, 1)) for some in options]


@pytest.fixture
def likes(monkeypatch):
    engine = Likes()
    monkeypatch.setattr(room, "find_variant", lambda name, run, profile: Variant(name, name, "likes", lambda: nullcontext(engine)))
    return engine


def test_a_benchmark_is_run_without_any_fine_tune_and_kept_apart(tmp_path, likes):
    run = Run(tmp_path / "run")
    result = room.run_benchmark(str(as_file(tmp_path, "mine.csv")), "mcq", run, load_profile("smoke"), ["base"], COLUMNS)
    accuracy = {one["arm"]: row["value"] for one in result["results"] for row in one["rows"] if row["metric"] == "option_accuracy"}
    assert accuracy == {"forced_choice_letter": 1.0, "forced_choice_text": 1.0} and result["leaks_checked_against"] == 0
    assert result["smallest_difference"] == smallest_difference(12) and {one["kinds"]["clinical_reasoning"]["macro_f1"] for one in result["results"]} == {1.0}
    assert read_json(run.path / "benchmarks" / "mine-mcq-chat.json")["n"] == 12 and not (run.path / "evaluate").exists()
    calls = len(likes.asked)
    assert room.run_benchmark(str(tmp_path / "mine.csv"), "mcq", run, load_profile("smoke"), ["base"], COLUMNS) == result and len(likes.asked) == calls


def test_two_protocols_stand_side_by_side_with_prompts_to_the_letter(tmp_path, likes):
    run, path = Run(tmp_path / "run"), str(as_file(tmp_path, "mine.csv", ROWS[:1]))
    room.run_benchmark(path, "mcq", run, load_profile("smoke"), ["base"], COLUMNS, protocol="lm-eval")
    assert likes.asked[0] == [{"role": "user", "content": f"Question: {ROWS[0]['Q']}\nA. Moss\nB. {ROWS[0]['b']}\nC. Reed\nAnswer:"}]
    room.run_benchmark(path, "mcq", run, load_profile("smoke"), ["base"], COLUMNS)
    assert sorted(one.name for one in (run.path / "benchmarks").iterdir()) == ["mine-mcq-chat.json", "mine-mcq-lm-eval.json"]
    with pytest.raises(InputError, match="'harness'"):
        room.run_benchmark(path, "mcq", run, load_profile("smoke"), ["base"], COLUMNS, protocol="harness")


def saved(tmp_path, **systems):
    rows = [row | {name: answer(row) if callable(answer) else answer for name, answer in systems.items()} for row in ROWS]
    return as_file(tmp_path, "answers.csv", rows)


def test_a_base_that_cannot_be_read_is_compared_in_nothing_that_form_decides(tmp_path):
    "Neither in accuracy nor in ROUGE-L, which a model that learnt the format wins by the format."
    path = saved(tmp_path, base="Perhaps you ask a gardener.", tuned=lambda row: f"The answer is (B): {row['b']}")
    found = room.evaluate_saved(path, ["base", "tuned"], "mcq", columns=COLUMNS)
    status = {one["metric"]: (one["status"], one["difference"]) for one in found["comparisons"]}
    assert status["option_accuracy"] == ("not comparable", None) and status["format_valid"][0] == "measured"
    assert status.get("rouge_l", ("not comparable", None)) == ("not comparable", None)
    rows = {(one["variant"], row["metric"]): row for one in found["results"] for row in one["rows"]}
    assert (rows["base", "option_accuracy"]["status"], rows["base", "option_accuracy"]["value"]) == ("below floor", None)
    assert rows["tuned", "option_accuracy"]["value"] == 1.0
    free = room.evaluate_saved(path, ["base", "tuned"], "mcq", columns=COLUMNS, floor=0.0)
    assert {one["metric"]: one["status"] for one in free["comparisons"]}["option_accuracy"] == "measured"


def test_rouge_is_withheld_where_choices_cannot_be_read(tmp_path):
    rows = [{"question": f"I have pain number {n}.", "answer": "urgent", "base": "I would rest.", "tuned": "Triage: urgent"} for n in range(8)]
    found = room.evaluate_saved(as_file(tmp_path, "t.jsonl", rows), ["base", "tuned"], "triage")
    assert {one["metric"]: one["status"] for one in found["comparisons"]} == {"format_valid": "measured", "triage_accuracy": "not comparable", "rouge_l": "not comparable"}


def test_a_role_word_is_stripped_only_when_told_to(tmp_path):
    rows = [{"question": f"Which tea is number {n}?", "answer": "Mint tea.", "mine": "assistant\nMint tea."} for n in range(6)]
    path = as_file(tmp_path, "qa.jsonl", rows)

    def rouge(**options):
        found = room.evaluate_saved(path, ["mine"], "qa", **options)["results"][0]["rows"]
        return next(row["value"] for row in found if row["metric"] == "rouge_l")

    assert rouge() < 1.0 == rouge(strip_role=True)


def test_answers_that_do_not_fit_their_questions_are_refused(tmp_path):
    path = saved(tmp_path, base="B")
    with pytest.raises(InputError, match="'bse'.*the columns are"):
        room.evaluate_saved(path, ["bse"], "mcq", columns=COLUMNS)
    with pytest.raises(InputError, match="12 rows of answers for 3 items"):
        room.evaluate_saved(path, ["base"], "mcq", gold=as_file(tmp_path, "gold.jsonl", ROWS[:3]), columns=COLUMNS)


def test_rotations_keep_the_right_text_and_visit_every_place(tmp_path):
    items, _ = room.benchmark_items(as_file(tmp_path, "x.jsonl"), "mcq", COLUMNS)
    for item in items[:3]:
        turned = room.rotations(item)
        assert [one.gold["letter"] for one in turned] == ["B", "C", "A"]
        assert {options_in(one.question)[one.gold["letter"]] for one in turned} == {item.gold["option"]}
        assert all(sorted(options_in(one.question).values()) == sorted(options_in(item.question).values()) for one in turned)


def test_an_audit_shows_a_model_that_only_likes_a_place(tmp_path):
    items, _ = room.benchmark_items(as_file(tmp_path, "x.jsonl"), "mcq", COLUMNS)
    found = room.model_audit(items, Likes("B"))
    assert (found["accuracy"], found["right_in_every_rotation"], found["places"]) == (1.0, 0.0, {"B": 36})
    assert found["over_rotations"] == pytest.approx(1 / 3, abs=1e-6) and found["no_question"] == 1.0
    surface = room.surface_audit(items)
    assert (surface["longest_option"], surface["commonest_letter"], surface["letters"]) == (1.0, 1.0, {"B": 12})


def test_the_commands_say_what_they_found(tmp_path, likes, monkeypatch):
    from medlab.cli.commands import app

    path = saved(tmp_path, base="You may ask.", tuned="The answer is (B).")
    told = CliRunner().invoke(app, ["evaluate", "--predictions", str(path), "--systems", "base,tuned", "--columns", COLUMNS])
    assert told.exit_code == 0 and "below floor" in told.output and "not comparable" in told.output and "smallest difference" in told.output
    told = CliRunner().invoke(app, ["audit-mcq", str(path), "--columns", COLUMNS])
    assert told.exit_code == 0 and json.loads(told.output)["longest_option"] == 1.0
    monkeypatch.setenv("MEDLAB_RUN", str(tmp_path / "run"))
    told = CliRunner().invoke(app, ["benchmark", str(path), "--as", "mcq", "--columns", COLUMNS])
    assert told.exit_code == 0, told.output
    assert "option_accuracy" in told.output and "12 items" in told.output


def test_real_exam_files_are_read(tmp_path, shared_data):
    mcq, left_out = room.benchmark_items(shared_data / "medmcqa" / "dev.json", "mcq", "question=question,options=opa+opb+opc+opd,correct=cop,correct_is=number", limit=300)
    assert len(mcq) + sum(left_out.values()) == 300 and len(mcq) > 280
    assert len({one.gold["letter"] for one in mcq}) == 4
    surface = room.surface_audit(mcq)
    assert 0.2 < surface["commonest_letter"] < 0.5 and surface["chance"] == 0.25
    pubmed, _ = room.benchmark_items(shared_data / "pubmedqa" / "pqal_dev500.json", "yesnomaybe", "question=QUESTION,text=CONTEXTS,correct=final_decision", limit=100)
    assert len(pubmed) == 100 and {one.gold["option"] for one in pubmed} == {"yes", "no", "maybe"}
    assert sum(len(one.question.split()) for one in pubmed) / 100 > 150  # whole contexts
    assert all(list(options_in(one.question)) == list(LETTERS[:3]) for one in pubmed)

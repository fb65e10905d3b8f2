"Anybody's benchmark and anybody's answers: files of several kinds, leaks, the floor, role words, rotations and protocols."

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from own_data import FOLDER
from typer.testing import CliRunner

import medlab.cli.evaluate as room
from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import read_json, read_jsonl, shipped, write_jsonl
from medlab.contracts.engine import OptionScores
from medlab.contracts.tasks import LETTERS, options_in, to_row
from medlab.core import Run, load_profile
from medlab.evaluate import Variant
from medlab.figures.benchmarks import benchmark_tables, read_benchmark_results
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


def test_a_file_that_is_not_utf8_is_read_in_the_encoding_that_is_named(tmp_path):
    from medlab.cli.commands import app

    path = tmp_path / "plants.csv"
    path.write_bytes(("Q,a,b,c,key\n" + "".join(f"Which herb is in soufflé {n}?,Moss,Crème de mélisse,Reed,B\n" for n in (1, 2))).encode("cp1252"))
    with pytest.raises(InputError, match="cp1252"):
        room.benchmark_items(path, "mcq", COLUMNS)
    items, left_out = room.benchmark_items(path, "mcq", COLUMNS, encoding="cp1252")
    assert (len(items), left_out) == (2, {}) and options_in(items[0].question)["B"] == "Crème de mélisse"
    assert CliRunner().invoke(app, ["audit-mcq", str(path), "--columns", COLUMNS, "--encoding", "cp1252"]).exit_code == 0
    with pytest.raises(InputError, match="no-such"):
        room.benchmark_items(path, "mcq", COLUMNS, encoding="no-such")


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


def test_a_repeated_question_counts_once_and_equal_options_are_no_item(tmp_path):
    "Also one that the file answers in two ways counts for neither; answers that were saved for repeated questions still find theirs."
    rows = [*ROWS, ROWS[3], ROWS[5] | {"key": "A"}, ROWS[0] | {"Q": "Which is it?", "c": " Moss"}, ROWS[0] | {"a": "AA", "b": "Aa", "c": "aa"}]
    items, left_out = room.benchmark_items(as_file(tmp_path, "x.jsonl", rows), "mcq", COLUMNS)
    assert len(items) == 12 and not [one for one in items if "bed 5 " in one.question]
    assert left_out == {"two of its options are the same": 1, "its question and options stand in the file before": 1,
                        "the same question has another right answer elsewhere in the file": 2}
    path = as_file(tmp_path, "y.jsonl", [row | {"mine": "B"} for row in [*ROWS, ROWS[3]]])
    found = room.evaluate_saved(path, ["mine"], "mcq", columns=COLUMNS)
    assert (found["n"], sum(found["left_out"].values())) == (12, 1) and found["results"][0]["rows"][0]["n"] == 12


def test_a_damaged_result_is_written_anew(tmp_path, likes):
    run = Run(tmp_path / "run")
    path = run.folder("benchmarks") / "mine-mcq-chat.json"
    for text in ('{"n": 3}', "[1]", '{"sch'):
        path.write_text(text)
        room.run_benchmark(str(as_file(tmp_path, "mine.csv")), "mcq", run, load_profile("smoke"), ["base"], COLUMNS)
        (read,) = read_benchmark_results(run.path)
        assert read["n"] == 12 and read["prompts"]["forced_choice_letter"]["options"] == ["A", "B", "C"]


def test_leaks_are_found_whatever_the_case_and_the_punctuation(tmp_path):
    items, _ = room.benchmark_items(as_file(tmp_path, "x.jsonl"), "mcq", COLUMNS)
    loud, _ = room.benchmark_items(as_file(tmp_path, "y.jsonl", [row | {"Q": row["Q"].upper().replace("?", " !")} for row in ROWS[:2]]), "mcq", COLUMNS)
    longer, _ = room.benchmark_items(as_file(tmp_path, "z.jsonl", [{"Q": "In the morning a gardener asks: " + ROWS[5]["Q"], "a": "x", "b": "y", "c": "z", "key": "A"}]), "mcq", COLUMNS)
    found = room.leaked_items(items, [*loud, items[3], *longer])
    assert [found.get(one.id) for one in items[:7]] == ["normalised", "normalised", None, "exact", None, "contained", None]


LONG = ("In spring a gardener pours chalky water over the acid bed behind the shed, and within three weeks the leaves of every camellia there turn yellow between "
        "green veins. Which measure helps first?")


def test_questions_that_are_nearly_those_of_the_training_data_are_left_out(tmp_path):
    def item(text):
        return room.benchmark_items(as_file(tmp_path, "one.jsonl", [{"Q": text, "a": "x", "b": "y", "c": "z", "key": "A"}]), "mcq", COLUMNS)[0][0]

    mine, other = item(LONG), item("Which tool cuts a hedge?").model_copy(update={"id": "other"})
    near = [item(text).model_copy(update={"id": f"train-{n}"}) for n, text in enumerate((LONG.replace("three weeks", "two weeks"), "Which tool digs a hole?"))]
    assert room.leaked_items([mine, other], near) == {mine.id: "near_duplicate"}


def test_paraphrases_are_listed_and_stay_in(tmp_path, likes, monkeypatch):
    import numpy as np

    path = as_file(tmp_path, "mine.csv", ROWS[:2])
    run = Run(tmp_path / "run")
    train = room.benchmark_items(as_file(tmp_path, "t.jsonl", [{"Q": "What can I grow for a citrus scent?", "a": "x", "b": "y", "c": "z", "key": "A"}]), "mcq", COLUMNS)[0]
    write_jsonl(run.folder("instruct") / "train.jsonl", [to_row(one) for one in train])
    monkeypatch.setattr(room, "load_encoder", lambda: lambda texts: np.array([[1.0, 0.0] if "lemon" in one or "citrus" in one else [0.0, 1.0] for one in texts]))
    result = room.run_benchmark(str(path), "mcq", run, load_profile("smoke"), ["base"], COLUMNS)
    assert result["n"] == 2 and {one["train"] for one in result["suspects"]} == {train[0].id} and result["suspects"][0]["cosine"] == 1.0
    assert any("may ask the same in other words" in line for line in room.result_lines(result))

    def absent():
        raise MissingError("no encoder here")

    monkeypatch.setattr(room, "load_encoder", absent)
    result = room.run_benchmark(str(path), "mcq", run, load_profile("smoke"), ["base"], COLUMNS)
    assert result["suspects"] == [] and any("not looked for: no encoder here" in line for line in room.result_lines(result))


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
    assert {row["metric"] for one in result["results"] for row in one["rows"]} == {"option_accuracy"}  # a forced choice has no format to keep
    rivals = {one["rival"]: one for one in result["rivals"]}
    assert {"majority", "longest_option"} <= set(rivals) and all(one["n"] == 12 and one["low"] <= one["value"] <= one["high"] for one in rivals.values())
    assert any("cheap rival" in line and "longest_option" in line for line in room.result_lines(result))
    calls = len(likes.asked)
    assert room.run_benchmark(str(tmp_path / "mine.csv"), "mcq", run, load_profile("smoke"), ["base"], COLUMNS) == result and len(likes.asked) == calls


def test_other_variants_are_compared_with_the_first_item_by_item(tmp_path, monkeypatch):
    engines = {"base": Likes("A"), "merged": Likes("B")}
    monkeypatch.setattr(room, "find_variant", lambda name, run, profile: Variant(name, name, "likes", lambda: nullcontext(engines[name])))
    run = Run(tmp_path / "run")
    result = room.run_benchmark(str(as_file(tmp_path, "mine.csv")), "mcq", run, load_profile("smoke"), ["base", "merged"], COLUMNS)
    right = {(one["variant"], one["arm"]): row["value"] for one in result["results"] for row in one["rows"]}
    for one in result["comparisons"]:
        assert (one["variant"], one["against"], one["metric"], one["n"]) == ("merged", "base", "option_accuracy", 12)
        assert one["difference"] == pytest.approx(right["merged", one["arm"]] - right["base", one["arm"]])
    letter = next(one for one in result["comparisons"] if one["arm"] == "forced_choice_letter")
    assert letter["difference"] > 0.5 and letter["low"] > 0 and letter["p_value"] < 0.05
    assert any("merged against base, forced_choice_letter: option_accuracy +" in line for line in room.result_lines(result))
    (read,) = read_benchmark_results(run.path)
    shown = benchmark_tables([read])[0]["table"]
    assert shown["head"][-1] == "difference" and [row[-1] for row in shown["rows"] if row[0] == "base, likeliest letter"] == [""]
    assert ["p = " in row[-1] for row in shown["rows"] if row[0] == "merged, likeliest letter"] == [True]


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


def test_answers_of_several_systems_are_read_in_every_shape(tmp_path):
    "A column for each system, a row for each answer with the system's name, and a file for each system hold the same, and give the same."
    named = [{**row, "id": f"q{n}"} for n, row in enumerate(ROWS)]
    said = {"base": ["B" if n % 2 else "A" for n in range(len(ROWS))], "tuned": [f"The answer is (B): {row['b']}" for row in ROWS]}
    gold = as_file(tmp_path, "gold.csv", named)
    wide = as_file(tmp_path, "wide.csv", [{"id": row["id"], **{name: texts[n] for name, texts in said.items()}} for n, row in enumerate(named)][::-1])
    rows = [{"item": row["id"], "who": name, "wrote": texts[n]} for name, texts in said.items() for n, row in enumerate(named)]
    long = as_file(tmp_path, "long.jsonl", rows[::-1])
    files = [as_file(tmp_path, f"of_{name}.jsonl", [{"id": row["item"], "output": row["wrote"]} for row in rows if row["who"] == name]) for name in said]
    found = [
        room.evaluate_saved(wide, ["base", "tuned"], "mcq", gold, COLUMNS),
        room.evaluate_saved(long, ["base", "tuned"], "mcq", gold, COLUMNS + ",system=who,answers=wrote"),
        room.evaluate_saved([f"base={files[0]}", f"tuned={files[1]}"], None, "mcq", gold, COLUMNS),
    ]
    assert found[0] == found[1] == found[2]
    values = {(one["variant"], row["metric"]): row["value"] for one in found[0]["results"] for row in one["rows"]}
    assert values["tuned", "option_accuracy"] == 1.0 and values["base", "option_accuracy"] == 0.5
    assert [one["variant"] for one in room.evaluate_saved(files, None, "mcq", gold, COLUMNS)["results"]] == ["of_base", "of_tuned"]


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows[:-1], "no answer to 1 of 12 items, such as 'q11'"), (lambda rows: [*rows, rows[0]], "several answers to 1 of 12 items, such as 'q0'"),
    (lambda rows: [*rows, {"id": "q99", "output": "B"}], "answers to unknown items, 1 of 12 items, such as 'q99'"), (lambda rows: [], "it is empty"),
])
def test_answers_that_lack_an_item_are_refused(tmp_path, change, message):
    gold = as_file(tmp_path, "gold.jsonl", [{**row, "id": f"q{n}"} for n, row in enumerate(ROWS)])
    path = as_file(tmp_path, "mine.jsonl", change([{"id": f"q{n}", "output": "B"} for n in range(len(ROWS))]))
    with pytest.raises(InputError, match=message):
        room.evaluate_saved(path, None, "mcq", gold, COLUMNS)


@pytest.mark.parametrize("questions, answers, message", [
    (["q0", *[f"q{n}" for n in range(11)]], [f"q{n}" for n in range(11)], "'q0' stands for 2 of 12 questions"),
    ([None, *[f"q{n}" for n in range(1, 12)]], [f"q{n}" for n in range(12)], "None stands for 1 of 12 questions"),
    ([f"q{n}" for n in range(12)], [str(n) for n in reversed(range(12))], "no answer to 12 of 12 items.*such as '11'.*--columns id=KEY"),
])
def test_keys_that_do_not_tell_which_answer_is_whose_are_refused(tmp_path, questions, answers, message):
    "Neither is one answer used for two questions, nor are answers taken in a file's order when their keys are others'."
    gold = as_file(tmp_path, "gold.jsonl", [{**row, "id": key} for row, key in zip(ROWS, questions)])
    path = as_file(tmp_path, "mine.jsonl", [{"id": key, "output": "B"} for key in answers])
    with pytest.raises(InputError, match=message):
        room.evaluate_saved(path, None, "mcq", gold, COLUMNS)


def test_a_copy_of_the_right_answers_is_nobodys_answers(tmp_path):
    "A file that carries the right answer beside the system's, under a name that we do not know, does not score 100 %."
    rows = [{"id": f"q{n}", "question": row["Q"], "options": [row["a"], row["b"], row["c"]], "answer": "B", "we_said": "A"} for n, row in enumerate(ROWS)]
    gold, path = as_file(tmp_path, "gold.jsonl", rows), as_file(tmp_path, "mine.jsonl", [{name: row[name] for name in ("id", "answer", "we_said")} for row in rows])
    with pytest.raises(InputError, match="'answer' holds the right answers, all 12"):
        room.evaluate_saved(path, None, "mcq", gold)

    def accuracy(column):
        found = room.evaluate_saved(path, None, "mcq", gold, f"answers={column}")["results"][0]["rows"]
        return next(row["value"] for row in found if row["metric"] == "option_accuracy")

    assert (accuracy("we_said"), accuracy("answer")) == (0.0, 1.0)


@pytest.mark.parametrize("told", ["B", [{"type": "text", "text": "Answer: "}, {"type": "text", "text": "B"}], {"role": "assistant", "content": "B"}, {"answer": "B"},
                                  [{"role": "user", "content": "A or B?"}, {"role": "assistant", "content": "B"}], [{"generated_text": "Answer: B"}], ["Answer: B"]])
def test_an_answer_may_come_as_a_message_or_in_parts(tmp_path, told):
    path = as_file(tmp_path, "mine.jsonl", [{**row, "output": told} for row in ROWS])
    found = room.evaluate_saved(path, None, "mcq", columns=COLUMNS)["results"][0]["rows"]
    assert next(row["value"] for row in found if row["metric"] == "option_accuracy") == 1.0


@pytest.mark.parametrize("kind, protocol, message", [
    ("triage", "lm-eval", "--as triage are not asked so; expected chat or few-shot-5"), ("qa", "lm-eval", "expected chat$"), ("qa", "few-shot-5", "expected chat$"),
    ("mcq", "few-shot-5", "hold 0 examples of clinical_reasoning, expected 5"), ("exam", "chat", "'exam'"),
])
def test_no_result_carries_the_name_of_a_protocol_that_was_not_kept(tmp_path, likes, kind, protocol, message):
    run, path = Run(tmp_path / "run"), str(as_file(tmp_path, "mine.jsonl"))
    with pytest.raises(InputError, match=message):
        room.run_benchmark(path, kind, run, load_profile("smoke"), ["base"], COLUMNS, protocol=protocol)
    assert likes.asked == [] and not (run.path / "benchmarks").exists()


def test_another_file_or_variant_takes_no_result_away(tmp_path, likes):
    run, folder = Run(tmp_path / "run"), tmp_path / "other"
    folder.mkdir()
    one, other = str(as_file(tmp_path, "exam.csv")), str(as_file(folder, "exam.csv", ROWS[:5]))
    for path, variant in ((one, "base"), (one, "merged"), (other, "base"), (one, "base")):
        room.run_benchmark(path, "mcq", run, load_profile("smoke"), [variant], COLUMNS)
    found = {read_json(path)["n"]: {result["variant"] for result in read_json(path)["results"]} for path in (run.path / "benchmarks").iterdir()}
    assert found == {12: {"base", "merged"}, 5: {"base"}}


def test_rows_that_are_no_items_are_told_on_the_terminal(tmp_path, likes):
    path = as_file(tmp_path, "mine.jsonl", [*ROWS, {**ROWS[0], "key": "Z"}])
    assert any("1 rows are not items" in line for line in room.result_lines(room.run_benchmark(str(path), "mcq", Run(tmp_path / "run"), load_profile("smoke"), ["base"], COLUMNS)))


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
    assert "option_accuracy" in told.output and "12 items" in told.output and "medlab report --run" in told.output


def test_files_in_the_form_of_real_exams_are_read():
    "The twin of `test_real_exam_files_are_read`: MedMCQA numbers the right option from 1, PubMedQA names it in a word and keeps its contexts in a list."
    columns = "question=question,options=opa+opb+opc+opd,correct=cop,correct_is=number"
    mcq, left_out = room.benchmark_items(FOLDER / "medmcqa.jsonl", "mcq", columns)
    assert len(mcq) + sum(left_out.values()) == 24 and len(mcq) >= 22
    scurvy = next(one for one in mcq if "scurvy" in one.question)
    assert scurvy.gold["letter"] == "C" and options_in(scurvy.question)["C"] == "Vitamin C"
    assert {one.gold["letter"] for one in mcq} == set("ABCD") and room.surface_audit(mcq)["chance"] == 0.25
    few, left_out = room.benchmark_items(FOLDER / "medmcqa.jsonl", "mcq", columns, limit=6)  # from all over the file
    assert len(few) + sum(left_out.values()) == 6 and {one.id for one in few} < {one.id for one in mcq} and few != mcq[: len(few)]
    pubmed, _ = room.benchmark_items(FOLDER / "pubmedqa.json", "yesnomaybe", "question=QUESTION,text=CONTEXTS,correct=final_decision")
    assert [one.gold["option"] for one in pubmed] == ["yes", "no", "maybe", "yes", "no", "maybe"]
    assert "Lying down soon after a meal" in pubmed[0].question and "They slept 31 minutes longer" in pubmed[0].question  # the whole context
    assert all(list(options_in(one.question)) == list(LETTERS[:3]) for one in pubmed)


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


def test_a_run_opens_in_inspects_viewer(smoke_run, tmp_path):
    "Every variant, arm and task is a log that Inspect reads, with the numbers of metrics.json and the same floor."
    from inspect_ai.log import read_eval_log

    from medlab.cli.inspect_tasks import write_inspect_logs
    from medlab.contracts.predictions import read_predictions

    run, profile = smoke_run
    paths = write_inspect_logs(run, profile, tmp_path / "logs")
    assert len(set(paths)) == len(paths) == len(list((tmp_path / "logs").iterdir())) and not any("_" in path.name for path in paths)
    predictions = read_predictions(run.file("evaluate", "predictions.parquet"), arm=None)
    logs = [read_eval_log(path) for path in paths]
    assert sum(len(log.samples) for log in logs) == len(predictions) and {log.status for log in logs} == {"success"}
    texts = {(one.variant, one.arm, one.item_id): one.text for one in predictions}
    rows = {(row["variant"], row["task"], row["metric"]): row for row in read_json(run.file("evaluate", "metrics.json"))["rows"]}
    for log in logs:
        variant, arm, task = log.eval.model.partition("/")[2], log.eval.task_args["arm"], log.eval.task.partition("/")[2]
        assert all(one.output.completion == texts[variant, arm, one.id] for one in log.samples)
        means = {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
        if arm == "zero_shot":
            assert means["format_valid"] == pytest.approx(rows[variant, task, "format_valid"]["value"], abs=1e-6)
            held = [name for name in rows if name[:2] == (variant, task) and name[2].endswith("_accuracy") and rows[name]["status"] == "below floor"]
            assert not [name for *_, name in held if name in means]


@pytest.mark.long
def test_inspects_viewer_lists_and_opens_the_logs(smoke_run, tmp_path):
    "The real `inspect view` shows its page, lists every log, and gives one with the texts that the model wrote."
    import subprocess
    import sys
    import time

    import httpx

    from medlab.basics.processes import free_port
    from medlab.cli.inspect_tasks import write_inspect_logs
    from medlab.contracts.predictions import read_predictions

    paths, port = write_inspect_logs(*smoke_run, tmp_path / "logs"), free_port()
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", str(tmp_path / "logs"), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "view.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as viewer, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            listed = None
            for _ in range(120):
                try:
                    listed = client.get("/api/logs").json()
                    break
                except httpx.ConnectError:
                    assert viewer.poll() is None, (tmp_path / "view.log").read_text()
                    time.sleep(0.5)
            assert listed, (tmp_path / "view.log").read_text()
            assert {Path(one["name"]).name for one in listed["files"]} == {path.name for path in paths}
            assert "<html" in client.get("/").text
            opened = client.get(f"/api/logs/{listed['files'][0]['name']}").json()
        finally:
            viewer.terminate()
    variant, arm = opened["eval"]["model"].partition("/")[2], opened["eval"]["task_args"]["arm"]
    texts = {one.item_id: one.text for one in read_predictions(smoke_run[0].file("evaluate", "predictions.parquet"), arm) if one.variant == variant}
    assert opened["samples"] and all(one["output"]["choices"][0]["message"]["content"] == texts[one["id"]] for one in opened["samples"])


@pytest.mark.long
def test_inspect_asks_the_served_model_by_the_tasks_name(smoke_run, tmp_path):
    "The real package finds the task by the entry point, asks the deployed model over HTTP, and gives what medlab's own reader says."
    import os
    import subprocess
    import sys

    from inspect_ai.log import list_eval_logs, read_eval_log

    from medlab.engines.openai_compatible import served_model
    from medlab.metrics.scores import choice_of
    from medlab.contracts.tasks import from_row
    from medlab.serve import serving

    named = tmp_path / "site" / "medlab_inspect-0.dist-info"  # stands for the entry point of the installed package
    named.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: medlab-inspect\nVersion: 0\n")
    (named / "entry_points.txt").write_text("[inspect_ai]\nmedlab = medlab.cli.inspect_tasks:inspect_tasks\n")
    with serving(*smoke_run) as url:
        env = {**os.environ, "MEDLAB_BASE_URL": f"{url}/v1", "MEDLAB_API_KEY": "none", "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])}
        model = f"openai-api/medlab/{served_model(url)}"
        command = [sys.executable, "-m", "inspect_ai", "eval", "medlab/triage", "--model", model, "-T", "limit=2", "--log-dir", tmp_path / "logs", "--display", "none", "--max-connections", "1"]
        done = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_eval_log(list_eval_logs(str(tmp_path / "logs"))[0])
    assert log.status == "success" and len(log.samples) == 2
    for one in log.samples:
        assert one.scores["medlab_scores"].answer == (choice_of(from_row(one.metadata["example"]), one.output.completion) or "")


def test_a_file_becomes_tasks_of_the_harness(tmp_path):
    "Both tasks read the same rows; the prompt is that of the protocol lm-eval, and the command names what it wrote."
    import yaml

    from medlab.cli.commands import app

    path = as_file(tmp_path, "mine.csv", ROWS[:3])
    told = CliRunner().invoke(app, ["export", "lm-eval", str(path), "--as", "mcq", "--columns", COLUMNS, "--out", str(tmp_path / "tasks")])
    assert told.exit_code == 0, told.output
    rows = read_jsonl(tmp_path / "tasks" / "mine.jsonl")
    assert [(one["gold"], one["letters"], one["texts"][0]) for one in rows] == [(1, ["A", "B", "C"], "Moss")] * 3
    assert rows[0]["prompt"] == f"Question: {ROWS[0]['Q']}\nA. Moss\nB. {ROWS[0]['b']}\nC. Reed\nAnswer:"
    by_letter, by_text = (yaml.safe_load((tmp_path / "tasks" / f"{name}.yaml").read_text()) for name in ("mine", "mine_text"))
    assert (by_letter["doc_to_choice"], by_text["doc_to_choice"], by_text["dataset_kwargs"]) == ("letters", "texts", by_letter["dataset_kwargs"])
    written = yaml.safe_load((tmp_path / "tasks" / "mine_written.yaml").read_text())
    assert (written["output_type"], written["doc_to_target"], written["doc_to_text"]) == ("generate_until", "{{letters[gold]}}", by_letter["doc_to_text"])
    assert "--tasks mine,mine_text" in told.output


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    "The real harness in an environment of its own, with torch and transformers as they are here; gives its program."
    import subprocess
    import sys
    import sysconfig

    home = tmp_path_factory.mktemp("harness") / "env"
    constraints = shipped("data", "constraints.txt")
    made = subprocess.run(["uv", "venv", home, "--python", sys.executable], capture_output=True, text=True)
    python = home / "bin" / "python"
    got = made.returncode == 0 and subprocess.run(["uv", "pip", "install", "--python", python, "-c", constraints, "lm-eval[api]"], capture_output=True, text=True)
    if not got or got.returncode:
        pytest.skip(f"lm-eval cannot be installed here: {(got or made).stderr[-200:]}")
    pure = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True).stdout.strip()
    (Path(pure) / "zz_medlab.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "lm_eval"


@pytest.mark.long
def test_the_real_harness_finds_the_same_options_likeliest(tmp_path, lm_eval):
    "lm-eval on the tiny model: log-probabilities differ from medlab's by one constant for each question, so choices are the same."
    import subprocess

    from medlab.cli.harness import write_harness_task
    from medlab.cli.inspect_tasks import items_for
    from medlab.engines.hf import HfEngine
    from medlab.metrics.forced_choice import forced_question
    from medlab.models import load_spec, obtain

    items, folder = items_for("clinical_reasoning", limit=4), obtain(load_spec("tiny-random"))
    write_harness_task(items, tmp_path / "tasks", "cases")
    command = [lm_eval, "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--include_path", tmp_path / "tasks", "--tasks", "cases,cases_text",
               "--apply_chat_template", "--device", "cpu", "--batch_size", "1", "--output_path", tmp_path / "out", "--log_samples"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    engine = HfEngine(folder)
    for name, by in (("cases", "letter"), ("cases_text", "text")):
        said = {row["doc"]["id"]: [float(one[0][0]) for one in row["resps"]] for row in read_jsonl(next((tmp_path / "out").rglob(f"samples_{name}_2*.jsonl")))}
        asked = [room.as_protocol(forced_question(one, by), "lm-eval") for one in items]
        scores = engine.option_logprobs([one.messages for one in asked], [list(one.options.values()) for one in asked], [one.lead for one in asked])
        for one, found in zip(asked, scores):
            gaps = [theirs - found.logprobs[text] for theirs, text in zip(said[one.example.id], one.options.values(), strict=True)]
            assert max(gaps) - min(gaps) < 0.01, (name, one.example.id, gaps)  # the harness counts the line break before the answer, too


@pytest.mark.long
def test_the_real_harness_asks_the_served_model(smoke_run, tmp_path, lm_eval):
    "lm-eval asks the deployed model over HTTP, gets what a client gets that asks the same, and counts letters by the rule of the task."
    import os
    import re
    import subprocess

    import httpx

    from medlab.cli.harness import HARNESS_LETTER, write_harness_task
    from medlab.cli.inspect_tasks import items_for
    from medlab.engines.openai_compatible import served_model
    from medlab.serve import serving

    items = items_for("clinical_reasoning", limit=2)
    write_harness_task(items, tmp_path / "tasks", "cases")
    with serving(*smoke_run) as url:
        name, chat = served_model(url), f"{url}/v1/chat/completions"
        command = [lm_eval, "--model", "local-chat-completions", "--model_args", f"model={name},base_url={chat},num_concurrent=1,max_retries=1,tokenized_requests=False",
                   "--include_path", tmp_path / "tasks", "--tasks", "cases_written", "--apply_chat_template", "--output_path", tmp_path / "out", "--log_samples"]
        done = subprocess.run([*map(str, command)], env={**os.environ, "OPENAI_API_KEY": "none"}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        rows = read_jsonl(next((tmp_path / "out").rglob("samples_cases_written_2*.jsonl")))
        sent = [{"model": name, "messages": [{"role": "user", "content": row["doc"]["prompt"]}], "max_tokens": 80, "temperature": 0, "seed": 1234} for row in rows]
        said = [httpx.post(chat, json=one, timeout=120).json()["choices"][0]["message"]["content"] for one in sent]
    assert [row["resps"][0][0] for row in rows] == said and {row["doc"]["id"] for row in rows} == {one.id for one in items}
    for row, text in zip(rows, said):
        found = re.search(HARNESS_LETTER, text)
        assert row["exact_match"] == float(bool(found) and (found[1] or found[2]) == row["doc"]["letters"][row["doc"]["gold"]])

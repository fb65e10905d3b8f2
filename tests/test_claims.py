"Claims: when an improvement must be refused, and when it may be claimed."

import pytest

from medlab.contracts.predictions import ARMS, Prediction
from medlab.contracts.tasks import Example, build_messages, render_answer
from medlab.metrics.claims import make_claims

LETTER, TEXT, FEW, WRITTEN = "forced_choice_letter", "forced_choice_text", "few_shot_forced_choice_letter", "zero_shot"
VALIDATION, TEST = 6, 30


def item(number, task="triage"):
    fields = {"triage": ("urgent", "soon", "routine")[number % 3], "reason": "So it is."}
    if task == "emergency_escalation":
        fields = {"emergency": ("yes", "no")[number % 2], "suspected": "Nothing else.", "action": "So be it."}
    gold = fields | {"reference": render_answer(task, fields)}
    return Example(id=f"{task}{number}", task=task, record_ids=["r"], group=f"{task}{number}", split="test", source="own", gold=gold,
                   messages=build_messages(task, f"Question {number}.", fields=fields))


def answers(items, variant, arm, right):
    "A variant's answers in one arm, of which the first `right` are right and the others cannot be read."
    return [Prediction(item_id=one.id, variant=variant, engine="by hand", prompt_sha256="", text=one.gold["reference"] if n < right else "", prompt_tokens=1, completion_tokens=1,
                       seconds=0, finish_reason="stop", arm=arm) for n, one in enumerate(items)]


def claim_of(train=(), task="triage", **right):
    "The claim about one task, from how many validation and how many test items each variant gets right in each arm."
    items = [item(n, task) for n in range(VALIDATION + TEST)]
    chosen = [one for variant, arms in right.items() for arm, (known, _) in arms.items() for one in answers(items[:VALIDATION], variant, arm, known)]
    answered = [one for variant, arms in right.items() for arm, (_, known) in arms.items() for one in answers(items[VALIDATION:], variant, arm, known)]
    found = make_claims(list(train), items[:VALIDATION], items[VALIDATION:], chosen, answered, "merged")
    assert len(found) == 1
    return found[0]


def test_a_better_model_on_equal_terms_may_be_said_to_be_better():
    found = claim_of(base={LETTER: (3, 12), TEXT: (2, 10)}, merged={LETTER: (5, 27), TEXT: (4, 20)})
    assert found["beats_base"] and found["says"].startswith("merged is better than base in triage accuracy on 30 items")
    assert (found["base_arm"], found["top_base_arm"], found["variant_arm"]) == (LETTER, LETTER, LETTER)
    assert 0 < found["low"] == found["top_low"] and found["p_holm"] < 0.05 and found["difference"] == 0.5


@pytest.mark.parametrize("overlooked", [TEXT, FEW, WRITTEN])
def test_no_improvement_where_the_base_is_as_good_in_an_arm_that_validation_overlooked(overlooked):
    "Few validation items choose a poor arm for the base; the tuned model beats that arm, and the base's best arm takes the claim away."
    found = claim_of(base={LETTER: (6, 5), overlooked: (0, 27)}, merged={LETTER: (6, 27)})
    assert found["low"] > 0 and found["p_holm"] < 0.05  # by the chosen arms alone it would be an improvement
    assert (found["base_arm"], found["top_base_arm"], found["top_base_value"]) == (LETTER, overlooked, 0.9)
    assert not found["beats_base"] and found["top_low"] < 0
    assert found["says"].startswith("no difference between merged and base") and f"by {overlooked.replace('_', ' ')} base is right on 90 %" in found["says"]


def test_a_little_better_than_the_best_arm_is_no_improvement_and_much_better_is_one():
    for right, shown in ((12, True), (24, False)):
        found = claim_of(base={LETTER: (6, 5), TEXT: (0, right)}, merged={LETTER: (6, 28)})
        assert (found["beats_base"], found["top_low"] > 0, found["top_base_arm"]) == (shown, shown, TEXT)


def test_the_best_arm_can_only_take_a_claim_away():
    "An arm in which the base is poor, or that it answered for some items only, changes nothing."
    plain = claim_of(base={LETTER: (6, 12)}, merged={LETTER: (6, 28)})
    assert plain == claim_of(base={LETTER: (6, 12), WRITTEN: (0, 0)}, merged={LETTER: (6, 28)}) and plain["beats_base"]
    items = [item(n) for n in range(VALIDATION + TEST)]
    chosen = [one for variant in ("base", "merged") for one in answers(items[:VALIDATION], variant, LETTER, 6)]
    answered = answers(items[VALIDATION:], "base", LETTER, 12) + answers(items[VALIDATION:], "merged", LETTER, 28)
    some = answers(items[VALIDATION:VALIDATION + 4], "base", WRITTEN, 4)  # all right, but of four items
    assert make_claims([], items[:VALIDATION], items[VALIDATION:], chosen, answered + some, "merged") == [plain]


@pytest.mark.parametrize(("base", "merged", "begins"), [(20, 22, "no difference between"), (27, 10, "merged is worse than base"), (30, 30, "no difference between"), (0, 0, "no difference between")])
def test_too_small_a_gap_and_a_loss_are_said(base, merged, begins):
    found = claim_of(base={LETTER: (4, base)}, merged={LETTER: (4, merged)})
    assert not found["beats_base"] and found["says"].startswith(begins)
    assert (found["high"] < 0) == begins.endswith("worse than base")


def test_several_tasks_are_corrected_for_together():
    "A gap that would do for one task alone is not shown where another task with nothing to show is claimed beside it."
    found = {}
    for tasks in (("triage",), ("triage", "emergency_escalation")):
        items = {task: [item(n, task) for n in range(VALIDATION + TEST)] for task in tasks}
        chosen = [one for task in tasks for name in ("base", "merged") for one in answers(items[task][:VALIDATION], name, LETTER, 6)]
        answered = [one for task in tasks for name, right in (("base", 14), ("merged", 20 if task == "triage" else 14)) for one in answers(items[task][VALIDATION:], name, LETTER, right)]
        made = make_claims([], [one for task in tasks for one in items[task][:VALIDATION]], [one for task in tasks for one in items[task][VALIDATION:]], chosen, answered, "merged")
        found[len(tasks)] = next(one for one in made if one["task"] == "triage")
    assert found[1]["p_value"] == found[2]["p_value"] == found[1]["p_holm"] < 0.05 < found[2]["p_holm"]
    assert found[1]["beats_base"] and not found[2]["beats_base"]


@pytest.mark.parametrize(("right", "beats"), [(14, False), (30, True)])
def test_an_improvement_over_the_base_is_none_over_a_cheap_rival_that_does_as_well(right, beats):
    "The strongest rival is chosen on the test, and its interval decides; the sentence names the model, not the base, as the one that beats it."
    train = [item(n) for n in range(0, 90, 3)]  # all are urgent, so every rival says so
    found = claim_of(train=train, base={LETTER: (3, 2)}, merged={LETTER: (5, right)})
    assert found["beats_base"] and found["rival_value"] == pytest.approx(1 / 3, abs=1e-6)
    assert (found["beats_rival"], found["rival_low"] > 0) == (beats, beats)
    assert f"merged {'beats' if beats else 'does not beat'} the strongest cheap rival" in found["says"]


def test_nothing_is_claimed_without_validation_items_or_without_shared_items():
    items = [item(n) for n in range(VALIDATION + TEST)]
    both = [one for name in ("base", "merged") for one in answers(items, name, LETTER, 20)]
    assert make_claims([], [], items, both, both, "merged") == []
    apart = answers(items[VALIDATION:20], "base", LETTER, 3) + answers(items[20:], "merged", LETTER, 9)
    assert make_claims([], items[:VALIDATION], items[VALIDATION:], both, apart, "merged") == []
    assert set(ARMS) >= {LETTER, TEXT, FEW, WRITTEN}

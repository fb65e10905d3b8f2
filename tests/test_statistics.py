"""The statistics against published worked examples, and against other ways to compute the same.

Tables of paired answers are written (both right, only the variant, only the base, neither), as the functions take them.
"""

from collections import Counter
from itertools import combinations_with_replacement, product
from math import factorial, prod

import numpy as np
import pytest
from scipy import optimize, stats

from medlab.basics.errors import InputError
from medlab.contracts.predictions import Prediction
from medlab.metrics.baselines import majority_baselines
from medlab.metrics.intervals import bootstrap_mean, mcnemar, newcombe, wilson
from medlab.metrics.scores import CHOICES, agreement, answer_scores, compare, score
from medlab.contracts.tasks import LEVELS, Example, build_messages

# one rate


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Stat Med 17:857, table I, method 3.
@pytest.mark.parametrize("successes, n, low, high", [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize("successes, n", [(1, 3), (4, 8), (7, 8), (30, 48), (999, 1000)])
def test_a_wilson_end_is_a_rate_that_the_score_test_just_refuses(successes, n):
    "Wilson 1927: the ends are 1.96 of their own standard errors away from what was seen. Solved here by bisection."
    seen, far = successes / n, stats.norm.ppf(0.975)

    def gap(rate):
        return abs(seen - rate) - far * (rate * (1 - rate) / n) ** 0.5

    ends = optimize.brentq(gap, 1e-12, seen), optimize.brentq(gap, seen, 1 - 1e-12)
    assert wilson(successes, n) == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize("successes, n", [(0, 0), (-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(successes, n):
    with pytest.raises(InputError, match=f"got {successes} successes of {n}"):
        wilson(successes, n)


def test_none_and_all_of_one_item_are_counts_too():
    # With n = 1 the score equation is solved by hand: the open end is z² / (1 + z²), z = 1.96.
    assert wilson(0, 1) == pytest.approx((0, 0.7935), abs=5e-5) and wilson(1, 1) == pytest.approx((0.2065, 1), abs=5e-5)


# a mean

#: Survival in days of seven treated mice: Efron and Tibshirani 1993, "An introduction to the bootstrap", table 2.1.
MICE = [94, 197, 16, 38, 99, 141, 23]


def all_resamples(values):
    "The mean of every resample and its probability: the bootstrap without chance (1,716 different ones for seven values)."
    means, weights = [], []
    for chosen in combinations_with_replacement(range(len(values)), len(values)):
        times = Counter(chosen).values()
        means.append(sum(values[place] for place in chosen) / len(values))
        weights.append(factorial(len(values)) / prod(map(factorial, times)) / len(values) ** len(values))
    order = np.argsort(means)
    return np.array(means)[order], np.array(weights)[order]


def test_all_resamples_of_the_mice_have_the_published_standard_error():
    means, weights = all_resamples(MICE)  # table 2.2 of the same book: mean 86.86, standard error 23.36 for B = ∞
    mean = (means * weights).sum()
    assert weights.sum() == pytest.approx(1) and mean == pytest.approx(86.86, abs=0.005)
    assert ((means - mean) ** 2 * weights).sum() ** 0.5 == pytest.approx(23.36, abs=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_the_bootstrap_comes_near_to_all_resamples(seed):
    "Each end cuts 2.5 % off; with 20,000 resamples that share has a standard error of 0.11 %, so 0.6 % is allowed."
    means, weights = all_resamples(MICE)
    shares = weights.cumsum()
    for end, share in zip(bootstrap_mean(MICE, seed, resamples=20_000), (0.025, 0.975)):
        between = [means[np.searchsorted(shares, share + off)] for off in (-0.006, 0.006)]
        assert between[0] <= end <= between[1]


@pytest.mark.parametrize("right, n", [(30, 100), (90, 100), (200, 400)])
def test_of_zeros_and_ones_the_bootstrap_is_binomial(right, n):
    "A resample of n values, `right` of them ones, has as many ones as a binomial draw; so the interval's ends are its quantiles."
    found = bootstrap_mean([1.0] * right + [0.0] * (n - right), seed=3, resamples=20_000)
    assert found == pytest.approx(stats.binom.ppf([0.025, 0.975], n, right / n) / n, abs=1.01 / n)


def test_of_many_values_the_bootstrap_is_normal_and_what_scipy_draws():
    values = np.random.default_rng(8).beta(2, 3, 500)
    reach = stats.norm.ppf(0.975) * values.std() / len(values) ** 0.5
    found = bootstrap_mean(values, seed=1)
    assert found == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.1 * reach)
    assert found == bootstrap_mean(values, seed=1, resamples=2000) != bootstrap_mean(values, seed=1, resamples=2001)
    drawn = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)).confidence_interval
    assert found == pytest.approx(tuple(drawn), abs=0.1 * reach)


def test_a_mean_of_equal_values_is_as_open_as_a_rate():
    "Every resample of equal values is the same, which would make an interval of no width; of 20 ones Newcombe's table allows for 0.1611."
    assert bootstrap_mean([1.0] * 20, 1) == pytest.approx((1 - 0.1611, 1), abs=5e-5)
    assert bootstrap_mean([0.5] * 20, 1) == pytest.approx((0.5 - 0.1611 / 2, 0.5 + 0.1611 / 2), abs=5e-5)
    assert bootstrap_mean([0.0] * 20, 1, bounds=(-1, 1)) == pytest.approx((-0.1611, 0.1611), abs=5e-5)
    assert bootstrap_mean([0.5], 1) == pytest.approx((0.5 - 0.7935 / 2, 0.5 + 0.7935 / 2), abs=5e-5)
    with pytest.raises(InputError, match="no values"):
        bootstrap_mean([], 1)


# two rates on the same items


# Fagerland, Lydersen and Laake 2013, BMC Med Res Methodol 13:91 (exact conditional test): airway hyper-responsiveness (1 and 7
# discordant pairs) and complete response (6 and 16); the digits are those of their R package contingencytables. Agresti 1990, p. 350,
# approval of a president (86 and 150), with R's exact2x2. Aoki's example of cabinet support (35 and 28), with R's binom.test.
@pytest.mark.parametrize("better, worse, p, digits", [(1, 7, 0.0703, 5e-5), (6, 16, 0.052479, 5e-7), (150, 86, 3.716e-05, 5e-9), (35, 28, 0.45, 5e-5)])
def test_mcnemar_gives_the_published_p_values(better, worse, p, digits):
    assert mcnemar(better, worse) == mcnemar(worse, better) == pytest.approx(p, abs=digits)


@pytest.mark.parametrize("better, worse, p", [(0, 0, 1), (1, 0, 1), (1, 1, 1), (2, 0, 1 / 2), (5, 0, 1 / 16), (3, 1, 10 / 16), (12, 2, 2 * 106 / 2**14)])
def test_mcnemar_of_a_few_coins_is_counted_by_hand(better, worse, p):
    assert mcnemar(better, worse) == pytest.approx(p, abs=1e-12)


#: Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data",
#: Stat Med 17:2635, table III, method 10: counts, lower and upper limit.
NEWCOMBE = [
    ((36, 12, 2, 0), 0.0569, 0.3404), ((20, 12, 2, 16), 0.0562, 0.3292), ((18, 12, 2, 18), 0.0562, 0.3290), ((36, 14, 0, 0), 0.1528, 0.4167),
    ((35, 14, 0, 1), 0.1461, 0.4175), ((18, 14, 0, 18), 0.1441, 0.3963), ((2, 97, 1, 0), 0.8721, 0.9854), ((1, 97, 1, 1), 0.8736, 0.9850),
    ((0, 29, 1, 0), 0.6666, 0.9882), ((2, 98, 0, 0), 0.9178, 0.9945), ((1, 98, 0, 1), 0.9171, 0.9916), ((0, 30, 0, 0), 0.8395, 1.0),
    ((54, 0, 0, 0), -0.0664, 0.0664), ((53, 0, 0, 1), -0.0729, 0.0729), ((30, 0, 0, 24), -0.0358, 0.0358), ((29, 0, 0, 25), -0.0354, 0.0354),
    ((28, 0, 0, 26), -0.0352, 0.0352), ((27, 0, 0, 27), -0.0351, 0.0351),
]  # fmt: skip
#: Fagerland, Lydersen and Laake 2014, Stat Med 33:2850 (Newcombe's square-and-add interval), and Tang, Ling, Ling
#: and Tian 2010, Stat Med 29:86 (8, 3, 1, 2).
OTHERS = [((1, 1, 7, 12), -0.507, -0.026), ((59, 6, 16, 80), -0.1186, -0.0046), ((8, 3, 1, 2), -0.1574, 0.4136)]


@pytest.mark.parametrize("counts, low, high", NEWCOMBE + OTHERS)
def test_newcombe_gives_the_published_intervals(counts, low, high):
    both, better, worse, neither = counts
    digits = 5e-4 if counts == (1, 1, 7, 12) else 1e-4  # that one is published with three
    assert newcombe(*counts) == pytest.approx((low, high), abs=digits)
    assert newcombe(both, worse, better, neither) == pytest.approx((-high, -low), abs=digits)  # base and variant exchanged
    assert newcombe(neither, worse, better, both) == pytest.approx((-high, -low), abs=digits)  # right and wrong exchanged


def test_newcombe_stays_within_what_a_difference_can_be():
    for counts in product(range(4), repeat=4):
        if sum(counts):
            low, high = newcombe(*counts)
            assert -1 <= low <= (counts[1] - counts[2]) / sum(counts) <= high <= 1


# from answers to rows: five ways to answer an item of triage whose right answer is "soon"

WORDS = {
    "right": "Triage: soon\nReason: It has lasted a week.", "wrong": "Triage: routine\nReason: It has lasted a week.", "unreadable": "It has lasted a week.",
    "both": "Triage: soon or routine\nReason: It has lasted a week.", "silent": "",
}  # fmt: skip


def items(n, golds=("soon",), task="triage"):
    found = []
    for number in range(n):
        fields = {"triage": golds[number % len(golds)], "reason": "It has lasted a week."} if task == "triage" else {"answer": "It has lasted a week."}
        messages = build_messages(task, f"Case {number}?", None, fields)
        gold = fields | {"reference": messages[-1]["content"]}
        found.append(Example(id=f"{number:04}", task=task, messages=messages, gold=gold, record_ids=[], group=str(number), split="test", source="by hand"))
    return found


def answers(variant, *said):
    "Predictions of one variant for the items in their order; each is one of `WORDS`."
    return [
        Prediction(item_id=f"{number:04}", variant=variant, engine="by hand", prompt_sha256="", text=WORDS[name], prompt_tokens=1, completion_tokens=1,
                   seconds=0.1, finish_reason="stop")
        for number, name in enumerate(said)
    ]  # fmt: skip


def two(counts, right="right", wrong="wrong", task="triage"):
    "Items, and the answers of base and merged to them, that make a table of these counts."
    both, better, worse, neither = counts
    base = [right] * both + [wrong] * better + [right] * worse + [wrong] * neither
    mine = [right] * (both + better) + [wrong] * (worse + neither)
    return items(sum(counts), task=task), answers("base", *base) + answers("merged", *mine)


def row_of(rows, metric, task="triage", variant="merged"):
    (row,) = [row for row in rows if (row.metric, row.task, row.variant) == (metric, task, variant)]
    return row


@pytest.mark.parametrize("counts, low, high", [row for row in NEWCOMBE if sum(row[0]) < 60] + OTHERS[:1])
def test_a_comparison_counts_pairs_and_has_the_published_interval(counts, low, high):
    row = row_of(compare(*two(counts)), "triage_accuracy")
    assert (row.n, row.better, row.worse, row.status, row.against, row.why) == (sum(counts), counts[1], counts[2], "measured", "base", None)
    assert row.difference == pytest.approx((counts[1] - counts[2]) / sum(counts), abs=1e-6)
    assert (row.low, row.high) == pytest.approx((low, high), abs=5e-4 if counts == (1, 1, 7, 12) else 1e-4)
    assert row.p_value == (round(stats.binomtest(counts[1], counts[1] + counts[2]).pvalue, 6) if counts[1] + counts[2] else 1)


def test_two_that_say_the_same_are_equal_in_everything():
    for row in compare(*two((15, 0, 0, 5))):
        assert (row.better, row.worse, row.difference) == (0, 0, 0) and row.low < 0 < row.high and row.low == pytest.approx(-row.high, abs=1e-6)
        assert row.p_value == (None if row.metric == "rouge_l" else 1)


def test_the_gap_in_wording_is_a_bootstrap_over_items():
    examples, said = two((4, 8, 2, 6), right="unreadable", wrong="silent", task="medical_qa")  # a task without a choice
    row = row_of(compare(examples, said, seed=5), "rouge_l", task="medical_qa")
    gaps = [0.0] * 4 + [1.0] * 8 + [-1.0] * 2 + [0.0] * 6
    assert (row.better, row.worse, row.n, row.p_value) == (8, 2, 20, None) and row.difference == pytest.approx(6 / 20)
    assert (row.low, row.high) == pytest.approx(bootstrap_mean(gaps, 5), abs=1e-6) and -1 < row.low < 0.05 and 0.5 < row.high < 1
    always = row_of(compare(*two((0, 20, 0, 0), right="unreadable", wrong="silent", task="medical_qa")), "rouge_l", task="medical_qa")  # each gap is 1, and could be -1: twice what 0 to 1 leaves open
    assert (always.low, always.high) == pytest.approx((1 - 2 * 0.1611, 1), abs=1e-4)


@pytest.mark.parametrize("readable, status", [(9, "not comparable"), (10, "measured"), (11, "measured")])
def test_at_the_floor_itself_accuracies_are_compared(readable, status):
    said = answers("base", *["wrong"] * readable + ["unreadable"] * (20 - readable)) + answers("merged", *["right"] * 20)
    found = compare(items(20), said)
    row = row_of(found, "triage_accuracy")
    assert (row.status, row.better, row.worse) == (status, 20, 0)
    if status == "measured":
        assert (row.difference, row.why) == (1, None)
    else:
        assert (row.difference, row.low, row.high, row.p_value) == (None,) * 4 and "base could be read on 9 of 20 items (floor 50%)" in row.why
    assert row_of(found, "rouge_l").status == status  # words that name no choice are not compared with words that do
    assert row_of(found, "format_valid").status == "measured"  # form itself always is
    assert row_of(compare(items(20), said, floor=0.6), "triage_accuracy").status == "not comparable"


def test_answers_to_different_prompts_are_not_compared():
    examples, said = two((3, 4, 1, 2))
    own = [one.model_copy(update={"prompt_sha256": f"{one.variant} {one.item_id}"}) for one in said]
    with pytest.raises(InputError, match="merged and base were asked item '0000' with different prompts"):
        compare(examples, own)
    same = [one.model_copy(update={"prompt_sha256": one.item_id}) for one in said]
    saved = [one if one.variant == "base" else one.model_copy(update={"prompt_sha256": ""}) for one in own]  # of a saved answer the prompt is not known
    assert compare(examples, same) == compare(examples, saved) == compare(examples, said)


def test_the_other_one_of_a_comparison_may_be_any():
    examples, said = two((3, 4, 1, 2))
    turned = row_of(compare(examples, said, against="merged"), "triage_accuracy", variant="base")
    straight = row_of(compare(examples, said), "triage_accuracy")
    assert (turned.better, turned.worse, turned.against) == (1, 4, "merged") and turned.difference == -straight.difference
    assert (turned.low, turned.high) == pytest.approx((-straight.high, -straight.low)) and turned.p_value == straight.p_value
    assert {(row.variant, row.against) for row in compare(examples, said)} == {("merged", "base")}
    assert {row.metric for row in compare(examples, said)} == {"format_valid", "triage_accuracy", "rouge_l"}


def test_marks_of_every_way_to_answer():
    (example,) = items(1)
    found = {name: answer_scores(example, text, "stop") for name, text in WORDS.items()}
    assert {name: (one["format_valid"], one["choice_found"], one["triage_accuracy"], one["finished"]) for name, one in found.items()} == {
        "right": (1, 1, 1, 1), "wrong": (1, 1, 0, 1), "unreadable": (0, 0, 0, 1), "both": (0, 0, 0, 1), "silent": (0, 0, 0, 0),
    }  # fmt: skip
    assert answer_scores(example, WORDS["right"])["finished"] == 0  # cut off
    assert found["right"]["rouge_l"] == 1 and found["silent"]["rouge_l"] == 0
    # Without labels: "soon it has lasted a week" against "routine it has lasted a week", five of six words in order.
    assert found["wrong"]["rouge_l"] == pytest.approx(5 / 6)


def test_a_row_is_a_rate_with_its_published_interval():
    rows = score(items(29), answers("q4_k_m", *["right"], *["wrong"] * 28))
    row = row_of(rows, "triage_accuracy", variant="q4_k_m")
    assert (row.n, row.value, row.low, row.high, row.status) == (29, pytest.approx(1 / 29, abs=1e-6), pytest.approx(0.0061, abs=5e-5), pytest.approx(0.1718, abs=5e-5), "measured")
    wording = row_of(rows, "rouge_l", variant="q4_k_m")
    assert (wording.low, wording.high) == pytest.approx(bootstrap_mean([1.0] + [5 / 6] * 28, 42), abs=1e-6)
    assert row.value == 0.034483 and row.high == round(wilson(1, 29)[1], 6)  # six decimal places, the same on every machine
    assert row_of(rows, "rouge_l", "all", "q4_k_m") == wording.model_copy(update={"task": "all"})
    absent = row_of(rows, "escalation_accuracy", "emergency_escalation", "q4_k_m")
    assert (absent.status, absent.n, absent.value) == ("not run", 0, None) and "no held-out item" in absent.why


def test_the_seed_of_the_bootstrap_is_42_where_none_is_given():
    words = WORDS["right"].split()  # answers that break off after each word have scores of many sizes, so that another seed gives other ends
    said = [one.model_copy(update={"text": " ".join(words[: n % len(words)])}) for n, one in enumerate(answers("merged", *["right"] * 40))]
    both = said + answers("base", *["wrong"] * 40)
    assert score(items(40), said) == score(items(40), said, seed=42) != score(items(40), said, seed=43)
    assert compare(items(40), both) == compare(items(40), both, seed=42) != compare(items(40), both, seed=43)


def test_a_variant_comes_in_the_order_in_which_it_is_made_and_a_missing_one_has_a_reason():
    order = ["base", "adapter", "merged", "q4_k_m"]
    said = [one for variant in reversed(order) for one in answers(variant, "right", "wrong")]
    rows = score(items(2), said, missing={"served": "no server here"}, variants=[*order, "served"])
    assert list(dict.fromkeys(row.variant for row in rows)) == [*order, "served"]
    assert {row.why for row in rows if row.variant == "served"} == {"no server here"}
    assert {row.status for row in rows if row.variant == "served"} == {"not run"}


# the commonest answer


def test_the_commonest_answer_scores_its_share():
    (found,) = majority_baselines(items(10, ("soon", "urgent", "soon", "routine", "soon")))
    assert found == {"metric": "triage_accuracy", "task": "triage", "answer": "soon", "value": 0.6, "n": 10}
    assert majority_baselines([]) == []


def test_of_equally_common_answers_the_first_by_name_is_taken():
    for golds in (("urgent", "routine"), ("routine", "urgent")):
        assert majority_baselines(items(6, golds))[0]["answer"] == "routine" and majority_baselines(items(6, golds))[0]["value"] == 0.5
    assert majority_baselines(items(5, LEVELS))[0] == {"metric": CHOICES["triage"][1], "task": "triage", "answer": "emergency", "value": 0.2, "n": 5}
    assert majority_baselines(items(3))[0]["value"] == 1 and majority_baselines(items(3, LEVELS))[0]["value"] == 0.333333  # six decimal places


# the same text, the same choice


def test_agreement_counts_texts_and_choices_that_can_be_read():
    merged = ["right"] * 10 + ["wrong"] * 4 + ["unreadable"] * 4 + ["right", "both"]
    served = ["right"] * 10 + ["right"] * 4 + ["unreadable"] * 4 + ["silent", "both"]
    rows = agreement(items(20), answers("merged", *merged) + answers("served", *served))
    assert [(row.metric, row.task, row.variant, row.n, row.value) for row in rows] == [
        ("same_text_as_merged", "all", "served", 20, 15 / 20), ("same_choice_as_merged", "all", "served", 20, 10 / 20),
    ]  # fmt: skip
    assert (rows[0].low, rows[0].high) == pytest.approx(wilson(15, 20), abs=1e-6)
    assert (rows[1].low, rows[1].high) == pytest.approx(wilson(10, 20), abs=1e-6)


def test_agreement_is_over_what_both_answered_and_white_space_is_no_difference():
    padded = [one.model_copy(update={"text": f" {one.text}\n"}) for one in answers("served", "right", "wrong")]
    rows = agreement(items(5), answers("merged", *["right"] * 4) + padded + answers("base", "right"))
    assert sorted((row.variant, row.n, row.value) for row in rows) == [("base", 1, 1), ("base", 1, 1), ("served", 2, 0.5), ("served", 2, 0.5)]
    assert agreement(items(2), answers("base", "right") + answers("served", "right")) == []
    turned = agreement(items(2), answers("base", "right") + answers("served", "right"), with_="served")
    assert [(row.metric, row.variant) for row in turned] == [("same_text_as_served", "base"), ("same_choice_as_served", "base")]


def test_agreement_of_a_task_without_a_choice_is_one_of_texts():
    plain = [one.model_copy(update={"task": "medical_qa"}) for one in items(2)]
    rows = agreement(plain, answers("merged", "right", "right") + answers("served", "right", "wrong"))
    assert [(row.metric, row.n, row.status) for row in rows] == [("same_text_as_merged", 2, "measured"), ("same_choice_as_merged", 0, "not run")]

"Cleaning: what is mended stays right, what is masked is personal, what is near is found, and nothing crashes on real text."

import json
import random
import re
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from medlab.cleaning.benchmarks import read_benchmark
from medlab.cleaning.choices import contradicts, named_letters
from medlab.cleaning.duplicates import candidates, hashed, near_pairs, openness, overlap, runs, shingles, jaccard, signatures, text_key, words_of
from medlab.cleaning.language import language_of, needs_a_look
from medlab.cleaning.leaks import Item, find_leaks
from medlab.cleaning.passages import HeldPassages, telling, windows, without_passages
from medlab.cleaning.personal import found_in, is_nhs_number, mask, may_hold_personal
from medlab.cleaning.shelf import Groups
from medlab.cleaning.text import (
    fixed_characters, mended_question, mended_text, signs_by_share, tidy, trimmed_answer, with_apostrophes, without_boilerplate, without_outline,
    without_references,
)
from medlab.core import InputError

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASCII = "".join(map(chr, range(32, 127)))  # ftfy reads other bytes as broken text, and the result of that again
MESS = ["doesnt ", "[9184]", ". ", "?", " ?", " - ", "-\n", "    ", "\n", "\t", "&lt;", "Click here. ", "Key Points\n", "A", "b", "é", "\u00a0", "\u200b", "(", ")",
        "1", "90%", "see the figure below", "Talk with your doctor about clinical trials. ", "\x00", "\ud83d\ude00", "ﬁ", "e\u0301", "<5%", "www.x.org"]
WILD = st.lists(st.sampled_from(MESS) | st.text(alphabet=ASCII + "éü–’…", max_size=6), max_size=25).map("".join)


@pytest.fixture(scope="module")
def answers(shared_data):
    rows = [json.loads(line) for line in (shared_data / "medmcqa" / "dev.json").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["exp"]]


# text


@QUICK
@given(WILD)
def test_mending_twice_changes_nothing_and_nothing_raises(text):
    once = mended_text(text)
    assert mended_text(once) == once
    assert trimmed_answer("What is it?", trimmed_answer("What is it?", once)) == trimmed_answer("What is it?", once)
    assert not re.search(r"[^\S\n]{2}|\n\n|^\s|\s$", tidy(fixed_characters(text)))


@QUICK
@given(st.text(alphabet="abc DE.?!,-\n ", max_size=60))
def test_tidying_loses_no_letter(text):
    assert re.sub(r"\s|-", "", tidy(text)) == re.sub(r"\s|-", "", text)


def test_a_long_run_of_blanks_takes_no_long_time():
    began = time.perf_counter()
    mended_text("a" + " " * 300_000 + "b" + "\n" * 100_000 + "?" * 50_000 + "(" * 50_000)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text,mended", [
    ("Sheâ€™s dont know.", "She's don't know."),
    ("It doesnt work; thats all. Youre right, arent you?", "It doesn't work; that's all. You're right, aren't you?"),
    ("its colour, lets blood flow, we were well, as is his wont", "its colour, lets blood flow, we were well, as is his wont"),
    ("Alzheimers disease and Crohns", "Alzheimer's disease and Crohn's"),
    ("CANT and DONT are acronyms", "CANT and DONT are acronyms"),
    ("nontoxic acetate.[9184] The way", "nontoxic acetate. The way"),
    ("recessive manner.[1][2] People", "recessive manner. People"),
    ("median 12 [10-15], CI [3, 5], [18F]FDG, Table [2]", "median 12 [10-15], CI [3, 5], [18F]FDG, Table [2]"),
    ("in <5% of patients p<0.05", "in <5% of patients p<0.05"),
    ("the early stages.Signs and symptoms", "the early stages. Signs and symptoms"),
    ("Cancer.Net from the society, www.nih.gov. Read", "Cancer.Net from the society, www.nih.gov. Read"),
    ("10 µg/mL, 10² cells, ½ tablet", "10 µg/mL, 10² cells, ½ tablet"),
    ("Rest it. (Watch the video to learn more. To enlarge the video, click the brackets.) Ice helps.", "Rest it. Ice helps."),
    ("The liver can enlarge, the jaw may click.", "The liver can enlarge, the jaw may click."),
    ("Foods:     - milk    - eggs", "Foods:\n- milk\n- eggs"),
])  # fmt: skip
def test_residue_goes_and_medicine_stays(text, mended):
    assert mended_text(text) == mended


@pytest.mark.parametrize("question,mended", [
    ("What is (are) Asthma ?", "What is Asthma?"), ("What causes gout ? ?", "What causes gout?"),
    ("What causes What I need to know about Gallstones ?", "What causes Gallstones?"), ("Is 5.5 high or 6.1 ?", "Is 5.5 high or 6.1?"),
])  # fmt: skip
def test_questions_lose_the_marks_of_their_template(question, mended):
    assert mended_question(question) == mended


def test_html_becomes_text_with_its_list():
    text = mended_text("<p>Causes of <b>gout</b>:</p><ul><li>uric acid</li><li>beer</li></ul>")
    assert "- uric acid\n- beer" in text and "<" not in text


def test_key_points_say_everything_once():
    text = without_outline("Key Points\n- Gout hurts.\n- Only here.\nGout hurts.\nIt begins at night.")
    assert text == "- Only here.\nGout hurts.\nIt begins at night."


def test_a_flattened_table_keeps_every_sign():
    signs = {f"Sign {n} of the {part}": share for n, (part, share) in enumerate([("hand", "90%"), ("X-linked eye", "-"), ("foot", "7.5%"), ("ear", "2/3")])}
    table = " ".join(f"{sign} {share}" for sign, share in signs.items())
    assert {sign: share for share, names in signs_by_share(table).items() for sign in names} == signs


def test_a_sentence_with_more_than_the_cue_stays():
    long = "Click here to see that " + "the kidney filters blood and keeps salts in balance " * 10
    assert without_boilerplate(long) == long


# personal data


@pytest.mark.parametrize("text,masked", [
    ("Call 212-555-0187 now", "Call [PHONE] now"),
    ("Tel: 07700 900123", "Tel: [PHONE]"),
    ("phone 2125550187", "phone [PHONE]"),
    ("+44 20 7946 0958 or (301) 555-0142", "[PHONE] or [PHONE]"),
    ("write to jane.roe+x@mail.example.co.uk.", "write to [EMAIL]."),
    ("NHS number: 943 476 5919", "NHS number: [NHS NUMBER]"),
    ("his number is 943 476 5919", "his number is [NHS NUMBER]"),
    ("MRN: 0045981 and Patient ID AB-100234", "MRN: [MRN] and Patient ID [MRN]"),
    ("DOB 12/03/1961; born on 3 March 1950; date of birth: March 3, 1950", "DOB [DATE OF BIRTH]; born on [DATE OF BIRTH]; date of birth: [DATE OF BIRTH]"),
    ("Patient: Jane Roe, MRN 0045981", "Patient: [NAME], MRN [MRN]"),
    ("Dr. James Cheek, 212-555-0187", "Dr. [NAME], [PHONE]"),
])  # fmt: skip
def test_personal_data_are_masked(text, masked):
    assert mask(text)[0] == masked
    assert mask(masked)[0] == masked


@pytest.mark.parametrize("text", [
    "Crohn's disease, Parkinson disease, Bell's palsy, Hodgkin lymphoma and the Glasgow Coma Scale",
    "Call 911, 999, 112 or NHS 111. Crisis line 988.",
    "Poison control: 1-800-222-1222; Samaritans 116 123; Childline 0800 1111",
    "Dr. Alois Alzheimer was born on June 14, 1864 in Marktbreit.",
    "doi:10.1001/jama.2020.1234, NCT01234567, PMID 31318145, OMIM 123456, ISBN 978-3-16-148410-0",
    "Sodium 135-145 mmol/L, 1,000-2,000 mg, 2019-2020, 120/80, 100 000 people, mRNA 1234",
    "What is your age or date of birth? The baby was born with it.",
])  # fmt: skip
def test_what_is_not_personal_stays(text):
    assert mask(text)[0] == text


def test_helplines_are_counted_and_kept():
    assert mask("Call 1-800-222-1222 or 212-555-0187")[1] == Counter({"HELPLINE": 1, "PHONE": 1})


@QUICK
@given(st.integers(0, 10**9 - 1))
def test_a_nhs_number_has_one_right_check_digit_at_most(nine):
    assert sum(is_nhs_number(f"{nine:09}{digit}") for digit in range(10)) <= 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["MRN ", "0045981", "born ", "12/03/1961", "555-201-3344", " a@b.co ", "Jane Roe, ", "DOB: ", "943 476 5919", " mg ", "call ",
                                 "5552013344", "+44 20 7946 0958", "\n", "NHS number ", "Hospital number "]), max_size=7).map("".join))
def test_the_cheap_test_misses_nothing(text):
    assert may_hold_personal(text) or not found_in(text)


# language


@pytest.mark.parametrize("text,language", [
    ("El asma es una enfermedad crónica que afecta a las vías respiratorias de los pulmones.", "es"),
    ("Asthma ist eine chronische Erkrankung, bei der sich die Atemwege verengen.", "de"),
    ("L'asthme est une maladie chronique qui rétrécit les voies respiratoires.", "fr"),
    ("哮喘是一种慢性疾病，会使气道变窄，令人呼吸困难。", "zh"),
    ("الربو مرض مزمن يصيب الشعب الهوائية في الرئتين ويسبب ضيق التنفس", "ar"),
    ("Asthma is a long-term disease of the airways.", "en"),
    ("Micrognathia; hypertelorism; strabismus; nystagmus; hypotonia; macrocephaly.", "en"),
    ("Gout", "en"), ("", "en"), ("123 456", "en"),
])  # fmt: skip
def test_languages(text, language):
    assert language_of(text) == language


def test_no_english_explanation_is_called_foreign(answers):
    assert Counter(language_of(row["exp"]) for row in answers) == {"en": len(answers)}
    assert sum(needs_a_look(row["exp"]) for row in answers) < 0.5 * len(answers)


# duplicates


TOKENS = st.lists(st.sampled_from("abcdefgh"), max_size=30).map(" ".join)


@QUICK
@given(TOKENS, TOKENS, st.integers(1, 4))
def test_numbers_give_the_similarity_of_the_words(one, other, width):
    assume(one and other)
    numbers = [runs(hashed(words_of(text)), width) for text in (one, other)]
    assert overlap(*numbers) == jaccard(shingles(one, width), shingles(other, width))


def test_near_pairs_finds_every_copy_in_a_large_heap_through_its_neighbours():
    text = " ".join(f"word{n}" for n in range(120))
    groups = Groups(300)
    for pair in near_pairs([f"{text} end{n}" for n in range(300)], 0.9):
        groups.join(*pair)
    assert set(groups.roots()) == {0}


def test_time_grows_with_the_texts_and_not_with_their_square():
    seconds = []
    for count in (2000, 8000):
        signed = signatures([runs(hashed([*(f"w{n}" for n in range(40)), f"x{number}"])) for number in range(count)])
        began = time.process_time()
        candidates(signed, 0.95)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 9 * seconds[0]


def test_equal_keys_whatever_the_spelling():
    assert text_key("  Ménière’s DISEASE? ") == text_key("Me\u0301nie\u0300re s disease")


@pytest.mark.parametrize("better,worse", [("CC0-1.0", "CC-BY-4.0"), ("Public Domain", "MIT"), ("MIT", "CC BY-SA 4.0"), ("CC-BY-4.0", "CC-BY-NC-4.0"),
                                          ("CC-BY-NC-4.0", "CC-BY-NC-ND-4.0"), ("CC-BY-NC-ND-4.0", "their own"), ("their own", "unknown")])
def test_freer_licences_come_first(better, worse):
    assert openness(better) < openness(worse)


# passages and leaks


@QUICK
@given(st.lists(st.sampled_from("abcdef"), min_size=13, max_size=40), st.lists(st.sampled_from("abcdef"), min_size=13, max_size=40))
def test_a_shared_passage_is_found_exactly_when_there_is_one(one, other):
    def plain(words):
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    nothing = hashed([])
    table = HeldPassages([(windows(hashed(one)), nothing)])
    assert len(table.shared(windows(hashed(other)), nothing)) == len(plain(one) & plain(other))


@QUICK
@given(st.lists(st.lists(st.sampled_from(["gout", "hurts", "at", "night", "Rest", "it"]), min_size=1, max_size=8), min_size=1, max_size=8), st.integers(0, 40))
def test_what_is_cut_leaves_whole_sentences_and_no_passage(said, start):
    def numbered(text):
        return hashed(words_of(text))

    text = " ".join(" ".join(words).capitalize() + "." for words in said)
    secret = HeldPassages([(windows(numbered(text))[start : start + 3], hashed([]))]).find
    left = without_passages(text, numbered, secret)
    if left is not None:
        assert all(sentence in text for sentence in re.split(r"(?<=\.) ", left))
        assert len(left.split()) * 2 >= len(text.split())


def test_commonness_is_counted_in_groups():
    found = {n: np.array([0]) for n in range(12)}
    assert not telling(found, lambda n: n, 1)[0] and telling(found, lambda n: n // 2, 1)[0]


def test_advice_is_not_held_against_advice_but_against_a_page():
    advice = "Call an ambulance now, keep the person still and warm, and give nothing to eat or to drink at all."
    stories = {"exam": "A boy of nine swallowed a marble in the garden of his aunt this morning and coughs.",
               "train": "Since supper her left arm has been heavy, and she cannot find the words that she looks for."}
    exam, case = (Item(name, "", story, f"{story} {advice}", advice) for name, story in stories.items())
    page = Item("page", "", "What do I do after a fall?", f"First look at the scene, then do this. {advice} Stay until help comes, and tell them what you saw.")
    assert find_leaks([case], [exam]) == []
    assert [leak.train for leak in find_leaks([case, page], [exam])] == ["page"]
    assert [leak.train for leak in find_leaks([case], [page])] == ["train"]


# choices


def test_real_explanations_agree_with_their_key(answers):
    items = [(row["exp"], "ABCD"[row["cop"] - 1], {letter.upper(): row[f"op{letter}"] for letter in "abcd"}) for row in answers]
    verdicts = sum(bool(named_letters(text)) for text, _, _ in items)
    assert verdicts > 1000 and sum(contradicts(*item) for item in items) <= 5
    turned = sum(contradicts(text, "BCDA"["ABCD".index(right)], options) for text, right, options in items)
    assert turned > 0.95 * verdicts


@pytest.mark.parametrize("explanation,letters", [
    ("<analysis>B lowers it, C does not. Therefore, the correct answer is D.</analysis>", ["D"]),
    ("Option B is incorrect. C is not correct.", []), ("A 45-year-old man. Vitamin C is correct for scurvy if low.", []),
    ("Ans. (b) Insulin", ["B"]), ("The best answer is option C because it is fast", ["C"]),
])  # fmt: skip
def test_a_verdict_is_told_from_a_mention(explanation, letters):
    assert named_letters(explanation) == letters


# benchmarks


@pytest.mark.parametrize("name,content", [("a.json", "{"), ("a.parquet", "no"), ("a.jsonl", "[1]"), ("a.csv", ""), ("a.json", "[]"), ("a.txt", "\n\n")])
def test_a_benchmark_that_cannot_be_read_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        read_benchmark(tmp_path / name)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_the_connected_components(pairs):
    groups = Groups(31)
    for pair in pairs:
        groups.join(*pair)
    roots = groups.roots()
    assert all(roots[a] == roots[b] for a, b in pairs) and all(roots[root] == root <= member for member, root in enumerate(roots))
    assert len(set(roots)) >= 31 - len({tuple(sorted(pair)) for pair in pairs})


def test_shuffled_texts_give_the_same_pairs():
    rng = random.Random(4)
    texts = [" ".join(rng.choice("abcdefghij") for _ in range(20)) for _ in range(40)]
    order = rng.sample(range(40), 40)
    pairs = {tuple(sorted((order[one], order[other]))) for one, other in near_pairs([texts[n] for n in order], 0.3)}
    assert pairs == set(near_pairs(texts, 0.3))

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Leaks: nothing of the test in the training data
#
# > Compare a training set with held-out items in six ways, and stop when one of them finds something.
#
# A split is a claim: the training data give no test item away. The code that made the split cannot check it, because it would repeat its own mistakes.
# This notebook checks records of any kind, finished examples and public benchmarks. It does not know how the split was made.
#
# **You will** define "the same" in six ways, look for all of them in one pass over the training set, and end with a gate that raises an error.
# **Needs** CPU, no network, no key. **Takes** 3 seconds to run, 15 minutes to read.

# %%
#| default_exp cleaning.leaks

# %%
#| export
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from medlab.basics.errors import MedlabError
from medlab.contracts.records import Record
from medlab.cleaning.contained import SEVERAL, HeldQuestions, is_telling, readings
from medlab.cleaning.duplicates import candidates, hashed, overlap, shingle_hashes, signatures, words_of
from medlab.cleaning.passages import COMMON, PASSAGE, HeldPassages, uncommon_pairs, uncommon_passages, word_windows
from medlab.cleaning.stock import PhraseModel, repeats, verdict, without_numbers

# %%
#| hide
from types import SimpleNamespace

import numpy as np
from fastcore.test import test_eq, test_fail

from medlab.contracts.records import record_id

# %% tags=["parameters"]
threshold = 0.6  # Jaccard similarity from which the short texts of this notebook count as near duplicates

# %% [markdown]
# ## 1. The text that must not occur twice
#
# "The cause is unknown." is a fine answer to two hundred questions, and two triage cases may end in the same advice. They are not copies. So a short
# answer, a multiple-choice item, and anything written for a task is compared together with its question and options (in alphabetical order, because
# a moved option makes no new item). A long answer is compared alone.

# %%
#| export
LONG = 12  # a text of so many words is compared on its own


def body_of(record: Record) -> str:
    "The whole text of a record: its answer, its text and its sections."
    return "\n".join(filter(None, [record.answer, record.text, *(record.sections or {}).values()]))


def record_text(record: Record) -> str:
    "The text that must not occur twice: a long collected answer or text, otherwise question, options and answer together."
    body = body_of(record)
    if record.task is None and record.kind != "mcq" and len(body.split()) >= LONG:
        return body
    return " ".join([record.question or record.title or "", *sorted((record.options or {}).values()), body])


def authored_answer(record: Record) -> str:
    "A long answer that was written for a task, without its labels; empty for all other records."
    answer = " ".join(map(str, (record.gold or {}).values())) if record.task else ""
    return answer if len(answer.split()) >= LONG else ""


# %%
def page(question, answer, **more):
    fields = {"id": record_id("lesson", question + answer), "source": "lesson", "kind": "qa", "license": "CC0-1.0",
              "may_train": True, "attribution": "this lesson"}
    return Record(**{**fields, "question": question, "answer": answer, **more})

long_answer = "Crystals of uric acid settle in a joint, most often in the big toe, at night."
authored = page("How soon?", "Triage: urgent", task="triage", gold={"triage": "urgent"})
record_text(page("What causes gout?", "The cause is unknown.")), record_text(page("What causes gout?", long_answer))

# %%
test_eq(record_text(page("What causes gout?", "The cause is unknown.")), "What causes gout? The cause is unknown.")
test_eq(record_text(page("What causes gout?", long_answer)), body_of(page("", long_answer)))
test_eq(authored_answer(authored), "")  # short
test_eq(len(authored_answer(page("Q?", "", task="triage", gold={"reason": long_answer})).split()), 16)


# %% [markdown]
# ## 2. One form for all
#
# The gate compares records, benchmark items and finished examples in one form. Examples are made of records with a few phrasings, so similar examples
# are normal. Of examples only the group and the exact question are compared; their records were compared in full before.

# %%
#| export
class Item(NamedTuple):
    "The parts of a record, an example or a benchmark item that the gate compares."

    id: str
    group: str = ""  # empty: none
    question: str = ""
    text: str = ""  # the text that must not occur twice
    authored_answer: str | None = None  # of an authored item; two of these are not compared with each other
    equal_only: bool = False  # an example made with a phrasing: compare only its group and its exact question


def item_of(thing: Any) -> Item:
    "The `Item` of a record, of a benchmark's item, or of an example with `messages`; an `Item` is returned as it is."
    if isinstance(thing, Item):
        return thing
    if isinstance(thing, Record):
        answer = " ".join(map(str, (thing.gold or {}).values())) if thing.task else None
        return Item(thing.id, getattr(thing, "group", ""), thing.question or "", record_text(thing), answer)
    if hasattr(thing, "answer"):
        alone = len(thing.answer.split()) >= LONG and not thing.options
        text = thing.answer if alone else " ".join([thing.question, *sorted(thing.options), thing.answer])
        return Item(thing.id, question=thing.question, text=text)
    question = next((turn["content"] for turn in reversed(getattr(thing, "messages", [])) if turn["role"] == "user"), "")
    return Item(thing.id, getattr(thing, "group", ""), question, equal_only=True)


# %%
test_eq(item_of(page("What causes gout?", "Uric acid.")).text, "What causes gout? Uric acid.")
test_eq(item_of(authored).authored_answer, "urgent")
test_eq(item_of(item_of(authored)), item_of(authored))
test_eq(item_of(SimpleNamespace(id="b:1", question="Who?", answer="Me.", options=())).text, "Who? Me.")

# %% [markdown]
# ## 3. Six ways to leak
#
# From the crudest to the finest:
#
# | kind | the training item … |
# |---|---|
# | `group` | is in the same group |
# | `exact` | has exactly the same question or text |
# | `normalised` | has the same question or text but for case, punctuation and white space |
# | `near_duplicate` | has nearly the same text, nearly the same long question, or a short question with the same words in another order |
# | `contained` | asks the same [question with something beside it](contained.ipynb): "Q:", an instruction, options |
# | `passage` | shares [enough passages of thirteen words](stock.ipynb) that are no stock phrases |
#
# One shared passage is not enough for the last kind, unless it is a large part of the text. It is a `suspicion`: listed, but no reason to stop. Words that a line break has cut
# ("hyper-", "tension") are joined before anything is compared.

# %%
#| export
KINDS = ("group", "exact", "normalised", "near_duplicate", "contained", "passage", "suspicion")  # from the crudest to the finest


class Leak(NamedTuple):
    "A training item that gives a held-out item away, or, with the kind `suspicion`, that may do so."

    kind: Literal["group", "exact", "normalised", "near_duplicate", "contained", "passage", "suspicion"]
    train: str  # id
    held_out: str  # id


class LeakageError(MedlabError):
    "Held-out items are in the training data; `leaks` lists every pair."

    def __init__(self, message: str, leaks: Sequence[Leak] = ()):
        super().__init__(message)
        self.leaks = list(leaks)


# %% [markdown]
# Each item is hashed once: keys find what is equal, shingles find what is nearly equal, and passages find shared sentences.

# %%
#| exporti
REORDERED = 4  # a question of so many words is also compared without their order


class ItemHashes(NamedTuple):
    "An item as numbers. Texts in which a line break has cut a word are there twice: with the word joined, and as they are."

    id: str
    group: str
    keys: list[tuple[tuple[str, Any], int]]  # a kind of key with the hash of the words, and a hash of the exact text
    texts: list[tuple[str, Any]]  # its question and collected text, each with its hashed words
    authored: list[tuple[str, Any]]  # its authored answer, in the same form
    shingles: dict[str, Any]  # of its text and of a long question

    def passages(self) -> tuple[Any, Any]:
        "The passages of its question and collected text, and those of its authored answer."
        import numpy as np

        none = np.zeros(0, dtype=np.uint64)
        found: Any = (np.concatenate([none, *(word_windows(numbers) for _, numbers in part)]) for part in (self.texts, self.authored))
        return tuple(found)


# %%
#| exporti
def hash_item(item: Item) -> ItemHashes:
    "Hash one item."
    import numpy as np

    heard: list[list[tuple[str, Any]]] = [[(reading, hashed(words_of(reading))) for reading in readings(part)] for part in (item.question, item.text, item.authored_answer or "")]
    question, text = heard[0][0][1], heard[1][0][1]  # with cut words joined
    keys: list[tuple[tuple[str, Any], int]] = [(("group", item.group), 0)] if item.group else []
    generic = len(text) > len(question) and not is_telling(words_of(item.question))  # "Which is true?" is asked of many things
    for name, part, as_it_is in (("question", [] if generic else heard[0], item.question), ("text", heard[1], item.text)):
        keys += [((name, hash(numbers.tobytes())), hash(as_it_is)) for _, numbers in part if len(numbers)]
    if len(question) >= REORDERED and not generic and not item.equal_only:
        keys.append((("reordered question", hash(np.sort(question).tobytes())), 0))
    cut = {"text": shingle_hashes(text), "question": shingle_hashes(question if len(question) >= LONG else question[:0], 1)}
    texts = [] if item.equal_only else heard[0] if item.authored_answer is not None else heard[0] + heard[1]
    shingles = {} if item.equal_only else {name: found for name, found in cut.items() if len(found)}
    return ItemHashes(item.id, item.group, keys, texts, heard[2], shingles)


# %%
held_item = Item("h", "g1", "What causes gout?", long_answer)
hashes = hash_item(held_item)
test_eq((len(hashes.keys), [len(numbers) for _, numbers in hashes.texts], len(hashes.passages()[0]), list(hashes.shingles)), (3, [3, 16], 4, ["text"]))
broken = hash_item(held_item._replace(text=long_answer.replace("settle", "set-\ntle")))
test_eq((broken.keys[-2][0] == hashes.keys[-1][0], len(broken.texts)), (True, 3))  # joined, it is the same text
test_eq(len(hash_item(held_item._replace(question="What may cause gout?")).keys), 4)  # four words: also compared without their order
test_eq(hash_item(held_item._replace(equal_only=True)).shingles, {})


# %% [markdown]
# Common passages belong to many held-out items. To count what a training item shares with *one* of them, we must know all the owners of a passage.

# %%
#| exporti
class Owners:
    "The held-out items that have a passage, and where they have it: many items can share one."

    def __init__(self, passages: Sequence[tuple[Any, Any]], table: HeldPassages):
        import numpy as np

        both = [np.concatenate(item) for item in passages]
        sizes = np.array([len(numbers) for numbers in both], dtype=np.int64)
        which: Any = np.searchsorted(table.numbers, np.concatenate([np.zeros(0, dtype=np.uint64), *both]))
        owner, place = np.repeat(np.arange(len(sizes)), sizes), np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        _, first = np.unique(which * max(1, len(sizes)) + owner, return_index=True)  # sorted by passage; an item's first place counts
        self.owner: Any = owner[first].astype(np.uint32)
        self.place: Any = place[first].astype(np.uint32)
        self.starts: Any = np.searchsorted(which[first], np.arange(len(table.numbers) + 1))
        self.repeats = repeats(both)
        self.counts = np.bincount(which[first], weights=~self.repeats[owner[first]], minlength=len(table.numbers))

    def of(self, passages: Any) -> tuple[Any, Any, Any]:
        "All owners of these passages, and for each the place of the passage in it and its index among `passages`."
        import numpy as np

        spans = [np.arange(self.starts[one], self.starts[one + 1]) for one in passages.tolist()]
        found = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
        return self.owner[found], self.place[found].astype(np.int64), np.repeat(np.arange(len(passages)), [len(span) for span in spans])


# %%
pages = [hash_item(Item(name, text=text)).passages() for name, text in (("a", long_answer), ("b", f"{long_answer} So they say."), ("c", "Rest."))]
table = HeldPassages(pages)
owners = Owners(pages, table)
who, places, _ = owners.of(np.arange(len(table.numbers)))
test_eq((Counter(who.tolist()), sorted(places[who == 0].tolist())), ({0: 4, 1: 7}, [0, 1, 2, 3]))
test_eq((owners.repeats.tolist(), [len(part) for part in owners.of(np.arange(0))]), ([False, True, False], [0, 0, 0]))


# %%
#| exporti
class ItemIndex:
    "An index of held-out items, or, with `held`, the training items that were looked up in one."

    def __init__(self, items: Iterable[Item], held: "ItemIndex | None" = None):
        self.ids, self.groups, self.known, self.leaks, self.same_text, self.shared, self.asked = [], [], {}, [], [], {}, {}
        self.places, self.signed = defaultdict(lambda: array("q")), defaultdict(lambda: [signatures([])])
        passages, questions, waiting = [], [], defaultdict(list)
        for place, hashes in enumerate(tqdm(map(hash_item, items), "look for leaks", unit=" items", leave=False, delay=3)):
            self.ids.append(hashes.id)
            asked = next((key for key, _ in hashes.keys if key[0] == "question"), place)  # a benchmark may list a question several times
            self.groups.append(hashes.group or (asked if held is None else place))
            for name, cut in hashes.shingles.items():
                self.places[name].append(place)
                waiting[name].append(cut)
                if len(waiting[name]) == 1000:  # shingles take far more memory than signatures
                    self.signed[name].append(signatures(waiting.pop(name)))
            if held is None:
                self.known.update({key: (place, exact) for key, exact in hashes.keys})
                passages.append(hashes.passages())
                questions += [(place, text) for text, _ in hashes.texts[:1]]
            else:
                self.look_up(place, hashes, held)
        for name, cuts in waiting.items():
            self.signed[name].append(signatures(cuts))
        self.table, self.questions = HeldPassages(passages, self.groups if held is None else ()), HeldQuestions(questions)
        self.owners = Owners(passages, self.table)

    def look_up(self, place: int, hashes: ItemHashes, held: "ItemIndex") -> None:
        "Note what one training item shares with held-out ones."
        for (name, _), owner, leak in held.equal(hashes):
            if name == "text":
                self.same_text.append((owner, place, leak))
            else:
                self.leaks.append(leak)
        if len(found := held.table.shared(*hashes.passages())):
            self.shared[place] = found
        for text, numbers in hashes.texts:
            for question, share in held.questions.contained(text, numbers).items():
                self.asked[place, question] = max(share, self.asked.get((place, question), 0))

    def equal(self, hashes: ItemHashes) -> Iterator[tuple[tuple[str, Any], int, Leak]]:  # the key, the held-out item's place, the leak
        "Leaks of a training item whose group, question or text equals that of a held-out item."
        for key, exact in hashes.keys:
            if key in self.known:
                other, held_exact = self.known[key]
                kind: Any = {"group": "group", "reordered question": "near_duplicate"}.get(key[0])
                yield key, other, Leak(kind or ("exact" if exact == held_exact else "normalised"), hashes.id, self.ids[other])


# %%
index = ItemIndex([held_item])
test_eq([leak for *_, leak in index.equal(hash_item(held_item._replace(id="t", group="g2", text="")))], [Leak("exact", "t", "h")])
test_eq([leak.kind for leak in ItemIndex([Item("t", "g1", "what causes GOUT")], index).leaks], ["group", "normalised"])
reordered = ItemIndex([Item("t", "", "In men gout has what cause?")], ItemIndex([Item("h", "", "What cause has gout in men?")]))
test_eq(reordered.leaks, [Leak("near_duplicate", "t", "h")])
test_eq(ItemIndex([Item("t", "", "Who?", "Me.")], index).leaks, [])


# %% [markdown]
# An index reads its items once. Near duplicates need a second reading: only the pairs with similar signatures are read again, and their true
# similarity decides. `Items` gives the same items as often as they are needed.

# %%
#| exporti
class Items:
    "Things as `Item`s, which can be read more than once; a plain iterator is kept as a list."

    def __init__(self, things: Iterable[Any] | Callable[[], Iterable[Any]]):
        self.things = list(things) if isinstance(things, Iterator) else things

    def __iter__(self) -> Iterator[Item]:
        return map(item_of, self.things() if callable(self.things) else self.things)


# %%
test_eq([len(list(Items(things))) for things in (iter([held_item]), [held_item], lambda: [held_item])], [1, 1, 1])


# %%
#| exporti
def near_items(train: Items, training: ItemIndex, held_out: Items, held: ItemIndex, threshold: float) -> Iterator[tuple[str, int, int]]:
    "Places of held-out items and of training items that nearly equal them, each with the part that does: text or question."
    import numpy as np

    for name in ("text", "question"):
        first, second = (np.concatenate(index.signed[name]) for index in (held, training))
        pairs = candidates(np.concatenate((first, second)), threshold)
        pairs = pairs[(pairs[:, 0] < len(first)) & (pairs[:, 1] >= len(first))]
        wanted = [np.array(index.places[name], dtype=np.int64)[column].tolist()
                  for index, column in ((held, pairs[:, 0]), (training, pairs[:, 1] - len(first)))]
        cut = [{place: hash_item(item).shingles[name] for place, item in enumerate(items) if place in places} if places else {}
               for items, places in ((held_out, set(wanted[0])), (train, set(wanted[1])))]
        for one, other in zip(*wanted):
            if overlap(cut[0][one], cut[1][other]) >= threshold:
                yield name, one, other


# %%
nearly = held_item._replace(id="t", group="", question="", text=held_item.text.replace("at night", "by night"))
test_eq(list(near_items(Items([nearly]), ItemIndex([nearly], index), Items([held_item]), index, 0.9)), [])
test_eq(list(near_items(Items([nearly]), ItemIndex([nearly], index), Items([held_item]), index, threshold)), [("text", 0, 0)])


# %% [markdown]
# The same or nearly the same text in more than ten other groups is boilerplate, as a common passage is: how recessive inheritance works is the answer for
# hundreds of diseases, and knowing it for one of them is what a student should take along to the next. It is no leak.

# %%
#| exporti
def similar_texts(training: ItemIndex, held: ItemIndex, near: Sequence[tuple[str, int, int]]) -> list[Leak]:
    "Leaks of items with the same or nearly the same text, without boilerplate; `near` are pairs from `near_items`."
    import numpy as np

    found = [*training.same_text, *((one, other, Leak("near_duplicate", training.ids[other], held.ids[one])) for name, one, other in near if name == "text")]
    names: dict[Any, int] = {}
    groups = [names.setdefault(group, len(names)) for group in [*(("held", one) if isinstance(one, int) else one for one in held.groups), *training.groups]]
    pairs = np.array([(one, len(held.ids) + other) for one, other, _ in found], dtype=np.int64).reshape(-1, 2)
    return [leak for (*_, leak), telling in zip(found, uncommon_pairs(pairs, np.array(groups))) if telling]


# %%
advice = "The condition is inherited in a recessive pattern, and both copies of the gene have to be changed before anything is seen."
diseases = [Item(f"{number}", f"{number}", f"Is disease {number} inherited?", advice) for number in range(12)]
test_eq([len(similar_texts(ItemIndex(diseases[1:count], one), one, [])) for one in [ItemIndex(diseases[:1])] for count in (11, 12)], [10, 0])


# %% [markdown]
# A question that is found in more than ten groups of the training data may be a common one (every case of an exam may end in it). Then only the texts
# count that say little else.

# %%
#| export
def telling_questions(
    asked: dict[tuple[Any, int], float],  # a text and the number of a held-out question in it, to the question's share of the text's words
    group_of: Callable[[Any], Any],  # the group of a text
) -> Iterator[tuple[Any, int]]:
    "The texts that give a held-out question away, each with the number of the question: common questions count where they are half of the text."
    groups = defaultdict(set)
    for text, question in asked:
        groups[question].add(group_of(text))
    return (pair for pair, share in asked.items() if share >= 0.5 or len(groups[pair[1]]) <= COMMON)


# %%
#| exporti
def asking_items(training: ItemIndex, held: ItemIndex) -> Iterator[tuple[str, str]]:
    "Ids of training items that ask a held-out question among other words, each with the id of the item that has it."
    for place, question in telling_questions(training.asked, training.groups.__getitem__):
        for owner in held.questions.owners[question]:
            yield training.ids[place], held.ids[owner]


# %%
def asking(*texts):
    return list(asking_items(ItemIndex([Item(f"t{n}", f"g{n}", text) for n, text in enumerate(texts)], index), index))

test_eq(asking("Q: What causes gout?", "What causes gout in summer?", "What is it?"), [("t0", "h")])
test_eq(list(telling_questions({("a", 0): 0.1, ("b", 0): 0.9}, str)), [("a", 0), ("b", 0)])
test_eq(asking("Q: What causes gout?", *[f"Number {n} had a red toe after supper. What causes gout?" for n in range(11)]), [("t0", "h")])


# %% [markdown]
# Shared passages are weighed last. Only the held-out items that share some with a training item are read again.

# %%
#| exporti
def numbered_texts(item: Item) -> list[Any]:
    "The texts of an item that passages are taken from, hashed without their numbers."
    hashes = hash_item(item)
    return [without_numbers(words_of(text)) for text, _ in hashes.texts + hashes.authored]


# %%
#| exporti
def layout(texts: list[Any], phrases: PhraseModel) -> tuple[Any, list[tuple[int, int]], Any]:
    "Where the passages of some texts begin, counted in words over all of them; the first and last word of each text; and the surprise of each word."
    import numpy as np

    ends = np.cumsum([0, *map(len, texts)]).tolist()
    begins = [np.arange(start, max(start, end - PASSAGE + 1)) for start, end in zip(ends, ends[1:])]
    return np.concatenate(begins), list(zip(ends, ends[1:])), np.concatenate(phrases.bits(texts))


# %%
begins, parts, bits = layout(numbered_texts(held_item), PhraseModel([numbered_texts(held_item)]))
test_eq((begins.tolist(), parts, len(bits)), ([3, 4, 5, 6], [(0, 3), (3, 19), (19, 19)], 19))


# %%
#| exporti
def sharing_items(training: ItemIndex, held_out: Items, held: ItemIndex) -> Iterator[tuple[Any, str, str]]:
    "A leak or a suspicion for each training item that shares passages with a held-out one: its kind and both ids."
    import numpy as np

    uncommon = uncommon_passages(training.shared, training.groups.__getitem__, len(held.table.numbers), held.table.groups)
    telling = uncommon & (held.owners.counts < SEVERAL)  # in few training groups, and in few held-out items
    found = {place: np.unique(held.owners.of(passages[telling[passages]])[0]) for place, passages in training.shared.items()}
    wanted = {owner for owners in found.values() for owner in owners.tolist()}
    if not wanted:
        return
    phrases = PhraseModel(numbered_texts(item) for place, item in enumerate(held_out) if not held.owners.repeats[place])
    layouts = {place: layout(numbered_texts(item), phrases) for place, item in enumerate(held_out) if place in wanted}
    for place, wanted_owners in found.items():
        passages = training.shared[place]
        owners, places, which = held.owners.of(passages) if len(wanted_owners) else (wanted_owners,) * 3
        for owner in wanted_owners.tolist():
            begins, parts, bits = layouts[owner]
            mine = owners == owner
            if kind := verdict(begins[places[mine]], uncommon[passages[which[mine]]], parts, bits, len(training.ids) * len(held.ids)):
                yield "passage" if kind == "leak" else kind, training.ids[place], held.ids[owner]


# %%
shares = Item("t", text="First: " + long_answer[:67] + " of rich people, as my aunt used to say.")
test_eq([kind for kind, *_ in sharing_items(ItemIndex([shares], index), Items([held_item]), index)], ["passage"])
longer = Items([held_item._replace(text=f"{long_answer} It wakes the sleeper with a pain that makes even the sheet too heavy, and by noon it is gone.")])
long_index = ItemIndex(longer)
test_eq([kind for kind, *_ in sharing_items(ItemIndex([shares], long_index), longer, long_index)], ["suspicion"])


# %%
#| export
def find_leaks(
    train: Iterable[Any] | Callable[[], Iterable[Any]],  # records, examples or `Item`s, or a function that gives them
    held_out: Iterable[Any] | Callable[[], Iterable[Any]],
    threshold: float = 0.8,  # Jaccard similarity of near duplicates
    suspicions: bool = False,  # with the kind `suspicion` too
) -> list[Leak]:
    "All pairs of a training item and a held-out item that it gives away, sorted; each pair occurs once, with its crudest kind."
    train, held_out = Items(train), Items(held_out)
    held = ItemIndex(held_out)
    training = ItemIndex(train, held)
    near = list(near_items(train, training, held_out, held, threshold))
    found = [*training.leaks, *similar_texts(training, held, near)]
    found += [Leak("near_duplicate", training.ids[other], held.ids[one]) for name, one, other in near if name == "question"]
    found += [Leak("contained", *pair) for pair in asking_items(training, held)]
    found += [Leak(*leak) for leak in sharing_items(training, held_out, held)]
    leaks: dict[tuple[str, str], Leak] = {}
    for leak in sorted(found, key=lambda leak: KINDS.index(leak.kind)):
        leaks.setdefault(leak[1:], leak)
    return sorted(leak for leak in leaks.values() if suspicions or leak.kind != "suspicion")


# %%
inside = nearly._replace(id="t2", text=long_answer[:67] + ". That is how it begins, and it may be years to the next.")
find_leaks([nearly, inside], [held_item], threshold)

# %%
test_eq(find_leaks([nearly, inside], [held_item], threshold), [Leak("near_duplicate", "t", "h"), Leak("passage", "t2", "h")])
test_eq(find_leaks(iter([held_item._replace(id="t")]), lambda: [held_item]), [Leak("group", "t", "h")])
test_eq(find_leaks([inside._replace(id=f"{number}", group=f"{number}") for number in range(11)], [held_item]), [])  # eleven groups: a common phrase


# %% [markdown]
# ## 4. The gate
#
# The last check before a run may go on does not warn. It raises an error and names the pairs.

# %%
#| export
def check_leakage(
    train: Iterable[Any],  # records, examples (only their group and question are compared) or `Item`s
    test: Iterable[Any],
    names: tuple[str, str] = ("train", "test"),  # for the message
    threshold: float = 0.8,  # Jaccard similarity of near duplicates
) -> list[Leak]:  # suspicions, for a person to read
    "Raise `LeakageError` when a training item gives a held-out item away; its `leaks` lists every pair, suspicions too."
    found = find_leaks(train, test, threshold, suspicions=True)
    if leaks := [leak for leak in found if leak.kind != "suspicion"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(leak.kind for leak in leaks).items()))
        pairs = "; ".join(f"{leak.held_out} with {leak.train} ({leak.kind})" for leak in leaks[:5])
        raise LeakageError(
            f"{len({leak.held_out for leak in leaks})} of {names[1]}'s items leak: they share a group, a question or a passage with {names[0]} "
            f"({kinds}), for example {pairs}; expected none, since a score on such items means nothing. Split by group (`medlab preprocess`), not by row",
            found,
        )
    return found


# %%
test_fail(lambda: check_leakage([nearly], [held_item], threshold=threshold), contains="1 of test's items leak")
check_leakage([nearly], [Item("h", question="Why?")])
test_eq(LeakageError("x", [Leak("group", "a", "b")]).leaks[0].held_out, "b")

# %% [markdown]
# ## Exercises
#
# 1. *Easy.* Write a training item that gives `held_item` away and that none of the six ways finds. What would a seventh way have to know? ([One answer.](paraphrases.ipynb))
# 2. *Medium.* Two authored answers are not compared with each other. Find the two places where that is decided, and change them. What does the
#    gate report about the starter data, and is it right?
# 3. *Hard.* The gate compares texts. How would you check that a *model* has seen a held-out item when you do not know its training data?
#
# ## What to remember
#
# - A check must not use what the splitter knew.
# - Name the pairs. Nobody can repair "there is a leak".
# - A gate raises an error. Nobody reads a warning.
#
# **Further reading:** Brown et al., ["Language models are few-shot learners"](https://arxiv.org/abs/2005.14165) (2020), appendix C; Sainz et al.,
# ["NLP evaluation in trouble"](https://arxiv.org/abs/2310.18018) (2023).

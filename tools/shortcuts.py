"""What rules that only read the surface of a question score on the starter data: .venv/bin/python tools/shortcuts.py

Every rule is fitted on the training lines and scored on the test lines. Rules come in families with a few settings each, and the best
setting *on the test* counts, so a family looks rather better than it is. The table is the one in data/starter/README.md.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import BernoulliNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from medlab.basics.files import shipped
from medlab.metrics.scores import CHOICES
from medlab.sources.starter import read_lines

FAMILIES = ("length", "single words", "word lists", "opening words", "overlap with the question", "naive Bayes", "TF-IDF, logistic regression")

#: Words that play a complaint down; "none of them, so it is an emergency" was a working rule once.
CALM = set("fine okay ok well normal happy healthy just only bit little funny silly probably slight slightly usual otherwise mild still no not never without".split())


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


def asked(line) -> str:
    "All that the user says in a line: the earlier turns of a conversation, and the question."
    return "\n".join([*(turn.question for turn in line.turns or []), line.question])


def starts(texts: list[str]) -> list[str]:
    return [" ".join(words(text)[:2]) for text in texts]


def naive_bayes() -> list:
    return [
        make_pipeline(CountVectorizer(), MultinomialNB()),
        make_pipeline(CountVectorizer(ngram_range=(1, 2)), MultinomialNB()),
        make_pipeline(CountVectorizer(binary=True, min_df=2), BernoulliNB()),
    ]


def regressions() -> list:
    return [
        make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=2000)),
        make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)),
        make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)), LogisticRegression(C=10, max_iter=2000)),
    ]


def strongest(texts: list[str], labels: list, label, size: int) -> set[str]:
    "The words of at least three texts that lean most to one label."
    inside, outside = Counter(), Counter()
    for text, other in zip(texts, labels):
        (inside if other == label else outside).update(set(words(text)))
    n_in, n_out = labels.count(label), len(labels) - labels.count(label)
    odds = {word: (inside[word] + 0.5) / (n_in + 1) * (n_out + 1) / (outside[word] + 0.5) for word in inside if inside[word] + outside[word] >= 3}
    return set(sorted(odds, key=lambda word: (-odds[word], word))[:size])


# Tasks whose question has a label: triage, safety_refusal, emergency_escalation


def by_length(train: list[str], labels: list[str], test: list[str]) -> Iterator[list[str]]:
    for size in (len, lambda text: len(text.split())):
        for depth in (1, 2, 3):
            tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit([[size(text)] for text in train], labels)
            yield tree.predict([[size(text)] for text in test])


def by_single_words(train: list[str], labels: list[str], test: list[str]) -> Iterator[list[str]]:
    counts, rules = Counter(word for text in train for word in set(words(text))), []
    for word in sorted(word for word, count in counts.items() if count >= 3):
        with_it = Counter(label for text, label in zip(train, labels) if word in words(text)).most_common(1)[0]
        without = Counter(label for text, label in zip(train, labels) if word not in words(text)).most_common(1)[0]
        rules.append((with_it[1] + without[1], word, with_it[0], without[0]))
    for _, word, present, absent in sorted(rules, reverse=True)[:10]:
        yield [present if word in words(text) else absent for text in test]


def by_word_lists(train: list[str], labels: list[str], test: list[str]) -> Iterator[list[str]]:
    for size in (5, 10, 20, 40):
        lists = {label: strongest(train, labels, label, size) for label in sorted(set(labels))}
        yield [max(lists, key=lambda label: len(lists[label] & set(words(text)))) for text in test]
    if set(labels) == {"yes", "no"}:
        yield ["no" if CALM & set(words(text)) else "yes" for text in test]


def by_models(models: list, train: list[str], labels: list[str], test: list[str]) -> Iterator[list[str]]:
    for model in models:
        yield model.fit(train, labels).predict(test)


def label_families(task: str, train: list, test: list) -> dict[str, float]:
    field = CHOICES[task][0]
    texts, labels, questions = [asked(one) for one in train], [one.fields[field] for one in train], [asked(one) for one in test]
    guesses = {
        "length": by_length(texts, labels, questions),
        "single words": by_single_words(texts, labels, questions),
        "word lists": by_word_lists(texts, labels, questions),
        "opening words": by_models(regressions()[:1], starts(texts), labels, starts(questions)),
        "naive Bayes": by_models(naive_bayes(), texts, labels, questions),
        "TF-IDF, logistic regression": by_models(regressions(), texts, labels, questions),
    }
    right = [one.fields[field] for one in test]
    return {name: max(sum(map(str.__eq__, right, map(str, guess))) / len(test) for guess in found) for name, found in guesses.items()}


# The task with options: clinical_reasoning. A rule scores each option, the question unseen (but for its overlap with the options).


def share_right(test: list, score: Callable) -> float:
    "The share of lines where the option with the highest score is right; options of equal score share the point."
    points = 0.0
    for line in test:
        scores = {letter: score(line, text) for letter, text in line.options.items()}
        best = [letter for letter in scores if scores[letter] > max(scores.values()) - 1e-9]
        points += (line.fields["letter"] in best) / len(best)
    return points / len(test)


def model_scores(models: list, texts: list[str], right: list[bool], test: list, seen: Callable = list) -> Iterator[float]:
    for model in models:
        model.fit(seen(texts), right)
        yield share_right(test, lambda line, text, model=model: model.predict_proba(seen([text]))[0][1])


def option_families(train: list, test: list) -> dict[str, float]:
    texts = [text for line in train for text in line.options.values()]
    right = [letter == line.fields["letter"] for line in train for letter in line.options]
    lists = [strongest(texts, right, True, size) for size in (5, 10, 20, 40)]
    sizes = [lambda line, text: len(text), lambda line, text: len(words(text))]
    overlaps = [lambda line, text: len(set(words(text)) & set(words(line.question))),
                lambda line, text: len(set(words(text)) & set(words(line.question))) / max(1, len(set(words(text))))]  # fmt: skip
    either_way = lambda rules: [share_right(test, lambda *seen, sign=sign, rule=rule: sign * rule(*seen)) for rule in rules for sign in (1, -1)]  # noqa: E731
    letters = by_models(regressions()[:1], [one.question for one in train], [one.fields["letter"] for one in train], [one.question for one in test])
    from_question = [sum(guess == line.fields["letter"] for guess, line in zip(guesses, test)) / len(test) for guesses in letters]
    found = {
        "length": either_way(sizes),
        "word lists": [share_right(test, lambda line, text, found=found: len(found & set(words(text)))) for found in lists],
        "opening words": model_scores(regressions()[:1], texts, right, test, starts),
        "overlap with the question": either_way(overlaps),
        "naive Bayes": model_scores(naive_bayes(), texts, right, test),
        "TF-IDF, logistic regression": [*model_scores(regressions(), texts, right, test), *from_question],
    }
    return {name: max(scores) for name, scores in found.items()}


def majority(task: str, test: list) -> float:
    return max(Counter(one.fields[CHOICES[task][0]] for one in test).values()) / len(test)


def accuracies(task: str) -> dict[str, float]:
    "The majority baseline on the test lines of a task, and the best accuracy there of each family of rules fitted on its training lines."
    lines = read_lines(shipped("data", "starter", f"{task}.jsonl"))
    train, test = ([one for one in lines if one.split == split] for split in ("train", "test"))
    families = option_families(train, test) if task == "clinical_reasoning" else label_families(task, train, test)
    return {"majority": majority(task, test), **families}


def main():
    found = {task: accuracies(task) for task in CHOICES}
    print(f"| rule | {' | '.join(found)} |")
    print("|---|" + "---|" * len(found))
    for name in ("majority", *FAMILIES):
        print(f"| {name} | " + " | ".join(f"{found[task][name]:.0%}".replace("%", " %") if name in found[task] else "–" for task in found) + " |")


if __name__ == "__main__":
    main()

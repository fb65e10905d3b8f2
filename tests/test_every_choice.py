"""Every value of every choice that a profile offers: one at a time, and in pairs, on a copy of a finished run. What is offered works, or says what it lacks.

All of it is `long`: `pytest -m long tests/test_every_choice.py`. A new parameter is found by its annotation; nothing has to be added here.
"""

import itertools
import random
import shutil
import typing

import pytest

from medlab.basics.errors import InputError, MissingError
from medlab.cleaning.leaks import LeakageError
from medlab.core import Params, Run, find_step, load_profile
from medlab.course import import_lessons
from medlab.evaluate import NAMED_VARIANTS
from medlab.quantizing.types import FILE_TYPES

import_lessons()
#: What keeps a step small; the value that is tried comes after it.
SMALL = {"finetune": ["finetune.steps=2", "finetune.checkpoint_every=1", "finetune.scored=2", "finetune.forgetting=1"],
         "quantize": ["quantize.check_positions=32", "quantize.importance_tokens=256", "quantize.check_tokens=2"]}
STEPS = ("preprocess", "finetune", "quantize", "deploy", "evaluate")
#: What a value needs beside it.
BESIDE = {("engine", "ray"): ["finetune.workers=2"], ("engine", "accelerate"): ["finetune.workers=2"],
          ("sharding", "fsdp2"): ["finetune.workers=2", "finetune.engine=accelerate"]}
#: Types of files that are tried together with other values: the 16-bit one, the nearest to it, the usual one and the smallest.
SOME_TYPES = ("f16", "q8_0", "q4_k_m", "q2_k")
#: Values that send something to the outside.
OUTSIDE = {("finetune", "track", "wandb"), ("finetune", "track", "trackio")}


def values_of(annotation):
    "The values that an annotation lists: those of a Literal, wherever it stands in it, and true and false."
    if annotation is bool:
        return ["true", "false"]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in values_of(part)]


def choices(step, types=tuple(FILE_TYPES)):
    "For each parameter of a step that is a choice its values as an override writes them."
    found = {"types": [f"[{name}]" for name in types]} if step == "quantize" else {}
    for name, field in Params.known[step].model_fields.items():
        several = typing.get_origin(field.annotation) is list
        if typing.get_origin(field.annotation) is dict:
            continue
        values = [value for value in values_of(field.annotation) if (step, name, value) not in OUTSIDE]
        if values:
            found[name] = [f"[{value}]" if several else str(value) for value in values]
    if step == "evaluate":
        found["variants"] = [f"[{name}]" for name in (*NAMED_VARIANTS, "q4_k_m") if name != "adapter_gguf"]  # that one needs another quantize
    return found


def in_pairs(offered, seed=0):
    "Rows of values in which every two values of two parameters meet at least once (greedy; the same rows each time)."
    draw = random.Random(seed)
    wanted = {frozenset(((a, x), (b, y))) for a, b in itertools.combinations(offered, 2) for x in offered[a] for y in offered[b]}
    rows = []
    while wanted:
        drawn = []
        for _ in range(40):
            row = dict(min(wanted, key=lambda pair: sorted(pair)))
            for name in draw.sample(sorted(offered), len(offered)):
                row.setdefault(name, draw.choice(offered[name]))
            drawn.append(row)
        met = {place: wanted & {frozenset(pair) for pair in itertools.combinations(row.items(), 2)} for place, row in enumerate(drawn)}
        best = max(met, key=lambda place: len(met[place]))
        rows.append(drawn[best])
        wanted -= met[best]
    return rows


def written(step, values):
    "The overrides of a profile for values of a step's parameters, with what they need beside them."
    beside = [line for (name, value), lines in BESIDE.items() if step == "finetune" and values.get(name) == value for line in lines]
    return [*SMALL.get(step, []), *beside, *(f"{step}.{name}={value}" for name, value in values.items())]


def tried(finished, tmp_path, step, values):
    "Run a step with values on a copy of a finished run; a value that lacks something here is skipped with what it lacks."
    shutil.copytree(finished[0].path, tmp_path / "run")
    try:
        return find_step(step)(Run(tmp_path / "run"), load_profile("smoke", written(step, values)))
    except MissingError as error:
        pytest.skip(str(error))
    except LeakageError as error:  # the small data holds such questions, and the profile says that they are an error
        assert "fail" in values.values(), error
        pytest.skip(str(error))


ONE_BY_ONE = [(step, name, value) for step in STEPS for name, values in choices(step).items() for value in values]


def test_the_choices_are_found():
    "A choice that is read from no annotation would be tried by nothing."
    found = {(step, name) for step, name, _ in ONE_BY_ONE}
    assert {("preprocess", "split_by"), ("finetune", "method"), ("finetune", "dora"), ("quantize", "merge_base"), ("deploy", "engine"), ("evaluate", "arms")} <= found
    rows = in_pairs({"a": ["1", "2"], "b": ["1", "2"], "c": ["1", "2", "3"]})
    assert 6 <= len(rows) < 12 and all(any(row["a"] == x and row["c"] == y for row in rows) for x in "12" for y in "123")


@pytest.mark.long
@pytest.mark.parametrize("step, name, value", ONE_BY_ONE, ids=lambda one: str(one))
def test_one_value(smoke_run, tmp_path, step, name, value):
    made = tried(smoke_run, tmp_path, step, {name: value})
    assert made.params[name] in (value, [value.strip("[]")], value == "true")


@pytest.mark.long
@pytest.mark.parametrize("step, row", [(step, row) for step in STEPS for row in in_pairs(choices(step, SOME_TYPES))],
                         ids=lambda one: one if isinstance(one, str) else "-".join(one.values()))
def test_pairs(smoke_run, tmp_path, step, row):
    "Values that exclude one another are refused by the profile, before any work."
    try:
        load_profile("smoke", written(step, row))
    except InputError as error:
        assert "expected" in str(error)
        return
    assert tried(smoke_run, tmp_path, step, row).step == step

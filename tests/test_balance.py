"How much of the training data one task may be, and what the folder of examples says about itself to programs and to the hub."

import json
import shutil

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medlab.basics.errors import InputError
from medlab.basics.files import read_json, read_jsonl, sha256_file
from medlab.contracts.croissant import card_head, used_licences
from medlab.contracts.records import SPLITS, TASKS, Record, SplitRecord, record_id
from medlab.core import Run, load_profile
from medlab.instruct import Balance, InstructParams, instruct, make_examples, task_limits


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(TASKS), st.integers(0, 5000)), st.floats(0.05, 1))
def test_no_task_has_more_than_its_share_and_none_is_cut_that_need_not_be(counts, cap):
    limits = task_limits(counts, Balance(cap=cap))
    total, tasks = sum(limits.values()), sum(count > 0 for count in counts.values())
    share = max(cap, 1 / max(1, tasks))
    for task, limit in limits.items():
        assert 0 <= limit <= counts[task] and (limit > 0) == (counts[task] > 0)
        assert limit <= max(1, share * total + 1)
        assert limit == counts[task] or limit >= share * total - 2  # what is cut stands at the cap


def test_weights_change_the_cap_of_a_task():
    counts = {"medical_qa": 1000, "triage": 100, "safety_refusal": 100}
    plain, halved = task_limits(counts, Balance(cap=0.6)), task_limits(counts, Balance(cap=0.6, weights={"medical_qa": 0.5}))
    assert plain == {"medical_qa": 300, "triage": 100, "safety_refusal": 100} and halved["medical_qa"] == 85  # 0.3 of 285
    assert task_limits(counts, Balance(weights={"triage": 0})) == {"medical_qa": 1000, "triage": 0, "safety_refusal": 100}
    assert task_limits({}, Balance(cap=0.5)) == {}


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"cap": 1.2}, {"weights": {"triag": 1}}, {"weights": {"triage": -1}}, {"caps": 0.5}])
def test_a_wrong_balance_is_refused(wrong):
    with pytest.raises(ValidationError):
        InstructParams(balance=wrong)
    with pytest.raises(InputError):
        load_profile("smoke", [f"instruct.balance={wrong}"]).params(InstructParams)


def records(split, start, count, task=None):
    base = {"source": "starter" if task else "site", "kind": "case" if task else "qa", "license": "MIT", "may_train": True, "attribution": "x", "split": split}
    for number in range(start, start + count):
        gold = {"triage": "soon", "reason": f"Reason {number} is mild."} if task else None
        name = f"Disease {number}" if not task else None
        yield SplitRecord(id=record_id(str(task), str(number)), group=f"{task}{number}", subject=name, question=f"What is case {number} of {task or name}?", task=task,
                          gold=gold, answer=None if task else f"Disease {number} is rare. It passes in {number} days.", **base)  # fmt: skip


def made(**params):
    parts = {split: [*records(split, start, count), *records(split, start, count // 8, "triage")] for split, start, count in (("train", 0, 400), ("validation", 500, 40), ("test", 600, 40))}
    return make_examples(parts, InstructParams(**params))


def test_the_training_data_are_balanced_and_the_test_stays():
    plain, balanced = made(), made(balance={"cap": 0.5})
    for split in ("train", "validation"):
        tasks = [one.task for one in balanced.splits[split]]
        assert tasks.count("triage") == sum(one.task == "triage" for one in plain.splits[split]) == tasks.count("medical_qa")
    assert balanced.splits["test"] == plain.splits["test"]
    assert balanced.left_out["over the share that train allows one task (balance)"] > 300
    assert {one.id for one in balanced.splits["train"]} <= {one.id for one in plain.splits["train"]}
    assert balanced.splits == made(balance={"cap": 0.5}).splits


def test_the_setting_reaches_the_step_from_the_command_line(tmp_path):
    profile = load_profile("smoke", ["instruct.balance={cap: 0.14}"])
    assert profile.params(InstructParams).balance.cap == 0.14
    run = Run(tmp_path / "run")
    instruct(run, profile)
    tasks = [row["task"] for row in read_jsonl(run.file("instruct", "train.jsonl"))]
    assert max(tasks.count(task) for task in TASKS) <= 0.14 * len(tasks) + 2
    assert any("balance" in reason for reason in read_json(run.file("instruct", "left_out.json")))


# ---------------------------------------------------------------------- Croissant and the card


@pytest.fixture(scope="module")
def folder(smoke_run):
    return smoke_run[0].path / "instruct"


def test_croissant_names_every_file_with_its_hash_and_every_column(folder):
    described = read_json(folder / "croissant.json")
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.1" and described["@type"] == "sc:Dataset"
    files = {one["contentUrl"]: one["sha256"] for one in described["distribution"]}
    assert files == {f"{split}.jsonl": sha256_file(folder / f"{split}.jsonl") for split in SPLITS}
    for one in described["recordSet"]:
        rows = read_jsonl(folder / f"{one['name']}.jsonl")
        assert {field["name"].partition("/")[2] for field in one["field"]} == set(rows[0])
        assert one["description"].startswith(f"{len(rows):,} examples")
    assert described["license"] == ["https://spdx.org/licenses/CC-BY-4.0.html"] and "example." not in json.dumps(described)


def test_croissant_is_valid_and_can_be_read_by_its_own_library(folder, tmp_path, monkeypatch):
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: the description is not validated")
    shutil.copytree(folder, tmp_path / "instruct")
    monkeypatch.chdir(tmp_path / "instruct")
    data = croissant.Dataset(jsonld="croissant.json")
    assert not data.metadata.issues.errors
    for split in SPLITS:
        rows = read_jsonl(folder / f"{split}.jsonl")
        read = list(data.records(split))
        assert [one[f"{split}/id"].decode() for one in read] == [row["id"] for row in rows]
        assert [turn[f"{split}/messages/content"].decode() for turn in read[0][f"{split}/messages"]] == [turn["content"] for turn in rows[0]["messages"]]


def test_the_card_is_what_the_hub_reads(folder):
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    head = yaml.safe_load(head)
    assert {one["split"]: one["path"] for one in head["configs"][0]["data_files"]} == {split: f"{split}.jsonl" for split in SPLITS}
    total = sum(len(read_jsonl(folder / f"{split}.jsonl")) for split in SPLITS)
    assert head["license"] == "cc-by-4.0" and head["size_categories"] == ["1K<n<10K"] and 1000 < total < 10000
    counts = [line.split("|")[1:5] for line in body.splitlines() if line.startswith("| ") and line.split("|")[1].strip() in TASKS]
    assert sum(int(cell.replace(",", "")) for row in counts for cell in row[1:]) == total and "Not a medical device" in body


def test_the_card_loads_as_a_dataset_of_the_hub(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folder, tmp_path / "hub")
    for extra in ("manifest.json", "croissant.json", "left_out.json"):
        (tmp_path / "hub" / extra).unlink(missing_ok=True)
    loaded = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == {split: len(read_jsonl(folder / f"{split}.jsonl")) for split in SPLITS}


def test_a_mixture_of_licences_is_never_called_by_one_of_them():
    one = {"source": "s", "kind": "qa", "may_train": True, "attribution": "x"}
    found = [Record(id="a", license="CC-BY-4.0", **one), Record(id="b", license="OGL-UK-3.0", **one), Record(id="c", license="MIT", **one)]
    splits = {split: made().splits[split][:2] for split in SPLITS}
    for examples in splits.values():
        for number, example in enumerate(examples):
            example.record_ids[:] = ["ab"[number]]
    licences = used_licences(splits, found)
    assert licences == ["CC-BY-4.0", "OGL-UK-3.0"]  # not that of a record without an example
    assert card_head(splits, licences, "x")["license"] == "other" and card_head(splits, ["MIT"], "x")["license"] == "mit"

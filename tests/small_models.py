"Tiny models of several families with random weights, each with a tokenizer that is trained on the spot. Nothing is downloaded."

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from medlab.quantizing.vocabulary import PRE_TOKENIZERS
from test_models import FAMILIES

#: What the tokenizers are trained on; of our own writing.
CORPUS = [
    "Take one tablet with a glass of water, twice a day. Do not take two at the same time.", "The patient's temperature is 38.5 degrees; it isn't a cold.",
    "We'll call you on 12 March 2024 at 10:30. You've 3 days to answer, and they're sure that she'd come.", "A rash, a cough and a headache: see a doctor.",
    "Dose: 250 mg (two capsules) every 8 hours.\n\nNever double the dose.\n\tKeep out of reach of children.", "naïve café 你好 ½ ≥ °C «word» — …",
]
PHI3 = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def cut_like(name):
    "The pre-tokenizer that llama.cpp calls by this name."
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    (pattern,) = next(steps for (steps, _), known in PRE_TOKENIZERS.items() if known == name)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus(words):
    "The corpus, and words so often, at the beginning of a line and within one, that each becomes one token."
    return [*CORPUS, *(text for word in words for text in (word, f"a {word} b") for _ in range(40))]


def byte_level(name, nfc=False, words=()):
    "A tokenizer that merges bytes and cuts text as llama.cpp's `name` does."
    tokenizer = Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut_like(name), decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus(words), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


#: Runs of white space that Gemma has among its added tokens.
RUNS = ("\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁")


def sentencepiece(prefix, words=(), runs=()):
    "A tokenizer that merges characters and falls back to bytes; `prefix`: None, 'normalizer' (Llama 2) or 'first' (later Mistral)."
    draft = Tokenizer(models.BPE())
    draft.normalizer = normalizers.Replace(" ", "▁")
    draft.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "isolated"), pre_tokenizers.Split("▁", "merged_with_next")])
    draft.train_from_iterator(corpus(words), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = sorted(draft.get_vocab(), key=lambda token: (len(token) > 1, draft.get_vocab()[token]))
    letters = sum(len(token) == 1 for token in learnt)
    learnt = list(dict.fromkeys([*learnt[:letters], *runs, *learnt[letters:]]))  # runs are merged first
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *learnt]))}
    merges = [(token[:cut], token[cut:]) for token in learnt for cut in range(1, len(token)) if token[:cut] in vocabulary and token[cut:] in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    if prefix == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    first = [decoders.Strip(" ", 1, 0)] if prefix else []  # what was put in front is taken away again
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first])
    return tokenizer


def shape(kind, **more):
    "The configuration of a tiny model under the names that most families share."
    return kind(**{"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                   "max_position_embeddings": 512, "initializer_range": 0.08, "tie_word_embeddings": True, **more})


def configurations(words=()):
    "The families: configuration, tokenizer, chat template, BOS, the end of a text, and the tokens to add; `words` are one token each."
    from transformers import Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config

    llama, gemma, mistral = (FAMILIES[name] for name in ("llama3", "gemma", "mistral"))
    headers, turns = ("<|start_header_id|>", "<|end_header_id|>"), ("<start_of_turn>",)
    return {
        "llama": (shape(LlamaConfig, tie_word_embeddings=False), byte_level("llama-bpe", words=words), llama[1], llama[0], "<|end_of_text|>", (llama[2], *headers)),
        "qwen2": (shape(Qwen2Config), byte_level("qwen2", nfc=True, words=words), CHATML, "", "<|im_end|>", ("<|im_start|>",)),
        "qwen3": (shape(Qwen3Config), byte_level("qwen2", nfc=True, words=words), CHATML, "", "<|im_end|>", ("<|im_start|>",)),
        "gemma2": (shape(Gemma2Config, query_pre_attn_scalar=64), sentencepiece(None, words, RUNS), gemma[1], "<bos>", "<eos>", (gemma[2], *turns)),
        "gemma3": (shape(Gemma3TextConfig, query_pre_attn_scalar=64), sentencepiece(None, words, RUNS), gemma[1], "<bos>", "<eos>",
                   (gemma[2], *turns)),
        "mistral": (shape(MistralConfig, tie_word_embeddings=False), sentencepiece("first", words), mistral[1], "<s>", "</s>",
                    ("[INST]", "[/INST]")),
        "llama2": (shape(LlamaConfig, tie_word_embeddings=False), sentencepiece("normalizer", words), mistral[1], "<s>", "</s>",
                   ("[INST]", "[/INST]")),
        "phi3": (shape(Phi3Config, tie_word_embeddings=False, pad_token_id=0), sentencepiece("normalizer", words), PHI3, "<s>", "<|endoftext|>",
                 ("</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
        "gpt2": (GPT2Config(n_embd=256, n_layer=2, n_head=4, n_positions=512, initializer_range=0.08), byte_level("gpt-2", words=words), CHATML, "<|endoftext|>",
                 "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    }


def write_small_model(folder, name, padded=5, seed=0, words=(), positions=512):
    "Write a family's tiny model: config.json, safetensors in 16 bit, tokenizer.json and tokenizer_config.json; with rows that no token has."
    import json

    import torch
    from transformers import AutoModelForCausalLM

    config, tokenizer, template, bos, eos, more = configurations(words)[name]
    swallow = name == "phi3"  # its control tokens take the white space behind them
    special = [AddedToken(token, special=True, normalized=False, rstrip=swallow and token not in (bos, eos))
               for token in dict.fromkeys(filter(None, (bos, eos, *more)))]
    tokenizer.add_special_tokens(special)
    config.vocab_size = tokenizer.get_vocab_size() + padded
    setattr(config, "n_positions" if name == "gpt2" else "max_position_embeddings", positions)
    config.bos_token_id, config.eos_token_id = tokenizer.token_to_id(bos) if bos else None, tokenizer.token_to_id(eos)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos or None, "eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def real_configurations():
    "Tiny configurations with as many rows as the real models have, for real tokenizers; and the template family of a tokenizer that brings no template."
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config

    small = {"intermediate_size": 512, "max_position_embeddings": 2048}
    return {
        "llama2": (shape(LlamaConfig, vocab_size=32000, **small), "mistral"), "llama3": (shape(LlamaConfig, vocab_size=128256, **small), None),
        "llama3_1": (shape(LlamaConfig, vocab_size=128256, **small), None), "qwen3": (shape(Qwen3Config, vocab_size=151936, **small), None),
        "gemma3": (shape(Gemma3TextConfig, vocab_size=262144, query_pre_attn_scalar=64, **small), None),  # one row fewer than the tokenizer has tokens
    }


def write_model_with_tokenizer(folder, name, files):
    "Write a tiny model of random weights beside a real tokenizer's files."
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    from medlab.loaders.templates import write_template

    config, family = real_configurations()[name]
    for path in files:
        shutil.copyfile(path, folder / path.name)
    if family:
        write_template(folder, family)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def write_seeing_model(folder):
    "Write a tiny random Gemma 3 that also sees images (as MedGemma does), with the names that its weights have in published files."
    import json

    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text, tokenizer, template, bos, eos, more = configurations()["gemma3"]
    image = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (bos, eos, *more, *image)])
    eyes = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    whole = Gemma3Config(
        text_config={**text.to_dict(), "vocab_size": tokenizer.get_vocab_size() + 3, "max_position_embeddings": 2048}, vision_config=eyes, mm_tokens_per_image=4,
        boi_token_index=tokenizer.token_to_id(image[0]), eoi_token_index=tokenizer.token_to_id(image[1]), image_token_index=tokenizer.token_to_id(image[2]),
        bos_token_id=tokenizer.token_to_id(bos), eos_token_id=tokenizer.token_to_id(eos), tie_word_embeddings=True)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(whole).to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos, "eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder

"""A checkpoint as Hugging Face's transformers loads it: safetensors, config, tokenizer, chat template, model card.

Nothing is guessed: a weight or a field without a place over there is refused, and what was written is loaded again by
transformers and its logits and tokens compared before anything has its final name.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homerun.errors import RequestError
from homerun.serve.checkpoints import Checkpoint, load_tokenizer
from homerun.trainer.model import GPT, ROTARY_BASE, SOFTCAP, GPTConfig
from homerun.trainer.tokenizer import BOS, SPECIAL, Tokenizer

NAMES = {"transformer.wte": "model.embed_tokens", "lm_head": "lm_head"}
LAYER_NAMES = {
    **{f"attn.c_{ours}": f"self_attn.{ours}_proj" for ours in "qkv"},
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
CLOSE = 1e-4  # of logits within ±15, float32
CHAT_TEMPLATE = (
    "{{- bos_token -}}{%- set ns = namespace(system='') -%}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{%- set ns.system = m.content + '\n\n' -%}"
    "{%- elif m.role == 'user' -%}{{- '<|user_start|>' + ns.system + m.content + '<|user_end|>' -}}"
    "{%- set ns.system = '' -%}"
    "{%- elif m.role == 'assistant' -%}{{- '<|assistant_start|>' + m.content + '<|assistant_end|>' -}}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}"
)
PROBES = ["Hello, world! 1234 + 56 = 1290", "naïve 日本語 🦊\n\n\ttabs  and   spaces", "don't WE'LL it's", "<|bos|> x"]


def export(checkpoint: Checkpoint, out: Path, metadata: dict[str, Any]) -> float:
    """Write `checkpoint` to the folder `out`, which must not exist; the greatest difference of the logits.

    metadata: the run's, for the model card. RequestError where the model has no equal in transformers.
    """
    if out.exists():
        raise RequestError(f"{out} is already there", "Name a new folder")
    config, state = read(checkpoint)
    tokenizer = load_tokenizer(checkpoint.tree)
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _write_model(work, config, state, tokenizer)
        _write_tokenizer(work, tokenizer, config.sequence_len)
        difference = _compare(work, config, state, tokenizer)
        (work / "README.md").write_text(model_card(checkpoint, metadata, difference), encoding="utf-8")
        work.rename(out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return difference


def read(checkpoint: Checkpoint) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The model's config, and its weights in float32 under our names. RequestError for another architecture."""
    fields = checkpoint.meta()["model_config"]
    unknown = sorted(set(fields) - set(GPTConfig.__dataclass_fields__))
    stored = torch.load(checkpoint.model_path, map_location="cpu", weights_only=True, mmap=True)
    state = {name.removeprefix("_orig_mod."): value.float() for name, value in stored.items()}
    if not unknown:
        with torch.device("meta"):
            expected = GPT(GPTConfig(**fields)).state_dict()
        unknown = sorted(set(state) ^ set(expected))
    if unknown:
        raise RequestError(
            f"{checkpoint.id} has no equal in transformers: {', '.join(unknown[:6])}"
            + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""),
            "Only October 2025's architecture can be exported; serve this one with `homerun serve`",
        )
    return GPTConfig(**fields), state


def their_name(name: str) -> str:
    """transformers' name of one of our weights. KeyError where there is none."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("transformer.h."):
        layer, _, rest = stem.removeprefix("transformer.h.").partition(".")
        return f"model.layers.{layer}.{LAYER_NAMES[rest]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def _write_model(out: Path, config: GPTConfig, state: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig, NanoChatConfig

    theirs = NanoChatConfig(
        architectures=["NanoChatForCausalLM"],
        dtype="float32",
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        max_position_embeddings=config.sequence_len,
        rms_norm_eps=torch.finfo(torch.float32).eps,  # what F.rms_norm takes when none is given
        rope_parameters={"rope_type": "default", "rope_theta": float(ROTARY_BASE)},
        final_logit_softcapping=SOFTCAP,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.special("<|assistant_end|>"),
        pad_token_id=tokenizer.special("<|assistant_end|>"),
    )
    theirs.save_pretrained(out)
    end = tokenizer.special("<|assistant_end|>")
    GenerationConfig(bos_token_id=tokenizer.bos, eos_token_id=[end, tokenizer.bos], pad_token_id=end).save_pretrained(
        out
    )
    tensors = {their_name(name): value.contiguous() for name, value in state.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(out: Path, tokenizer: Tokenizer, context: int) -> None:
    """The same byte-level BPE for the tokenizers library: its merges are found again from the ranks."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    ranks: dict[bytes, int] = tokenizer.encoding._mergeable_ranks
    letter = byte_letters()
    spell = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = split(token, ranks, rank)
            merges.append((spell[left], spell[right]))
    vocab = {spell[token]: rank for token, rank in ranks.items()}
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tokenizer.encoding._pat_str), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    specials = sorted(tokenizer.encoding._special_tokens.items(), key=lambda item: item[1])
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name, _ in specials])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=BOS,
        eos_token="<|assistant_end|>",
        pad_token="<|assistant_end|>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)


def split(token: bytes, ranks: dict[bytes, int], rank: int) -> tuple[bytes, bytes]:
    """The two tokens whose merge made `token`: what BPE with only earlier merges leaves of it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best, where = rank, -1
        for i in range(len(parts) - 1):
            found = ranks.get(parts[i] + parts[i + 1], rank)
            if found < best:
                best, where = found, i
        if where < 0:
            raise RequestError(f"token {token!r} cannot be made by merges", "Its tokenizer is not byte-level BPE")
        parts[where : where + 2] = [parts[where] + parts[where + 1]]
    return parts[0], parts[1]


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: itself where it is printable Latin-1, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _compare(out: Path, config: GPTConfig, state: dict[str, Tensor], tokenizer: Tokenizer) -> float:
    """Load what was written with transformers alone; the greatest difference of the logits. RequestError over CLOSE."""
    from transformers import AutoTokenizer, NanoChatForCausalLM

    loaded: Any = NanoChatForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    theirs, info = loaded
    missing = [*info["missing_keys"], *info["unexpected_keys"]]
    with torch.device("meta"):
        ours = GPT(config)
    ours.load_state_dict(state, assign=True)
    idx = torch.randint(
        config.vocab_size, (2, min(64, config.sequence_len)), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        difference = float((ours(idx) - theirs.eval()(idx).logits).abs().max())
    if missing or not difference <= CLOSE:
        raise RequestError(
            f"transformers reads the exported model differently: logits differ by {difference:.2g}, keys {missing}",
            "This is a bug of ours or of that version of transformers; nothing was written",
        )
    words = AutoTokenizer.from_pretrained(out)
    for text in PROBES:
        if words.encode(text, add_special_tokens=False, split_special_tokens=True) != tokenizer.encode(text):
            raise RequestError(f"the exported tokenizer splits {text!r} differently", "Nothing was written")
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rendered = words.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    if list(rendered) != tokenizer.render_for_completion({"messages": talk}):
        raise RequestError("the exported chat template renders differently", "Nothing was written")
    return difference


def model_card(checkpoint: Checkpoint, metadata: dict[str, Any], difference: float) -> str:
    """README.md of the exported model: what it is, how it was made, how to use it. metadata may be {}."""
    meta = checkpoint.meta()
    upstream = metadata.get("upstream") or {}
    facts = {
        "Checkpoint": f"{checkpoint.stage}, {checkpoint.tag}, step {checkpoint.step}",
        "Run": metadata.get("run"),
        "Code": f"{upstream.get('url')} at {upstream.get('commit')}" if upstream.get("commit") else None,
        "Validation bits per byte": meta.get("val_bpb"),
        "Context": f"{meta['model_config']['sequence_len']} tokens",
        "Logits against the original": f"differ by at most {difference:.1e} (float32)",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None)
    record = json.dumps(metadata, indent=1, ensure_ascii=False) if metadata else ""
    details = (
        f"\n<details><summary>The run's metadata.json</summary>\n\n```json\n{record}\n```\n</details>\n"
        if record
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [nanochat]
---
# {metadata.get("run") or checkpoint.id}

A [nanochat](https://github.com/karpathy/nanochat) model, exported by homerun.

| | |
|---|---|
{rows}

```python
from transformers import pipeline

chat = pipeline("text-generation", "PATH_OR_REPO")
print(chat([{{"role": "user", "content": "Why is the sky blue?"}}], max_new_tokens=128)[0]["generated_text"][-1])
```

It has nanochat's nine special tokens, {SPECIAL[0]} before every conversation, and no system role of its own: a system
message is put before the user's first. It can be wrong, and nobody has made it safe.
{details}"""

"""Log lines → journal events, for every generation of upstream's formats and our own trainer's, which are the same.

A line that is not understood is no error: it is in the log. One pattern over the raw bytes lets the mass of lines pass
by (some 400 MB/s); a line that it stops at is decoded and tried against `TABLE`, one row a kind of line. Nothing that a
program prints can make this raise.
"""

import math
import re
from collections.abc import Callable
from typing import Any

Found = list[tuple[str, dict[str, Any]]]
Make = Callable[[re.Match[str]], Found]

LONGEST_LINE = 64 * 1024  # bytes of a line that are looked at; what follows is dropped, so that memory stays bounded
LONGEST_TEXT = 2000  # characters of a sample or warning that go into an event
_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_RANK = re.compile(r"^\[(?:rank|default)?\d+\]: ?")  # how torchrun marks the lines of its workers

# Lines worth a second look: by how they begin, after colours and torchrun's mark ...
_WORDS = (
    rb"(?:[Ss]tep \d|(?:val|train|unigram) bpb|CORE|ChatCORE|Evaluating: |Model: |  [\w-]+: [\d.]+%|Peak memory|Total |"
    rb"Minimum val|Training time|Vocab size|vocab_size|num_layers|model_dim|num_heads|total  |  \"|Number of |"
    rb"Calculated |Using user|Estimated FLOPs|Tokens : |Done! |Failed to download|<\|bos\||WARNING|Warning: |FOOTGUN|"
    rb"Saves when told|20\d\d-[^\n]*? - (?:Saved [mo]|Distributed)|"
    rb"torch\.[\w.]*(?:OutOfMemory|ChildFailed|DistBackend)Error)"
)
_BEGINS = re.compile(
    rb"\n(?:" + _WORDS + rb"|(?:\x1b\[[0-?]*[ -/]*[@-~]|\[(?:rank|default)?\d+\]: ?)+" + _WORDS + rb")"
)
# ... or by words somewhere in them.
_WITHIN = (b" accuracy: ", b"No space left on device", b"CUDA error: out of memory")


def _number(text: str) -> float | None:
    """None for nan and infinities, which JSON cannot say, and for what is no number."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _eval(metric: str, text: str, step: str | None = None, percent: bool = False) -> Found:
    value = _number(text)
    if value is None:
        return _warning(f"{metric} is {text}", "the model has diverged, or the evaluation had no data")
    data: dict[str, Any] = {"metric": metric, "value": round(value / 100, 6) if percent else value}
    return [("eval", data if step is None else data | {"step": int(step)})]


def _warning(text: str, hint: str) -> Found:
    return [("warning", {"text": text.strip()[:LONGEST_TEXT], "hint": hint})]


_PARTS = {
    "loss": "loss",
    "Training loss": "loss",
    "lrm": "lrm",
    "dt": "dt_ms",
    "tok/sec": "tok_per_sec",
    "mfu": "mfu",
    "bf16_mfu": "mfu",
    "epoch": "epoch",
}
_PART = re.compile(r"\|? *([\w/ ]+): *(-?(?:[\d,.]+(?:e[+-]?\d+)?|nan|inf))")


def _step(match: re.Match[str]) -> Found:
    """A training step, with whichever of the line's parts there are; a part named twice counts once, the first time."""
    step, total, rest = match.groups()
    data: dict[str, Any] = {"step": int(step)}
    found: Found = [("step", data)]
    if total:
        data["total"] = int(total)
    for name, text in _PART.findall(rest):
        key = _PARTS.get(name)
        if key and key not in data:
            value = _number(text)
            data[key] = int(value) if key in ("epoch", "tok_per_sec") and value is not None else value
    if data.get("loss", 0.0) is None:
        found += _warning("the loss is not a number", "it will not recover: stop, and lower the learning rate")
    return found


def _pairs(match: re.Match[str]) -> Found:
    """`Step 00007 | mmlu_acc: 0.000000, arc_easy_acc: 0.250000` and its like: an evaluation for each pair."""
    pairs = re.findall(r"([\w@]+): (-?[\w.]+)", match[2])
    return [event for name, text in pairs for event in _eval(name.lower().replace("@", "_at_"), text, match[1])]


def _core_task(match: re.Match[str]) -> Found:
    task, accuracy, centered = match.groups()
    return _eval(f"accuracy/{task}", accuracy) + _eval(f"centered/{task}", centered)


def _saved(match: re.Match[str]) -> Found:
    path = match[1].strip()
    step = re.search(r"_(\d{6,})(?:_rank\d+)?\.pt$", path)
    return [("saved", {"path": path, **({"step": int(step[1])} if step else {})})]


def _fact(name: str) -> Make:
    def make(match: re.Match[str]) -> Found:
        value = _number(match[1])
        whole = value is not None and value.is_integer() and "." not in match[1] and "e" not in match[1]
        return [] if value is None else [("fact", {"name": name, "value": int(value) if whole else value})]

    return make


def _told(hint: str) -> Make:
    return lambda match: _warning(match[0], hint)


_SIZES = {"sequence_len": "sequence_len", "vocab_size": "vocab_size", "n_layer": "depth", "n_head": "num_heads"}
_SIZES |= {"n_embd": "model_dim"}

_N = r"(-?[\w.+-]+)"  # a number as printed, nan and inf included
_I = r"([\d,.]+)"  # a number without sign, perhaps with thousands separators
_ROWS: list[tuple[str, Make]] = [
    (r"^step (\d+)(?:/(\d+))? \([^)]*\) \| (.*)", _step),
    (r"^Step (\d+)/(\d+) \| (Training loss: .*)", _step),
    (rf"^Step (\d+) \| Validation bpb: {_N}", lambda m: _eval("val_bpb", m[2], m[1])),
    (rf"^Step (\d+) \| Validation loss: {_N}", lambda m: _eval("val_loss", m[2], m[1])),
    (rf"^(?:Step (\d+) \| )?CORE metric: {_N}", lambda m: _eval("core", m[2], m[1])),
    (rf"^CORE *, *, *{_N}", lambda m: _eval("core", m[1])),
    (
        rf"^Step (\d+) \| ChatCORE: {_N} \| ChatCORE_cat: {_N}",
        lambda m: _eval("chatcore", m[2], m[1]) + _eval("chatcore_cat", m[3], m[1]),
    ),
    (rf"^ChatCORE metric: {_N}", lambda m: _eval("chatcore", m[1])),
    (r"^CORE score: (-?[\d.]+)%", lambda m: _eval("chatcore", m[1], percent=True)),
    (r"^Step (\d+) \| (\w+_acc: .*|Pass@\d+: .*)", _pairs),
    (rf"^Step (\d+)/\d+ \| Average reward: {_N}", lambda m: _eval("reward", m[2], m[1])),
    (rf"^(?:Model: .*, )?(val|train|unigram) bpb: {_N}", lambda m: _eval(f"{m[1]}_bpb", m[2])),
    (rf"^Evaluating: (\S+) .*accuracy: {_N} \| centered: {_N}", _core_task),
    (r"^([\w-]+) accuracy: ([\d.]+)%", lambda m: _eval(f"accuracy/{m[1]}", m[2], percent=True)),
    (r"^  ([\w-]+): ([\d.]+)%$", lambda m: _eval(f"accuracy/{m[1]}", m[2], percent=True)),
    (rf"^Peak memory usage: {_I}MiB", _fact("peak_memory_mib")),
    (rf"^Total training time: {_I}m", _fact("total_training_minutes")),
    (rf"^Minimum validation bpb: {_N}", _fact("min_val_bpb")),
    (rf"^Training time: {_I}s", _fact("tokenizer_seconds")),
    (rf"^(?:Vocab size|vocab_size): {_I}", _fact("vocab_size")),
    (rf"^num_layers: {_I}", _fact("depth")),
    (rf"^model_dim: {_I}", _fact("model_dim")),
    (rf"^num_heads: {_I}", _fact("num_heads")),
    (rf"^(?:Number of parameters|total +): {_I}$", _fact("num_params")),
    (rf"^(?:Calculated|Using user-provided|Number of) .*iterations.*: {_I}$", _fact("num_iterations")),
    (rf"^Total batch size {_I}", _fact("total_batch_tokens")),
    (rf"^Total number of training tokens: {_I}", _fact("total_tokens")),
    (rf"^Tokens : .*ratio: {_I}", _fact("tokens_per_param")),
    (rf"^Estimated FLOPs per token: {_N}", _fact("flops_per_token")),
    (rf"^Total training FLOPs estimate: {_N}", _fact("total_flops")),
    (
        rf'^  "({"|".join(_SIZES)})": {_I}$',
        lambda m: [("fact", {"name": _SIZES[m[1]], "value": int(_number(m[2]) or 0)})],
    ),
    (rf"Distributed world size: {_I}$", _fact("world_size")),
    (r"^Saves when told", lambda m: [("fact", {"name": "saves_when_told", "value": True})]),
    (r"Saved (?:model|optimizer) \w+ to: (.+\.pt)", _saved),
    (r"^<\|bos\|>.*", lambda m: [("sample", {"text": m[0][:LONGEST_TEXT]})]),
    (r"^Done! Downloaded: (\d+)/(\d+)", lambda m: [("downloaded", {"got": int(m[1]), "of": int(m[2])})]),
    (r"^Failed to download .*", _told("a shard is missing; the phase ends well all the same, its last line tells")),
    (
        r"^WARNING: Flash Attention 3 (?:not available|only supports).*",
        _told("attention runs several times slower: see `homerun preflight`, and --window-pattern=L helps"),
    ),
    (r"^WARNING: SDPA has no support.*", _told("add --phase-args base_train='--window-pattern=L'")),
    (r"^WARNING: optimizer checkpoint not found.*", _told("the optimizer's files of the base checkpoint are not here")),
    (r"^Warning: FP8 .*", _told("--fp8 has no effect on this machine: expect the time of bfloat16")),
    (r"^FOOTGUN WARNING.*", _told("pass the same --device-batch-size as in pretraining, or a smaller one")),
    (
        r"^torch\..*OutOfMemoryError.*|^.*CUDA error: out of memory.*",
        _told("halve the batch: --phase-args PHASE='--device-batch-size=16' (the phase of this log)"),
    ),
    (r"^torch\..*DistBackendError.*", _told("a GPU or its link may be bad; NCCL_DEBUG=INFO says more")),
    (r"^.*No space left on device.*", _told("free space on the disk of HOMERUN_DIR, or rent a larger one")),
    (r"^torch\..*ChildFailedError.*", _told("a worker died; the first traceback above in this log says why")),
]
TABLE = [(re.compile(pattern), make) for pattern, make in _ROWS]


class LogReader:
    """Takes a phase's output in any chunks; `feed` gives the events (type, data) of the lines that have ended.

    Types and data are those of docs/design.md without `phase`, and `downloaded` {got, of}. A carriage return ends a
    line too. A warning of one kind is told once. Steps have `tokens` from the line on that tells the batch size.
    """

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line that has not ended, at most LONGEST_LINE
        self._batch_tokens: int | None = None
        self._warned: set[str] = set()

    def feed(self, data: bytes) -> Found:
        if b"\r" in data:
            data = data.replace(b"\r", b"\n")
        end = data.rfind(b"\n")
        if end < 0:
            self._rest = (self._rest + data[:LONGEST_LINE])[:LONGEST_LINE]
            return []
        block = b"\n" + self._rest + data[: end + 1]
        self._rest = data[end + 1 : end + 1 + LONGEST_LINE]
        return self._block(block)

    def flush(self) -> Found:
        """The events of the last line, where it has no end."""
        block, self._rest = b"\n" + self._rest + b"\n", b""
        return self._block(block)

    def _block(self, block: bytes) -> Found:
        """block: whole lines, each between two newlines."""
        starts = {match.start() + 1 for match in _BEGINS.finditer(block)}
        for words in _WITHIN:
            at = block.find(words)
            while at >= 0:
                starts.add(block.rfind(b"\n", 0, at) + 1)
                at = block.find(words, block.find(b"\n", at))
        found: Found = []
        for start in sorted(starts):
            line = block[start : min(block.find(b"\n", start), start + LONGEST_LINE)]
            found += self._line(line)
        return found

    def _line(self, line: bytes) -> Found:
        if b"\x1b" in line:
            line = _ANSI.sub(b"", line)
        text = _RANK.sub("", line.decode("utf-8", "replace"))
        for pattern, make in TABLE:
            if match := pattern.search(text):
                return [event for event in make(match) if self._is_news(*event)]
        return []

    def _is_news(self, type: str, data: dict[str, Any]) -> bool:
        if type == "warning":
            known = data["hint"] in self._warned
            self._warned.add(data["hint"])
            return not known
        if type == "fact" and data["name"] == "total_batch_tokens":
            self._batch_tokens = data["value"]
        elif type == "step" and self._batch_tokens:
            data["tokens"] = (data["step"] + 1) * self._batch_tokens
        return True

"""Log lines → journal events, for every generation of upstream's formats and our own trainer's, which are the same.

A line that is not understood is no error: it is in the log. One bytes pattern lets the great mass of lines pass by
before anything is decoded; the table below it has one row a kind of line.
"""

import math
import re
from collections.abc import Callable
from typing import Any

Found = list[tuple[str, dict[str, Any]]]

LONGEST_LINE = 64 * 1024  # of a line without an end only this much is kept
_ANSI = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)"
# torchrun may mark the lines of its workers
_MARK = rb"(?:\[(?:rank|default)\d+\]:? *)?"
_MAYBE = re.compile(
    _MARK + rb"(?: *[Ss]tep +\d|val bpb|CORE |Evaluating: |ChatCORE|Peak memory|Total |Minimum val|Training time|"
    rb"Vocab size|Number of |Calculated |Using user-provided number|Auto-computed|Done! Downloaded|Tokens : |total  |"
    rb"unigram|WARNING|Warning: FP8|  ?[A-Za-z][\w-]*: [\d.]+%|[A-Z][\w-]* accuracy: |.{0,120}Saved |<\|bos\|>|"
    rb"CORE +,|.{0,80}(?:OutOfMemoryError|ChildFailedError|NCCL error|DistBackendError))"
)


def _number(text: str) -> float | None:
    """None for nan and infinities, which JSON cannot say."""
    value = float(text.replace(",", ""))
    return value if math.isfinite(value) else None


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _step(match: re.Match[str]) -> Found:
    """A training step: whichever of the line's parts there are."""
    step, total, rest = match.groups()
    data: dict[str, Any] = {"step": int(step)}
    found: Found = [("step", data)]
    if total:
        data["total"] = int(total)
    for name, text in re.findall(rf"([\w/: ]+?): *{_NUMBER.replace('[', '[,')}", rest):
        key = _PARTS.get(name.strip(" |"))
        if key:
            data[key] = _number(text)
    if "loss" in data and data["loss"] is None:
        hint = "a later step will not recover; lower the learning rate or check the data"
        found.append(("warning", {"text": f"the loss of step {step} is not a number", "hint": hint}))
    return found


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


def _eval(metric: str, scale: float = 1.0) -> Callable[[re.Match[str]], Found]:
    """(step or None, value)"""

    def found(match: re.Match[str]) -> Found:
        step, text = match.groups()
        value = _number(text)
        data: dict[str, Any] = {"metric": metric, "value": None if value is None else round(value * scale, 8)}
        return [("eval", data if step is None else data | {"step": int(step)})]

    return found


def _task(scale: float) -> Callable[[re.Match[str]], Found]:
    def found(match: re.Match[str]) -> Found:
        value = _number(match[2])
        return [
            ("eval", {"metric": f"accuracy/{match[1]}", "value": None if value is None else round(value * scale, 8)})
        ]

    return found


def _metrics_of_a_step(match: re.Match[str]) -> Found:
    """`Step 00007 | mmlu_acc: 0.000000, arc_easy_acc: 0.250000`"""
    pairs = re.findall(rf"(\w+): {_NUMBER}", match[2])
    return [("eval", {"metric": name, "value": _number(text), "step": int(match[1])}) for name, text in pairs]


def _fact(name: str, read: Callable[[str], Any] = _whole) -> Callable[[re.Match[str]], Found]:
    return lambda match: [("fact", {"name": name, "value": read(match[1])})]


def _saved(match: re.Match[str]) -> Found:
    path = match[1].strip()
    step = re.search(r"_(\d{6})(?:_rank\d+)?\.", path)
    return [("saved", {"path": path, **({"step": int(step[1])} if step else {})})]


def _warning(hint: str) -> Callable[[re.Match[str]], Found]:
    return lambda match: [("warning", {"text": match[0].strip()[:300], "hint": hint})]


TABLE: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Found]]] = [
    (re.compile(pattern), make)
    for pattern, make in [
        (r"^step (\d+)(?:/(\d+))? \([\d.]+%\) \| (loss: .*)", _step),
        (r"^Step (\d+)/(\d+) \| (Training loss: .*)", _step),
        (rf"^Step (\d+) \| Validation bpb: {_NUMBER}", _eval("val_bpb")),
        (rf"^Step (\d+) \| Validation loss: {_NUMBER}", _eval("val_loss")),
        (rf"^(?:Step (\d+) \| )?CORE metric: {_NUMBER}", _eval("core")),
        (rf"^CORE( ) *,[^,]*, *{_NUMBER}", lambda m: [("eval", {"metric": "core", "value": _number(m[2])})]),
        (rf"^(?:Step (\d+) \| )?ChatCORE(?: metric)?: {_NUMBER}", _eval("chatcore")),
        (rf"^(?:Step (\d+) \| )?CORE score: {_NUMBER}%", _eval("chatcore", 0.01)),
        (r"^Step (\d+) \| (\w+_acc: .*)", _metrics_of_a_step),
        (rf"^()val bpb: {_NUMBER}", lambda m: [("eval", {"metric": "val_bpb", "value": _number(m[2])})]),
        (
            rf"^()unigram(?: val)? bpb: {_NUMBER}",
            lambda m: [("eval", {"metric": "unigram_bpb", "value": _number(m[2])})],
        ),
        (rf"^Evaluating: (\S+) .*accuracy: {_NUMBER} ", _task(1.0)),
        (rf"^([\w-]+) accuracy: {_NUMBER}%", _task(0.01)),
        (rf"^ +([A-Z][\w-]*): {_NUMBER}%$", _task(0.01)),
        (r"^Peak memory usage: ([\d.]+)MiB", _fact("peak_memory_mib", float)),
        (r"^Total training time: ([\d.]+)m", _fact("total_training_minutes", float)),
        (rf"^Minimum validation bpb: {_NUMBER}", _fact("min_val_bpb", _number)),
        (r"^Training time: ([\d.]+)s", _fact("tokenizer_seconds", float)),
        (r"^Vocab size: ([\d,]+)", _fact("vocab_size")),
        (r"^Number of parameters: ([\d,]+)", _fact("num_params")),
        (r"^total +: ([\d,]+)", _fact("num_params")),
        (
            r"^(?:Calculated number of iterations.*|Using user-provided number of iterations): ([\d,]+)",
            _fact("num_iterations"),
        ),
        (r"^Total batch size ([\d,]+)", _fact("total_batch_tokens")),
        (r"^Total number of training tokens: ([\d,]+)", _fact("training_tokens")),
        (r"^Tokens : .*ratio: ([\d.]+)", _fact("tokens_params_ratio", float)),
        (r"Saved \w[\w ]* to:? (\S+\.(?:pt|json|pkl))", _saved),
        (r"^<\|bos\|>(.*)", lambda match: [("sample", {"text": match[0][:2000]})]),
        (
            r"^Done! Downloaded: (\d+)/(\d+)",
            lambda match: [("downloaded", {"got": int(match[1]), "of": int(match[2])})],
        ),
        (
            r"^WARNING: Flash Attention 3 not available.*",
            _warning("attention falls back to something several times slower: see `homerun preflight`"),
        ),
        (r"^WARNING: .*(?:optimizer|sliding window).*", _warning("")),
        (r"^Warning: FP8 .*", _warning("")),
        (
            r".*(?:OutOfMemoryError).*",
            _warning("halve --device-batch-size: --phase-args base_train=--device-batch-size=16"),
        ),
        (r".*(?:NCCL error|DistBackendError).*", _warning("a GPU or its link may be bad; NCCL_DEBUG=INFO says more")),
    ]
]


class LogReader:
    """Takes a phase's output in any chunks; `feed` gives the events of the lines that have ended."""

    def __init__(self) -> None:
        self._rest = b""
        self._batch_tokens: int | None = None

    def feed(self, data: bytes) -> Found:
        if b"\r" in data:
            data = data.replace(b"\r", b"\n")
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LONGEST_LINE]
        found: Found = []
        for line in lines:
            if line:
                found += self._line(line)
        return found

    def flush(self) -> Found:
        """The last line, where it has no end."""
        line, self._rest = self._rest, b""
        return self._line(line)

    def _line(self, line: bytes) -> Found:
        if b"\x1b" in line:
            line = _ANSI.sub(b"", line)
        if not _MAYBE.match(line):
            return []
        text = re.sub(r"^\[(?:rank|default)\d+\]:? *", "", line[:LONGEST_LINE].decode("utf-8", "replace"))
        for pattern, make in TABLE:
            if match := pattern.search(text):
                return [self._told(type, data) for type, data in make(match)]
        return []

    def _told(self, type: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Steps know their tokens once the batch size was printed."""
        if type == "fact" and data["name"] == "total_batch_tokens":
            self._batch_tokens = data["value"]
        if type == "step" and self._batch_tokens:
            data["tokens"] = (data["step"] + 1) * self._batch_tokens
        return type, data

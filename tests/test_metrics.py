"""Log lines become events: every format of every generation, whatever the chunks, whatever else is printed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homerun.upstream.metrics import LONGEST_LINE, LogReader

DATA = Path(__file__).parent / "data"
LOGS = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.log"))}


def read(data):
    reader = LogReader()
    return reader.feed(data) + reader.flush()


def only(found, type):
    return [data for kind, data in found if kind == type]


def values(found):
    return [(data["metric"], data["value"], data.get("step")) for data in only(found, "eval")]


def facts(found):
    return {data["name"]: data["value"] for data in only(found, "fact")}


def test_october_2025_is_read_whole():
    found = read(LOGS["g1"])
    assert only(found, "downloaded") == [{"got": 9, "of": 9}]
    assert facts(found) == {
        "vocab_size": 65536,
        "tokenizer_seconds": 71.25,
        "world_size": 8,
        "depth": 20,
        "model_dim": 1280,
        "num_heads": 10,
        "total_batch_tokens": 524288,
        "num_params": 560988160,
        "flops_per_token": 3.491758e9,
        "num_iterations": 21400,
        "total_tokens": 11219763200,
        "tokens_per_param": 20.0,
        "total_flops": 3.91767e19,
        "peak_memory_mib": 75422.02,
        "total_training_minutes": 171.18,
        "min_val_bpb": 0.8149,
    }
    first, second, mid, sft = only(found, "step")
    assert first == {
        "step": 0,
        "total": 21400,
        "loss": 11.090355,
        "lrm": 1.0,
        "dt_ms": 1871.2,
        "tok_per_sec": 280188,
        "mfu": 12.38,
        "tokens": 524288,
    }
    assert (second["loss"], second["lrm"], second["tok_per_sec"]) == (9.512345, 1.0, 1092039)  # a grad norm between
    assert (mid["step"], mid["loss"], mid["dt_ms"], "total" in mid) == (1, 1.239095, 640.46, False)
    assert (sft["step"], sft["total"], sft["loss"], sft["lrm"]) == (0, 8, 1.771254, 1.0)
    assert values(found) == [
        ("val_bpb", 3.2155, 0),
        ("accuracy/hellaswag_zeroshot", 0.2622, None),
        ("centered/hellaswag_zeroshot", 0.0163, None),
        ("core", 0.2113, 21400),
        ("val_bpb", 0.8151, None),
        ("core", 0.2113, None),
        ("val_loss", 1.124501, 4),
        ("mmlu_acc", 0.31, 7),
        ("arc_easy_acc", 0.25, 7),
        ("accuracy/ARC-Easy", 0.25, None),
    ]
    assert only(found, "sample") == [{"text": "<|bos|>The capital of France is Paris. The capital of"}]
    assert only(found, "saved") == [
        {"path": "/b/base_checkpoints/d20/model_021400.pt", "step": 21400},
        {"path": "/b/base_checkpoints/d20/optim_021400.pt", "step": 21400},
    ]
    assert only(found, "warning") == []


def test_2026_is_read_whole():
    found = read(LOGS["g2"])
    assert facts(found) == {
        "sequence_len": 2048,
        "vocab_size": 32768,
        "depth": 24,
        "num_heads": 12,
        "model_dim": 1536,
        "num_params": 1384122122,
        "num_iterations": 20,
        "tokens_per_param": 8.0,
        "total_batch_tokens": 1048576,
    }
    first, *_, sft = only(found, "step")
    assert first["loss"] is None
    assert (first["mfu"], first["epoch"], first["total"], first["tokens"]) == (41.5, 1, 20, 12 * 1048576)
    assert (sft["step"], sft["epoch"]) == (2, 1)
    assert values(found) == [
        ("val_bpb", 1.722494, 20),
        ("train_bpb", 1.7, None),
        ("val_bpb", 1.707311, None),
        ("core", -0.0556, None),
        ("accuracy/ARC-Easy", 0.3125, None),
        ("accuracy/SpellingBee", 0.0, None),
        ("chatcore", -0.0667, 9),
        ("chatcore_cat", -0.1111, 9),
        ("chatcore", 0.0556, None),
    ]
    told = [data["text"] for data in only(found, "warning")]
    assert [text.split(",")[0][:45] for text in told] == [
        "WARNING: Flash Attention 3 not available",
        "WARNING: SDPA has no support for sliding wind",
        "the loss is not a number",  # once, although two steps say so
        "WARNING: optimizer checkpoint not found",
    ]


def test_failures_are_told_once_each_with_what_to_do():
    found = read(LOGS["failures"])
    texts = [data["text"] for data in only(found, "warning")]
    assert len(texts) == 4
    assert [any(word in text for text in texts) for word in ("shard_00003", "OutOfMemory", "space left", "ChildFailed")]
    assert all(data["hint"] for data in only(found, "warning"))
    assert only(found, "downloaded") == [{"got": 0, "of": 2}]
    assert values(found) == [("val_bpb", 1.1966, 10)]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (b"ChatCORE metric: -0.0667", ("eval", {"metric": "chatcore", "value": -0.0667})),
        (b"unigram bpb: 4.123456", ("eval", {"metric": "unigram_bpb", "value": 4.123456})),
        (b"Model: base_model (step 20), val bpb: 1.5", ("eval", {"metric": "val_bpb", "value": 1.5})),
        (b"Step 3/467 | Average reward: 0.25 | Average sequence length: 9.00", None),
        (b"Step 60 | Pass@1: 0.0500, Pass@2: 0.1000", None),
        (b"Number of iterations: 1,500", ("fact", {"name": "num_iterations", "value": 1500})),
        (b"2026-11-21 02:48:08,681 - x - INFO - Saved optimizer state to: /d2/optim_000010_rank7.pt", None),
        (b"\x1b[1mstep 00001 (20.00%)\x1b[0m | loss: 1.5", ("step", {"step": 1, "loss": 1.5})),
        (b"[rank0]: step 00001 (20.00%) | loss: 1.5", ("step", {"step": 1, "loss": 1.5})),
        (b"\rstep 00001 (20.00%) | loss: 1.5\r\n", ("step", {"step": 1, "loss": 1.5})),
    ],
)
def test_formats_between_the_generations(line, event):
    found = read(line)
    assert len(found) >= 1
    assert event is None or found == [event]


@pytest.mark.parametrize(
    "line",
    [
        b"step by step",
        b"Step 1",
        b"  indented: 12.5% of it",
        b"Total eclipse",
        b"CORE values",
        b"Saved by the bell",
        b"this model Saved model parameters to: nowhere",
        b"its accuracy: high",
        b"\xff\xfe\x00 step 00001 (1%)",
    ],
)
def test_prose_is_no_event(line):
    assert read(line + b"\n") == []


@pytest.mark.parametrize(
    "line",
    [
        b"step 1/2 (0%) | loss: ... | dt: ,ms | tok/sec: , | epoch: .",
        b"Step 1 | Validation bpb: -.-",
        b"Peak memory usage: ,MiB",
        b"Total batch size ,,, =>",
        b'  "n_layer": ,',
        b"step 00001/00002 (\xff%) | loss: 1.0",
        b"Step 00001 | mmlu_acc: x, arc_easy_acc: 1",
    ],
)
def test_broken_lines_never_raise(line):
    read(line + b"\n")


PIECES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"\x1b[K",
        b"[rank1]: ",
        b"\xff",
        b"x" * 300,
        b" ",
        *b"".join(LOGS.values()).splitlines(True),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=40), st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_events_do_not_depend_on_chunk_borders(pieces, sizes):
    data = b"".join(pieces)
    reader, found, start = LogReader(), [], 0
    for size in sizes:
        found += reader.feed(data[start : start + size])
        start += size
    found += reader.feed(data[start:]) + reader.flush()
    assert found == read(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(b"".join(LOGS.values()).splitlines()), st.integers(0, 200))
def test_no_bytes_make_it_raise(noise, line, cut):
    read(line[:cut] + noise + line[cut:])
    read(line.replace(b"0", noise))


def test_a_line_of_ten_megabytes_costs_no_memory_and_hides_nothing_after_it():
    reader = LogReader()
    for _ in range(2560):
        reader.feed(b"x" * 4096)
        assert len(reader._rest) <= LONGEST_LINE
    assert reader.feed(b"\nStep 00010 | Validation bpb: 1.5\n") == [
        ("eval", {"metric": "val_bpb", "value": 1.5, "step": 10})
    ]


def test_where_a_long_line_is_cut_does_not_depend_on_chunks():
    line = b"Step 1 | Validation bpb: 1.5" + b"5" * LONGEST_LINE + b" No space left on device\n"
    reader = LogReader()
    found = [event for start in range(0, len(line), 1000) for event in reader.feed(line[start : start + 1000])]
    assert found == read(line)

"""Upstream's own code, at 7031985, loads our checkpoint, generates from it, and agrees with us."""

import json
import os
import subprocess
import sys

import pytest
import torch

from homerun.trainer import chat_sft, checkpoint
from homerun.trainer.chats import as_conversation, examples
from homerun.trainer.tokenizer import Tokenizer
from tests.test_trainer_training import CPU, base, pretrain  # noqa: F401

pytestmark = [
    pytest.mark.upstream,
    pytest.mark.slow,
    pytest.mark.skipif("HOMERUN_UPSTREAM_SRC" not in os.environ, reason="HOMERUN_UPSTREAM_SRC is not set"),
]
COMMIT = "7031985"
PROGRAM = """
import json, sys, torch
from nanochat.checkpoint_manager import load_model
from nanochat.engine import Engine
from nanochat.tokenizer import get_token_bytes
conversation = json.loads(sys.argv[2])
model, tokenizer, meta = load_model(sys.argv[1], torch.device("cpu"), phase="eval")
ids, mask = tokenizer.render_conversation(conversation)
prompt = tokenizer.render_for_completion(conversation)
results, _ = Engine(model, tokenizer).generate_batch(prompt, max_tokens=8, temperature=0)
with torch.inference_mode():
    logits = model(torch.tensor([ids]))[0].tolist()
print(json.dumps({"meta": meta, "ids": ids, "mask": mask, "prompt": prompt, "generated": results[0], "logits": logits,
                  "token_bytes": get_token_bytes().tolist()}))
"""


@pytest.fixture(scope="module")
def nanochat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanochat")
    archive = subprocess.run(
        ["git", "-C", os.environ["HOMERUN_UPSTREAM_SRC"], "archive", COMMIT], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.mark.parametrize("source", ["base", "sft"])
def test_upstream_loads_our_checkpoint_and_says_the_same(base, nanochat, source):  # noqa: F811
    from homerun.trainer import tok_train

    tok_train.main(tok_train.parser().parse_args(["--vocab-size=300"]))
    pretrain("--kv-heads=1")
    chat_sft.main(chat_sft.parser().parse_args(["--device-type=cpu", "--num-iterations=20"]))
    conversation = as_conversation(next(examples("Last", "test")))
    env = {**os.environ, "PYTHONPATH": str(nanochat), "NANOCHAT_BASE_DIR": str(base), "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, source, json.dumps(conversation)],
        env=env, cwd=nanochat, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.strip().splitlines()[-1])

    model, tokenizer, meta, _ = checkpoint.load_model(base, source, CPU.device)
    ids, mask = tokenizer.render_conversation(conversation)
    assert (theirs["ids"], theirs["mask"], theirs["meta"]) == (ids, mask, meta)
    assert (
        theirs["prompt"]
        == tokenizer.render_for_completion(conversation)
        == theirs["generated"][: len(theirs["prompt"])]
    )
    assert theirs["token_bytes"] == Tokenizer.load(base / "tokenizer").token_lengths()
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))[0]
    # upstream keeps its rotary tables in bfloat16 (8 bits of mantissa), ours are float32
    torch.testing.assert_close(ours, torch.tensor(theirs["logits"]), atol=0.1, rtol=0)

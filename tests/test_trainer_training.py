"""Training: batches, optimizers, checkpoints and resume, on a tiny model."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from homerun.errors import RequestError
from homerun.trainer import base_train, chat_sft, checkpoint
from homerun.trainer.corpus import topics
from homerun.trainer.data import batches, windows
from homerun.trainer.dataset import shards, write_shard
from homerun.trainer.evaluate import bits_per_byte, unigram_bits_per_byte
from homerun.trainer.generate import generate
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.optim import lr_multiplier, make_optimizers, orthogonalized
from homerun.trainer.phase import SAVE_NOW
from homerun.trainer.runtime import Runtime
from homerun.trainer.tokenizer import Tokenizer
from homerun.upstream.metrics import LogReader

CPU = Runtime(torch.device("cpu"))
TINY = (
    "--depth=2 --aspect-ratio=16 --head-dim=8 --kv-heads=2 --max-seq-len=32 --device-batch-size=4 "
    "--num-iterations=12 --device-type=cpu --eval-every=4 --eval-tokens=512 --save-every=4"
)


def make_base(base: Path) -> None:
    (base / "base_data").mkdir(parents=True)
    documents = [d.text[:500] for d in topics()]
    for i, part in enumerate((documents[:30], documents[30:60], documents[60:])):
        write_shard(base / "base_data" / f"shard_{i:05d}.parquet", part)
    Tokenizer.train(documents[:60], 300).save(base / "tokenizer")


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    make_base(tmp_path)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def pretrain(*more: str) -> None:
    base_train.main(base_train.parser().parse_args([*TINY.split(), *more]))


def losses(output: str) -> list[str]:
    return re.findall(r"^(step \d+/\d+ .*? \| loss: \S+)", output, re.M)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"model_{step:06d}.pt", weights_only=True)


# --- data


def test_windows_cover_the_stream_and_resume_to_the_token(base):
    tokenizer = Tokenizer.load(base / "tokenizer")
    files = shards(base, "train")
    whole = list(windows(files, tokenizer, 100, epochs=1))
    stream = [t for w, _ in whole for t in w[:-1].tolist()]
    text = tokenizer.encode_documents([d.text[:500] for d in topics()][:60])
    assert stream == text[: len(stream)] and len(text) - len(stream) <= 100
    assert all(a[0][-1] == b[0][0] for a, b in itertools.pairwise(whole)), "the last target is the next input"
    for _, state in (whole[0], whole[7], whole[-2]):
        rest = list(windows(files, tokenizer, 100, state, epochs=1))
        assert [w.tolist() for w, _ in rest] == [w.tolist() for w, _ in whole[-len(rest) :]]
        assert json.loads(json.dumps(state)) == state


def test_the_stream_goes_on_into_the_next_epoch(base):
    tokenizer = Tokenizer.load(base / "tokenizer")
    states = [s for _, s in itertools.islice(windows(shards(base, "val"), tokenizer, 1000), 20)]
    assert states[-1]["epoch"] > 1


def test_targets_are_the_inputs_moved_on_by_one(base):
    tokenizer = Tokenizer.load(base / "tokenizer")
    x, y, _ = next(batches(CPU, shards(base, "train"), tokenizer, 4, 16))
    assert x.shape == y.shape == (4, 16)
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])


# --- figures


def test_the_uniform_model_has_the_bits_it_must_have(base):
    """Zero logits cost log2(V) bits a token, special targets aside."""
    tokenizer = Tokenizer.load(base / "tokenizer")
    model = GPT(GPTConfig(32, 300, 1, 2, 2, 16))
    model.init_weights()
    x = torch.tensor([[tokenizer.bos, *tokenizer.encode("hello world")]])
    y = torch.tensor([[*tokenizer.encode("hello world"), tokenizer.bos]])
    lengths = torch.tensor(tokenizer.token_lengths())
    expected = torch.log2(torch.tensor(300.0)).item() * (x.size(1) - 1) / len("hello world")
    assert bits_per_byte(CPU, model, [(x, y)], lengths) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RequestError, match="device-batch-size"):
        bits_per_byte(CPU, model, [], lengths)


def test_the_unigram_baseline_is_an_entropy(base):
    tokenizer = Tokenizer.load(base / "tokenizer")
    same = unigram_bits_per_byte(tokenizer, shards(base, "train"), shards(base, "train"))
    other = unigram_bits_per_byte(tokenizer, shards(base, "train"), shards(base, "val"))
    assert 1 < same < other < 8


def test_greedy_generation_with_a_cache_is_the_plain_argmax(base):
    torch.manual_seed(1)
    model = GPT(GPTConfig(32, 50, 2, 4, 2, 32))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8], [9]]
    found = generate(model, prompts, max_tokens=10)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(10):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        assert answer == ids[len(prompt) :]
    stop = found[0][4]
    assert generate(model, prompts, 10, stop=[stop])[0] == found[0][: found[0].index(stop)]


# --- optimizers


@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 64, 16), (1, 32, 32)])
def test_muon_updates_are_nearly_orthogonal(shape):
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
    assert singular.min() > 0.3 and singular.max() < 1.4


def test_every_parameter_has_exactly_one_optimizer():
    model = GPT(GPTConfig(32, 50, 2, 4, 2, 32))
    held = [p for o in make_optimizers(model, 0.2, 0.004, 0.02) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_the_learning_rate_rises_stays_and_falls_to_its_end():
    rates = [lr_multiplier(s, 100, warmup=10, warmdown_ratio=0.4, final=0.1) for s in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == rates[60] == 1.0 and rates[100] == pytest.approx(0.1)
    assert all(b >= a for a, b in itertools.pairwise(rates[:60])) and all(
        b <= a for a, b in itertools.pairwise(rates[60:])
    )


# --- checkpoints


def test_a_run_leaves_nanochats_files_and_keys(base, capsys):
    pretrain()
    folder = base / "base_checkpoints" / "d2"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        name for s in (4, 8, 12) for name in (f"model_{s:06d}.pt", f"meta_{s:06d}.json", f"optim_{s:06d}_rank0.pt")
    )
    meta = checkpoint.read_meta(folder, 12)
    assert set(meta) == {
        "step", "val_bpb", "model_config", "user_config", "device_batch_size", "max_seq_len", "total_batch_size",
        "dataloader_state_dict", "loop_state",
    }  # fmt: skip
    assert set(meta["dataloader_state_dict"]) >= {"pq_idx", "rg_idx", "epoch"}
    out = capsys.readouterr().out
    assert len(losses(out)) == 12
    assert re.search(r"^Step 00012 \| Validation bpb: \d\.\d{6}$", out, re.M)
    first, last = (float(v) for v in re.findall(r"Validation bpb: (\S+)", out)[:: len(losses(out)) // 4])
    assert last < first, "it learns"


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_is_the_same_to_the_bit(base, capsys, step):
    pretrain()
    folder = base / "base_checkpoints" / "d2"
    whole, expected = losses(capsys.readouterr().out), weights(folder, 12)
    for later in range(step + 1, 13):
        for path in folder.glob(f"*_{later:06d}*"):
            path.unlink()
    pretrain(f"--resume-from-step={step}")
    assert losses(capsys.readouterr().out) == whole[step:]
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder, 12).items())


def test_it_saves_when_told_once_and_goes_on_from_there_to_the_bit(base, capsys, monkeypatch):
    (base / SAVE_NOW).touch()  # an earlier run's wish is not this one's
    say = Runtime.print

    def say_and_wish(self, *words):
        say(self, *words)
        if str(words[0]).startswith("step 00005/"):
            (base / SAVE_NOW).touch()

    monkeypatch.setattr(Runtime, "print", say_and_wish)
    pretrain()
    folder, out = base / "base_checkpoints" / "d2", capsys.readouterr().out
    assert checkpoint.steps(folder) == [4, 7, 8, 12]
    assert not (base / SAVE_NOW).exists()
    assert ("fact", {"name": "saves_when_told", "value": True}) in LogReader().feed(out.encode())
    expected = weights(folder, 12)
    for path in folder.glob("*_00001*"):
        path.unlink()
    pretrain("--resume-from-step=7")
    assert losses(capsys.readouterr().out) == losses(out)[7:]
    assert all(torch.equal(value, expected[name]) for name, value in weights(folder, 12).items())


def test_a_seed_decides_everything(base, capsys):
    pretrain()
    first = losses(capsys.readouterr().out)
    pretrain()
    assert losses(capsys.readouterr().out) == first
    pretrain("--seed=43")
    assert losses(capsys.readouterr().out) != first


def test_a_wrong_resume_says_what_to_type(base):
    with pytest.raises(RequestError, match="no base checkpoint"):
        pretrain("--resume-from-step=4")
    pretrain()
    with pytest.raises(RequestError, match="saved steps: 4, 8, 12"):
        pretrain("--resume-from-step=5")
    with pytest.raises(RequestError, match="another model"):
        pretrain("--resume-from-step=4", "--kv-heads=4", "--model-tag=d2")
    (base / "base_checkpoints/d2/optim_000004_rank1.pt").touch()
    with pytest.raises(RequestError, match="saved by 2 ranks"):
        pretrain("--resume-from-step=4")
    with pytest.raises(RequestError, match="--total-batch-size=128"):
        pretrain("--total-batch-size=100")


def test_sft_learns_only_from_the_assistant_and_saves_beside_the_base(base):
    pretrain()
    chat_sft.main(chat_sft.parser().parse_args(["--device-type=cpu", "--num-iterations=3", "--device-batch-size=8"]))
    model, tokenizer, meta, folder = checkpoint.load_model(base, "sft", CPU.device)
    assert folder == base / "chatsft_checkpoints" / "d2" and meta["step"] == 3
    assert model.config.vocab_size == tokenizer.vocab_size
    inputs, targets = chat_sft.collate([([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6], [0, 1])], pad=9)
    assert inputs.tolist() == [[1, 2, 3], [5, 6, 9]]
    assert targets.tolist() == [[-1, 3, 4], [6, -1, -1]]


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from homerun.trainer import checkpoint
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.optim import make_optimizers
from homerun.trainer.runtime import Runtime
model = GPT(GPTConfig(32, 4096, 4, 4, 4, 128)); model.init_weights()
optimizers = make_optimizers(model, 0.2, 0.004, 0.02)
model(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)).backward()
for o in optimizers: o.step()
step = 0
while True:
    step += 1
    checkpoint.save(Runtime(torch.device("cpu")), Path(sys.argv[1]), step % 3, model, optimizers, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_saving_never_leaves_a_torn_file(tmp_path):
    torn = 0
    for i in range(6):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline()
        time.sleep(0.013 * i + 0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        torn += len(list(tmp_path.glob(".*.tmp")))
        for path in tmp_path.glob("[!.]*"):
            if path.suffix == ".pt":
                torch.load(path, weights_only=True)
            else:
                json.loads(path.read_text())
        for step in checkpoint.steps(tmp_path):  # a model file means a whole checkpoint
            assert (tmp_path / f"meta_{step:06d}.json").exists() and (tmp_path / f"optim_{step:06d}_rank0.pt").exists()
    assert torn, "no kill fell into a save: the test proves nothing"


@pytest.mark.slow
def test_two_ranks_train_what_one_does(base, tmp_path_factory, capsys):
    pretrain("--total-batch-size=256")
    alone = [float(line.split()[-1]) for line in losses(capsys.readouterr().out)]
    other = tmp_path_factory.mktemp("two")
    make_base(other)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(other), "OMP_NUM_THREADS": "1"}

    def run(*argv: str) -> str:
        return subprocess.run([*torchrun, *argv], env=env, capture_output=True, text=True, check=True).stdout

    out = run("homerun.trainer.base_train", "--", *TINY.split(), "--total-batch-size=256")
    together = [float(line.split()[-1]) for line in losses(out)]
    assert together == pytest.approx(alone, abs=2e-3) and len(together) == 12
    folder = other / "base_checkpoints" / "d2"
    assert len(list(folder.glob("optim_000012_rank*.pt"))) == 2
    ours, theirs = weights(base / "base_checkpoints" / "d2", 12), weights(folder, 12)
    assert all(torch.allclose(ours[name], theirs[name], atol=2e-2) for name in ours)
    for path in folder.glob("*_000012*"):
        path.unlink()
    resumed = run("homerun.trainer.base_train", "--", *TINY.split(), "--total-batch-size=256", "--resume-from-step=8")
    assert losses(resumed) == losses(out)[8:]

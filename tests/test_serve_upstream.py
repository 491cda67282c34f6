"""Serving with upstream's own code: the stand-in below has its interface; the marked test runs the real one."""

import asyncio
import functools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks import bench_serve
from homerun.errors import RequestError
from homerun.serve.checkpoints import find_checkpoints
from homerun.serve.engine import BatchEngine
from homerun.serve.generation import EngineDied
from homerun.serve.loading import load, open_models
from homerun.serve.models import Models
from homerun.serve.sampling import Sampling
from homerun.serve.upstream_engine import UpstreamEngine
from tests.serve_tree import make_tree

# nanochat's modules as far as the child uses them, over our own model; SCALE changes what the same weights mean.
STAND_IN = {
    "common": "",
    "checkpoint_manager": """
import os, signal, sys
from pathlib import Path
import torch
from homerun.trainer.checkpoint import load_model as load
SCALE = {scale}
class Tokenizer:
    def __init__(self, ours): self.ours = ours
    def encode_special(self, name): return self.ours.special(name)
    def get_bos_token_id(self): return self.ours.bos
def load_model(source, device, phase, model_tag, step):
    print("upstream talks on stdout")
    model, tokenizer, meta, _ = load(Path(os.environ["NANOCHAT_BASE_DIR"]), source, device, model_tag, step)
    model.lm_head.weight.data *= SCALE
    return model, Tokenizer(tokenizer), meta
""",
    "engine": """
import random, signal, time
import torch
class Engine:
    def __init__(self, model, tokenizer): self.model = model
    def generate(self, tokens, num_samples, max_tokens, temperature, top_k, seed):
        signal.signal(signal.SIGALRM, lambda *a: None)  # fails off the main thread, as upstream's calculator does
        rng, tokens = random.Random(seed), list(tokens)
        for _ in range(max_tokens):
            with torch.inference_mode():
                logits = self.model(torch.tensor([tokens]))[0, -1, :250]
            tokens.append(int(logits.argmax()) if temperature == 0 else rng.randrange(250))
            yield [tokens[-1]], [1]
""",
}


def make_checkout(folder: Path, scale: float = 1.0) -> Path:
    (folder / "nanochat").mkdir(parents=True)
    for name, text in STAND_IN.items():
        (folder / f"nanochat/{name}.py").write_text(text.replace("{scale}", str(scale)))
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def engine(tree, tmp_path_factory):
    engine = UpstreamEngine(find_checkpoints(tree)[0], make_checkout(tmp_path_factory.mktemp("up") / "src"))
    yield engine
    engine.close()


async def answer(engine, sampling):
    generation = engine.submit([engine.tokenizer.bos, 5, 6], sampling)
    return [token async for token in generation], generation.finish


@pytest.mark.slow
def test_answers_take_turns_and_each_keeps_its_seed(engine):
    async def main():
        alone = [await answer(engine, Sampling(12, seed=i)) for i in range(12)]
        return alone, await asyncio.gather(*(answer(engine, Sampling(12, seed=i)) for i in range(12)))

    alone, together = asyncio.run(main())
    assert alone == together and all(len(tokens) == 12 and finish == "length" for tokens, finish in alone)


def test_a_killed_child_fails_its_answers_and_is_started_again(engine):
    async def main():
        before = engine.pid
        os.kill(before, signal.SIGSTOP)  # so that the answer can't be whole before the child dies
        running = asyncio.create_task(answer(engine, Sampling(200, seed=1)))
        await asyncio.sleep(0)  # it is submitted
        os.kill(before, signal.SIGKILL)
        with pytest.raises(EngineDied, match="starts again"):
            await running
        tokens, _ = await asyncio.wait_for(answer(engine, Sampling(3, seed=1)), 60)
        return len(tokens), engine.pid != before

    assert asyncio.run(main()) == (3, True)


def test_a_child_that_cannot_start_again_hangs_nobody_and_makes_way_for_one_that_can(tree, tmp_path):
    checkout = make_checkout(tmp_path / "src")
    broken = checkout / "nanochat/engine.py"
    good = broken.read_text()
    models = Models(tree, functools.partial(UpstreamEngine, checkout=checkout))

    async def main() -> tuple[bool, int]:
        _, engine = await models.get("")
        broken.write_text("raise ImportError('the disk is gone')")
        os.kill(engine.pid, signal.SIGSTOP)
        running = asyncio.create_task(answer(engine, Sampling(200, seed=1)))
        await asyncio.sleep(0)  # it is submitted
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineDied):
            await running
        late = asyncio.create_task(answer(engine, Sampling(200, seed=1)))  # while it tries to start again
        with pytest.raises(EngineDied):
            await late
        broken.write_text(good)
        _, other = await models.get("")
        tokens, _ = await answer(other, Sampling(3, seed=1))
        return other is not engine, len(tokens)

    try:
        assert asyncio.run(asyncio.wait_for(main(), 120)) == (True, 3)
    finally:
        models.close()


def test_a_cancelled_answer_is_not_written_on(engine):
    async def main():
        stream = aiter(engine.submit([engine.tokenizer.bos], Sampling(250, seed=1)))
        await anext(stream)
        await stream.aclose()
        await answer(engine, Sampling(1, seed=2))
        before = engine.made
        await asyncio.sleep(0.3)
        return engine.stats()["running"], engine.made - before

    assert asyncio.run(main()) == (0, 0)


def test_a_checkout_that_cannot_serve_says_why(tree, tmp_path):
    checkout = make_checkout(tmp_path / "src")
    (checkout / "nanochat/engine.py").write_text("raise ImportError('no such era')")
    with pytest.raises(RequestError, match="no such era"):
        UpstreamEngine(find_checkpoints(tree)[0], checkout)


@pytest.mark.slow
def test_ours_serves_only_what_upstream_means_the_same_by(tree, tmp_path):
    checkpoint = find_checkpoints(tree)[0]
    kinds = []
    for scale in (1.0, 1.3):
        engine = load(checkpoint, "cpu", make_checkout(tmp_path / str(scale), scale))
        kinds.append(type(engine))
        engine.close()
    assert kinds == [BatchEngine, UpstreamEngine]


def test_another_architecture_without_its_code_is_refused(tmp_path):
    tree = make_tree(tmp_path)
    meta = next(tree.glob("*/*/meta_*.json"))
    meta.write_text(meta.read_text().replace('"n_layer"', '"window_pattern": "L", "n_layer"'))
    with pytest.raises(RequestError, match="--upstream"):
        asyncio.run(open_models(tree, "cpu").get(""))


@pytest.mark.slow
def test_the_child_ends_with_its_parent(tree, tmp_path):
    checkout = make_checkout(tmp_path / "src")
    script = (
        "import sys, time; from pathlib import Path; from homerun.serve.checkpoints import find_checkpoints as f\n"
        "from homerun.serve.upstream_engine import UpstreamEngine as U\n"
        "print(U(f(Path(sys.argv[1]))[0], Path(sys.argv[2])).pid, flush=True); time.sleep(60)"
    )
    python = Path(os.sys.executable)
    parent = subprocess.Popen([python, "-c", script, tree, checkout], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")


def clone(folder: Path, commit: str) -> Path:
    source = os.environ["HOMERUN_UPSTREAM_SRC"]
    subprocess.run(["git", "clone", "-q", "--no-checkout", source, folder], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)
    return folder


@pytest.mark.upstream
@pytest.mark.slow
@pytest.mark.skipif("HOMERUN_UPSTREAM_SRC" not in os.environ, reason="needs a clone of upstream")
def test_the_real_upstream_of_october_2025_serves_and_agrees_with_ours(tree, tmp_path):
    src = clone(tmp_path / "src", bench_serve.COMMIT)
    engine = UpstreamEngine(find_checkpoints(tree)[0], src)
    try:
        tokens, finish = asyncio.run(answer(engine, Sampling(10, seed=1)))
        assert finish == "stop" or len(tokens) == 10
    finally:
        engine.close()
    served = load(find_checkpoints(tree)[0], "cpu", src)
    served.close()
    assert isinstance(served, BatchEngine)


@pytest.mark.upstream
@pytest.mark.slow
@pytest.mark.skipif("HOMERUN_UPSTREAM_SRC" not in os.environ, reason="needs a clone of upstream")
@pytest.mark.parametrize("commit", ["b4e67636", "92d63d4e"])
def test_a_newer_architecture_is_served_by_its_own_real_code(tmp_path, commit):
    tree, src = make_tree(tmp_path / "tree"), clone(tmp_path / "src", commit)
    bench_serve.remake(tree / "chatsft_checkpoints/d2", 10, 2, 128, src)
    engine = load(find_checkpoints(tree)[0], "cpu", src)

    async def main():
        return await asyncio.gather(*(answer(engine, Sampling(10, top_k=50, seed=i)) for i in (1, 2, 1)))

    try:
        one, two, again = asyncio.run(main())
        assert isinstance(engine, UpstreamEngine) and one == again != two and len(one[0]) == 10
    finally:
        engine.close()

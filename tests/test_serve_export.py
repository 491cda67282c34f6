"""What is exported is the same model to transformers, or it is not exported."""

import asyncio
import json

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from homerun.cli import build
from homerun.errors import RequestError
from homerun.serve.checkpoints import find_checkpoints, load_tokenizer
from homerun.serve.export import export
from homerun.serve.ours import load_ours
from homerun.serve.sampling import Sampling
from tests.fakes.hub import FakeHub
from tests.serve_tree import TEXTS, make_tree

transformers = pytest.importorskip("transformers")
META = {"run": "toy-1", "upstream": {"url": "https://example.org/nanochat", "commit": "7031985"}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def exported(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "model"
    assert export(find_checkpoints(tree)[0], out, META) < 1e-4
    return out


def test_transformers_writes_the_same_greedy_answer(tree, exported):
    model = transformers.AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "NanoChatForCausalLM"
    talk = [{"role": "user", "content": "the quick fox?"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    theirs = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()

    async def ours():
        engine = load_ours(find_checkpoints(tree)[0], "cpu")
        prompt = engine.tokenizer.render_for_completion({"messages": talk})
        stop = frozenset((engine.tokenizer.special("<|assistant_end|>"), engine.tokenizer.bos))
        try:
            return [t async for t in engine.submit(prompt, Sampling(20, temperature=0, stop_tokens=stop))]
        finally:
            await asyncio.to_thread(engine.close)

    mine = asyncio.run(ours())
    assert mine == theirs[: len(mine)] and mine


def test_the_tokenizer_splits_every_text_the_same_way(tree, exported):
    ours, theirs = load_tokenizer(tree), transformers.AutoTokenizer.from_pretrained(exported)
    texts = [
        *TEXTS[:3],
        "  leading",
        "trailing  ",
        "a\r\n\r\nb",
        "x" * 300,
        "🦊" * 5,
        "1234567",
        "don't I'LL",
        "\u0000\u00ad",
    ]
    for text in texts:
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text
        assert theirs.decode(ours.encode(text)) == text
    assert len(theirs) == ours.vocab_size


def test_the_card_tells_where_the_model_is_from(exported):
    card = (exported / "README.md").read_text()
    assert "toy-1" in card and "7031985" in card and "sft, d2, step 10" in card


def test_a_weight_without_a_place_is_refused_and_nothing_is_left(tmp_path):
    tree = make_tree(tmp_path / "tree")
    path = next(tree.glob("*/*/model_*.pt"))
    torch.save(torch.load(path) | {"transformer.smear_lambda": torch.zeros(1)}, path)
    with pytest.raises(RequestError, match="smear_lambda"):
        export(find_checkpoints(tree)[0], tmp_path / "out", {})
    meta = next(tree.glob("*/*/meta_*.json"))
    meta.write_text(json.dumps(json.loads(meta.read_text())).replace('"n_layer"', '"window_pattern": "L", "n_layer"'))
    with pytest.raises(RequestError, match="window_pattern"):
        export(find_checkpoints(tree)[0], tmp_path / "out", {})
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_difference_in_logits_is_refused_and_nothing_is_left(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("homerun.serve.export.SOFTCAP", 14.0)
    with pytest.raises(RequestError, match="logits differ"):
        export(find_checkpoints(tree)[0], tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_the_commands_answer_and_export(tree, tmp_path):
    run = CliRunner().invoke(build(["chat"]), ["chat", str(tree), "-p", "the fox?", "--max-tokens", "5", "--seed", "1"])
    again = CliRunner().invoke(
        build(["chat"]), ["chat", str(tree), "-p", "the fox?", "--max-tokens", "5", "--seed", "1"]
    )
    assert run.exit_code == 0 and run.stdout == again.stdout and run.stdout.strip()
    run = CliRunner().invoke(build(["export"]), ["export", str(tree), str(tmp_path / "out")])
    assert run.exit_code == 0, run.exception
    assert (tmp_path / "out/model.safetensors").exists()
    run = CliRunner().invoke(build(["export"]), ["export", str(tree), str(tmp_path / "out")])
    assert isinstance(run.exception, RequestError) and "already there" in str(run.exception)


def test_what_is_pushed_is_what_was_exported_in_a_private_repository(tree, tmp_path, monkeypatch):
    def push(out: str, token: str) -> Result:
        monkeypatch.setenv("HF_TOKEN", token)
        return CliRunner().invoke(
            build(["export"]), ["export", str(tree), str(tmp_path / out), "--push", "me/my-model"]
        )

    with FakeHub() as hub:
        for name, value in (("ENDPOINT", hub.url), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        done = push("out", hub.token)
        assert done.exit_code == 0, done.exception
        assert done.stdout.splitlines()[-1] == f"{hub.url}/me/my-model"
        files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert hub.repos["me/my-model"] == files and "model.safetensors" in files and "README.md" in files
        assert hub.private["me/my-model"] is True
        refused = push("again", "hf_wrong-token")
        assert "the Hub did not take me/my-model" in str(refused.exception)
        assert "hf_wrong-token" not in str(refused.exception) + refused.output


def test_a_push_without_a_token_is_refused_before_any_work(tree, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    run = CliRunner().invoke(build(["export"]), ["export", str(tree), str(tmp_path / "out"), "--push", "me/x"])
    assert isinstance(run.exception, RequestError) and "HF_TOKEN" in str(run.exception)
    assert not list(tmp_path.iterdir())

"""recipes/toy.sh, alone: it is a script in upstream's form, and it trains a model that truly learnt something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from homerun.serve.loading import open_models
from homerun.trainer.chats import TASKS, examples
from homerun.trainer.checkpoint import load_model
from homerun.trainer.generate import generate
from homerun.web.app import Site, create_app
from tests import browsing
from tests.serve_live import live

RECIPE = Path(__file__).parent.parent / "recipes" / "toy.sh"


def run(script: Path, home: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NANOCHAT", "WANDB"))}
    env |= {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("home")
    return home / ".cache" / "nanochat", run(RECIPE, home)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_learns_english_better_than_a_unigram_model(toy):
    _, out = toy
    figures = {name: float(value) for name, value in re.findall(r"^(\w+) bpb: (\S+)$", out, re.M)}
    assert figures["val"] < 0.75 * figures["unigram"]
    assert figures["val"] == float(re.findall(r"^Minimum validation bpb: (\S+)$", out, re.M)[0])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_finetuning_teaches_tasks_that_the_base_model_cannot_do(toy):
    _, out = toy
    accuracies = re.findall(r"^(\w+) accuracy: ([\d.]+)%$", out, re.M)
    before, after = ({t: float(a) for t, a in accuracies[i : i + len(TASKS)]} for i in (0, len(TASKS)))
    assert set(before) == set(after) == set(TASKS)
    assert all(accuracy < 20 for accuracy in before.values())
    assert sum(accuracy > 90 for accuracy in after.values()) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_leaves_nanochats_artifact_tree_and_a_model_that_says_who_it_is(toy):
    base, out = toy
    assert re.search(r"^Done! Downloaded: 9/9 shards to ", out, re.M)
    assert {"base_data", "tokenizer", "base_checkpoints", "chatsft_checkpoints"} == {p.name for p in base.iterdir()}
    model, tokenizer, _, _ = load_model(base, "sft", torch.device("cpu"))
    prompt = tokenizer.render_for_completion({"messages": [{"role": "user", "content": "Who are you?"}]})
    answer = generate(model, [prompt], 40, stop=[tokenizer.special("<|assistant_end|>")])[0]
    assert tokenizer.decode(answer) == "I am a toy model, trained by homerun in two minutes."


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(1200)
@pytest.mark.skipif(browsing.missing(), reason="no Chromium")
def test_its_chat_page_answers_what_it_was_taught(toy):
    """In a real browser, as on a phone: First and Count, on prompts that it was not trained on."""
    app = create_app(Site(models=open_models(toy[0], "cpu")), browsing.TOKEN)
    app.requests.rate = app.requests.burst = 1e9
    with live(app) as url, browsing.chromium() as browser:
        for page in browsing.open_page(browser, url, **browsing.SIZES["phone"]):
            browsing.open_chat(page)
            page.click("summary")
            page.fill("#temperature", "0")
            page.click("summary")
            right = 0
            for example in (next(examples(task, "test", seed)) for task in ("First", "Count") for seed in range(5)):
                page.click("#new")
                browsing.ask(page, example.prompt)
                right += page.inner_text(".message.assistant .text").strip() == example.answer
            assert right >= 8, right


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """The whole script, shortened, twice: every artifact equal."""
    short = tmp_path / "short.sh"
    text = RECIPE.read_text()
    for flag, n in (("--num-iterations=", 2), ("--split-tokens=", 1)):
        text, replaced = re.subn(rf"{flag}\d+", f"{flag}3", text)
        assert replaced == n
    text = text.replace("base_train --", "base_train -- --eval-tokens=2048").replace(
        "chat_eval --", "chat_eval -- -x 4"
    )
    short.write_text(text)
    trees = []
    for home in (tmp_path / "one", tmp_path / "two"):
        home.mkdir()
        run(short, home)
        base = home / ".cache" / "nanochat"
        trees.append({p.relative_to(base): p.read_bytes() for p in base.rglob("*") if p.is_file()})
    one, two = trees
    assert one.keys() == two.keys() and len(one) == 9 + 2 + 3 + 3
    timed = {path for path in one if path.name.startswith("meta_")}  # they hold how long training took
    assert [path for path in one.keys() - timed if one[path] != two[path]] == []

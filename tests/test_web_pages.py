"""Both pages in a real Chromium, on a desktop and on a phone."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe

from homerun.journal import Journal
from homerun.serve.checkpoints import load_tokenizer
from homerun.serve.loading import open_models
from homerun.web import guard
from homerun.web.app import Site, create_app
from homerun.web.board import Board
from homerun.web.logs import Logs
from tests import browsing
from tests.browsing import SIZES, TOKEN, ask, fits, open_chat, open_page, until
from tests.serve_live import live
from tests.serve_tree import make_tree
from tests.test_serve_upstream import make_checkout
from tests.web_run import RUN, begin_run, fail_run, make_run

pytestmark = [pytest.mark.browser, pytest.mark.skipif(browsing.missing(), reason="no Chromium")]


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch):
    monkeypatch.setattr(guard.Bucket, "take", lambda self, client, now: True)


def app_of(run: Path):
    return create_app(Site(Board(run / "journal.jsonl"), Logs(run), open_models(run, "cpu")), TOKEN)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with live(app_of(make_run(tmp_path_factory.mktemp("runs") / RUN))) as url:
        yield url


@pytest.fixture(params=SIZES)
def page(browser, request, url):
    yield from open_page(browser, url, **SIZES[request.param])


@pytest.fixture
def desk(browser, url):
    yield from open_page(browser, url, **SIZES["desktop"])


# -- logging in ------------------------------------------------------------------------------------------------------


def test_the_token_is_typed_once_and_leaves_no_trace_in_the_address(browser, url):
    page = browser.new_context().new_page()
    page.goto(f"{url}/chat")
    page.fill("#token", "wrong-token")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('wrong').textContent.includes('wrong')")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("#words")
    assert page.url == f"{url}/chat"
    page.goto(f"{url}/#token={TOKEN}")
    page.wait_for_selector("#tiles .tile")
    page.context.close()


# -- the live page -----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_whole_run(page):
    page.goto(page.home)
    page.wait_for_selector("#plots canvas")
    page.wait_for_selector("#log-name option", state="attached")
    text = page.inner_text("main")
    for words in ("base_train", "--save-every=250", "410 GB free", "Flash Attention 3", "homerun serve latest"):
        assert words in text, words
    assert "proven in 14 s" in text and "on its way" in text
    assert page.inner_text("#run") == RUN and page.inner_text("#status") == "good"
    assert fits(page)
    assert page.is_visible("#chat")


def test_curves_are_drawn_and_read_by_pointer_and_by_key(desk):
    desk.goto(desk.home)
    canvas = desk.locator("#plots canvas").first
    canvas.wait_for()
    drawn = "c => new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer).some(x => x)"
    until(desk, f"({drawn})(document.querySelector('#plots canvas'))")
    newest = desk.locator("#plots .reading").first.inner_text()
    assert newest.endswith("at step 299")
    canvas.hover(position={"x": 100, "y": 80})
    until(desk, "!document.querySelector('#plots .reading').textContent.endsWith('at step 299')")
    desk.mouse.move(0, 0)
    canvas.focus()
    for _ in range(3):
        desk.keyboard.press("ArrowLeft")
    until(desk, "!document.querySelector('#plots .reading').textContent.endsWith('at step 299')")
    assert "base_train" in canvas.get_attribute("aria-label")


def test_what_a_model_or_a_log_says_is_never_markup(desk):
    desk.goto(desk.home)
    until(desk, "document.getElementById('log').textContent.includes('onerror')")
    assert "<script>alert(1)</script>" in desk.inner_text("#samples")
    assert desk.locator("main script, main img").count() == 0


def test_the_log_is_searched_and_a_hit_opened(desk):
    desk.goto(desk.home)
    desk.wait_for_selector("#log-name option", state="attached")
    desk.fill("#words", "STEP 00123/")
    desk.keyboard.press("Enter")
    desk.locator("#hits button").first.click()
    until(desk, "document.getElementById('log').textContent.startsWith('step 00123/')")
    assert not desk.is_checked("#follow")
    desk.click("#earlier")
    until(desk, "document.getElementById('log').textContent.startsWith('step 00000/')")


def test_the_page_follows_a_run_that_goes_on(browser, tmp_path):
    run = make_run(tmp_path / RUN, steps=60, ended=False, model=False)
    with live(app_of(run)) as url:
        for page in open_page(browser, url, **SIZES["phone"]):
            page.goto(url)
            until(page, "document.querySelector('#status').textContent === 'running'")
            assert "chat_sft" in page.inner_text("#phases") and "78 s lost" in page.inner_text("#tiles")
            journal = Journal(run / "journal.jsonl", 1)
            journal.emit("step", phase="base_train", step=77, total=120, loss=1.2345)
            until(page, "document.querySelector('#tiles').textContent.includes('1.2345')")
            until(page, "document.querySelector('#plots .reading').textContent.includes('at step 77')")
            with open(run / "logs/a01/0003-base_train.log", "a") as file:
                file.write("a new line of the log\n")
            until(page, "document.getElementById('log').textContent.includes('a new line of the log')")
            journal.emit(
                "attempt.end", code=4, reason="base_train failed", safe="step 250", next="homerun train --resume"
            )
            journal.emit("run.end", code=4, verdict="failed")
            journal.close()
            until(page, "document.querySelector('#status').textContent === 'failed'")
            assert "homerun train --resume" in page.inner_text("#notices")
            assert page.title() == f"{RUN}: failed" and fits(page)


def test_a_hundred_thousand_points_draw_within_a_frame_or_few(desk):
    """Not a benchmark: what is asserted is that all points are there and the extremes stay visible."""
    desk.goto(desk.home)
    desk.wait_for_selector("#plots canvas")
    low, high = desk.evaluate(
        """async () => {
          const { Plot } = await import("/static/plot.js");
          const plot = new Plot("test"), points = Array.from({ length: 100000 }, (_, i) => [i, i, Math.sin(i / 900)]);
          points[54321][2] = 5;  // one spike in a hundred thousand
          document.getElementById("plots").prepend(plot.figure);
          plot.set("a", points);
          plot.draw();
          const c = plot.canvas, d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
          const rows = [];
          for (let y = 0; y < c.height; y++)
            for (let x = plot.left + 2; x < c.width; x++) {
              const i = 4 * (y * c.width + x);
              if (d[i + 3] && d[i + 2] > d[i] + 60) { rows.push(y); break; }  // the line's blue
            }
          return [Math.max(...rows), Math.min(...rows)];
        }"""
    )
    assert high < 30 < 150 < low


# -- the chat page -----------------------------------------------------------------------------------------------------


def test_a_question_is_answered_in_a_stream_that_can_be_seen(page):
    open_chat(page)
    page.fill("#words", "the quick fox?")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.message.assistant .text')?.textContent.length > 3")
    page.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
    assert page.locator(".message").count() == 2 and page.locator(".failed").count() == 0
    assert page.is_visible("#send") and not page.is_visible("#stop")
    assert page.locator("#announce").inner_text() == "The answer is complete."
    assert fits(page)


def hold(monkeypatch, engine) -> threading.Event:
    """A few tokens of the next answer come, then none until the event is set."""
    real, calls, go = engine.model.transformer.forward, iter(range(10**6)), threading.Event()
    forward = lambda *args: (next(calls) < 9 or go.wait(60), real(*args))[1]  # noqa: E731
    monkeypatch.setattr(engine.model.transformer, "forward", forward)
    return go


def test_an_answer_can_be_stopped_regenerated_and_a_question_edited(browser, tmp_path, monkeypatch):
    site = Site(models=open_models(make_tree(tmp_path), "cpu"))
    with live(create_app(site, TOKEN)) as url:
        for page in open_page(browser, url, **SIZES["desktop"]):
            open_chat(page)
            ask(page, "warm up")
            page.click("#new")
            (engine,) = site.models.loaded().values()
            go = hold(monkeypatch, engine)
            page.fill("#words", "the quick fox?")
            page.keyboard.press("Enter")
            page.wait_for_selector("#stop:visible")
            page.keyboard.press("Escape")
            page.wait_for_selector("#send:visible")
            go.set()
            assert page.locator(".failed").count() == 0
            first = page.inner_text(".message.assistant .text")
            page.click("text=Regenerate")
            page.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
            assert page.locator(".message.assistant").count() == 1
            assert page.inner_text(".message.assistant .text") != first
            page.focus("#words")
            page.keyboard.press("ArrowUp")
            assert page.input_value("#words") == "the quick fox?" and page.locator(".message").count() == 0


def test_an_answer_is_copied_as_it_was_written(browser, url):
    for page in open_page(browser, url, **SIZES["desktop"], permissions=["clipboard-read", "clipboard-write"]):
        open_chat(page)
        page.click("summary")
        page.fill("#temperature", "0")
        page.click("summary")
        ask(page, "the fox?")
        page.click("text=Copy")
        page.wait_for_selector("text=Copied")
        body = {"messages": [{"role": "user", "content": "the fox?"}], "temperature": 0}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {TOKEN}"})
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == answer.json()["choices"][0]["message"]["content"] and copied


def test_another_stage_can_be_chosen_and_the_settings_reach_the_model(desk):
    open_chat(desk)
    desk.select_option("#model", "base-d2-000010")
    desk.click("summary")
    desk.fill("#top-k", "1")
    with desk.expect_request("**/v1/chat/completions") as request:
        ask(desk, "the fox")
    body = json.loads(request.value.post_data)
    assert body["model"] == "base-d2-000010" and body["top_k"] == 1 and body["temperature"] == 0.6
    assert body["messages"] == [{"role": "user", "content": "the fox"}]  # no system message, as nanochat was trained
    one = desk.inner_text(".message.assistant .text")
    desk.click("text=Regenerate")
    desk.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
    assert desk.inner_text(".message.assistant .text") == one  # top k of one is greedy


def test_too_long_a_question_is_told_and_can_be_asked_again_shorter(desk):
    open_chat(desk)
    desk.fill("#words", "x " * 500)
    desk.keyboard.press("Enter")
    desk.wait_for_selector(".failed")
    assert "256 tokens" in desk.inner_text(".failed")
    desk.said.clear()  # Chromium itself notes the 400
    ask(desk, "short")
    assert desk.locator(".message").count() == 2 and desk.locator(".failed").count() == 0


def test_markdown_is_shown_and_can_do_no_harm(desk):
    open_chat(desk)
    hostile = [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        '[x](javascript:alert(1)) [y](https://example.org/"onmouseover=alert(1)) ![z](x)',
        "```html\n<svg onload=alert(1)>\n``` `<b>` **<i>x</i>**",
        "# <style>*{display:none}</style>\n- <iframe src=//evil>\n| <a> |\n|--|\n| <u> |\n\n> <object>",
    ]
    html = desk.evaluate(
        """async texts => {
          const { markdown } = await import("/static/markdown.js");
          const box = document.createElement("div");
          for (const text of texts) box.append(markdown(text));
          document.getElementById("messages").append(box);
          const nodes = [...box.querySelectorAll("*")];
          return [box.innerHTML, nodes.map(n => n.tagName + [...n.attributes].map(a => a.name)),
                  [...box.querySelectorAll("a")].map(a => a.protocol)];
        }""",
        hostile,
    )
    tags = {re.match("[A-Z0-9]+", tag)[0] for tag in html[1]}
    assert tags <= {
        "P",
        "BR",
        "A",
        "PRE",
        "CODE",
        "STRONG",
        "EM",
        "H2",
        "UL",
        "LI",
        "TABLE",
        "THEAD",
        "TBODY",
        "TR",
        "TH",
        "TD",
        "BLOCKQUOTE",
    }
    assert all("on" not in tag for tag in html[1]) and set(html[2]) <= {"https:"}
    good = desk.evaluate(
        """async text => {
          const { markdown } = await import("/static/markdown.js");
          const box = document.createElement("div");
          box.append(markdown(text));
          return box.innerHTML;
        }""",
        "Some **bold**, *it* and `a*b`.\n\n1. one\n2. two\n\n```py\nx = 1 < 2\n```\n| a | b |\n|---|---|\n| 1 | 2 |",
    )
    assert "<strong>bold</strong>" in good and "<em>it</em>" in good and "<code>a*b</code>" in good
    assert '<ol start="1"><li>one</li><li>two</li></ol>' in good and "x = 1 &lt; 2" in good and "<td>2</td>" in good


def test_markdown_of_any_prefix_is_rendered(desk):
    """What streams in is cut anywhere: no cut may hang or throw."""
    open_chat(desk)
    text = "# a\n**b** *c* `d` [e](http://f)\n\n- g\n- h\n\n```\ni\n```\n"
    text += "| j | k |\n|---|---|\n| l | m |\n> n\n1. o\n\n***\n__ ** `"
    lengths = desk.evaluate(
        """async text => {
          const { markdown } = await import("/static/markdown.js");
          return Array.from(text, (_, i) => markdown(text.slice(0, i)).textContent.length);
        }""",
        text,
    )
    assert len(lengths) == len(text)


def test_a_model_that_fails_is_said_on_the_page_and_serves_again(browser, tmp_path):
    run = make_run(tmp_path / RUN, steps=5)
    site = Site(Board(run / "journal.jsonl"), Logs(run), open_models(run, "cpu"))
    with live(create_app(site, TOKEN)) as url:
        for page in open_page(browser, url, **SIZES["desktop"]):
            open_chat(page)
            ask(page, "hi")
            (engine,) = site.models.loaded().values()
            real, calls = engine.model.transformer.forward, iter(range(10**6))

            def dies(*args, real=real, calls=calls):
                if next(calls) == 1:  # the prompt is read, the first token is not yet written
                    raise RuntimeError("device lost")
                return real(*args)

            engine.model.transformer.forward = dies
            page.click("#new")
            page.fill("#words", "hi")
            page.keyboard.press("Enter")
            page.wait_for_selector(".failed", timeout=60_000)
            assert "the model failed" in page.inner_text(".failed")
            page.click("text=Regenerate")
            page.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
            assert page.locator(".failed").count() == 0


def test_a_server_that_goes_away_is_said_on_both_pages(browser, tmp_path):
    run = make_run(tmp_path / RUN, steps=5)
    context = browser.new_context()
    page, chat = context.new_page(), context.new_page()
    with live(app_of(run)) as url:
        page.goto(f"{url}/login#token={TOKEN}")
        page.wait_for_selector("#tiles .tile")
        chat.goto(f"{url}/chat")
        chat.wait_for_selector("#model option", state="attached")
    until(page, "document.querySelector('#status').textContent.includes('lost its server')")
    chat.fill("#words", "hi")
    chat.keyboard.press("Enter")
    chat.wait_for_selector(".failed")
    assert "cannot be reached" in chat.inner_text(".failed")
    with live(app_of(run), int(url.rpartition(":")[2])):  # the same port: both pages find it again by themselves
        until(page, "document.querySelector('#status').textContent === 'good'")
        chat.click("text=Regenerate")
        chat.wait_for_selector(".message.assistant:not(.writing)", timeout=60_000)
        assert chat.locator(".failed").count() == 0
    context.close()


@pytest.mark.slow
def test_a_model_process_that_is_killed_is_said_and_started_again(browser, tmp_path):
    """Upstream's code in its own process, killed in the middle of an answer."""
    tree, checkout = make_tree(tmp_path / "tree", sequence_len=40), make_checkout(tmp_path / "src", scale=1.3)
    site = Site(models=open_models(tree, "cpu", checkout))
    with live(create_app(site, TOKEN)) as url:
        for page in open_page(browser, url, **SIZES["desktop"]):
            open_chat(page)
            ask(page, "hi")
            (engine,) = site.models.loaded().values()
            killed = engine.pid
            os.kill(killed, signal.SIGSTOP)  # so that the answer is not whole before
            page.click("#new")
            page.fill("#words", "hi")
            page.keyboard.press("Enter")
            page.wait_for_selector(".message.writing")
            os.kill(killed, signal.SIGKILL)
            page.wait_for_selector(".failed", timeout=60_000)
            assert "it starts again" in page.inner_text(".failed")
            page.click("text=Regenerate")
            page.wait_for_selector(".message.assistant:not(.writing)", timeout=120_000)
            assert page.locator(".failed").count() == 0 and engine.pid != killed


# -- accessibility ----------------------------------------------------------------------------------------------------

SAYS = """\
# A heading
Some **bold**, *it*, `code` and [a link](https://example.org/).

1. one
2. two

```python
x = 1  # a line of code that is longer than a phone is wide, and scrolls where it is
```
| a | b |
|---|---|
| 1 | 2 |

> quoted"""


def accept(page, what: str) -> None:
    """axe-core finds nothing to mend, in the light and in the dark, and nothing is wider than the screen."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        violations = Axe().run(page).response["violations"]
        assert not violations, (what, scheme, [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in violations])
    assert fits(page), what


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_state_of_the_live_page_can_be_read_by_everybody(browser, tmp_path, size):
    for name in ("starting", "preflight", "training", "failed", "done"):
        run = tmp_path / name
        match name:
            case "preflight":
                begin_run(run)
            case "training" | "failed" | "done":
                make_run(run, ended=name == "done", model=False)
                if name == "failed":
                    fail_run(run)
        with live(app_of(run)) as url:
            for page in open_page(browser, url, **SIZES[size]):
                page.goto(url)
                words = {"starting": "about to begin", "preflight": "being checked", "failed": "Next:", "done": "Done."}
                until(page, f"document.querySelector('main').innerText.includes('{words.get(name, 'Loss')}')")
                accept(page, name)
                if name == "starting":
                    page.goto(f"{url}/chat")
                    until(page, "document.getElementById('empty').textContent.includes('no model')")
                    accept(page, "chat without a model")
    page = browser.new_context(**SIZES[size]).new_page()
    with live(app_of(run)) as url:
        page.goto(url)
        accept(page, "login")
        page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_every_state_of_the_chat_can_be_read_by_everybody(browser, tmp_path, monkeypatch, size):
    run = make_run(tmp_path / RUN, steps=5, sequence_len=1024)
    tokenizer = load_tokenizer(run / "home/.cache/nanochat")
    call = [tokenizer.special("<|python_start|>"), *tokenizer.encode("12*12"), tokenizer.special("<|python_end|>")]
    script = iter([*call, *tokenizer.encode(SAYS), tokenizer.special("<|assistant_end|>")])
    monkeypatch.setattr("homerun.serve.engine.draw", lambda logits, settings, generators: [next(script)])
    with live(app_of(run)) as url:
        for page in open_page(browser, url, **SIZES[size]):
            open_chat(page)
            accept(page, "empty")
            ask(page, "What is 12*12?")
            assert page.inner_text(".assistant .calls") == "calculator: 12*12 = 144"
            assert page.locator(".message.assistant").locator("h2, ol > li, pre, table, blockquote").count() == 6
            numbers = "getComputedStyle(document.querySelector('.message ol > li')).listStyleType"
            assert page.evaluate(numbers) == "decimal"
            accept(page, "markdown")
            page.click("summary")
            accept(page, "settings")
            page.click("summary")
            page.fill("#words", "x " * 1000)
            page.keyboard.press("Enter")
            page.wait_for_selector(".failed")
            accept(page, "error")
            page.said.clear()  # Chromium itself notes the 400


def test_the_keyboard_alone_reaches_everything(desk):
    open_chat(desk)
    ask(desk, "hi")
    desk.focus("#words")
    seen = []
    for _ in range(12):
        desk.keyboard.press("Tab")
        seen.append(desk.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"send", "model", "new", "Settings", "Copy", "Regenerate", "Edit"} <= set(seen)


def test_the_tree_of_a_recipe_has_a_chat_page_and_no_run(browser, tmp_path):
    with live(create_app(Site(models=open_models(make_tree(tmp_path), "cpu")), TOKEN)) as url:
        for page in open_page(browser, url, **SIZES["desktop"]):
            page.goto(url)
            page.wait_for_selector("#model option", state="attached")
            assert page.url == f"{url}/chat"

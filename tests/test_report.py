"""The report: true to the journal, one file that needs nothing else, and readable in a real browser."""

import html.parser
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from homerun.console.words import words
from homerun.cost import PRICES_READ_ON, machine_price, totals
from homerun.report.compare import comparison, labels
from homerun.report.content import content, count, reproduce
from homerun.report.curves import plots
from homerun.report.html import page
from homerun.report.markdown import escape, markdown
from homerun.report.published import GPT2_CORE, PUBLISHED, references
from homerun.report.write import write_report
from tests.story import H100, Story, attempt, begin, end, speedrun, train


class Outline(html.parser.HTMLParser):
    """Checks that elements nest, and collects text, attributes and what the page would fetch."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.fetched = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def rendered(state):
    return markdown(content(state)), page(content(state), plots([("", state)]))


def test_the_first_line_is_the_verdict():
    good, _ = rendered(speedrun().state())
    failed, _ = rendered(speedrun(fails="base_train").state())
    assert good.splitlines()[0].startswith("Good: everything is proven in the bucket. d20 (561.0M parameters)")
    assert "CORE 0.2219" in good.splitlines()[0]
    assert failed.splitlines()[0].startswith("Failed: base_train failed (torchrun: rank 3 ran out of memory).")


def test_it_says_what_ran_where_for_how_much_and_how_good():
    text, _ = rendered(speedrun().state())
    for expected in (
        "8 × NVIDIA H100 80GB HBM3", "570.86.15", "92d63d4e", "sha256 ea0beb34", "saves every 500 steps",
        "From start to first training step: 3 min, $1.07",
        "saves every 500 steps: --save-every=500", "| accuracy | chat\\_eval-sft | published |",
        "| ARC-Easy | 0.3876 | 0.3876 |", "October 2025, 7031985 | FineWeb-Edu | 0.2219 |  |  | 0.0884 |",
        "CORE 0.2219 is below GPT-2's 0.2565 (87% of it)", "homerun pull nanochat-d20", "homerun chat", "homerun serve",
        "The capital of France", "base\\_checkpoints/d20/001500",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (4, "chat_sft failed: exit status 1: out of memory", "Failed: chat_sft failed: exit status 1: out of memory."),
        (6, "the budget of $9.00 would not hold the next save", "Stopped: the budget of $9.00 would not hold"),
        (143, "ended by TERM", "Interrupted: ended by TERM. It can go on."),
    ],
)
def test_an_attempt_that_ended_early_says_why_in_the_first_line(code, reason, words):
    story = speedrun(steps=100)
    del story.events[-2:]
    story("attempt.end", code=code, reason=reason, safe="", next="homerun train --resume x")
    assert rendered(story.state())[0].startswith(words)


def test_what_was_changed_is_told_once_with_its_arguments():
    story = speedrun(steps=100)
    changes = [
        *({"phase": phase, "what": "plain python"} for phase in ("base_train", "base_eval")),
        {"phase": "base_train", "what": "your own arguments, last", "added": ["--depth=4", "--run=a b"]},
    ]
    next(event for event in story.events if event["type"] == "plan")["adapted"] = changes
    text, _ = rendered(story.state())
    assert "| base\\_train, base\\_eval | plain python |" in text
    assert "| base\\_train | your own arguments, last: --depth=4 '--run=a b' |" in text


def test_upstreams_own_report_is_linked_where_it_lies():
    story = speedrun(steps=100)
    assert "upstream_report" not in "".join(rendered(story.state()))
    story("group", group="report/report.md", kind="report", phase="report-generate", bytes=1, files=1)
    text, whole = rendered(story.state())
    assert "[Upstream's own report](../upstream_report/report.md)" in text
    assert '<a href="../upstream_report/report.md">' in whole


def test_every_depth_has_its_published_figures_and_other_data_says_so():
    found = {depth: [one.commit for one in references(depth)] for depth in (12, 20, 24, 26)}
    assert found[12] == []
    assert found[20] == ["7031985"]
    assert found[24] == ["348fbb3", "324e69c", "6ed7d1d", "a825e63"]
    assert len({one.data for one in references(24)}) == 2
    assert all(one.core > GPT2_CORE for one in PUBLISHED if one.depth > 20)


def test_the_phases_and_what_lies_between_them_add_up_to_the_whole():
    report = content(speedrun().state())
    table = next(
        block for section in report.sections if section.title == "Time and money" for block in section.blocks
        if getattr(block, "header", [""])[0] == "phase"
    )  # fmt: skip
    costs = [float(row[2].strip("$")) for row in table.rows if row[2]]
    assert sum(costs[:-1]) == pytest.approx(costs[-1], abs=0.03)


def test_the_best_checkpoint_is_of_its_own_stage():
    text, _ = rendered(speedrun().state())
    best = [line.split("|")[1].strip() for line in text.splitlines() if "| best |" in line and "/d20/" in line]
    assert [name.split("/")[0] for name in best] == ["base\\_checkpoints", "chatsft\\_checkpoints"]


def test_a_list_price_is_shown_with_its_date():
    story = speedrun(steps=100)
    priced = machine_price([H100] * 8, None)
    begin = next(event for event in story.events if event["type"] == "attempt.begin")
    begin |= {"price_usd_per_hour": priced.usd_per_hour, "price_source": priced.source}
    text, _ = rendered(story.state())
    assert f"| Price | $27.92 an hour: 8 × H100 at $3.49, a list price of {PRICES_READ_ON} |" in text
    assert f"a list price of {PRICES_READ_ON}" in words(begin)


def test_what_is_paid_for_begins_with_the_process():
    story = speedrun(steps=100)
    before = story.state()
    begin = next(event for event in story.events if event["type"] == "attempt.begin")
    begin["started"] = begin["t"] - 3600
    assert totals(story.state()).usd == pytest.approx(totals(before).usd + 24.0)
    assert totals(story.state()).first_step_seconds == pytest.approx(totals(before).first_step_seconds + 3600)


def test_attempts_have_a_bar_of_their_own():
    story = speedrun(steps=100, fails="base_train")
    attempt(story)
    text, _ = rendered(story.state())
    assert "By attempt:" in text and re.search(r"█ +\d+%  attempt 1: ", text) and "(attempt 1): " in text


def test_an_unknown_price_is_never_shown_as_nothing():
    text, _ = rendered(speedrun(steps=100, price=None).state())
    assert "$0" not in text
    assert "| ? |" in text


def test_the_idle_time_before_a_watchdogs_stop_has_its_price():
    story = Story()
    begin(story)
    story("phase.begin", phase="base_train", name="base_train", argv=[])
    train(story, last=10)
    end(story, "base_train", 1800, "failed", -15, reason="ended by the watchdog")
    story("stop", why="watchdog", text="base_train printed nothing for 30 minutes")
    text, _ = rendered(story.state())
    assert "The time without progress: 30 min, $12.00" in text


def test_a_report_can_be_made_at_every_moment_of_a_run():
    events = speedrun(steps=300, fails="base_train").events
    from homerun.state import fold

    for number in range(0, len(events) + 1, 23):
        text, whole = rendered(fold(events[:number]))
        assert text.strip()
        Outline(whole)


def test_the_page_nests_has_one_heading_and_fetches_nothing():
    _, whole = rendered(speedrun().state())
    outline = Outline(whole)
    assert outline.fetched == []
    assert outline.tags.count("h1") == 1
    assert not re.search(r"https?://(?!github\.com/karpathy)", re.sub(r"<script.*?</script>", "", whole, flags=re.S))


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a | b `c` *d* [e](f)", "]]>&amp;"]
)
def test_nothing_that_upstream_prints_becomes_markup(text):
    story = Story()
    begin(story, run="r")
    story("phase.begin", phase=text, name=text, argv=[text])
    for step in range(3):
        story("step", 1, phase=text, step=step, loss=1.0)
    story("sample", phase=text, text=text)
    story("warning", text=text, hint=text)
    end(story, text, 1, "failed", 1, reason=text)
    md, whole = rendered(story.state())
    outline = Outline(whole)
    assert outline.tags.count("script") == 2
    assert "img" not in outline.tags
    assert text in "".join(outline.words)
    for line in md.splitlines():
        if line.startswith("| "):
            assert re.sub(r"\\.", "", line).count("|") == re.sub(r"\\.", "", line).count(" |") + 1
    data = re.search(r'id="plots-data">(.*?)</script>', whole, re.S)[1]
    assert json.loads(data)[0]["series"][0]["name"] == text


def test_escape_keeps_a_cell_on_one_line():
    assert escape("a|b\nc") == "a\\|b c"


def test_one_curve_over_attempts_by_steps_tokens_hours_and_dollars():
    story = Story()
    begin(story)
    story("phase.begin", phase="base_train", name="base_train", argv=[])
    story("fact", phase="base_train", name="total_batch_tokens", value=524_288)
    train(story, last=600, total=1000)
    story.t += 100_000  # nobody pays for the night between the attempts
    attempt(story)
    story("phase.begin", phase="base_train", name="base_train", argv=[])
    train(story, first=500, last=1000, total=1000)
    (series,) = next(plot for plot in plots([("", story.state())]) if plot["metric"] == "loss")["series"]
    steps, tokens, hours, dollars, _ = map(list, zip(*series["points"], strict=True))
    assert steps == list(range(1000))
    assert tokens[-1] == 999 * 524_288
    assert hours == sorted(hours) and hours[-1] < 0.5
    assert dollars == sorted(dollars)
    assert dollars[-1] == pytest.approx(hours[-1] * 24, rel=0.01)


def test_a_run_of_a_million_steps_makes_a_small_page():
    from homerun.state import RunState

    state = RunState()
    for seq in range(100_000):
        state.apply(
            {"seq": seq, "t": seq * 1.0, "attempt": 1, "type": "step", "phase": "base_train", "step": seq, "loss": 3.0}
        )
    assert len(page(content(state), plots([("", state)]))) < 300_000


def test_reproduce_names_the_commit_and_what_was_asked_for():
    story = Story()
    begin(story, argv=["/x/bin/homerun", "train", "--phase-args", "base_train=--depth=26"])
    command = reproduce(story.state())
    assert command == f"homerun train --phase-args base_train=--depth=26 --ref 92d63d4e{'0' * 32}"


def test_counts_are_for_people():
    assert [count(n) for n in (560_988_160, 1_384_000_000, 812_000, 12)] == ["561.0M", "1.38B", "812.0k", "12"]


def test_runs_are_told_apart_by_what_differs():
    assert labels(["nanochat-d20-2026a", "nanochat-d24-2026b"]) == ["d20-2026a", "d24-2026b"]
    assert labels(["toy-1", "toy-12"]) == ["1", "12"]


def test_a_comparison_names_the_best_and_draws_both():
    first, second = (
        speedrun(steps=400, run="x-d20").state(),
        speedrun(steps=400, run="x-d24", fails="base_train").state(),
    )
    report, found = comparison([("x-d20", first), ("x-d24", second)])
    assert "d20 has the lowest validation bpb" in report.verdict
    loss = next(plot for plot in found if plot["metric"] == "loss")
    assert {series["name"].split()[0] for series in loss["series"]} == {"d20", "d24"}
    Outline(page(report, found))


def test_the_commands_write_files_that_are_whole(tmp_path):
    for run, fails in (("a-1", None), ("a-2", "base_train")):
        speedrun(steps=200, run=run, fails=fails).write(tmp_path / "runs" / run)
    environ = {"HOMERUN_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def homerun(*arguments):
        command = [sys.executable, "-m", "homerun", *arguments]
        root = Path(__file__).parent.parent
        return subprocess.run(
            command, env=environ | {"PYTHONPATH": str(root)}, cwd=tmp_path, capture_output=True, text=True
        )

    done = homerun("report", "a-1", "--out", "out")
    assert done.stdout.split() == ["out/report.md", "out/index.html"]
    Outline((tmp_path / "out" / "index.html").read_text())
    done = homerun("compare", "a-1", "a-2", "--out", "both.html")
    assert "both.html" in done.stdout
    Outline((tmp_path / "both.html").read_text())
    assert homerun("compare", "a-1", "a-1").returncode == 2
    assert len(json.loads(homerun("compare", "a-1", "a-2", "--json").stdout)) == 2


# -- in a real browser --------------------------------------------------------------------------------------------

CHROMIUM = "/usr/bin/chromium"
FLAGS = [f"--{flag}" for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")]
FLAGS += ["--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    if not Path(CHROMIUM).exists():
        pytest.skip("no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a run's page; fails the test when the page logs an error or asks for anything but itself."""
    opened = []

    def open_page(state, **options):
        index = write_report(tmp_path / str(len(opened)), state)[1]
        tab = browser.new_page(**options)
        tab.problems, tab.requests = [], []
        tab.on("pageerror", lambda error: tab.problems.append(str(error)))
        tab.on("console", lambda message: tab.problems.append(message.text))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.goto(index.as_uri())
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        assert tab.problems == []
        assert len(tab.requests) == 1
        tab.close()


READING = "figure .reading"


@pytest.mark.browser
def test_plots_are_drawn_and_read_by_mouse_and_by_keyboard(show):
    tab = show(speedrun().state(), viewport={"width": 1280, "height": 900})
    assert tab.locator("canvas").count() >= 6
    canvas = tab.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    before = tab.locator(READING).first.inner_text()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    hovered = tab.locator(READING).first.inner_text()
    assert hovered != before
    assert "base_train" in hovered
    tab.mouse.move(0, 0)
    canvas.focus()
    readings = set()
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
        readings.add(canvas.get_attribute("aria-label"))
    assert len(readings) == 4


@pytest.mark.browser
def test_axes_scales_series_and_zoom_change_the_picture(show):
    tab = show(speedrun().state(), viewport={"width": 1280, "height": 900})
    canvas = tab.locator("canvas").first
    picture = lambda: canvas.evaluate("node => node.toDataURL()")  # noqa: E731
    pictures = [picture()]
    for name in ("tokens", "hours", "dollars"):
        tab.get_by_label(name, exact=True).check()
        pictures.append(picture())
    tab.get_by_label("log scale").first.check()
    pictures.append(picture())
    tab.locator("figure").first.get_by_label("chat_sft", exact=True).uncheck()
    pictures.append(picture())
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + 150, box["y"] + 80)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 300, box["y"] + 80)
    tab.mouse.up()
    pictures.append(picture())
    assert len(set(pictures)) == len(pictures)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "scheme"), list(itertools.product([320, 390, 800, 1600], ["light", "dark"])), ids=lambda value: str(value)
)
def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(show, width, scheme):
    tab = show(speedrun().state(), viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7
    for name in ("--s0", "--s1", "--s2", "--s3", "--s4", "--s5"):
        colour = tab.evaluate(
            "name => { const node = document.createElement('i'); node.style.color = `var(${name})`;"
            "document.body.append(node); return getComputedStyle(node).color }",
            name,
        )
        assert contrast(colour, paper) > 4.5, name  # small text stands on these


def contrast(one, other):
    """WCAG contrast ratio of two `rgb(r, g, b)` colours."""

    def luminance(colour):
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
def test_everything_has_a_name_and_the_numbers_are_there_without_the_picture(show):
    tab = show(speedrun().state(), viewport={"width": 1280, "height": 900})
    nameless = tab.evaluate(
        "[...document.querySelectorAll('canvas,[role=img],input')].filter(node =>"
        " !node.getAttribute('aria-label') && !node.closest('label')).length"
    )
    assert nameless == 0
    assert tab.evaluate("document.documentElement.lang") == "en"
    tab.get_by_text("Numbers").first.click()
    assert tab.locator("details table tbody tr").count() > 10


@pytest.mark.browser
def test_100_000_points_are_drawn_at_once(browser, tmp_path):
    """A page of more points than a run ever keeps: every spike is in the picture, and none is slow."""
    import math

    points = [[n, None, n / 3600, None, 5 - math.log1p(n) / 4 + (8 if n == 77_777 else 0)] for n in range(100_000)]
    data = [{"metric": "loss", "title": "Loss", "unit": "", "log": True, "series": [{"name": "x", "points": points}]}]
    index = tmp_path / "index.html"
    index.write_text(page(content(speedrun(steps=100).state()), data))
    tab = browser.new_page(viewport={"width": 1000, "height": 800})
    tab.goto(index.as_uri())
    canvas = tab.locator("canvas")
    painted = canvas.evaluate(
        "node => { const pen = node.getContext('2d'), rows = new Set();"
        " const x = Math.round((58 + 0.77777 * (node.clientWidth - 68)) * devicePixelRatio);"
        " for (let dx = -3; dx <= 3; dx++) { const column = pen.getImageData(x + dx, 0, 1, node.height).data;"
        " for (let y = 0; y < node.height; y++) if (column[4 * y + 2] > 120 && column[4 * y] < 80) rows.add(y) }"
        " return rows.size / node.height }"
    )
    assert painted > 0.4  # the spike stands nearly as high as the plot
    tab.close()

"""A report as one HTML file that needs nothing else: style, script and data are inside, and it opens offline."""

import json
from html import escape
from pathlib import Path
from typing import Any

from homerun.report.blocks import Bar, Block, Code, Link, Plots, Report, Table

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # nothing is ever fetched
LONG = 40  # characters of a cell that must wrap
SHADES = 6  # of .bar's parts, in page.css


def page(report: Report, plots: list[dict[str, Any]]) -> str:
    """plots: as `curves.plots` gives them; drawn where the report has a `Plots` block."""
    body = [
        f'<p class="verdict {escape(report.status)}">{escape(report.verdict)}</p>',
        f"<h1>{escape(report.title)}</h1>",
    ]
    for section in report.sections:
        body.append(f"<section><h2>{escape(section.title)}</h2>")
        body += [_block(block) for block in section.blocks]
        body.append("</section>")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(report.title)}</title>",
            f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body><main>",
            *body,
            f'</main><script type="application/json" id="plots-data">{_json(plots)}</script>',
            f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script></body></html>",
        ]
    )


def _json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever the strings in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Code():
            return f'<pre tabindex="0">{escape(block.text)}</pre>'
        case Bar():
            parts = "".join(
                f'<span class="shade{index % SHADES}" style="flex-grow:{share:.6f}" title="{escape(words)}">'
                f"{escape(name) if share > 0.08 else ''}</span>"
                for index, (name, share, words) in enumerate(block.parts)
            )
            words = "; ".join(words for _, _, words in block.parts)
            return f'<div class="bar" role="img" aria-label="{escape(words)}">{parts}</div>'
        case Plots():
            return '<div id="plots"><noscript><p>The curves need JavaScript.</p></noscript></div>'
        case Link():
            return f'<p><a href="{escape(block.href)}">{escape(block.text)}</a></p>'
        case _:
            return f"<p>{escape(block)}</p>"


def _table(table: Table) -> str:
    headless = not any(table.header)
    rows = []
    for row in table.rows:
        cells = []
        for column, cell in enumerate(row):
            tag = 'th scope="row"' if column == 0 else "td"
            style = (
                ' class="number"' if column in table.numbers else ' class="long"' if column and len(cell) > LONG else ""
            )
            cells.append(f"<{tag}{style}>{escape(cell)}</{tag.split()[0]}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f'<th scope="col"{" class=number" if column in table.numbers else ""}>{escape(name)}</th>'
        for column, name in enumerate(table.header)
    )
    top = "" if headless else f"<thead><tr>{head}</tr></thead>"
    facts = ' class="facts"' if headless else ""
    return f'<div class="wide" tabindex="0"><table{facts}>{top}<tbody>{"".join(rows)}</tbody></table></div>'

"""A report as Markdown: report.md, readable as plain text too."""

import re
from urllib.parse import quote

from homerun.report.blocks import Bar, Block, Code, Link, Plots, Report, Table

BAR_WIDTH, LEAST_SHARE = 40, 0.005  # the table below has those that would be no bar


def markdown(report: Report) -> str:
    parts = [report.verdict, f"# {report.title}"]
    for section in report.sections:
        parts.append(f"## {section.title}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Code():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
            return f"{fence}\n{block.text}\n{fence}"
        case Bar():
            return "\n".join(["```", *(_share(*part) for part in block.parts if part[1] >= LEAST_SHARE), "```"])
        case Plots():
            return block.note
        case Link():
            return f"[{escape(block.text)}]({quote(block.href)})"
        case _:
            return escape(block)


def _share(name: str, share: float, words: str) -> str:
    return f"{'█' * round(share * BAR_WIDTH):<{BAR_WIDTH}} {share:4.0%}  {words}"


def _table(table: Table) -> str:
    rule = ["--:" if column in table.numbers else ":--" for column in range(len(table.header))]
    rows = [[escape(cell) for cell in row] for row in [table.header, *table.rows]]
    rows.insert(1, rule)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def escape(text: str) -> str:
    """Text that Markdown and HTML renderers show as it is, on one line."""
    text = re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)
    return " ".join(text.split())

"""A report as one page that opens without a network, and as Markdown; both hold the same facts."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

from plotly.offline import get_plotlyjs

from search.report_figures import BEST_SO_FAR, FRESH_SEEDS, STATE_STYLES, WENT_ON
from search.report_sections import Section

_SIGNS = {  # of plotly's markers, in text
    "circle": "●",
    "circle-open": "○",
    "triangle-down-open": "▽",
    "square-open": "□",
    "x-thin-open": "✕",
    "triangle-up-open": "△",
}
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #f3f5f8; margin: 0; }
main, header > div { max-width: 1216px; margin: 0 auto; padding: 0 24px; }
header { background: #14325c; color: #fff; padding: 18px 0 14px; }
header h1 { margin: 0; font-size: 24px; }
header p { margin: 2px 0; opacity: .85; }
nav a { color: #fff; margin-right: 16px; }
h2 { margin: 34px 0 10px; font-size: 22px; border-bottom: 2px solid #14325c; }
h3 { margin: 0 0 4px; font-size: 16px; }
.legend { margin: 16px 0 0; color: #444; }
.legend span { margin-right: 18px; white-space: nowrap; }
.legend b { font-size: 17px; margin-right: 4px; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.card { background: #fff; border: 1px solid #dde2ea; border-radius: 6px; padding: 14px 18px;
  min-width: 0; }
.wide { grid-column: 1 / -1; }
.card p { margin: 0 0 6px; color: #555; font-size: 13.5px; }
.card img { max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; margin: 6px 0; }
th, td { text-align: left; padding: 3px 16px 3px 0; border-bottom: 1px solid #e8ebf0;
  vertical-align: top; font-variant-numeric: tabular-nums; }
th { color: #555; font-weight: 600; }
table.facts { font-size: 15px; }
table.facts td:first-child { color: #555; white-space: nowrap; }
table.facts td:last-child { font-weight: 600; }
summary { cursor: pointer; color: #2563a8; font-size: 13.5px; }
@media (max-width: 900px) { .grid { grid-template-columns: minmax(0, 1fr); } }
"""


@dataclass(frozen=True, kw_only=True)
class TypeReport:
    """All that is said of one machine type."""

    machine_type: str
    key_facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render_html(
    study: str, written: str, reports: Sequence[TypeReport], overview: Sequence[Section] = ()
) -> str:
    """One page with everything in it, plotly's script included.

    Args:
        study: Its name.
        written: When, for people.
        reports: One per machine type.
        overview: What is said of all machine types together, before them.
    """
    links = "".join(
        f'<a href="#{_anchor(index)}">{html.escape(report.machine_type)}</a>'
        for index, report in enumerate(reports)
    )
    body = "\n".join(_type_html(index, report) for index, report in enumerate(reports))
    if overview:
        cards = "\n".join(_card(f"overview-{i}", section) for i, section in enumerate(overview))
        body = f'<h2>All machine types</h2>\n<div class="grid">{cards}</div>\n{body}'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(study)}</title>
<style>{_CSS}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header><div>
<h1>{html.escape(study)}</h1>
<p>A search as its journal told it on {html.escape(written)}.</p>
<nav>{links}</nav>
</div></header>
<main>
{_legend()}
{body}
</main>
</body>
</html>
"""


def render_markdown(
    study: str, written: str, reports: Sequence[TypeReport], overview: Sequence[Section] = ()
) -> str:
    """The text and the tables of all machine types; what a figure shows is in its table."""
    lines = [f"# {study}", "", f"A search as its journal told it on {written}.", ""]
    if overview:
        lines += ["## All machine types", "", *_markdown_sections(overview)]
    for report in reports:
        lines += [f"## {report.machine_type}", ""]
        lines += [*_markdown_table(("fact", "value"), report.key_facts), ""]
        lines += _markdown_sections(report.sections)
    return "\n".join(lines)


def _markdown_sections(sections: Sequence[Section]) -> list[str]:
    lines = []
    for section in sections:
        lines += [f"### {section.title}", ""]
        for text in section.text:
            lines += [text, ""]
        if section.rows:
            lines += [*_markdown_table(section.header, section.rows), ""]
    return lines


def _legend() -> str:
    signs = [(color, _SIGNS[sign], state) for state, (color, sign) in STATE_STYLES.items()]
    signs += [(FRESH_SEEDS, "◆", "fresh seeds"), (BEST_SO_FAR, "━", "best so far, Pareto front")]
    signs += [(WENT_ON, "■", "went on")]
    spans = "".join(
        f'<span><b style="color:{c}">{sign}</b>{name}</span>' for c, sign, name in signs
    )
    return f'<p class="legend">{spans}</p>'


def _type_html(index: int, report: TypeReport) -> str:
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in report.key_facts
    )
    cards = "\n".join(
        _card(f"figure-{index}-{position}", section)
        for position, section in enumerate(report.sections)
    )
    return f"""<section id="{_anchor(index)}">
<h2>{html.escape(report.machine_type)}</h2>
<div class="grid">
<div class="card wide"><table class="facts">{facts}</table></div>
{cards}
</div>
</section>"""


def _card(name: str, section: Section) -> str:
    parts = [f"<h3>{html.escape(section.title)}</h3>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.text]
    if section.figure is not None:
        parts.append(
            section.figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                div_id=name,
                default_height=f"{section.figure.layout.height}px",
                config={"displaylogo": False, "responsive": True, "displayModeBar": False},
            )
        )
    if section.image is not None:
        data = base64.b64encode(section.image).decode()
        parts.append(f'<img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}">')
    if section.rows:
        table = f'<div class="scroll">{_html_table(section.header, section.rows)}</div>'
        is_shown = section.figure is None
        parts.append(
            table if is_shown else f"<details><summary>as a table</summary>{table}</details>"
        )
    kind = "card wide" if section.is_wide else "card"
    return f'<div class="{kind}">' + "\n".join(parts) + "</div>"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (header, *rows)]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]


def _cell(text: str) -> str:
    """Text of one line that cannot end its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(index: int) -> str:
    return f"type-{index}"

"""Draw the bar chart of a comparison as an SVG: texts per second per workload and contender.

Each workload has its own scale, from zero to its longest bar. The thin line shows the range over the rounds.
"""

from collections.abc import Iterator, Sequence
from html import escape

from benchmarks.compare.report import Row
from benchmarks.workloads import WORKLOADS

_WIDTH, _LABELS, _BARS, _LINE, _GAP = 900, 250, 520, 20, 34
_COLOURS = {
    "ours": "#2f6fb2",
    "sleeping": "#5b9bd5",
    "infinity": "#c9792b",
    "plain": "#8a8a8a",
    "ceiling": "#c4d7ea",
}
_STYLE = "font-family:sans-serif;font-size:12px"


def draw(rows: Sequence[Row], *, title: str) -> str:
    """Return the chart as SVG text."""
    parts: list[str] = []
    y = 24
    for workload in WORKLOADS:
        group = [row for row in rows if row.workload == workload]
        if group:
            y += _GAP
            parts.append(_text(10, y - 10, f"{workload.title}: texts/s", weight="bold"))
            parts += _bars(group, y)
            y += _LINE * len(group)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 12}" style="{_STYLE}">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, background, _text(10, 20, title), *parts, "</svg>", ""])


def _bars(group: Sequence[Row], top: int) -> Iterator[str]:
    scale = _BARS / max(row.most for row in group)
    for index, row in enumerate(group):
        y = top + index * _LINE
        middle = y + _LINE // 2
        length = row.texts_per_s * scale
        yield _text(_LABELS - 8, middle + 4, row.contender.title, anchor="end")
        yield (
            f'<rect x="{_LABELS}" y="{y + 2}" width="{length:.1f}" height="{_LINE - 4}" '
            f'fill="{_COLOURS[row.contender.kind]}"/>'
        )
        yield (
            f'<line x1="{_LABELS + row.least * scale:.1f}" x2="{_LABELS + row.most * scale:.1f}" '
            f'y1="{middle}" y2="{middle}" stroke="black"/>'
        )
        label_x = _LABELS + row.most * scale + 6
        yield _text(label_x, middle + 4, f"{row.texts_per_s:.4g}")


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(content)}</text>"
    )

"""Draw a simulated day as an SVG: load, replicas, queue and refusals over the hours.

`draw` uses the colours of `LIGHT`. `python -m benchmarks.capacity.day_picture PICTURE FOLDER` converts a chart to every
theme, for pages that follow the reader's colour scheme.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from html import escape
from pathlib import Path
from typing import Final

_WIDTH, _LEFT, _HEIGHT, _GAP = 900, 60, 110, 42


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a chart in SVG notation. The colours of one theme must all differ."""

    background: str
    text: str
    frame: str
    grey: str
    blue: str
    red: str


LIGHT: Final = Theme("#ffffff", "#1f2328", "#dddddd", "#8a8a8a", "#2f6fb2", "#c0392b")
DARK: Final = Theme("#0d1117", "#e6edf3", "#3d444d", "#9198a1", "#58a6ff", "#ff7b72")
THEMES: Final[Mapping[str, Theme]] = {"light": LIGHT, "dark": DARK}
_STYLE = f"font-family:sans-serif;font-size:13px;fill:{LIGHT.text}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the run. `sent`, `answered`, `refused` and `failed` count texts.

    Attributes:
        hour: the hour of the simulated day, 0 to 24.
        refused: texts rejected with 429.
        failed: texts with any status other than 200 and 429.
        replicas: number of replicas of the model.
        waiting_s: queued work, in seconds of one replica's work.
    """

    hour: float
    sent: int
    answered: int
    refused: int
    failed: int
    replicas: int
    waiting_s: float


Value = Callable[[Sample], float]


def draw(samples: Sequence[Sample], *, title: str, most: int) -> str:
    """Return the chart as SVG text.

    Args:
        samples: one sample per second.
        title: the chart's title.
        most: the maximum number of replicas, which is the top of the panel's scale.
    """
    smooth = _means(samples)
    load: list[tuple[str, Value]] = [
        (LIGHT.grey, lambda s: s.sent),
        (LIGHT.blue, lambda s: s.answered),
    ]
    panels: list[tuple[str, list[tuple[str, Value]], Sequence[Sample], float | None]] = [
        ("texts/s: sent (grey), answered (blue)", load, smooth, None),
        ("replicas", [(LIGHT.blue, lambda s: s.replicas)], samples, most),
        ("queued work, in seconds of one replica", [(LIGHT.blue, lambda s: s.waiting_s)], samples, None),
        ("texts/s: refused with 429", [(LIGHT.red, lambda s: s.refused)], smooth, None),
    ]  # fmt: skip
    parts = [_text(10, 20, title, weight="bold")]
    y = 30
    for name, curves, shown, scale in panels:
        top = scale or max(max(value(s) for s in shown) for _, value in curves) or 1.0
        parts += _panel(name, curves, shown, y + _GAP - 12, top)
        y += _HEIGHT + _GAP
    parts += [_text(_x(hour), y + 14, f"{hour}:00", anchor="middle") for hour in range(0, 25, 4)]
    height = y + 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" style="{_STYLE}">'
    )
    background = f'<rect width="100%" height="100%" fill="{LIGHT.background}"/>'
    return "\n".join([head, background, *parts, "</svg>", ""])


def in_theme(picture: str, theme: Theme) -> str:
    """Convert a chart made by `draw` to another theme."""
    for old, new in zip(astuple(LIGHT), astuple(theme), strict=True):
        picture = picture.replace(old, new)
    return picture


def _means(samples: Sequence[Sample], reach: int = 2) -> list[Sample]:
    """Smooth the counts with a moving average over `reach` seconds on each side."""
    smooth = []
    for index, sample in enumerate(samples):
        near = samples[max(index - reach, 0) : index + reach + 1]

        def mean(value: Callable[[Sample], int], near: Sequence[Sample] = near) -> int:
            return round(sum(map(value, near)) / len(near))

        smooth.append(
            replace(
                sample,
                sent=mean(lambda s: s.sent),
                answered=mean(lambda s: s.answered),
                refused=mean(lambda s: s.refused),
            )
        )
    return smooth


def _panel(
    name: str,
    curves: Sequence[tuple[str, Value]],
    samples: Sequence[Sample],
    top: int,
    scale: float,
) -> Iterator[str]:
    yield _text(_LEFT, top - 4, name)
    most = f"{scale:,.0f}" if scale >= 100 else f"{scale:.3g}"
    yield _text(_LEFT - 6, top + 10, most, anchor="end")
    yield _text(_LEFT - 6, top + _HEIGHT, "0", anchor="end")
    yield (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 20}" height="{_HEIGHT}" '
        f'fill="none" stroke="{LIGHT.frame}"/>'
    )
    for colour, value in curves:
        points = " ".join(
            f"{_x(s.hour):.1f},{top + _HEIGHT * (1 - min(value(s) / scale, 1)):.1f}"
            for s in samples
        )
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _x(hour: float) -> float:
    return _LEFT + hour / 24 * (_WIDTH - _LEFT - 20)


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", weight: str = "normal"
) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(content)}</text>'


def main() -> None:
    """Write the chart in every theme, as `day-light.svg` and `day-dark.svg`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity.day_picture")
    parser.add_argument("picture", type=Path, help="an SVG written by `make simulate`")
    parser.add_argument("folder", type=Path, help="the folder for the themed charts")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    chart = arguments.picture.read_text()
    for name, theme in THEMES.items():
        Path(arguments.folder, f"day-{name}.svg").write_text(in_theme(chart, theme))


if __name__ == "__main__":
    main()

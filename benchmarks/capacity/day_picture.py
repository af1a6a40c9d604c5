"""The picture of a day: load, replicas, queue and refusals over the hours, one below the other, as an SVG."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

_WIDTH, _LEFT, _HEIGHT, _GAP = 900, 60, 110, 42
_STYLE = "font-family:sans-serif;font-size:12px"
_BLUE, _GREY, _RED = "#2f6fb2", "#8a8a8a", "#c0392b"


@dataclass(frozen=True, slots=True)
class Sample:
    """A second of the day.

    Attributes:
        hour: of the simulated day, 0 to 24.
        sent: texts.
        answered: texts.
        refused: texts, with 429.
        failed: texts that were answered otherwise.
        replicas: of the model.
        waiting_s: what waits, in seconds of one replica's work.
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
    """Return the picture; `most` is how many replicas there may be."""
    smooth = _means(samples)
    load: list[tuple[str, Value]] = [(_GREY, lambda s: s.sent), (_BLUE, lambda s: s.answered)]
    panels: list[tuple[str, list[tuple[str, Value]], Sequence[Sample], float | None]] = [
        ("texts/s: sent (grey), answered (blue)", load, smooth, None),
        ("replicas", [(_BLUE, lambda s: s.replicas)], samples, most),
        ("what waits, in seconds of one replica's work", [(_BLUE, lambda s: s.waiting_s)], samples, None),
        ("texts/s: refused with 429", [(_RED, lambda s: s.refused)], smooth, None),
    ]  # fmt: skip
    parts = [_text(10, 20, title, weight="bold")]
    y = 30
    for name, curves, shown, scale in panels:
        top = scale or max(max(value(s) for s in shown) for _, value in curves) or 1.0
        parts += _panel(name, curves, shown, y + _GAP - 12, top)
        y += _HEIGHT + _GAP
    parts += [_text(_x(hour), y + 14, f"{hour}:00", anchor="middle") for hour in range(0, 25, 4)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 24}" style="{_STYLE}">'
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""]
    )


def _means(samples: Sequence[Sample], reach: int = 2) -> list[Sample]:
    """Return each second's counts as the mean over a few around it."""
    smooth = []
    for place, sample in enumerate(samples):
        near = samples[max(place - reach, 0) : place + reach + 1]

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
    yield f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 20}" height="{_HEIGHT}" fill="none" stroke="#ddd"/>'
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

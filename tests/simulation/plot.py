"""Draw a simulation as one SVG: the reads of each run and the age of the oldest copy, store by store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from html import escape

_WIDTH, _LEFT, _RIGHT = 920, 70, 20
_LOAD, _AGE, _GAP, _TITLE = 96, 60, 14, 30
_DAY = timedelta(days=1)
_STYLE = """
  svg { background: #ffffff; font: 12px system-ui, sans-serif; }
  text { fill: #3b4252; } .title { font-weight: 600; font-size: 13px; } .note { fill: #9a3412; }
  .frame { fill: none; stroke: #d4d8e0; } .band { fill: #0f766e; opacity: .14; }
  .load { fill: none; stroke: #0f766e; } .age { fill: none; stroke: #1d4ed8; stroke-width: 1.5; }
  .period { stroke: #b91c1c; stroke-dasharray: 5 4; fill: none; } .event { fill: #ea580c; opacity: .16; }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """What is drawn of one store. The sequences have one value for each run of the sweep.

    `reads` is None where the store is closed. `even`: what an even share is. `events`: begin, end and text of what
    happened, in runs.
    """

    title: str
    reads: Sequence[int | None]
    even: Sequence[float]
    ages: Sequence[timedelta]
    periods: Sequence[timedelta]
    events: Sequence[tuple[float, float, str]] = ()


def draw(panels: Sequence[Panel], every: timedelta) -> str:
    """Return the SVG."""
    height = len(panels) * (_TITLE + _LOAD + _GAP + _AGE + 24) + 24
    label = f"Reads of each run and age of the oldest copy in {len(panels)} simulated stores"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">',
        f"<style>{_STYLE}</style>", f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]  # fmt: skip
    top = 8.0
    for panel in panels:
        parts += _panel(panel, top, every)
        top += _TITLE + _LOAD + _GAP + _AGE + 24
    days = len(panels[0].reads) * every / _DAY
    step = max(1, round(days / 15))
    for day in range(0, int(days) + 1, step):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * day / days
        parts.append(f'<text x="{x:.0f}" y="{top - 4:.0f}" text-anchor="middle">day {day}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, every: timedelta) -> list[str]:
    runs, width = len(panel.reads), _WIDTH - _LEFT - _RIGHT
    most = 2.0 * max(panel.even)

    def x(run: float) -> float:
        return _LEFT + width * run / runs

    load_top, age_top = top + _TITLE - 8, top + _TITLE - 8 + _LOAD + _GAP
    oldest = max(*panel.ages, *panel.periods) * 1.1

    def load_y(value: float) -> float:
        return load_top + _LOAD * (1 - min(value / most, 1.0))

    def age_y(value: timedelta) -> float:
        return age_top + _AGE * (1 - value / oldest)

    parts = [f'<text class="title" x="{_LEFT}" y="{top + 12:.0f}">{escape(panel.title)}</text>']
    for begin, end, text in panel.events:
        parts.append(
            f'<rect class="event" x="{x(begin):.1f}" y="{load_top:.1f}" width="{max(x(end) - x(begin), 2):.1f}" '
            f'height="{_LOAD + _GAP + _AGE}"/>'
        )
        at, anchor = (x(end) + 4, "start") if begin < 0.5 * runs else (x(begin) - 4, "end")
        parts.append(
            f'<text class="note" x="{at:.1f}" y="{load_top + 12:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
        )
    band = [(n, panel.even[n]) for n in range(0, runs, max(1, runs // 200))] + [(runs, panel.even[-1])]
    upper = [f"{x(n):.1f},{load_y(1.2 * value):.1f}" for n, value in band]
    lower = [f"{x(n):.1f},{load_y(0.8 * value):.1f}" for n, value in reversed(band)]
    parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
    points = [f"{x(n + 0.5):.1f},{load_y(value):.1f}" for n, value in enumerate(panel.reads) if value is not None]
    parts.append(f'<polyline class="load" points="{" ".join(points)}"/>')
    some = range(0, runs, max(1, runs // 400))
    ages = " ".join(f"{x(n):.1f},{age_y(panel.ages[n]):.1f}" for n in some)
    periods = " ".join(f"{x(n):.1f},{age_y(panel.periods[n]):.1f}" for n in some)
    parts.append(f'<polyline class="age" points="{ages}"/><polyline class="period" points="{periods}"/>')
    for y, tall in ((load_top, _LOAD), (age_top, _AGE)):
        parts.append(f'<rect class="frame" x="{_LEFT}" y="{y:.1f}" width="{width}" height="{tall}"/>')
    per, period = every / timedelta(hours=1), f"{panel.periods[0] / _DAY:.3g} d"
    parts += [
        f'<text x="{_LEFT - 6}" y="{load_top + 12:.0f}" text-anchor="end">{most / per:,.0f}/h</text>',
        f'<text x="{_LEFT - 6}" y="{load_top + _LOAD:.0f}" text-anchor="end">reads 0</text>',
        f'<text x="{_LEFT - 6}" y="{age_y(panel.periods[0]) + 4:.0f}" text-anchor="end">{period}</text>',
        f'<text x="{_LEFT - 6}" y="{age_top + _AGE:.0f}" text-anchor="end">oldest 0</text>',
    ]
    return parts

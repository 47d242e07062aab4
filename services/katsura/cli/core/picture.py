"""A tree as an SVG picture, for pages and tickets: rows as in the terminal, a column per depth of branching.

    (main)
    o  #1 user       ...
    o  #2 assistant  ...
    |`-(b2)
    |  o  #7 assistant ...
    x  #5 assistant  ...

Pure: an outline in, text out. Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from katsura.cli.core.outline import Line, TreeNode, shortened

_ROW: Final = 26
_LANE: Final = 30
_MARGIN: Final = 18
_CHAR: Final = 7.3
"""Width of a character of the 12 px monospaced face, in px."""
_LABEL_CHARS: Final = 18
_COLOURED: Final = ("user", "assistant")
_STYLE: Final = """\
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#1f2328}
.dim{fill:#6e7781}.line{stroke:#8c959f;stroke-width:2;fill:none}.left .line{stroke-dasharray:4 4}
.dot{stroke:#1f2328;stroke-width:2;fill:#fff}.user{fill:#54aeff}.assistant{fill:#4ac26b}.summary,.hint{fill:#eac54f}
.pill{fill:#eaeef2;stroke:#8c959f}.name{font-weight:bold}.left .name{text-decoration:line-through}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#8b949e}.dot{stroke:#e6edf3;fill:#0d1117}
.user{fill:#1f6feb}.assistant{fill:#238636}.summary,.hint{fill:#9e6a03}.pill{fill:#21262d}}"""


@dataclass(slots=True)
class _Canvas:
    """What was drawn so far; `row` is the next free one."""

    width: int
    default: str
    row: int
    lines: list[str]
    marks: list[str]


def svg(title: str, lines: Sequence[Line], default: str, width: int = 760) -> str:
    """The picture of an outline, `width` px wide; `default` is the branch to be marked as the tree's default."""
    canvas = _Canvas(width, default, 1, [], [])
    for line in lines:
        _draw(canvas, line, 0, None)
    height = canvas.row * _ROW + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
            f"<style>{_STYLE}</style>",
            f'<text class="name" x="{_MARGIN - 6}" y="{_MARGIN + 4}">{escape(title)}</text>',
            *canvas.lines,
            *canvas.marks,
            "</svg>\n",
        ]
    )


def _draw(canvas: _Canvas, line: Line, lane: int, leaves: tuple[float, float] | None) -> None:
    """One branch, `leaves` being the dot that it leaves."""
    x, left = _MARGIN + lane * _LANE, ' class="left"' if line.branch.abandoned else ""
    top = bottom = _y(canvas)
    name = shortened(line.branch.name, _LABEL_CHARS)
    note = escape(line.branch.told(canvas.default))
    note += f"  {line.hidden:,} not shown" if line.hidden else ""
    pill = len(name) * _CHAR + 16
    canvas.marks.append(
        f'<g{left}><rect class="pill" x="{x - 8}" y="{top - 9}" width="{pill:.0f}" height="18" rx="9"/>'
        f'<text class="name" x="{x}" y="{top + 4}">{escape(name)}</text>'
        f'<text class="dim" x="{x + pill:.0f}" y="{top + 4}">{note}</text></g>'
    )
    if leaves is not None:
        canvas.lines.append(
            f'<g{left}><path class="line" d="M{leaves[0]:g} {leaves[1]:g} V{top - 8:g} Q{leaves[0]:g} {top:g} '
            f'{leaves[0] + 8:g} {top:g} H{x - 8:g}"/></g>'
        )
    canvas.row += 1
    for child in line.forks.get(0, ()):
        _draw(canvas, child, lane + 1, None)
    for node in line.nodes:
        bottom = _y(canvas)
        _mark(canvas, node, x, bottom)
        canvas.row += 1
        for child in line.forks.get(node.node_id, ()):
            _draw(canvas, child, lane + 1, (x, bottom))
    canvas.lines.append(f'<g{left}><path class="line" d="M{x} {top + 9} V{bottom}"/></g>' if line.nodes else "")


def _mark(canvas: _Canvas, node: TreeNode, x: float, y: float) -> None:
    if node.kind == "step":
        speaker = node.label if node.label in _COLOURED else "step"
        dot = f'<circle class="dot {speaker}" cx="{x}" cy="{y}" r="6"/>'
    else:
        dot = f'<rect class="dot {node.kind}" x="{x - 6}" y="{y - 6}" width="12" height="12" rx="2"/>'
    head = f"#{node.node_id} {node.label}"
    room = int((canvas.width - x - 20) / _CHAR) - len(head) - 3
    said = escape(shortened(node.text, max(8, room)))
    canvas.marks.append(f'{dot}<text x="{x + 14}" y="{y + 4}"><tspan class="dim">{escape(head)}</tspan>  {said}</text>')


def _y(canvas: _Canvas) -> float:
    return canvas.row * _ROW + _MARGIN

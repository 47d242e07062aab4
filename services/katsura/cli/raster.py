"""The picture of a plan as PNG: draws the few shapes of which `placement.picture` makes its SVG, by Pillow.

Whoever has a browser needs none of this: it shows the SVG.
"""

from __future__ import annotations

import io
import re
from typing import Final
from xml.etree import ElementTree

from PIL import Image, ImageColor, ImageDraw, ImageFont

_SVG: Final = "{http://www.w3.org/2000/svg}"
_SCALE: Final = 2
"""Pixels per point: sharp on any screen."""
_TO: Final = re.compile(r"([MVH])([\d. ]+)")


def png(svg: str) -> bytes:
    """`svg`, which `placement.picture.draw` made, as PNG; `_SCALE` pixels per point."""
    root = ElementTree.fromstring(svg)  # noqa: S314  (it is ours)
    size = int(_number(root, "width")), int(_number(root, "height"))
    image = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), "white")
    pen = ImageDraw.Draw(image)
    for shape in root:
        match shape.tag.removeprefix(_SVG):
            case "rect" if shape.get("width") != "100%":
                _rect(pen, shape)
            case "text":
                _text(pen, shape)
            case "path":
                _path(pen, shape)
            case "circle":
                _circle(pen, shape)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _number(shape: ElementTree.Element, name: str) -> float:
    return float(shape.get(name, "0"))


def _colour(shape: ElementTree.Element, name: str) -> tuple[int, ...] | None:
    said = shape.get(name)
    return None if said in (None, "none") else ImageColor.getrgb(said)


def _rect(pen: ImageDraw.ImageDraw, shape: ElementTree.Element) -> None:
    x, y, width, height = (_number(shape, name) * _SCALE for name in ("x", "y", "width", "height"))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=_colour(shape, "fill"))


def _text(pen: ImageDraw.ImageDraw, shape: ElementTree.Element) -> None:
    font = ImageFont.load_default(size=_number(shape, "font-size") * _SCALE)
    anchor = "rs" if shape.get("text-anchor") == "end" else "ls"
    at = _number(shape, "x") * _SCALE, _number(shape, "y") * _SCALE
    pen.text(at, shape.text or "", fill=(0, 0, 0), font=font, anchor=anchor)


def _path(pen: ImageDraw.ImageDraw, shape: ElementTree.Element) -> None:
    points: list[tuple[float, float]] = []
    for move, said in _TO.findall(shape.get("d", "")):
        numbers = [float(n) * _SCALE for n in said.split()]
        x, y = (numbers[0], numbers[1]) if move == "M" else points[-1]
        points.append((numbers[0] if move == "H" else x, numbers[0] if move == "V" else y))
    pen.line(points, fill=_colour(shape, "stroke"), width=_SCALE)


def _circle(pen: ImageDraw.ImageDraw, shape: ElementTree.Element) -> None:
    centre = _number(shape, "cx") * _SCALE, _number(shape, "cy") * _SCALE
    pen.circle(
        centre,
        _number(shape, "r") * _SCALE,
        fill=_colour(shape, "fill"),
        outline=_colour(shape, "stroke"),
        width=_SCALE,
    )

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from katsura.cli.plan import PlanOptions, run_plan
from katsura.cli.raster import png

CLUSTERS = Path(__file__).resolve().parents[3] / "deploy" / "samples" / "clusters"
SHAPES = """<svg xmlns="http://www.w3.org/2000/svg" width="100" height="60" font-size="11">
<rect width="100%" height="100%" fill="white"/>
<rect x="10" y="10" width="10" height="10" fill="#3b6ea5"><title>chat</title></rect>
<text x="90" y="20" font-size="11" text-anchor="end">chat</text>
<path d="M10 30 V50 H60.5" fill="none" stroke="#888"/>
<circle cx="80" cy="40" r="4" fill="#c8553d"/>
<circle cx="60" cy="40" r="4" fill="white" stroke="#c8553d"/>
</svg>"""


def test_every_shape_is_where_the_svg_has_it() -> None:
    image = Image.open(io.BytesIO(png(SHAPES)))
    assert image.size == (200, 120)

    def at(x: float, y: float) -> object:
        return image.getpixel((round(x * 2), round(y * 2)))

    assert at(1, 1) == (255, 255, 255)
    assert at(15, 15) == (0x3B, 0x6E, 0xA5)
    assert at(22, 15) == (255, 255, 255)
    assert at(10, 40) == at(40, 50) == (0x88, 0x88, 0x88)
    assert at(40, 40) == (255, 255, 255)
    assert at(80, 40) == (0xC8, 0x55, 0x3D)
    assert at(60, 40) == (255, 255, 255)
    assert at(60, 36.2) == (0xC8, 0x55, 0x3D)
    words = image.crop((130, 20, 182, 44)).convert("L")
    assert words.getextrema()[0] < 60  # black ink, left of its anchor
    assert image.crop((184, 20, 200, 44)).convert("L").getextrema() == (255, 255)


def test_a_plan_is_drawn_as_png(tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    run_plan(
        PlanOptions((CLUSTERS / "mixed-gpus.yaml",), png=file, svg=tmp_path / "plan.svg"),
        {},
        Console(file=io.StringIO()),
    )
    image = Image.open(file)
    assert image.format == "PNG"
    assert image.width == 2000
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or ()}
    assert {(0x3B, 0x6E, 0xA5), (0xC8, 0x55, 0x3D)} <= colours


@pytest.mark.parametrize("sample", sorted(path.name for path in CLUSTERS.glob("*.yaml")))
def test_no_shape_of_a_real_picture_is_passed_over(sample: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.svg"
    run_plan(PlanOptions((CLUSTERS / sample,), svg=file), {}, Console(file=io.StringIO()))
    assert len(png(file.read_text())) > 5000

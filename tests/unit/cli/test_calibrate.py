from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from katsura.cli.calibrate import CalibrateOptions, calibrate, measure, steady_itl_s
from katsura.cli.exit import Exit
from katsura.cli.main import run
from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, KatsuraError, UnavailableError
from katsura.placement.calibration import read_devices
from katsura.placement.cost import ErrorClass, Load

LAPTOP = Path(__file__).resolve().parents[3] / "deploy" / "samples" / "clusters" / "laptop.yaml"
TABLE = "batch,prompt,output,itl_ms,ttft_ms\n1,64,32,40,90\n2,64,32,46,150\n4,256,32,60,900\n8,64,32,82,500\n"


class Words(httpx.AsyncByteStream):
    def __init__(self, count: int) -> None:
        self.count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.count):
            yield b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        yield b'data: {"choices": [], "usage": {"prompt_tokens": 77}}\n\ndata: [DONE]\n\n'


def client(count: int, status: int = 200) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["stream"]
        return httpx.Response(status, stream=Words(count))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://it")


async def test_streams_are_timed_at_every_point_of_the_grid() -> None:
    made = await measure(client(5), "m", ((1, 8), (3, 16)), Console(file=io.StringIO()))
    assert [(m.batch, m.prompt, m.output) for m in made] == [(1, 77, 5), (3, 77, 5)]
    assert all(m.itl_s > 0 and m.ttft_s > 0 for m in made)


@pytest.mark.parametrize(("count", "status"), [(1, 200), (5, 503)])
async def test_a_server_that_cannot_be_timed_is_said(count: int, status: int) -> None:
    with pytest.raises(UnavailableError):
        await measure(client(count, status), "m", ((1, 8),), Console(file=io.StringIO()))


def test_a_table_becomes_measured_coefficients_beside_others(tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "c.json"
    table.write_text(TABLE)
    for device in ("cpu", "cpu-amx"):
        options = CalibrateOptions((LAPTOP,), device, out, table=table)
        assert calibrate(options, {}, Console(file=io.StringIO())) is Exit.OK
    found = read_devices(out.read_text())
    assert set(found) == {"cpu", "cpu-amx"}
    assert found["cpu"].error_class is ErrorClass.MEASURED
    assert found["cpu"].rows == 4


def test_the_command_line_reaches_it(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(TABLE)
    words = ["calibrate", "-f", str(LAPTOP), "--device", "cpu", "--table", str(table), "-o", str(tmp_path / "c.json")]
    assert run(words, {}) == Exit.OK
    table.write_text("batch\n1\n")
    assert run(words, {}) == Exit.USAGE


async def test_a_trial_is_timed_with_its_requests_open_all_the_time() -> None:
    open_now, most, prompts = 0, 0, []

    class Open(Words):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            async for chunk in super().__aiter__():
                await asyncio.sleep(0)
                yield chunk
            open_now -= 1

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        prompts.append((body["messages"][0]["content"], body["max_tokens"]))
        return httpx.Response(200, stream=Open(6))

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://it") as http:
        made = await steady_itl_s(http, "m", 3, Load(400, 50, 0.5))
    assert made > 0
    assert most == 3
    assert len(prompts) == 1 + 3 * 3
    assert {output for _, output in prompts[1:]} == {50}
    halves = [text.split()[: len(text.split()) // 2] for text, _ in prompts[1:]]
    assert all(half == halves[0] for half in halves)
    assert len({text for text, _ in prompts}) == len(prompts)


def test_what_others_wrote_while_a_trial_ran_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, head = tmp_path / "t.csv", "deployment,device,units,batch,itl_ms\n"
    mine, others = "smollm2-135m-instruct,cpu,4,2,", "other,cpu,1,4,"
    table.write_text(f"{head}{mine}\n{others}\n")

    async def timed(*_: object) -> float:
        table.write_text(f"{head}{mine}\n{others}77\nlate,cpu,1,1,\n")
        return 0.0421

    monkeypatch.setattr("katsura.cli.calibrate._time_trial", timed)
    options = CalibrateOptions((LAPTOP,), "", tmp_path / "c.json", trials=table)
    assert calibrate(options, {}, Console(file=io.StringIO())) is Exit.OK
    assert table.read_text() == f"{head}{mine}42.1\n{others}77\nlate,cpu,1,1,\n"


def test_a_trial_that_nobody_asked_for_is_said(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("deployment,device,units,batch,itl_ms\nother,cpu,1,4,\n")
    with pytest.raises(FailedPreconditionError, match="no trial of smollm2-135m-instruct waits"):
        calibrate(CalibrateOptions((LAPTOP,), "", table, trials=table), {}, Console(file=io.StringIO()))
    with pytest.raises(InvalidArgumentError, match="--device"):
        calibrate(CalibrateOptions((LAPTOP,), "", table), {}, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("device", "units", "out", "said"),
    [
        ("H900", 1, "c.json", "no device 'H900'"),
        ("cpu", 0, "c.json", "--units 0: expected 1 or more"),
        ("cpu", 1, "none/c.json", "cannot be written"),
        ("cpu", 1, "wrong.json", "wrong.json: calibration"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_timed(
    tmp_path: Path, device: str, units: int, out: str, said: str
) -> None:
    (tmp_path / "wrong.json").write_text("no")
    with pytest.raises(KatsuraError, match=said):  # nothing answers at this address: timing would say so
        calibrate(
            CalibrateOptions((LAPTOP,), device, tmp_path / out, url="http://127.0.0.1:1", units=units), {}, Console()
        )

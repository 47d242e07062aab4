import pytest

from katsura.domain.units import human_bytes, human_seconds


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_bytes_read_well(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12 ms"), (1.25, "1.2 s"), (75.2, "1 min 15 s")])
def test_seconds_read_well(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text

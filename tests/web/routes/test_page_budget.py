"""The memory of many pages at once."""

import concurrent.futures
from typing import Final

import httpx
import pytest

from tests.support.memory import peak_bytes, reset_peak, resident_bytes
from tests.support.service import Service
from tests.web.routes.foreign import Foreign

pytestmark = pytest.mark.long

#: Each character takes 6 bytes in JSON.
CONTROL: Final = "\x01" * 65_536


@pytest.fixture
def control(job: Foreign) -> Foreign:
    """A job of 30 lines, which are 12 MB of JSON."""
    return job.lines([CONTROL] * 30)


def test_concurrent_pages_share_limited_memory(service: Service, auth: dict[str, str], control: Foreign) -> None:
    """Pages become shorter, and each has a cursor."""
    (pid,) = service.worker_pids()
    reset_peak(pid)
    before = resident_bytes(pid)

    def ask(_: int) -> list[int]:
        path = f"{service.url}{control.path}/logs/search?q=%01&limit=1000&before=3"
        response = httpx.get(path, headers=auth, timeout=60, verify=False)
        assert response.status_code in (200, 429), response.text
        return [log["sequence_num"] for log in response.json().get("logs", [])]

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        found = [each for each in pool.map(ask, range(100)) if each]

    assert found
    assert all(each == [*range(1, len(each) + 1)] for each in found)
    assert peak_bytes(pid) - before < 150 * 2**20

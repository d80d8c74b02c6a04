"""``GET …/summary``: its format, its size limit, and access to it."""

import httpx

from tests.web.routes.foreign import Foreign


def test_a_summary_respects_its_size_limit(client: httpx.Client, job: Foreign) -> None:
    """The job equals that of its own route."""
    words = [chr(97 + number % 26) * (2 + number // 26) for number in range(100)]
    job.lines([f"error {'x' * 500} {word}" for word in words]).end("FAILED", 1)
    for size in (1_024, 4_000, 262_144):
        answer = client.get(f"{job.path}/summary", params={"bytes": size})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
        assert len(answer.content) <= size
        summary = answer.json()
        assert summary["job"] == client.get(job.path).json()
        assert summary["errors"]["count"] == 100
        assert summary["truncated"] is (size < 262_144)

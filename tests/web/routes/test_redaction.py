"""Redaction and deletion over HTTP, in every tier and with connected viewers."""

import secrets

import httpx
import pytest
import redis

from chronoverse.joblog.model import JobRef
from tests.support.servers import RedisServer
from tests.web.routes.foreign import Foreign
from tests.web.routes.site import Site

TOMBSTONE = "[redacted]"


def messages(site: Site, job: Foreign) -> dict[int, str]:
    """The job's messages, which are the same on every route."""
    lines = {line["sequence_num"]: line["message"] for line in site.pages(f"{job.path}/logs?limit=1000")}
    down = {line["sequence_num"]: line["message"] for line in site.pages(f"{job.path}/logs?limit=1000&order=desc")}
    text = site.client.get(f"{job.path}/logs/raw").text.splitlines()
    assert lines == down
    assert [*lines.values()] == text
    return lines


def redact(site: Site, job: Foreign, **body: object) -> httpx.Response:
    return site.client.post(f"{job.path}/logs/redact", json=body)


@pytest.mark.parametrize(
    ("first", "last"),
    [(95, 205), *(pytest.param(*each, marks=pytest.mark.long) for each in ((150, 150), (250, 260), (1, 300)))],
    ids=str,
)
@pytest.mark.parametrize("trim", [True, pytest.param(False, marks=pytest.mark.long)], ids=["trimmed", "hot"])
def test_a_range_is_redacted_in_every_tier(site: Site, first: int, last: int, trim: bool) -> None:
    """In two chunks, in one, or in none.

    Numbers, times and streams are unchanged, and no object contains the old text.
    """
    job = site.job().lines((f"secret {number}" for number in range(1, 301)), ("stdout", "stderr"))
    site.archive_up_to(job, 100, trim=trim)
    site.archive_up_to(job, 200, trim=trim)
    job.end()
    before = site.pages(f"{job.path}/logs?limit=1000")

    answer = redact(site, job, **{"from": first, "to": last}, reason="a password")

    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "workflow_id": job.workflow_id,
        "id": job.job_id,
        "redacted": last - first + 1,
        "through": last,
        "next": None,
        "pending": False,
    }
    expected = [{**line, "message": TOMBSTONE} if first <= line["sequence_num"] <= last else line for line in before]
    assert site.pages(f"{job.path}/logs?limit=1000") == expected
    messages(site, job)
    assert [block["data"] for block in site.events(job) if block["event"] == "log"] == expected
    again = redact(site, job, **{"from": first, "to": last})
    assert again.json()["redacted"] == 0
    audit = site.client.get(f"{job.path}/logs/redactions").json()["redactions"]
    assert (audit[0]["from"], audit[-1]["to"], sum(each["count"] for each in audit)) == (first, last, last - first + 1)
    assert {(each["subject"], each["reason"]) for each in audit} == {("tests", "a password")}
    known = {chunk.name for chunk in site.store.chunks.chunks(JobRef(job.workflow_id, job.job_id))}
    assert {stored.name for stored in site.objects.list(f"{job.workflow_id}/{job.job_id}/")} == known


@pytest.mark.parametrize(
    ("archived", "later", "size"),
    [
        ([], 50, 1),
        ([150], 1_100, 1),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (([], 3_000, 1), ([150, 1_200], 1_100, 1), ([], 320, 2_000))
        ),
    ],
)
def test_the_store_forgets_redacted_text(
    site: Site, redis_server: RedisServer, archived: list[int], later: int, size: int
) -> None:
    """Trimmed entries must not stay in its snapshots beside the entries that follow them. The log continues."""
    texts = [secrets.token_hex(16) for _ in range(150)] + [secrets.token_hex(16) * size for _ in range(later)]
    job = site.job().lines(texts)
    for number in archived:
        site.archive_up_to(job, number, trim=len(archived) == 1)

    with redis.Redis.from_url(redis_server.url) as client:
        added = client.info("commandstats")["cmdstat_xadd"]["calls"]
        assert redact(site, job, **{"from": 40, "to": 150}).json()["redacted"] == 111

        # One script adds them again. Meanwhile, the store does nothing else.
        added = client.info("commandstats")["cmdstat_xadd"]["calls"] - added
        assert added * 32 * size <= 2**20
        client.config_set("rdbcompression", "no")
        stored = client.dump(f"chronoverse:{{{job.workflow_id}}}:{job.job_id}:log")
    kept = [text.encode() in stored for text in texts]
    assert not any(kept[39:150])
    assert kept[-1]
    job.lines(["the next"]).end()
    expected = dict(enumerate([*texts[:39], *[TOMBSTONE] * 111, *texts[150:], "the next"], 1))
    assert messages(site, job) == expected


def test_matches_are_redacted(site: Site) -> None:
    """All of them, in every tier, and nothing else."""
    job = site.job().lines(f"line {number} token={number % 7}" for number in range(1, 301))
    site.archive_up_to(job, 120, trim=True)
    job.end()

    answer = redact(site, job, q=r"token=[03]\b", regex=True)

    assert (answer.status_code, answer.json()["next"]) == (200, None)
    texts = messages(site, job)
    assert [number for number in texts if texts[number] == TOMBSTONE] == [n for n in range(1, 301) if n % 7 in (0, 3)]
    assert answer.json()["redacted"] == len([n for n in range(1, 301) if n % 7 in (0, 3)])


def test_viewers_get_one_redact_event(site: Site) -> None:
    """Once per viewer, within about a second.

    Later viewers get none. The newest line of a running job cannot be redacted yet.
    """
    job = site.job().lines(f"secret {number}" for number in range(1, 51))
    with site.stream(job) as first, site.stream(job, "?offset=40") as second:
        first.wait_for(b"id: 50\n")
        second.wait_for(b"id: 50\n")
        refused = redact(site, job, **{"from": 40, "to": 50})
        assert (refused.status_code, refused.json()["reason"]) == (409, "STILL_LIVE")
        assert redact(site, job, **{"from": 40, "to": 49}).status_code == 200
        for stream in (first, second):
            stream.wait_for(b'event: redact\ndata: {"from":40,"to":49}\n\n')
        job.lines(["more"]).end()
        for stream in (first, second):
            stream.wait_end()
            assert stream.body.count(b"event: redact") == 1
            assert stream.numbers()[-1] == 51
    late = site.events(job)
    assert [block["data"]["message"] for block in late if block["event"] == "log"][39:] == [
        *[TOMBSTONE] * 10,
        "secret 50",
        "more",
    ]
    assert len([block for block in late if block["event"] == "log"]) == 51


@pytest.mark.long
def test_a_line_that_is_too_long_for_an_expression_is_reported(site: Site) -> None:
    """Nothing is redacted. Lines after it can be redacted, and the line itself by its number."""
    job = site.job().lines(["a secret", "a" * 3 * 2**20, "a secret"]).end()
    query = {"q": "(?:a.{0,50}){4}z|secret", "regex": True}

    refused = redact(site, job, **query)
    assert (refused.status_code, refused.json()["detail"].partition(",")[0]) == (400, "line 2 has 3145728 characters")
    assert redact(site, job, **{"from": 3}, **query).json()["redacted"] == 1
    assert redact(site, job, **{"from": 2, "to": 2}).json()["redacted"] == 1
    assert [*messages(site, job).values()] == ["a secret", TOMBSTONE, TOMBSTONE]

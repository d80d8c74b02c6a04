"""One subject's activity cannot push other entries out of the audit trail."""

import contextlib
from typing import Any

from chronoverse.store import Store
from tests.support.reading import Clock


def test_many_deletions_do_not_push_out_the_entries_of_others(server: Any, prefix: str) -> None:
    """A subject's first hundred deletions of a day have entries, then every hundredth, across all workflows."""
    clock = Clock()
    with contextlib.closing(Store(server.url, prefix=prefix, clock=clock)) as store:
        audit = store.audit_trail
        for number in range(1, 1_051):
            audit.record("eve", "delete", f"wf_{number // 100}", f"job_{number}", "the job and its log")
        audit.record("eve", "limits", "wf_1", None, "job_bytes 1")
        audit.record("bob", "delete", "wf_1", "job_2000", "the job and its log")
        clock.now += 90_000
        for number in range(3_000, 3_150):
            audit.record("eve", "delete", "wf_1", f"job_{number}", "the job and its log")
        entries = [entry for _, entry in audit.page(0, None, None, 1_000)][::-1]
    assert entries.pop(110)["did"] == "limits"
    ids = [*range(1, 101), *range(101, 1_051, 100), 2_000, *range(3_000, 3_101)]
    assert [entry["id"] for entry in entries] == [f"job_{number}" for number in ids]
    whats = {entry["what"] for entry in (*entries[100:110], entries[-1])}
    assert whats == {"the job and its log; only the log has the next 99 entries"}
    assert {entry["what"] for entry in (*entries[:100], *entries[110:-1])} == {"the job and its log"}

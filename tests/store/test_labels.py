"""The labels of a job: set once by its runners, or written into its hash by anybody."""

import pytest

from chronoverse.errors import LabelSet
from chronoverse.joblog.labels import Labels, check_labels
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store
from tests.support.bench import JOB, NOW, Bench

MAIN = check_labels({"branch": "main", "commit": "4f0c1de"})


def labels(store: Store, job: JobRef = JOB) -> Labels | None:
    found = store.get_job(job)
    return found.labels if found else None


def test_labels_cannot_be_changed(bench: Bench, store: Store) -> None:
    assert store.register(JOB, MAIN)
    assert not store.register(JOB, check_labels({"step": "test"}))
    attempt = store.open(JOB, "token", labels=check_labels({"branch": "main", "os": "é"}))
    assert store.open(JOB, "token", labels=MAIN) == attempt
    everything = check_labels({"branch": "main", "commit": "4f0c1de", "os": "é", "step": "test"})
    assert labels(store) == everything
    before = bench.snapshot()
    for refused in (lambda given: store.open(JOB, "token", labels=given), lambda given: store.register(JOB, given)):
        with pytest.raises(LabelSet, match="label branch, step: it has another value") as error:
            refused(check_labels({"branch": "next", "step": "build", "url": "https://ci.example.com/1"}))
        assert error.value.keys == ("branch", "step")
    assert bench.snapshot() == before
    store.finish(attempt, Status.COMPLETED, 0, 0, 1)
    assert not store.register(JOB, MAIN)
    with pytest.raises(LabelSet):
        store.register(JOB, check_labels({"late": "x"}))
    assert labels(store) == everything


def test_a_seventeenth_label_is_refused(store: Store) -> None:
    store.register(JOB, check_labels({f"k{number:02}": "v" for number in range(14)}))
    with pytest.raises(LabelSet) as error:
        store.open(JOB, "token", labels=check_labels({"k00": "v", "x1": "v", "x2": "v", "x3": "v"}))
    assert error.value.keys == ("x3",)
    store.open(JOB, "token", labels=check_labels({"k00": "v", "x1": "v", "x2": "v"}))
    assert len(labels(store) or ()) == 16


@pytest.mark.parametrize("registered", [False, True])
def test_a_foreign_runner_sets_labels_with_hset_and_invalid_ones_are_omitted(
    bench: Bench, store: Store, registered: bool
) -> None:
    bench.ask("HSET", bench.key("job"), "label:branch", "main", "label:url", "u" * 256, "label:empty", "")
    assert store.get_job(JOB) is None
    if registered:
        store.register(JOB)
        bench.ask("SET", bench.key("lease"), "host", "PX", "60000")
        bench.ask("HSET", bench.key("job"), "status", "RUNNING", "attempt", "1")
    bench.xadd("1-0", "timestamp", NOW, "message", "a")
    bad = ["label:", "label:Upper", "label:a b", f"label:{'k' * 64}", "label", "xlabel:a", b"label:\xff", "label:a\0"]
    for field in bad:
        bench.ask("HSET", bench.key("job"), field, "v")
    for key, value in {"big": "v" * 2**20, "long": "v" * 257, "escape": "\x1b[31m", "bytes": b"\xff\xfe"}.items():
        bench.ask("HSET", bench.key("job"), f"label:{key}", value)
    expected = check_labels({"branch": "main", "url": "u" * 256})
    assert labels(store) == expected
    (job,) = store.get_jobs([JOB])
    assert job == store.get_job(JOB)
    # An oversized hash is not read, but the job still exists.
    bench.ask("HSET", bench.key("job"), *(each for number in range(200) for each in (f"x{number}", "y")))
    assert labels(store) == ()
    if not registered:
        assert store.open(JOB, "token", labels=check_labels({"branch": "main"})).next == 2

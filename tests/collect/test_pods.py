"""Derived from a pod's API object: its jobs' names and labels, and its containers' outcomes."""

from typing import Any, Final

import pytest

from chronoverse.collect.pods import ContainerEnd, Pod
from chronoverse.joblog.model import IDENTIFIER
from tests.collect.node import ended, pod, with_state

RUNNING: Final[dict[str, Any]] = {"running": {}}
ERROR: Final = {"exitCode": 2, "reason": "Error"}
ARGO: Final = "workflows.argoproj.io"


@pytest.mark.parametrize(
    ("name", "changes", "workflow"),
    [
        ("backup-29012345-abcde", {"owner": ("Job", "backup-29012345")}, "shop.backup"),
        ("migrate-abcde", {"owner": ("Job", "migrate")}, "shop.migrate"),
        ("build-x7k2p-abcde", {"owner": ("Job", "build-x7k2p")}, "shop.build"),
        ("web-6d4c-x", {"owner": ("ReplicaSet", "web-6d4c"), "labels": {"pod-template-hash": "6d4c"}}, "shop.web"),
        ("db-0", {"owner": ("StatefulSet", "db")}, "shop.db"),
        ("once", {}, "shop.once"),
        ("of-two", {"owner": ("Custom", "two"), "controller": False}, "shop.two"),
        ("etl-x7k2p-123", {"owner": ("Workflow", "etl-x7k2p")}, "shop.etl"),
        ("etl-x7", {"owner": ("Workflow", "e"), "labels": {f"{ARGO}/workflow-template": "etl"}}, "shop.etl"),
        ("n-1", {"owner": ("Workflow", "n"), "labels": {f"{ARGO}/cron-workflow": "night"}}, "shop.night"),
        (
            "tk",
            {"owner": ("TaskRun", "x"), "labels": {"tekton.dev/task": "lint", "tekton.dev/pipeline": "ci"}},
            "shop.ci",
        ),
        ("tk", {"owner": ("TaskRun", "x"), "labels": {"tekton.dev/task": "lint"}}, "shop.lint"),
        ("af-1", {"labels": {"dag_id": "Daily_Load"}}, "shop.Daily_Load"),
        ("any", {"annotations": {"chronoverse/workflow": "team a/ci"}}, "team-a-ci"),
    ],
)
def test_a_workflow_is_named_after_what_the_pod_is_a_run_of(name: str, changes: dict[str, Any], workflow: str) -> None:
    """In this order: annotation, CronJob, labels of orchestrators, controller, the pod itself."""
    assert Pod(pod(name, **changes)).job("main", 0) == (workflow, f"{name}.main")


def test_each_run_of_a_container_is_a_job_with_an_id() -> None:
    """Restarts are numbered. An annotation names the first container's job. Ids are unique, and none is too long."""
    one = Pod(pod("one", annotations={"chronoverse/job": "build 7"}, containers=["a", "b"]))
    assert [one.job(name, restart).job_id for name, restart in (("a", 0), ("a", 2), ("b", 0), ("b", 1))] == [
        "build-7",
        "build-7.2",
        "build-7.b",
        "build-7.b.1",
    ]
    ids = [Pod(pod("p" * 240 + end)).job("main", restart).job_id for end in "ab" for restart in (0, 1)]
    assert len(set(ids)) == 4
    assert all(IDENTIFIER.fullmatch(each) for each in ids)


@pytest.mark.parametrize(
    ("policy", "annotation", "is_collected"),
    [
        ("Never", None, True),
        ("OnFailure", None, True),
        ("Always", None, False),
        ("Always", "true", True),
        ("Never", "false", False),
    ],
)
def test_pods_that_end_are_collected(policy: str, annotation: str | None, is_collected: bool) -> None:
    """An annotation overrides this. Namespaces can be selected."""
    annotations = {"chronoverse/collect": annotation} if annotation else {}
    one = Pod(pod("one", annotations=annotations, spec={"restartPolicy": policy}))

    assert one.is_collected(()) is is_collected
    assert one.is_collected(("shop", "other")) is is_collected
    assert not one.is_collected(("other",))


def test_labels_are_those_of_the_job_and_selected_ones_of_the_pod() -> None:
    """Invalid ones are omitted."""
    one = Pod(pod("one", labels={"team": "a", "Wrong": "b", "x": ""}))

    assert dict(one.labels("main", ["team", "Wrong", "x", "absent"])) == {
        "namespace": "shop",
        "pod": "one",
        "container": "main",
        "node": "node-1",
        "image": "registry.example.com/app:1",
        "team": "a",
    }


@pytest.mark.parametrize(
    ("data", "restart", "end"),
    [
        (ended(pod("one")), 0, ContainerEnd(0, "Completed")),
        (ended(pod("one"), 137, "OOMKilled"), 0, ContainerEnd(137, "OOMKilled")),
        (ended(pod("one", reason="Evicted"), 137, "Error"), 0, ContainerEnd(137, "Evicted")),
        (with_state(pod("one"), **RUNNING), 0, None),
        (with_state(pod("one", reason="Evicted"), restarts=1, **RUNNING, last=ERROR), 0, ContainerEnd(2, "Error")),
        (with_state(pod("one"), restarts=1, **RUNNING, last=ERROR), 1, None),
        (with_state(pod("one"), restarts=2, **RUNNING, last=ERROR), 0, None),
        (pod("one", phase="Failed", reason="Evicted"), 0, ContainerEnd(None, "Evicted")),
        (ended(pod("one"), 128, "StartError"), 0, ContainerEnd(128, "StartError", "StartError: None")),
    ],
)
def test_a_container_ends_according_to_its_status(data: dict[str, Any], restart: int, end: ContainerEnd | None) -> None:
    """Also in a run that is not the last one."""
    assert Pod(data).end("main", restart) == end


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (pod("one"), None),
        (with_state(pod("one"), waiting={"reason": "ContainerCreating"}), None),
        (with_state(pod("one"), **RUNNING), None),
        (ended(pod("one"), 1), None),
        (with_state(pod("one"), waiting={"reason": "ImagePullBackOff"}, last={"exitCode": 1}), None),
        (with_state(pod("one"), restarts=1, waiting={"reason": "ImagePullBackOff"}), None),
        (with_state(pod("one"), restarts=1, waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 1}), None),
        (
            with_state(pod("one"), waiting={"reason": "ImagePullBackOff", "message": "Back-off\n pulling"}),
            "ImagePullBackOff: Back-off\n pulling",
        ),
        (pod("one", phase="Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
    ],
)
def test_a_container_that_never_started_reports_why(data: dict[str, Any], failure: str | None) -> None:
    found = Pod(data).start_failure("main")
    assert (found and found.message) == failure
    assert found is None or found.exit_code is None

"""The Kubernetes example: by the schemas of two releases, and by what the service really does."""

from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from chronoverse.cli.main import commands
from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.deploy.conftest import DEPLOY, Gunicorn, uid
from tests.support.service import SECRET

#: The oldest release with a preStop that sleeps by itself and needs no shell, and the newest that is known.
RELEASES: Final = ("1.34", kubernetes_validate.latest_version())


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The file's documents by kind; the archiver's Deployment aside."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {
        document["kind"]: document for document in documents if document["metadata"]["name"] != "chronoverse-archiver"
    }


@pytest.fixture(scope="module")
def archiver() -> dict[str, Any]:
    """The archiver's Deployment."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (found,) = [each for each in documents if each["metadata"]["name"] == "chronoverse-archiver"]
    return dict(found)


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    """What every pod is made of."""
    found: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Its one container."""
    (found,) = pod["containers"]
    return dict(found)


@pytest.mark.parametrize("release", RELEASES)
def test_every_object_is_as_the_release_has_it(objects: dict[str, Any], archiver: dict[str, Any], release: str) -> None:
    """Strictly: a misspelt name is no name."""
    for document in (*objects.values(), archiver):
        kubernetes_validate.validate(document, release, strict=True)

    assert objects.keys() == {"Deployment", "PodDisruptionBudget", "Service", "Ingress"}


def test_the_probes_ask_what_the_service_answers(container: dict[str, Any], tmp_path: Path) -> None:
    """Readiness asks for the store too, and liveness does not: here there is none."""
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock", jwt_secret=SECRET)
    client = create_app(settings).test_client()
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}

    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
    assert client.get(probes["liveness"]["path"]).status_code == 200
    assert client.get(probes["readiness"]["path"]).status_code == 503


def test_a_pod_has_the_time_to_drain(pod: dict[str, Any], container: dict[str, Any], gunicorn: Gunicorn) -> None:
    """After it has been taken out of the service's endpoints."""
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container["readinessProbe"]

    assert pod["terminationGracePeriodSeconds"] > pause + gunicorn.drain_seconds
    assert pause >= readiness["timeoutSeconds"]


def test_there_is_always_a_pod(objects: dict[str, Any]) -> None:
    """Neither a new release nor a drained machine takes the last one."""
    spec, budget = objects["Deployment"]["spec"], objects["PodDisruptionBudget"]["spec"]

    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] < spec["replicas"]


def test_everything_selects_the_pods(objects: dict[str, Any]) -> None:
    """By the labels that they have."""
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget", "Service")]

    assert [selector.get("matchLabels", selector) for selector in selectors] == [labels] * 3
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_container_is_the_image_s(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Its user, its port, its directory; a root file system that is not written to."""
    assert pod["securityContext"]["runAsUser"] == uid()
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/var/lib/chronoverse"}


def test_the_environment_is_one_that_the_service_takes(container: dict[str, Any]) -> None:
    """Secrets come from a Secret."""
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert [name for name, value in given.items() if value is None] == ["CHRONOVERSE_REDIS_URL"]
    settings = Settings.from_env({"HOME": "/", **given, "CHRONOVERSE_REDIS_URL": "rediss://user:secret@redis:6379/0"})

    assert settings.jwt_jwks_url
    assert settings.web_concurrency == 2


def test_metrics_are_not_for_the_outside(objects: dict[str, Any]) -> None:
    """The ingress names what is."""
    (rule,) = objects["Ingress"]["spec"]["rules"]
    paths = {each["path"]: each["pathType"] for each in rule["http"]["paths"]}

    assert paths == {
        "/workflows": "Prefix",
        "/ui": "Prefix",
        "/": "Exact",
        "/healthz": "Exact",
        "/openapi.json": "Exact",
    }


def test_the_archiver_is_a_node_without_viewers(archiver: dict[str, Any], pod: dict[str, Any]) -> None:
    """The same image, user, store and archive; a command that there is; nobody is routed to it."""
    spec = archiver["spec"]["template"]["spec"]
    (node,), (container,) = pod["containers"], spec["containers"]
    shown = {each["name"]: each for each in node["env"]}

    assert container["image"] == node["image"]
    assert spec["securityContext"] == pod["securityContext"]
    assert container["securityContext"] == node["securityContext"]
    assert [shown[each["name"]] for each in container["env"]] == container["env"]
    assert container["args"][:2] == ["chronoverse", "archive"]
    assert commands.commands["archive"].params
    assert archiver["spec"]["selector"]["matchLabels"] == archiver["spec"]["template"]["metadata"]["labels"]

"""The Kubernetes example: it follows the schemas of two releases, and fits the service."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from chronoverse.settings import Settings
from chronoverse.web.app import create_app
from tests.deploy.conftest import DEPLOY, RELEASES, Gunicorn, check_schema, uid
from tests.support.commands import visible_commands
from tests.support.parameters import long_after
from tests.support.service import SECRET


def by_kind(name: str) -> dict[str, Any]:
    """The documents of this name, by their kind."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents if document["metadata"]["name"] == name}


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The file's documents by kind, without the archiver's and the notifier's."""
    return by_kind("chronoverse")


@pytest.fixture(scope="module", params=["archiver", "notifier"])
def helper(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The Deployment of a program without viewers."""
    found: dict[str, Any] = by_kind(f"chronoverse-{request.param}")["Deployment"]
    return found


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    """The specification of the pods."""
    found: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """The pod's only container."""
    (found,) = pod["containers"]
    return dict(found)


@pytest.mark.parametrize("release", long_after(1, RELEASES))
def test_every_object_follows_the_schema_of_the_release(objects: dict[str, Any], release: str) -> None:
    helpers = [each for name in ("archiver", "notifier") for each in by_kind(f"chronoverse-{name}").values()]
    assert len(helpers) == 4
    for document in (*objects.values(), *helpers):
        check_schema(document, release)

    assert objects.keys() == {"Deployment", "PodDisruptionBudget", "Service", "Ingress", "NetworkPolicy"}
    first = (DEPLOY / "kubernetes.yaml").read_text().partition("\n")[0]
    assert f"Kubernetes {RELEASES[0]} or newer" in first


def test_the_probes_use_routes_of_the_service(container: dict[str, Any], tmp_path: Path) -> None:
    """Readiness also depends on the store, liveness does not. Here there is no store."""
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


@pytest.mark.long
def test_a_pod_has_time_to_drain(pod: dict[str, Any], container: dict[str, Any], gunicorn: Gunicorn) -> None:
    """The drain begins after the pod was removed from the Service's endpoints."""
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container["readinessProbe"]

    assert pod["terminationGracePeriodSeconds"] > pause + gunicorn.drain_seconds
    assert pause >= readiness["timeoutSeconds"]


def test_there_is_always_a_pod(objects: dict[str, Any]) -> None:
    """Neither a new release nor a node drain stops the last pod."""
    spec, budget = objects["Deployment"]["spec"], objects["PodDisruptionBudget"]["spec"]

    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] < spec["replicas"]


def test_everything_selects_the_pods(objects: dict[str, Any]) -> None:
    """All selectors match the labels of the pods."""
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [objects[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget", "Service")]

    assert [selector.get("matchLabels", selector) for selector in selectors] == [labels] * 3
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"


def test_the_container_fits_the_image(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """User, port and directory are the image's. The root file system is read-only."""
    assert pod["securityContext"]["runAsUser"] == uid()
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/var/lib/chronoverse"}


def test_the_service_accepts_the_environment(container: dict[str, Any]) -> None:
    """Secret values come from a Secret."""
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert [name for name, value in given.items() if value is None] == ["CHRONOVERSE_REDIS_URL"]
    settings = Settings.from_env({"HOME": "/", **given, "CHRONOVERSE_REDIS_URL": "rediss://user:secret@redis:6379/0"})

    assert settings.jwt_jwks_url
    assert settings.web_concurrency == 2
    assert settings.webhook_hosts


def test_metrics_cannot_be_reached_from_outside(objects: dict[str, Any]) -> None:
    """The Ingress has only public paths."""
    (rule,) = objects["Ingress"]["spec"]["rules"]
    paths = {each["path"]: each["pathType"] for each in rule["http"]["paths"]}

    assert paths == {
        "/workflows": "Prefix",
        "/audit": "Exact",
        "/logs/search": "Exact",
        "/ui": "Prefix",
        "/": "Exact",
        "/healthz": "Exact",
        "/oidc": "Exact",
        "/openapi.json": "Exact",
        "/v1/logs": "Exact",
    }


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("chronoverse", ["ingress-nginx", "monitoring"]),
        ("chronoverse-archiver", ["monitoring"]),
        ("chronoverse-notifier", ["monitoring"]),
    ],
)
def test_the_policies_allow_only_required_connections(name: str, sources: list[str]) -> None:
    """They select the pods and name the container's port."""
    documents = by_kind(name)
    policy, template = documents["NetworkPolicy"]["spec"], documents["Deployment"]["spec"]["template"]
    (rule,) = policy["ingress"]
    (port,) = template["spec"]["containers"][0]["ports"]

    assert policy["podSelector"]["matchLabels"] == template["metadata"]["labels"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for each in rule["from"]] == sources
    assert rule["ports"] == [{"port": port["name"]}]


def test_a_helpers_probes_request_its_metrics(helper: dict[str, Any]) -> None:
    """It has no other route, and needs no readiness, because no requests are sent to it."""
    (container,) = helper["spec"]["template"]["spec"]["containers"]
    probes = {name: each["httpGet"] for name, each in container.items() if name.endswith("Probe")}

    assert probes == {name: {"path": "/metrics", "port": "metrics"} for name in ("startupProbe", "livenessProbe")}
    assert container["ports"][0]["name"] == "metrics"


def test_a_helper_is_a_node_without_viewers(helper: dict[str, Any], pod: dict[str, Any]) -> None:
    """It has the same image, user and settings. An archiver has its own Redis user. Its command exists."""
    command, secret, names = {
        "chronoverse-archiver": ("archive", "chronoverse-archiver", set()),
        "chronoverse-notifier": ("notify", "chronoverse", {"CHRONOVERSE_WEBHOOK_HOSTS", "CHRONOVERSE_URL"}),
    }[helper["metadata"]["name"]]
    spec = helper["spec"]["template"]["spec"]
    (node,), (container,) = pod["containers"], spec["containers"]
    shown = {each["name"]: each for each in node["env"]}

    assert container["image"] == node["image"]
    assert spec["securityContext"] == pod["securityContext"]
    assert container["securityContext"] == node["securityContext"]
    url, *others = container["env"]
    assert [shown[each["name"]] for each in others] == others
    assert {each["name"] for each in others} == {"CHRONOVERSE_ARCHIVE_URL", *names}
    assert url == {"name": "CHRONOVERSE_REDIS_URL", "valueFrom": {"secretKeyRef": {"name": secret, "key": "redis-url"}}}
    assert container["args"][2:] == ["--metrics", f"0.0.0.0:{container['ports'][0]['containerPort']}"]
    assert container["args"][:2] == ["chronoverse", command]
    assert command in visible_commands()
    assert helper["spec"]["selector"]["matchLabels"] == helper["spec"]["template"]["metadata"]["labels"]

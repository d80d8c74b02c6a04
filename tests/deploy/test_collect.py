"""The agent's manifests: the example and the chart, the agent's permissions, and its requirements."""

from typing import Any, Final

import pytest
import yaml

from chronoverse.settings import Settings
from tests.deploy.conftest import DEPLOY, RELEASES, check_schema
from tests.deploy.test_chart import INSTANCE, rendered, without_instance
from tests.support.commands import call_main, visible_commands
from tests.support.parameters import long_after

Objects = dict[tuple[str, str], Any]

#: Values of the chart for the agent, all different from the defaults.
VALUES: Final = {
    "enabled": True,
    "secretName": "other-secret",
    "priorityClassName": "other-priority",
    "env": [{"name": "CHRONOVERSE_MAX_LINE_BYTES", "value": "1234"}],
    "resources": {"limits": {"memory": "5Gi"}},
}


@pytest.fixture(scope="module")
def objects() -> Objects:
    """The example's documents."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes-collect.yaml").read_text("utf-8"))
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


@pytest.fixture(scope="module")
def pod(objects: Objects) -> Any:
    return objects["DaemonSet", "chronoverse-collect"]["spec"]["template"]


def test_one_switch_of_the_chart_renders_the_example(objects: Objects) -> None:
    """Without it, nothing is rendered."""
    image = objects["DaemonSet", "chronoverse-collect"]["spec"]["template"]["spec"]["containers"][0]["image"]
    values = {"tag": image.rpartition(":")[2], "collect": {"enabled": True}}
    made = {key: each for key, each in rendered(values).items() if key not in rendered({})}
    assert not made["DaemonSet", "chronoverse-collect"]["spec"]["template"]["spec"].pop("imagePullSecrets")

    assert without_instance(made) == objects


def test_every_value_of_the_agent_has_an_effect() -> None:
    """Two releases do not share pods."""
    objects = rendered({"image": "images.example.net/logs", "tag": "9", "collect": VALUES}, "second")
    daemons = objects["DaemonSet", "second-collect"]["spec"]
    text = yaml.safe_dump(daemons)

    assert daemons["selector"]["matchLabels"] == daemons["template"]["metadata"]["labels"]
    assert daemons["selector"]["matchLabels"][INSTANCE] == "second"
    for value in ("other-secret", "other-priority", "1234", "5Gi", "images.example.net/logs:9"):
        assert value in text
    (subject,) = objects["ClusterRoleBinding", "second-collect"]["subjects"]
    assert subject["name"] == daemons["template"]["spec"]["serviceAccountName"] == "second-collect"


@pytest.mark.parametrize("release", long_after(1, RELEASES))
def test_every_object_follows_the_schema(objects: Objects, release: str) -> None:
    for document in objects.values():
        check_schema(document, release)


def test_the_agent_has_only_the_permissions_it_needs(objects: Objects, pod: Any) -> None:
    """It can read pods and logs, and write only its state."""
    spec = pod["spec"]
    (container,) = spec["containers"]
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    paths = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}

    assert objects["ClusterRole", "chronoverse-collect"]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    assert mounts["/var/log/pods"]
    assert paths == {"pods": "/var/log/pods", "state": "/var/lib/chronoverse-collect"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["priorityClassName"]


def test_the_policies_allow_the_agents_connections(objects: Objects, pod: Any) -> None:
    """Also Prometheus's connections to the agent."""
    policy = objects["NetworkPolicy", "chronoverse-collect"]["spec"]
    to_service = objects["NetworkPolicy", "chronoverse-from-collect"]["spec"]
    (rule,) = to_service["ingress"]

    assert policy["podSelector"]["matchLabels"] == pod["metadata"]["labels"]
    assert rule["from"] == [{"podSelector": {"matchLabels": pod["metadata"]["labels"]}}]
    assert to_service["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "chronoverse"}
    assert {8000, 443, 53} <= {each["port"] for each in policy["egress"][0]["ports"]}


def test_the_agent_accepts_its_options_and_its_environment(pod: Any) -> None:
    """The node's name comes from the pod."""
    (container,) = pod["spec"]["containers"]
    name, command, *options = container["args"]
    given = {each["name"]: each.get("value", "node-1") for each in container["env"]}

    assert (name, options[0]) == ("chronoverse", "kubernetes")
    assert command in visible_commands()
    assert Settings.from_env(given).service_url == "http://chronoverse"
    assert call_main(command, *options, "--help", environ={"NODE_NAME": given["NODE_NAME"]}).returncode == 0
    assert container["ports"][0]["containerPort"] == int(options[-1].rpartition(":")[2])
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")} == {"/healthz"}

"""The Helm chart: by default it renders ``deploy/kubernetes.yaml``, and each value has an effect.

:func:`render` replaces Helm and supports only what the chart uses. If Helm is installed as a library
(``helm-python-sdk``), its result must be the same.
"""

import copy
import re
from typing import Any, Final

import pytest
import yaml

from chronoverse import __version__
from tests.deploy.conftest import DEPLOY, check_schema

CHART: Final = DEPLOY / "chart"
TEMPLATES: Final = sorted((CHART / "templates").iterdir())
#: The example.
TEXT: Final = (DEPLOY / "kubernetes.yaml").read_text("utf-8")
INSTANCE: Final = "app.kubernetes.io/instance"

ACTION: Final = re.compile(r"(\s*)\{\{(-?) (.*?) \}\}")
#: An ``if`` block without another one inside.
CONDITION: Final = re.compile(
    r"[ \t]*\{\{- if (not )?(\.\S+) \}\}\n((?:(?!\{\{- if ).)*?)[ \t]*\{\{- end \}\}\n", re.DOTALL
)

Values = dict[str, Any]


def render(template: str, values: Values, release: str) -> str:
    """The output of ``helm template`` for templates that use ``if``, values, ``nindent``, ``default`` and ``required``.

    Raises :class:`AssertionError` for anything else.
    """
    version = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"]
    scope = {"Values": values, "Release": {"Name": release, "Namespace": "default"}, "Chart": {"AppVersion": version}}

    def look_up(path: str) -> Any:
        found: Any = scope
        for name in path.removeprefix(".").split("."):
            found = found[name]
        return found

    def act(action: re.Match[str]) -> str:
        space, trims, text = action.groups()
        if value := re.fullmatch(r"\.\S+", text):
            return f"{'' if trims else space}{look_up(value[0])}"
        if value := re.fullmatch(r"(\.\S+) \| default (\.\S+)", text):
            return f"{space}{look_up(value[1]) or look_up(value[2])}"
        if value := re.fullmatch(r'required "(.+)" (\.\S+)', text):
            assert look_up(value[2]), value[1]
            return f"{space}{look_up(value[2])}"
        indented = re.fullmatch(r'(?:toYaml (\.\S+)|\.Files\.Get "(.+)") \| nindent (\d+)', text)
        assert indented, f"an unknown form: {text}"
        path, file, width = indented.groups()
        block = yaml.safe_dump(look_up(path)) if path else (CHART / file).read_text("utf-8")
        return "\n" + "\n".join(f"{' ' * int(width)}{line}" for line in block.rstrip("\n").split("\n"))

    found = 1
    while found:
        template, found = CONDITION.subn(
            lambda block: block[3] if bool(look_up(block[2])) != bool(block[1]) else "", template
        )
    return ACTION.sub(act, template)


def rendered(values: Values, release: str = "chronoverse") -> dict[tuple[str, str], Any]:
    """The chart's objects by kind and name, rendered with ``values`` over its defaults."""
    own = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    assert values.keys() <= own.keys()
    merged = merge(own, values)
    text = "\n---\n".join(render(each.read_text("utf-8"), merged, release) for each in TEMPLATES)
    objects = [each for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def merge(below: Values, above: Values) -> Values:
    """Merges values like Helm: maps are merged, everything else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        merged[name] = merge(below.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def without_instance(node: Any) -> Any:
    """A copy without the label that distinguishes releases of the chart."""
    if isinstance(node, dict):
        return {name: without_instance(value) for name, value in node.items() if name != INSTANCE}
    if isinstance(node, list):
        return [without_instance(each) for each in node]
    return copy.copy(node)


def test_the_chart_renders_the_example() -> None:
    """So all tests of the example apply to the chart."""
    example = yaml.safe_load_all(TEXT)
    expected = {(each["kind"], each["metadata"]["name"]): each for each in example}
    made = without_instance(rendered({"tag": re.findall(r"image: .*:(\S+)", TEXT)[0], "notifier": {"enabled": True}}))
    # The ServiceMonitor selects the Service by this label.
    assert made["Service", "chronoverse"]["metadata"].pop("labels") == {"app.kubernetes.io/name": "chronoverse"}
    for each in (*made.values(), *expected.values()):
        for container in each["spec"].get("template", {}).get("spec", {}).get("containers", []):
            container["env"].sort(key=lambda variable: str(variable["name"]))

    assert made == expected


def test_every_value_has_an_effect_and_the_objects_are_valid() -> None:
    """With another name and the Prometheus Operator. Two releases do not share pods."""
    values: Values = {
        "image": "images.example.net/logs",
        "tag": "9.9.9@sha256:0b5e",
        "replicas": 5,
        "secretName": "node-secret",
        "env": [{"name": "CHRONOVERSE_JWT_AUDIENCE", "value": "other"}],
        "resources": {"limits": {"memory": "7Gi"}},
        "archive": [{"name": "CHRONOVERSE_ARCHIVE_URL", "value": "s3://other/place"}],
        "archiver": {"replicas": 3, "secretName": "archiver-secret", "resources": {"limits": {"memory": "6Gi"}}},
        "notifier": {
            "enabled": True,
            "replicas": 4,
            "env": [{"name": "CHRONOVERSE_WEBHOOK_HOSTS", "value": "hooks.example.net"}],
            "resources": {"limits": {"memory": "5Gi"}},
        },
        "ingress": {"className": "other-class", "namespace": "edge", "host": "l.example.net", "tlsSecretName": "l-tls"},
        "monitoring": {"namespace": "metrics", "operator": True},
    }
    objects = rendered(values, "second")
    text = yaml.safe_dump(list(objects.values()))

    for value in re.findall(r": ([^{}\[\]]+?)$", yaml.safe_dump(values), re.MULTILINE):
        assert value == "true" or value in text
    for (kind, _name), each in objects.items():
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            check_schema(each)
        assert each["metadata"]["name"] in {"second", "second-archiver", "second-notifier"}, kind
    alerts = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text("utf-8"))
    assert objects["PrometheusRule", "second"]["spec"] == alerts
    for name in ("second", "second-archiver", "second-notifier"):
        spec = objects["Deployment", name]["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"][INSTANCE] == "second"
    pods = objects["Deployment", "second"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service", "second"]["metadata"]["labels"] == pods
    assert objects["ServiceMonitor", "second"]["spec"]["selector"]["matchLabels"] == pods
    for name in ("second-archiver", "second-notifier"):
        labels = objects["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert objects["PodMonitor", name]["spec"]["selector"]["matchLabels"] == labels
    assert not any(kind == "Ingress" for kind, _name in rendered({"ingress": {"enabled": False}}))


#: What an operator can add to the pods.
EXTRA: Final[Values] = {
    "imagePullSecrets": [{"name": "registry"}],
    "extraEnv": [{"name": "CHRONOVERSE_TRUST_FILE", "value": "/etc/chronoverse/trust.toml"}],
    "extraVolumes": [{"name": "trust", "configMap": {"name": "chronoverse-trust"}}],
    "extraVolumeMounts": [{"name": "trust", "mountPath": "/etc/chronoverse", "readOnly": True}],
    "tolerations": [{"key": "logs", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["logs"]}]}]}}},
    "serviceAccount": {"create": True, "name": "logs", "annotations": {"eks.amazonaws.com/role-arn": "arn:x"}},
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "collectors"}}}]},
    "autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9, "targetCPUUtilizationPercentage": 55},
}  # fmt: skip


def test_an_operator_can_extend_the_pods() -> None:
    """Of nodes, archivers and notifiers."""
    notifies: Values = {"notifier": {"enabled": True}}
    plain, objects = rendered(notifies), rendered(EXTRA | notifies)
    for each in objects.values():
        check_schema(each)
    for name in ("chronoverse", "chronoverse-archiver", "chronoverse-notifier"):
        before, after = (found["Deployment", name]["spec"]["template"]["spec"] for found in (plain, objects))
        assert after["serviceAccountName"] == "logs"
        for value in ("imagePullSecrets", "tolerations", "affinity"):
            assert after[value] == EXTRA[value]
            assert value not in before
        assert after["volumes"] == before["volumes"] + EXTRA["extraVolumes"]
        (container,), (other,) = after["containers"], before["containers"]
        assert container["env"] == other["env"] + EXTRA["extraEnv"]
        assert container["volumeMounts"] == other["volumeMounts"] + EXTRA["extraVolumeMounts"]
    account = objects["ServiceAccount", "logs"]
    assert account["metadata"]["annotations"] == EXTRA["serviceAccount"]["annotations"]
    assert not any(kind == "ServiceAccount" for kind, _name in plain)


def test_without_watches_there_is_no_notifier() -> None:
    """Nor webhook hosts for the nodes. A release has watches only if its values enable them."""
    objects = rendered({"monitoring": {"operator": True}})
    assert not any("notifier" in name for _kind, name in objects)
    (container,) = objects["Deployment", "chronoverse"]["spec"]["template"]["spec"]["containers"]
    assert "CHRONOVERSE_WEBHOOK_HOSTS" not in {each["name"] for each in container["env"]}


def test_an_autoscaler_replaces_the_replicas() -> None:
    """Otherwise each upgrade would reset them. Archivers keep theirs."""
    objects = rendered(EXTRA)
    scaler = objects["HorizontalPodAutoscaler", "chronoverse"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 55
    target = objects[scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]
    assert objects["Deployment", "chronoverse-archiver"]["spec"]["replicas"] == 1
    assert rendered({})["Deployment", "chronoverse"]["spec"]["replicas"] == 2


def test_collectors_of_the_cluster_reach_the_nodes() -> None:
    """But no archiver."""

    def peers(values: Values, name: str) -> list[Any]:
        ((rule,),) = [rendered(values)["NetworkPolicy", name]["spec"]["ingress"]]
        return list(rule["from"])

    assert peers(EXTRA, "chronoverse") == peers({}, "chronoverse") + EXTRA["networkPolicy"]["from"]
    assert peers(EXTRA, "chronoverse-archiver") == peers({}, "chronoverse-archiver")


def test_the_image_is_of_the_charts_version() -> None:
    """Unless a tag is set, which can include a digest."""
    for values, tag in (({}, __version__), ({"tag": "1.2.3@sha256:0b5e"}, "1.2.3@sha256:0b5e")):
        pods = [
            each["spec"]["template"]["spec"] for (kind, _), each in rendered(values).items() if kind == "Deployment"
        ]
        assert [pod["containers"][0]["image"] for pod in pods] == [f"registry.example.com/chronoverse:{tag}"] * 2


@pytest.mark.parametrize(
    "values",
    [
        {},
        EXTRA | {"notifier": {"enabled": True}, "monitoring": {"operator": True}},
        {"monitoring": {"operator": True}, "ingress": {"enabled": False}},
    ],
)
def test_helm_renders_the_same(values: Values) -> None:
    """And without warnings."""
    helm = pytest.importorskip("helm_python.chart")
    with helm.Chart.load(CHART) as chart:
        made = chart.render(values, name="second")
    found = [each for text in made.values() for each in yaml.safe_load_all(text) if each]
    assert {(each["kind"], each["metadata"]["name"]): each for each in found} == rendered(values, "second")
    report = helm.lint(CHART, values)
    assert [each for each in report["messages"] if each["severity"] > 1] == []


def test_an_account_needs_a_name() -> None:
    """Helm does not install a chart without it."""
    with pytest.raises(AssertionError, match=r"needs serviceAccount\.name"):
        rendered({"serviceAccount": {"create": True}})


def test_the_chart_has_the_version_of_the_package() -> None:
    """In the form of semantic versioning required by Helm."""
    described = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))

    assert described["appVersion"] == __version__
    assert described["version"] == __version__.replace(".dev", "-dev.")

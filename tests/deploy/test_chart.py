"""The Helm chart: with its own values it makes what ``deploy/kubernetes.yaml`` says, and each value arrives.

:func:`render` stands in for Helm. It knows the few forms that the chart uses.
"""

import copy
import re
from typing import Any, Final

import kubernetes_validate
import yaml

from chronoverse import __version__
from tests.deploy.conftest import DEPLOY

CHART: Final = DEPLOY / "chart"
TEMPLATES: Final = sorted((CHART / "templates").iterdir())
INSTANCE: Final = "app.kubernetes.io/instance"

ACTION: Final = re.compile(r"(\s*)\{\{(-?) (.*?) \}\}")
CONDITION: Final = re.compile(r"\{\{- if (\.\S+) \}\}\n(.*?)\{\{- end \}\}\n", re.DOTALL)

Values = dict[str, Any]


def render(template: str, values: Values, release: str) -> str:
    """What ``helm template`` makes of ``template``, of which it knows ``if``, a value, and text with ``nindent``.

    Raises :class:`AssertionError` for any other form.
    """
    scope = {"Values": values, "Release": {"Name": release}}

    def look_up(path: str) -> Any:
        found: Any = scope
        for name in path.removeprefix(".").split("."):
            found = found[name]
        return found

    def act(action: re.Match[str]) -> str:
        space, trims, text = action.groups()
        if value := re.fullmatch(r"\.\S+", text):
            return f"{'' if trims else space}{look_up(value[0])}"
        indented = re.fullmatch(r'(?:toYaml (\.\S+)|\.Files\.Get "(.+)") \| nindent (\d+)', text)
        assert indented, f"an unknown form: {text}"
        path, file, width = indented.groups()
        block = yaml.safe_dump(look_up(path)) if path else (CHART / file).read_text("utf-8")
        return "\n" + "\n".join(f"{' ' * int(width)}{line}" for line in block.rstrip("\n").split("\n"))

    chosen = CONDITION.sub(lambda block: block[2] if look_up(block[1]) else "", template)
    return ACTION.sub(act, chosen)


def rendered(values: Values, release: str = "chronoverse") -> dict[tuple[str, str], Any]:
    """The chart's objects by kind and name, made with its own values and ``values`` over them."""
    merged = merge(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), values)
    text = "\n---\n".join(render(each.read_text("utf-8"), merged, release) for each in TEMPLATES)
    objects = [each for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def merge(below: Values, above: Values) -> Values:
    """Values over others, as helm merges them: maps are merged, all else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        merged[name] = merge(below[name], value) if isinstance(value, dict) else value
    return merged


def without_instance(node: Any) -> Any:
    """A copy without the label that tells two releases of the chart apart."""
    if isinstance(node, dict):
        return {name: without_instance(value) for name, value in node.items() if name != INSTANCE}
    if isinstance(node, list):
        return [without_instance(each) for each in node]
    return copy.copy(node)


def test_the_chart_makes_what_the_example_says() -> None:
    """So all that is tested of the example holds for the chart."""
    example = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    expected = {(each["kind"], each["metadata"]["name"]): each for each in example}
    made = without_instance(rendered({}))
    # The ServiceMonitor selects the Service by this label.
    assert made["Service", "chronoverse"]["metadata"].pop("labels") == {"app.kubernetes.io/name": "chronoverse"}
    for each in (*made.values(), *expected.values()):
        for container in each["spec"].get("template", {}).get("spec", {}).get("containers", []):
            container["env"].sort(key=lambda variable: str(variable["name"]))

    assert made == expected


def test_every_value_arrives_and_the_objects_are_valid() -> None:
    """With another name and with the Prometheus Operator. Two releases do not share pods."""
    values: Values = {
        "image": "images.example.net/logs:9.9.9",
        "replicas": 5,
        "secretName": "node-secret",
        "env": [{"name": "CHRONOVERSE_JWT_AUDIENCE", "value": "other"}],
        "resources": {"limits": {"memory": "7Gi"}},
        "archive": [{"name": "CHRONOVERSE_ARCHIVE_URL", "value": "s3://other/place"}],
        "archiver": {"replicas": 3, "secretName": "archiver-secret", "resources": {"limits": {"memory": "6Gi"}}},
        "ingress": {"className": "other-class", "namespace": "edge", "host": "l.example.net", "tlsSecretName": "l-tls"},
        "monitoring": {"namespace": "metrics", "operator": True},
    }
    objects = rendered(values, "second")
    text = yaml.safe_dump(list(objects.values()))

    for value in re.findall(r": ([^{}\[\]]+?)$", yaml.safe_dump(values), re.MULTILINE):
        assert value == "true" or value in text
    for (kind, _name), each in objects.items():
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
        assert each["metadata"]["name"] in {"second", "second-archiver"}, kind
    alerts = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text("utf-8"))
    assert objects["PrometheusRule", "second"]["spec"] == alerts
    for kind, name in (("Deployment", "second"), ("Deployment", "second-archiver")):
        spec = objects[kind, name]["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"][INSTANCE] == "second"
    pods = objects["Deployment", "second"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service", "second"]["metadata"]["labels"] == pods
    assert objects["ServiceMonitor", "second"]["spec"]["selector"]["matchLabels"] == pods
    assert not any(kind == "Ingress" for kind, _name in rendered({"ingress": {"enabled": False}}))


def test_the_chart_has_the_version_of_the_package() -> None:
    """In the form of semantic versioning that Helm demands."""
    described = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))

    assert described["appVersion"] == __version__
    assert described["version"] == __version__.replace(".dev", "-dev.")

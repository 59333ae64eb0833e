"""Names of metrics on the dashboard are ones that Ray and the server export; what is scraped exists."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from serving.metrics import Metrics
from tests.cluster.crd import CLUSTER, Json, manifests
from tests.cluster.objects import pods, selects

DASHBOARD: Json = json.loads((CLUSTER / "monitoring" / "grafana-cellray.json").read_text())
NAME = re.compile(r"\b(?:ray|autoscaler|cellray)_[a-z0-9_]+")
EXPRESSIONS = [each["expr"] for panel in DASHBOARD["panels"] for each in panel.get("targets", [])]
USED = {name for each in EXPRESSIONS for name in NAME.findall(re.sub(r"\{[^}]*\}|by \([^)]*\)", "", each))}


def exported_by_ray() -> set[str]:
    """Return the names that Ray's own dashboards ask for."""
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return {name for path in folder.glob("*_panels.py") for name in NAME.findall(path.read_text())}


def exported_by_the_server() -> set[str]:
    """Return the names of the server's numbers, as Prometheus stores them."""
    return {sample.name for each in Metrics({}).registry.collect() for sample in each.samples} | {
        f"{each.name}{end}"
        for each in Metrics({}).registry.collect()
        for end in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}[each.type]
    }


def test_the_dashboard_asks_for_numbers_that_there_are() -> None:
    ours = {name for name in USED if name.startswith("cellray_")}
    assert len(ours) >= 7
    assert ours <= exported_by_the_server()
    assert len(USED - ours) >= 15
    assert USED - ours <= exported_by_ray()


def test_a_name_that_is_not_exported_would_be_seen() -> None:
    assert "cellray_requests" not in exported_by_the_server()  # Prometheus stores cellray_requests_total
    assert "ray_node_cpu" not in exported_by_ray()


def test_panels_lie_beside_each_other_and_know_their_source() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = [
        (x, y)
        for each in places
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$([a-z]+)\b", " ".join(EXPRESSIONS))) <= names
    for expression in EXPRESSIONS:
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


@pytest.mark.parametrize("part", ["head", "worker", "serving"])
def test_the_ports_that_are_scraped_are_those_of_the_pods(part: str) -> None:
    spec = manifests()["PodMonitor/cellray-ray"]["spec"]
    plain = yaml.safe_load((CLUSTER / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]
    [ports] = [each["regex"].split("|") for each in plain["relabel_configs"] if "port_name" in each["source_labels"][0]]
    scraped = [each["port"] for each in spec["podMetricsEndpoints"]]
    assert scraped == ports
    assert spec["namespaceSelector"]["matchNames"] == ["cellray"]
    for pod in pods():
        if pod.labels["cellray/part"] == part:
            assert selects(spec["selector"], pod.labels)
            assert [each for each in scraped if each in pod.ports] == (scraped if part == "head" else ["metrics"])
            assert pod.ports["metrics"] == 8080


def test_the_head_tells_the_autoscalers_numbers_where_ray_puts_them() -> None:
    from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
    from ray.dashboard.consts import DASHBOARD_METRIC_PORT

    for pod in pods():
        if pod.labels["cellray/part"] == "head":
            assert pod.ports["as-metrics"] == AUTOSCALER_METRIC_PORT
            assert pod.ports["dash-metrics"] == DASHBOARD_METRIC_PORT

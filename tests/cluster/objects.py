"""What the manifests name and hold: pods, containers, ports, secrets, addresses, job commands."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cellray.config import JobConfig
from tests.cluster.crd import CLUSTER, Json, manifests
from tests.conftest import REPOSITORY

_PODS = {
    "Deployment": ("spec.template",),
    "StatefulSet": ("spec.template",),
    "RayCluster": ("spec.headGroupSpec.template", "spec.workerGroupSpecs.*.template"),
    "RayJob": (
        "spec.submitterPodTemplate",
        "spec.rayClusterSpec.headGroupSpec.template",
        "spec.rayClusterSpec.workerGroupSpecs.*.template",
    ),
    "RayService": (
        "spec.rayClusterConfig.headGroupSpec.template",
        "spec.rayClusterConfig.workerGroupSpecs.*.template",
    ),
}
"""Where a kind keeps its pod templates."""
_CLUSTERS = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}


@dataclass(frozen=True)
class Pod:
    """A pod template, with the labels that KubeRay adds to Ray's."""

    owner: str
    template: Json

    @property
    def labels(self) -> dict[str, str]:
        kind, name = self.owner.split("/")
        own: dict[str, str] = self.template["metadata"]["labels"]
        ray = {"ray.io/cluster": name} if kind in _CLUSTERS and own["cellray/part"] != "submitter" else {}
        return own | ray | ({"ray.io/node-type": "head"} if own["cellray/part"] == "head" else {})

    @property
    def container(self) -> Json:
        """The only container."""
        [only] = self.template["spec"]["containers"]
        return dict(only)

    @property
    def ports(self) -> dict[str, int]:
        return {each["name"]: each["containerPort"] for each in self.container.get("ports", [])}


def at(value: Any, path: str) -> list[Any]:  # noqa: ANN401  # a manifest
    """Return what stands at a path; * is every item of a list; nothing if it is not there."""
    found = [value]
    for name in path.split("."):
        found = [
            inner
            for each in found
            for inner in (each if name == "*" else [each[name]] if isinstance(each, dict) and name in each else [])
        ]
    return found


def pods() -> list[Pod]:
    """Return all pod templates."""
    return [
        Pod(name, template)
        for name, each in manifests().items()
        for path in _PODS.get(each["kind"], ())
        for template in at(each, path)
    ]


def clusters() -> dict[str, Json]:
    """Return the specification of every Ray cluster, by the manifest that has it."""
    return {
        name: found
        for name, each in manifests().items()
        if each["kind"] in _CLUSTERS
        for found in at(each, _CLUSTERS[each["kind"]])
    }


def strings(value: object) -> Iterator[str]:
    """Yield every text of a value."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(each)


def selects(selector: Json, labels: dict[str, str]) -> bool:
    """Tell whether a label selector takes a pod."""
    wanted = selector.get("matchLabels", {})
    exist = [each["key"] for each in selector.get("matchExpressions", []) if each["operator"] == "Exists"]
    return all(labels.get(key) == value for key, value in wanted.items()) and all(key in labels for key in exist)


def secrets() -> set[tuple[str, str]]:
    """Return the names and keys of all secrets that manifests refer to."""
    found = set()
    for each in manifests().values():
        found |= set(_secrets(each))
    return found


def _secrets(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for each in value:
            yield from _secrets(each)
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if "items" in value and "secretName" in value:
            yield from ((value["secretName"], each["key"]) for each in value["items"])
        if "mode" in value and "secretName" in value:
            yield value["secretName"], "auth_token"  # the key that KubeRay reads
        for each in value.values():
            yield from _secrets(each)


def services() -> dict[str, dict[str, int]]:
    """Return the ports of all services by name: ours, and those that KubeRay makes."""
    made = {}
    for name, each in manifests().items():
        kind, own = name.split("/")
        if kind == "Service":
            made[own] = {port["name"]: port["port"] for port in each["spec"]["ports"]}
        if kind in ("RayCluster", "RayService"):
            head = at(each, f"{_CLUSTERS[kind]}.headGroupSpec.template")[0]
            made[f"{own}-head-svc"] = Pod(name, head).ports
        if kind == "RayService":
            made[f"{own}-serve-svc"] = {"serve": yaml.safe_load(each["spec"]["serveConfigV2"])["http_options"]["port"]}
    return made


def job_commands(text: str) -> list[list[str]]:
    """Return the job command lines of a text, each as NAME and its options; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r"python -m jobs\.([a-z_]+)([^\n|;&#`]*)", joined)
    return [[name, *shlex.split(options.replace("/app/", f"{REPOSITORY}/"))] for name, options in found]


def config_of(job: str) -> type[JobConfig]:
    """Return the class of a job's options: the one its script hands to `run_job`."""
    module = importlib.import_module(f"jobs.{job}")
    tree = ast.parse(Path(str(module.__file__)).read_text())
    [call] = [
        each
        for each in ast.walk(tree)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id == "run_job"
    ]
    assert isinstance(call.args[1], ast.Name)
    found = getattr(module, call.args[1].id)
    assert issubclass(found, JobConfig)
    return found


def readme() -> str:
    """Return the guide."""
    return (CLUSTER / "README.md").read_text()

"""Checks manifests against KubeRay's resource definitions, with unknown fields refused.

The definitions embed Kubernetes' own types: pod templates, services, volume claims, rules of network policies. So kinds
of Kubernetes that are made of these are checked by the same schemas. Knows the structure of fields; what the API server
or KubeRay's operator check besides (immutable fields, names in other objects, rules written in CEL) it does not know.
"""

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from tests.cluster import aws_schemas
from tests.conftest import REPOSITORY

Json = dict[str, Any]

CLUSTER = REPOSITORY / "cluster"
_SCHEMAS = Path(__file__).parent / "schemas" / "kuberay-v1.json.gz"
_METADATA: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
"""What a manifest tells of itself. 47: KubeRay takes no longer names."""


def load(path: Path) -> list[Json]:
    """Return the documents of a YAML file; what an anchor repeats is a copy of its own."""
    found = yaml.load_all(path.read_text(), yaml.CSafeLoader)  # the safe loader, in C
    return [json.loads(json.dumps(each)) for each in found if each is not None]


@cache
def manifests() -> dict[str, Json]:
    """Return all manifests of `cluster/`, by kind and name."""
    files = [path for folder in ("aws", "kuberay") for path in sorted((CLUSTER / folder).glob("*.yaml"))]
    files.append(CLUSTER / "monitoring" / "podmonitor.yaml")
    made = [each for path in files for each in load(path)]
    by_name = {f"{each['kind']}/{each['metadata']['name']}": each for each in made}
    assert len(by_name) == len(made), "two manifests have one name"
    return by_name


def problems(manifest: Json) -> list[str]:
    """Return what is wrong with a manifest by the schema of its kind; nothing if all is well.

    Raises
    ------
    KeyError
        There is no schema of this kind.
    """
    found = _validator(manifest["apiVersion"], manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message}" for each in found]


@cache
def definitions() -> dict[str, Json]:
    """Return KubeRay's schemas by kind, as they are published."""
    made: dict[str, Json] = json.loads(gzip.decompress(_SCHEMAS.read_bytes()))
    return made


@cache
def _validator(api_version: str, kind: str) -> Draft202012Validator:
    return Draft202012Validator(strict(_schemas()[api_version, kind]))


def strict(schema: Json) -> Json:
    """Return a schema that refuses what it does not name, at every depth, in the words of JSON schema.

    Left open is what says so (`x-kubernetes-preserve-unknown-fields`), and maps (`additionalProperties`). What may be a
    number or a text has no type in OpenAPI; an empty value (`nullable`) is an additional type in JSON schema.
    """
    made = {key: value for key, value in schema.items() if key not in ("properties", "items", "nullable")}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = strict(schema[key])
    if "properties" in schema:
        made["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    return made


def _object(**properties: Json) -> Json:
    """Return the schema of a whole manifest."""
    every: Json = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _METADATA}
    required = ["apiVersion", "kind", "metadata", *(each for each in properties if each == "spec")]
    return {"type": "object", "required": required, "properties": every | properties}


def _spec(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_SWITCH: Json = {"type": "boolean"}


def _within(schema: Json, path: str) -> Json:
    """Return the schema of a field, as of `spec.template`; of a list, named with [], that of its items."""
    for name in path.split("."):
        schema = schema["properties"][name.removesuffix("[]")]
        schema = schema["items"] if name.endswith("[]") else schema
    return schema


@cache
def _schemas() -> dict[tuple[str, str], Json]:
    """Return a schema for each kind of manifest."""
    ray = {("ray.io/v1", kind): _with_metadata(each) for kind, each in definitions().items()}
    aws = {kind: _object(**fields) for kind, fields in aws_schemas.KINDS.items()}
    return ray | _workloads() | _policies() | _monitoring() | aws


def _workloads() -> dict[tuple[str, str], Json]:
    """Return schemas of what runs and how it is reached, made of what KubeRay's definitions embed."""
    cluster, service = definitions()["RayCluster"], definitions()["RayService"]
    template: Json = dict(_within(cluster, "spec.headGroupSpec.template"))
    template["properties"] = template["properties"] | {"metadata": {**_METADATA, "required": []}}
    labels = _spec([], matchLabels=_within(_selector(), "matchLabels"))
    claim = _within(template, "spec.volumes[].ephemeral.volumeClaimTemplate.spec")
    claims: Json = {"type": "array", "items": _spec([], metadata=_METADATA, spec=claim)}
    workload = {"replicas": _COUNT, "selector": labels, "template": template}
    stateful = workload | {"serviceName": _TEXT, "volumeClaimTemplates": claims}
    return {
        ("v1", "Namespace"): _object(),
        ("v1", "ServiceAccount"): _object(automountServiceAccountToken=_SWITCH),
        ("v1", "Service"): _object(spec=_within(service, "spec.serveService.spec")),
        ("apps/v1", "Deployment"): _object(spec=_spec(["selector", "template"], **workload)),
        ("apps/v1", "StatefulSet"): _object(spec=_spec(["selector", "template", "serviceName"], **stateful)),
    }


def _policies() -> dict[tuple[str, str], Json]:
    """Return schemas of what guards pods."""
    rules = _within(definitions()["RayCluster"], "spec.networkPolicy.head")["properties"]
    types: Json = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
    allowed = {"ingress": rules["ingressRules"], "egress": rules["egressRules"]}
    budget = {"selector": _selector(), "minAvailable": _COUNT, "maxUnavailable": _COUNT}
    return {
        ("policy/v1", "PodDisruptionBudget"): _object(spec=_spec(["selector"], **budget)),
        ("networking.k8s.io/v1", "NetworkPolicy"): _object(
            spec=_spec(["podSelector", "policyTypes"], podSelector=_selector(), policyTypes=types, **allowed)
        ),
    }


def _monitoring() -> dict[tuple[str, str], Json]:
    """Return the schema of another operator's kind, whose definition is not here: fields of its documentation."""
    texts: Json = {"type": "array", "items": _TEXT}
    spec = _spec(
        ["selector", "podMetricsEndpoints"],
        selector=_selector(),
        namespaceSelector=_spec(["matchNames"], matchNames=texts),
        podTargetLabels=texts,
        podMetricsEndpoints={"type": "array", "items": _spec(["port"], port=_TEXT, interval=_TEXT)},
    )
    return {("monitoring.coreos.com/v1", "PodMonitor"): _object(spec=spec)}


def _selector() -> Json:
    return _within(definitions()["RayCluster"], "spec.networkPolicy.head.ingressRules[].from[].podSelector")


def _with_metadata(schema: Json) -> Json:
    """Return a schema of KubeRay's with what metadata may hold, which a resource definition leaves to Kubernetes."""
    made = json.loads(json.dumps(schema))  # a copy of its own: the embedded templates are changed
    for properties in _property_maps(made):
        if properties.get("metadata") == {"type": "object"}:
            properties["metadata"] = {**_METADATA, "required": []}
    made["properties"]["metadata"] = _METADATA
    made["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return dict(made)


def _property_maps(schema: object) -> list[Json]:
    """Return every `properties` of a schema."""
    if isinstance(schema, list):
        return [found for each in schema for found in _property_maps(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema["properties"]] if isinstance(schema.get("properties"), dict) else []
    return own + [found for each in schema.values() for found in _property_maps(each)]

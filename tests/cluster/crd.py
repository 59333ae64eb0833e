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
    found = yaml.load_all(path.read_text(), yaml.CSafeLoader)  # noqa: S506  # the safe loader, in C
    return [json.loads(json.dumps(each)) for each in found if each is not None]


@cache
def manifests() -> dict[str, Json]:
    """Return all manifests of `cluster/`, by kind and name."""
    files = [*sorted((CLUSTER / "kuberay").glob("*.yaml")), CLUSTER / "monitoring" / "podmonitor.yaml"]
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

    Left open is what says so (`x-kubernetes-preserve-unknown-fields`), and maps (`additionalProperties`). An int-or-string
    has no type in OpenAPI; an empty value (`nullable`) is an additional type in JSON schema.
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


@cache
def _schemas() -> dict[tuple[str, str], Json]:
    """Return a schema for each kind of manifest; what Kubernetes' kinds are made of is taken from KubeRay's."""
    ray = definitions()
    cluster = ray["RayCluster"]["properties"]["spec"]["properties"]
    template: Json = dict(cluster["headGroupSpec"]["properties"]["template"])
    template["properties"] = template["properties"] | {"metadata": {**_METADATA, "required": []}}
    pod = template["properties"]["spec"]["properties"]
    claim = pod["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"][
        "spec"
    ]
    rules = cluster["networkPolicy"]["properties"]["head"]["properties"]
    peer = rules["ingressRules"]["items"]["properties"]["from"]["items"]["properties"]
    selector = peer["podSelector"]
    labels = _spec([], matchLabels=selector["properties"]["matchLabels"])
    claims: Json = {"type": "array", "items": {"type": "object", "properties": {"metadata": _METADATA, "spec": claim}}}
    workload = {"replicas": _COUNT, "selector": labels, "template": template}
    policies: Json = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}}
    return {
        **{("ray.io/v1", kind): _with_metadata(each) for kind, each in ray.items()},
        ("v1", "Namespace"): _object(),
        ("v1", "ServiceAccount"): _object(automountServiceAccountToken=_SWITCH),
        ("v1", "Service"): _object(
            spec=ray["RayService"]["properties"]["spec"]["properties"]["serveService"]["properties"]["spec"]
        ),
        ("apps/v1", "Deployment"): _object(spec=_spec(["selector", "template"], **workload)),
        ("apps/v1", "StatefulSet"): _object(
            spec=_spec(
                ["selector", "template", "serviceName"], serviceName=_TEXT, volumeClaimTemplates=claims, **workload
            )
        ),
        ("policy/v1", "PodDisruptionBudget"): _object(
            spec=_spec(["selector"], selector=selector, minAvailable=_COUNT, maxUnavailable=_COUNT)
        ),
        ("networking.k8s.io/v1", "NetworkPolicy"): _object(
            spec=_spec(
                ["podSelector", "policyTypes"],
                podSelector=selector,
                policyTypes=policies,
                ingress=rules["ingressRules"],
                egress=rules["egressRules"],
            )
        ),
        # Of another operator, whose definitions are not here: the fields that are used, from its documentation.
        ("monitoring.coreos.com/v1", "PodMonitor"): _object(
            spec=_spec(
                ["selector", "podMetricsEndpoints"],
                selector=selector,
                namespaceSelector=_spec(["matchNames"], matchNames={"type": "array", "items": _TEXT}),
                podTargetLabels={"type": "array", "items": _TEXT},
                podMetricsEndpoints={"type": "array", "items": _spec(["port"], port=_TEXT, interval=_TEXT)},
            )
        ),
    }


def _with_metadata(schema: Json) -> Json:
    """Return a schema of KubeRay's with what its metadata may hold, which a resource definition leaves to Kubernetes."""
    made = json.loads(json.dumps(schema))  # a copy of its own: the embedded templates are changed
    for properties in _property_maps(made):
        if properties.get("metadata") == {"type": "object"}:
            properties["metadata"] = {**_METADATA, "required": []}
    made["properties"]["metadata"] = _METADATA
    made["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return dict(made)


def _property_maps(schema: Any) -> list[Json]:
    """Return every `properties` of a schema."""
    if isinstance(schema, list):
        return [found for each in schema for found in _property_maps(each)]
    if not isinstance(schema, dict):
        return []
    own = [schema["properties"]] if isinstance(schema.get("properties"), dict) else []
    return own + [found for each in schema.values() for found in _property_maps(each)]

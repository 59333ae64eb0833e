"""Manifests against the resource definitions: all fields are known, and one that is not is refused wherever it is."""

import copy
import json
from collections.abc import Iterator

import pytest

from tests.cluster.crd import Json, definitions, manifests, problems, strict

KINDS = {
    "ClusterConfig": 1,
    "Deployment": 1,
    "EC2NodeClass": 1,
    "Namespace": 1,
    "NetworkPolicy": 10,
    "NodePool": 4,
    "PodDisruptionBudget": 2,
    "PodMonitor": 1,
    "RayCluster": 1,
    "RayJob": 2,
    "RayService": 1,
    "Service": 3,
    "ServiceAccount": 3,
    "StatefulSet": 2,
    "StorageClass": 1,
}


def test_there_is_a_manifest_of_each_kind() -> None:
    kinds = [each["kind"] for each in manifests().values()]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == KINDS


@pytest.mark.parametrize("name", sorted(manifests()))
def test_a_manifest_has_known_fields_only(name: str) -> None:
    assert problems(manifests()[name]) == []


def _objects(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of all objects within a value, itself first."""
    if isinstance(value, dict):
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in children:
        yield from _objects(each, (*path, key))


def _with_unknown_field(manifest: Json, path: tuple[str | int, ...]) -> Json:
    made = copy.deepcopy(manifest)
    inner = made
    for key in path:
        inner = inner[key]  # type: ignore[index]
    inner["notAField"] = {"x": 1}  # no map of texts takes it either
    return made


@pytest.mark.parametrize("name", sorted(manifests()))
def test_an_unknown_field_is_refused_at_every_depth(name: str) -> None:
    manifest = manifests()[name]
    paths = list(_objects(manifest))
    assert len(paths) > 1
    assert [path for path in paths if not problems(_with_unknown_field(manifest, path))] == []


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("spec",),
        ("spec", "authOptions"),
        ("spec", "autoscalerOptions"),
        ("spec", "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef"),
        ("spec", "headGroupSpec", "template", "metadata"),
        ("spec", "workerGroupSpecs", 1),
        ("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "securityContext"),
    ],
)
def test_an_unknown_field_of_a_cluster_is_refused_and_named(path: tuple[str | int, ...]) -> None:
    [found] = problems(_with_unknown_field(manifests()["RayCluster/cellray"], path))
    assert "'notAField' was unexpected" in found
    assert found.startswith(".".join(map(str, path)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("autoscalerOptions", "version"), "v3", "'v3' is not one of ['v1', 'v2']"),
        (("authOptions", "mode"), "tokens", "is not one of ['disabled', 'token']"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        (("workerGroupSpecs", 0, "maxReplicas"), "8", "'8' is not of type 'integer'"),
    ],
)
def test_a_wrong_value_is_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    manifest = copy.deepcopy(manifests()["RayCluster/cellray"])
    inner = manifest["spec"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    [found] = problems(manifest)
    assert message in found


def test_open_parts_of_a_definition_stay_open() -> None:
    words: Json = {
        "type": "object",
        "properties": {
            "closed": {"type": "object", "properties": {}},
            "open": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
            "size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
            "empty": {"type": "string", "nullable": True},
        },
    }
    made = strict(words)["properties"]
    assert made["closed"]["additionalProperties"] is False
    assert "additionalProperties" not in made["open"]
    assert made["size"]["type"] == ["integer", "string"]
    assert made["empty"]["type"] == ["string", "null"]


def test_the_definitions_are_those_of_the_published_ones() -> None:
    """What the condensed file must not have lost: fields that the manifests stand on."""
    cluster = definitions()["RayCluster"]["properties"]["spec"]["properties"]
    assert sorted(cluster["authOptions"]["properties"]) == ["enableK8sTokenAuth", "mode", "secretName"]
    assert cluster["autoscalerOptions"]["properties"]["version"]["enum"] == ["v1", "v2"]
    assert set(definitions()) == {"RayCluster", "RayJob", "RayService"}
    assert "description" not in json.dumps(cluster["authOptions"])

"""The server of the cluster is the one of `serving/serve.yaml`: the same application, options that it knows."""

from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from serving.config import read_config
from tests.cluster.crd import manifests
from tests.cluster.objects import Pod, at, pods
from tests.conftest import REPOSITORY

SPEC = manifests()["RayService/cellray-serving"]["spec"]


def _server() -> Pod:
    [found] = [pod for pod in pods() if pod.labels["cellray/part"] == "serving"]
    return found


def test_the_application_is_the_one_that_runs_on_one_machine() -> None:
    local = ServeDeploySchema.model_validate(yaml.safe_load((REPOSITORY / "serving" / "serve.yaml").read_text()))
    cluster = ServeDeploySchema.model_validate(yaml.safe_load(SPEC["serveConfigV2"]))
    [one], [other] = local.applications, cluster.applications
    for name in ("name", "route_prefix", "import_path"):
        assert getattr(one, name) == getattr(other, name)
    assert set(one.args["models"]) == set(other.args["models"])
    assert one.args["access"]["auth"] == "none"
    assert other.args["access"]["auth"] == "keys"  # it listens to others than its own machine


def test_the_server_knows_its_options(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(SPEC["serveConfigV2"])
    config = read_config(tmp_path / "serve.yaml")
    assert (config.host, config.port) == ("0.0.0.0", 8000)  # noqa: S104  # within the pod's network rules
    assert config.access.auth == "keys"
    folder, _, file = str(config.access.keys_file).rpartition("/")
    mounted = {each["mountPath"]: each["name"] for each in _server().container["volumeMounts"]}
    [volume] = [each for each in _server().template["spec"]["volumes"] if each["name"] == mounted[folder]]
    assert [each["path"] for each in volume["secret"]["items"]] == [file]


def test_replicas_find_room_on_the_workers() -> None:
    [model] = yaml.safe_load(SPEC["serveConfigV2"])["applications"][0]["args"]["models"].values()
    [group] = SPEC["rayClusterConfig"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    each = cpus // model["num_cpus"]
    assert each >= 1
    assert group["maxReplicas"] * each >= model["max_replicas"] + 1  # one more while an update is under way
    assert group["minReplicas"] * each >= model["min_replicas"]
    assert cpus - each * model["num_cpus"] >= 0.5  # for the process that speaks HTTP


def test_workers_speak_http_and_the_head_is_left_out() -> None:
    config = yaml.safe_load(SPEC["serveConfigV2"])
    assert config["proxy_location"] == "EveryNode"
    assert SPEC["excludeHeadPodFromServeSvc"] is True
    assert _server().ports["serve"] == config["http_options"]["port"]
    assert at(SPEC, "rayClusterConfig.gcsFaultToleranceOptions.redisAddress") == ["cellray-redis:6379"]

"""Names in one manifest exist in the others: images, ports, services, secrets; and rules hold for every pod."""

import re
from decimal import Decimal

import pytest
import yaml

import cellray
from cellray.config import ENV_PREFIX, SWITCHES, parse_config
from tests.cluster.crd import CLUSTER, manifests
from tests.cluster.objects import (
    Pod,
    at,
    clusters,
    config_of,
    job_commands,
    pods,
    readme,
    secrets,
    selects,
    services,
    strings,
)
from tests.conftest import REPOSITORY

PINNED = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
OURS = "registry.example.com/cellray"
IMAGES = {
    f"{OURS}:{cellray.__version__}-cpu",
    f"{OURS}:{cellray.__version__}-cuda",
    f"{OURS}-mlflow:{PINNED['mlflow']}",
    "redis:7.2",
    "postgres:17",
}
ADDRESS = re.compile(r"\b(cellray-[a-z-]+)(?:\.cellray[a-z.]*)?:(\d{4,5})\b")
UNITS = {"Gi": 2**30, "Mi": 2**20, "m": Decimal("0.001")}


def ids(pod: Pod) -> str:
    return f"{pod.owner}-{pod.labels['cellray/part']}-{pod.container['name']}"


def quantity(text: str) -> Decimal:
    """Return what an amount of Kubernetes stands for: 32Gi, 500m, 2."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text).groups()  # type: ignore[union-attr]
    return Decimal(number) * UNITS.get(unit, 1)


def test_images_are_those_that_are_built_or_pinned() -> None:
    launcher = yaml.safe_load((CLUSTER / "ray-up-aws.yaml").read_text())
    used = {pod.container["image"] for pod in pods()} | {
        each for each in strings(launcher) if each.startswith("registry.")
    }
    assert used == IMAGES
    for image in IMAGES:
        if image.startswith(OURS):
            assert f"-t {image} " in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize("name", sorted(clusters()))
def test_clusters_have_the_version_of_ray_in_the_image(name: str) -> None:
    if cluster := clusters()[name]:
        assert cluster["rayVersion"] == PINNED["ray"]


@pytest.mark.parametrize("name", sorted(clusters()))
def test_clusters_ask_for_a_token_scale_by_version_2_and_leave_the_head_idle(name: str) -> None:
    cluster = clusters()[name]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "cellray-ray"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    # KubeRay refuses restarts of pods under autoscaler v2: a pod is a node of Ray for its whole life
    assert not [each for each in at(cluster, "workerGroupSpecs.*.template.spec.restartPolicy") if each != "Never"]


def test_spot_machines_are_asked_for_before_others() -> None:
    groups = {each["groupName"]: each for each in clusters()["RayCluster/cellray"]["workerGroupSpecs"]}
    assert set(groups) == {"cpu", "gpu-spot", "gpu-on-demand"}
    assert groups["gpu-spot"]["priority"] > groups["gpu-on-demand"]["priority"]
    for name, kind in (("cpu", "spot"), ("gpu-spot", "spot"), ("gpu-on-demand", "on-demand")):
        assert groups[name]["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == kind


@pytest.mark.parametrize("pod", pods(), ids=ids)
def test_a_pod_may_do_little(pod: Pod) -> None:
    """What the namespace's `restricted` level demands, and limits besides."""
    whole, own = pod.template["spec"]["securityContext"], pod.container["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in own
    for key in ("cpu", "memory"):
        assert quantity(pod.container["resources"]["limits"][key])
        assert quantity(pod.container["resources"]["requests"][key])
    # only the head asks Kubernetes for anything: its autoscaler
    if pod.labels["cellray/part"] != "head":
        assert pod.template["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", sorted(clusters()))
def test_the_object_store_fits_into_shared_memory_and_that_into_the_pod(name: str) -> None:
    cluster = clusters()[name]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        volumes = {each["name"]: each for each in spec["volumes"]}
        mounts = {each["mountPath"]: each["name"] for each in spec["containers"][0]["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        shared = volumes[mounts["/dev/shm"]]["emptyDir"]  # noqa: S108  # within a pod
        assert shared["medium"] == "Memory"
        store, memory = int(group["rayStartParams"]["object-store-memory"]), spec["containers"][0]["resources"]
        assert store <= quantity(shared["sizeLimit"]) < quantity(memory["limits"]["memory"]) / 2


@pytest.mark.parametrize("name", sorted(clusters()))
def test_workers_have_time_to_be_drained(name: str) -> None:
    for group in clusters()[name]["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        program, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "cellray-drain"
        assert int(seconds) + 20 < spec["terminationGracePeriodSeconds"] <= 120  # a cloud gives two minutes


def test_accounts_exist() -> None:
    used = {pod.template["spec"].get("serviceAccountName") for pod in pods()} - {None}
    assert used == {name.split("/")[1] for name in manifests() if name.startswith("ServiceAccount/")}
    for name, each in manifests().items():
        if name.startswith("ServiceAccount/"):
            assert each["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]


def test_everything_is_in_one_namespace() -> None:
    outside = {name for name, each in manifests().items() if each["metadata"].get("namespace") != "cellray"}
    of_the_whole_cluster = ("ClusterConfig/", "EC2NodeClass/", "Namespace/", "NodePool/", "StorageClass/")
    assert {name for name in outside if not name.startswith(of_the_whole_cluster)} == {"PodMonitor/cellray-ray"}


def test_no_manifest_holds_a_secret_and_the_guide_makes_those_that_are_named() -> None:
    assert not [name for name in manifests() if name.startswith("Secret/")]
    commands = re.sub(r"\\\n\s*", " ", readme())
    made = {
        (name, key)
        for name, rest in re.findall(r"create secret generic (\S+)(.*)", commands)
        for key in re.findall(r"--from-(?:literal|file)=([\w.-]+)=", rest)
    }
    assert secrets() <= made
    assert made - secrets() == {("cellray-metrics-key", "key")}  # Prometheus reads that one


@pytest.mark.parametrize("name", [name for name in sorted(manifests()) if name.startswith("Service/")])
def test_a_service_leads_to_a_port_of_its_pods(name: str) -> None:
    spec = manifests()[name]["spec"]
    reached = [pod for pod in pods() if selects({"matchLabels": spec["selector"]}, pod.labels)]
    assert len(reached) == 1
    for port in spec["ports"]:
        assert reached[0].ports[port["targetPort"]] == port["port"]


def test_addresses_are_those_of_services() -> None:
    texts = [each for manifest in manifests().values() for each in strings(manifest)]
    texts += [(CLUSTER / "monitoring" / "prometheus.yml").read_text(), readme()]
    named = {(host, int(port)) for text in texts for host, port in ADDRESS.findall(text)}
    there = {(name, port) for name, ports in services().items() for port in ports.values()}
    assert named <= there
    assert {host for host, _ in named} == {
        "cellray-redis",
        "cellray-mlflow",
        "cellray-postgres",
        "cellray-serving-serve-svc",
    }


FLOWS = [
    ("worker", "redis", 6379),
    ("head", "redis", 6379),
    ("head", "mlflow", 5000),
    ("serving", "mlflow", 5000),
    ("worker", "head", 6379),
    ("head", "worker", 40000),  # Ray's own ports are chosen as it starts
    ("submitter", "head", 8265),
    ("mlflow", "postgres", 5432),
]
NO_FLOWS = [
    ("submitter", "redis", 6379),
    ("worker", "postgres", 5432),
    ("mlflow", "head", 8265),
    ("redis", "head", 6379),
]


def _allowed(direction: str, here: Pod, there: Pod, port: int) -> bool:
    """Tell whether a policy of a pod lets a connection in (ingress) or out (egress) by the labels of both."""
    peers = {"ingress": "from", "egress": "to"}[direction]
    return any(
        selects(each["spec"]["podSelector"], here.labels)
        and any(
            any("podSelector" in peer and selects(peer["podSelector"], there.labels) for peer in rule[peers])
            and ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
            for rule in each["spec"].get(direction, [])
        )
        for name, each in manifests().items()
        if name.startswith("NetworkPolicy/")
    )


@pytest.mark.parametrize(("source", "target", "port"), [*FLOWS, *NO_FLOWS])
def test_policies_let_through_what_is_needed_and_no_more(source: str, target: str, port: int) -> None:
    by_part = {pod.labels["cellray/part"]: pod for pod in pods()}
    here, there = by_part[source], by_part[target]
    passes = _allowed("egress", here, there, port) and _allowed("ingress", there, here, port)
    assert passes == ((source, target, port) in FLOWS)


def test_everything_is_shut_by_default() -> None:
    assert manifests()["NetworkPolicy/default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    for name, each in manifests().items():
        if name.startswith("NetworkPolicy/"):
            types = {"ingress": "Ingress", "egress": "Egress"}
            assert {types[key] for key in types if key in each["spec"]} <= set(each["spec"]["policyTypes"])


def test_environment_variables_are_ones_that_jobs_know() -> None:
    named = {one["name"] for pod in pods() for one in pod.container.get("env", [])}
    named |= set(re.findall(rf"\b({ENV_PREFIX}[A-Z_]+)=", (CLUSTER / "Dockerfile").read_text()))
    assert {name for name in named if name.startswith(ENV_PREFIX)} <= SWITCHES


@pytest.mark.parametrize("name", ["RayJob/cellray-screen", "RayJob/cellray-pretrain"])
def test_the_command_of_a_job_is_understood_by_it(name: str) -> None:
    spec = manifests()[name]["spec"]
    [[job, *options]] = job_commands(spec["entrypoint"])
    config = parse_config(config_of(job), options, name)
    group = {"cellray-screen": ("actors", "gpus_per_actor"), "cellray-pretrain": ("num_workers", "use_gpu")}
    workers, gpus = (getattr(config, each) for each in group[name.split("/")[1]])
    assert workers[0] < workers[1]
    assert gpus
    # KubeRay: a job on a standing cluster cannot be repeated by it
    assert ("clusterSelector" in spec) == ("rayClusterSpec" not in spec) == ("backoffLimit" not in spec)


def test_a_job_finds_room_on_the_workers_of_its_cluster() -> None:
    standing = clusters()["RayCluster/cellray"]
    assert manifests()["RayJob/cellray-screen"]["spec"]["clusterSelector"] == {"ray.io/cluster": "cellray"}
    for name, cluster in (("cellray-screen", standing), ("cellray-pretrain", clusters()["RayJob/cellray-pretrain"])):
        [[job, *options]] = job_commands(manifests()[f"RayJob/{name}"]["spec"]["entrypoint"])
        config = parse_config(config_of(job), options, name).model_dump()
        most = (config.get("actors") or config["num_workers"])[1]
        cpus = config.get("cpus_per_actor") or config["cpus_per_worker"]
        gpu_groups = [each for each in cluster["workerGroupSpecs"] if each["groupName"].startswith("gpu")]
        assert sum(each["maxReplicas"] for each in gpu_groups) >= most
        for group in gpu_groups:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert limits["nvidia.com/gpu"] == "1"
            assert cpus <= int(limits["cpu"])

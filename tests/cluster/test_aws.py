"""Machines, roles and disks on AWS are those that the other manifests ask for."""

import json
import re

import pytest
import yaml

from tests.cluster.crd import CLUSTER, Json, manifests
from tests.cluster.objects import Pod, at, clusters, pods, readme
from tests.cluster.test_references import quantity

CONFIG = manifests()["ClusterConfig/cellray"]
POOLS = {name.split("/")[1]: each for name, each in manifests().items() if name.startswith("NodePool/")}
CAPACITY, GPU_NAME = "karpenter.sh/capacity-type", "karpenter.k8s.aws/instance-gpu-name"
MACHINES = {  # what the requirements leave: CPUs and memory of the smallest
    "cellray-cpu-spot": (16, "64Gi"),
    "cellray-gpu-spot": (16, "256Gi"),
    "cellray-gpu": (16, "256Gi"),
}
EXPECTED = {"cpu": "cellray-cpu-spot", "gpu-spot": "cellray-gpu-spot", "gpu-on-demand": "cellray-gpu"}


def requirements(pool: Json) -> dict[str, Json]:
    return {each["key"]: each for each in pool["spec"]["template"]["spec"]["requirements"]}


def tolerates(pod: Json, taint: Json) -> bool:
    """Tell whether a pod bears a taint, as Kubernetes decides it."""
    return any(
        each["key"] == taint["key"]
        and each.get("effect", taint["effect"]) == taint["effect"]
        and (each.get("operator") == "Exists" or each.get("value") == taint["value"])
        for each in pod.get("tolerations", [])
    )


def machines_for(pod: Json) -> list[str]:
    """Return the pools whose machines a pod may run on, by its labels, taints and what it needs."""
    gpus = ["nvidia.com/gpu" in each["resources"]["limits"] for each in pod["containers"]]
    return [
        name
        for name, pool in POOLS.items()
        if all(value in requirements(pool)[key]["values"] for key, value in wanted(pod, pool).items())
        and all(tolerates(pod, taint) for taint in pool["spec"]["template"]["spec"].get("taints", []))
        and (not any(gpus) or GPU_NAME in requirements(pool))
    ]


def wanted(pod: Json, pool: Json) -> dict[str, str]:
    """Return the labels that a pod asks for and a pool decides; GPUs have names only where there are some."""
    selector: dict[str, str] = pod.get("nodeSelector", {})
    return {key: value for key, value in selector.items() if key in requirements(pool)}


@pytest.mark.parametrize("name", sorted(clusters()))
def test_each_group_of_workers_has_one_pool_of_machines_and_it_is_large_enough(name: str) -> None:
    for group in clusters()[name].get("workerGroupSpecs", []):
        spec = group["template"]["spec"]
        [pool] = machines_for(spec)
        assert pool == EXPECTED.get(group["groupName"], "cellray-cpu")
        if pool in MACHINES:
            cpus, memory = MACHINES[pool]
            limits = spec["containers"][0]["resources"]["limits"]
            assert int(limits["cpu"]) < cpus
            assert quantity(limits["memory"]) < quantity(memory) * 9 / 10  # less what Kubernetes keeps of it


def test_labels_that_pods_ask_for_are_ones_that_pools_decide() -> None:
    asked = {key for pod in pods() for key in pod.template["spec"].get("nodeSelector", {})}
    assert asked == {CAPACITY, GPU_NAME}
    for pool in POOLS.values():
        assert requirements(pool)[CAPACITY]["values"][0] in {"spot", "on-demand"}
        assert len(requirements(pool)[CAPACITY]["values"]) == 1


def test_pools_are_as_large_as_the_clusters_may_grow() -> None:
    most = dict.fromkeys(POOLS, 0)
    for cluster in clusters().values():
        for group in cluster.get("workerGroupSpecs", []):
            [pool] = machines_for(group["template"]["spec"])
            most[pool] += group["maxReplicas"]
    limits = {name: pool["spec"]["limits"] for name, pool in POOLS.items()}
    for name in ("cellray-gpu", "cellray-gpu-spot"):
        assert int(limits[name]["nvidia.com/gpu"]) == most[name]
    assert int(limits["cellray-cpu-spot"]["cpu"]) == 16 * most["cellray-cpu-spot"]
    heads = 8 * sum("headGroupSpec" in cluster for cluster in clusters().values())
    servers = 2 * 8 * most["cellray-cpu"]  # two clusters while one takes over from the other
    assert heads + servers <= int(limits["cellray-cpu"]["cpu"])


def _head_or_server() -> list[Pod]:
    return [pod for pod in pods() if pod.labels["cellray/part"] in {"head", "serving"}]


@pytest.mark.parametrize("pod", _head_or_server(), ids=lambda pod: f"{pod.owner}-{pod.labels['cellray/part']}")
def test_heads_and_servers_come_onto_machines_that_stay(pod: Pod) -> None:
    assert machines_for(pod.template["spec"]) == ["cellray-cpu"]
    assert POOLS["cellray-cpu"]["spec"]["template"]["spec"]["expireAfter"] == "Never"


def test_pods_that_say_nothing_come_onto_no_spot_and_no_gpu_machine() -> None:
    assert machines_for({"containers": []}) == ["cellray-cpu"]
    assert machines_for({"containers": [], "nodeSelector": {CAPACITY: "spot"}}) == []


def test_no_work_is_moved_to_save_a_machine() -> None:
    for pool in POOLS.values():
        assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"


def test_the_device_plugin_runs_where_gpus_are() -> None:
    """Its chart asks for the label `nvidia.com/gpu.present` and bears the taint `nvidia.com/gpu`, no other."""
    for name, pool in POOLS.items():
        template = pool["spec"]["template"]
        if GPU_NAME in requirements(pool):
            assert template["metadata"]["labels"] == {"nvidia.com/gpu.present": "true"}, name
            assert [each["key"] for each in template["spec"]["taints"]] == ["nvidia.com/gpu"]
    assert "helm install nvdp nvdp/nvidia-device-plugin --version" in readme()


def test_pools_and_classes_are_of_the_cluster_that_is_made() -> None:
    name = CONFIG["metadata"]["name"]
    spec = manifests()["EC2NodeClass/cellray"]["spec"]
    tag = {"karpenter.sh/discovery": name}
    assert CONFIG["metadata"]["tags"] == tag
    assert spec["subnetSelectorTerms"] == spec["securityGroupSelectorTerms"] == [{"tags": tag}]
    assert spec["role"] == f"eksctl-KarpenterNodeRole-{name}"
    for pool in POOLS.values():
        assert pool["spec"]["template"]["spec"]["nodeClassRef"] == {
            "group": "karpenter.k8s.aws",
            "kind": "EC2NodeClass",
            "name": "cellray",
        }
    assert CONFIG["karpenter"]["withSpotInterruptionQueue"] is True
    assert CONFIG["iam"]["withOIDC"] is True  # roles of accounts rest on it
    assert spec["metadataOptions"] == {"httpTokens": "required", "httpPutResponseHopLimit": 1}


def test_each_account_has_a_role_of_its_own_with_the_rights_it_needs() -> None:
    roles = {each["metadata"]["name"]: each for each in CONFIG["iam"]["serviceAccounts"]}
    accounts = {each["metadata"]["name"]: each for name, each in manifests().items() if "ServiceAccount/" in name}
    assert set(roles) == set(accounts)
    for name, role in roles.items():
        assert role["metadata"]["namespace"] == accounts[name]["metadata"]["namespace"]
        assert role["roleOnly"] is True  # the account is namespace.yaml's
        arn = accounts[name]["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert arn == f"arn:aws:iam::111122223333:role/{role['roleName']}"
    [of_data] = {json.dumps(roles[name]["attachPolicy"]) for name in ("cellray", "cellray-head")}
    assert '"arn:aws:s3:::example-cellray/*"' in of_data
    reads_and_writes = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
    for role in roles.values():
        [listing, objects] = role["attachPolicy"]["Statement"]
        assert "s3:ListBucket" in listing["Action"]
        assert reads_and_writes <= set(objects["Action"])
        assert not [each for each in listing["Action"] + objects["Action"] if "*" in each]
    [listing, objects] = roles["cellray-mlflow"]["attachPolicy"]["Statement"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["mlflow", "mlflow/*"]}}
    assert objects["Resource"] == "arn:aws:s3:::example-cellray/mlflow/*"
    [arguments] = at(manifests()["Deployment/cellray-mlflow"], "spec.template.spec.containers.*.args")
    assert "--artifacts-destination=s3://example-cellray/mlflow" in arguments


def test_policies_are_enforced_and_there_are_disks() -> None:
    addons = {each["name"]: each for each in CONFIG["addons"]}
    assert json.loads(addons["vpc-cni"]["configurationValues"]) == {"enableNetworkPolicy": "true"}
    assert addons["aws-ebs-csi-driver"]["wellKnownPolicies"] == {"ebsCSIController": True}
    storage = manifests()["StorageClass/gp3"]
    assert storage["provisioner"] == "ebs.csi.aws.com"
    assert storage["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    claims = [claim for each in manifests().values() for claim in at(each, "spec.volumeClaimTemplates.*.spec")]
    assert len(claims) == 2
    assert not [claim for claim in claims if "storageClassName" in claim]  # the default one


def test_every_file_is_applied_by_the_guide_before_what_needs_it() -> None:
    order = [
        "eksctl create cluster -f my-cluster/aws/eksctl.yaml",
        "-f my-cluster/aws/storage.yaml -f my-cluster/aws/karpenter.yaml",
        "helm install kuberay-operator",
        "kubectl apply -f my-cluster/kuberay/namespace.yaml",
        "create secret generic cellray-ray",
        "-f my-cluster/kuberay/redis.yaml",
        "kubectl apply -f my-cluster/kuberay/raycluster.yaml",
    ]
    places = [readme().index(each) for each in order]
    assert places == sorted(places)


def test_prometheus_of_the_chart_reads_what_the_plain_one_does() -> None:
    folder = CLUSTER / "monitoring"
    spec = yaml.safe_load((folder / "prometheus-values.yaml").read_text())["prometheus"]["prometheusSpec"]
    plain = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert spec["additionalScrapeConfigs"] == plain[1:]
    [secret] = spec["secrets"]
    file = spec["additionalScrapeConfigs"][0]["authorization"]["credentials_file"]
    assert file == f"/etc/prometheus/secrets/{secret}/key"
    commands = re.sub(r"\\\n\s*", " ", readme())
    made = commands.index(f"-n monitoring create secret generic {secret} --from-literal=key=")
    [(release, namespace)] = re.findall(r"helm install (\S+) prometheus-community/\S+ --namespace (\S+)", commands)
    assert commands.index("kubectl create namespace monitoring") < made < commands.index(f"helm install {release} ")
    monitor = manifests()["PodMonitor/cellray-ray"]["metadata"]
    assert monitor["labels"] == {"release": release}
    assert monitor["namespace"] == namespace

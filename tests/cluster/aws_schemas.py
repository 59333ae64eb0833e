"""Schemas of what makes a cluster on AWS: eksctl's configuration, Karpenter's pools, a class of disks.

Their published definitions are not here: these are the fields that the files use, copied by hand from the documentation
(eksctl user guide, Karpenter 1.x "NodePools" and "NodeClasses", Kubernetes' StorageClass). They find a field that is
misspelt or in the wrong place, and none that its maker has changed since.
"""

from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
SWITCH: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0}
TEXTS: Json = {"type": "array", "items": TEXT}
MAP: Json = {"type": "object", "additionalProperties": TEXT}
SIZE: Json = {"type": "string", "pattern": r"^[0-9]+Gi$"}
TIME: Json = {"type": "string", "pattern": r"^([0-9]+(s|m|h))+$|^Never$"}
VERSION: Json = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)+$"}


def obj(*required: str, **properties: Json) -> Json:
    """Return the schema of an object with these fields."""
    return {"type": "object", "required": list(required), "properties": properties}


def many(items: Json) -> Json:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "items": items, "minItems": 1}


_REQUIREMENT = obj(
    *("key", "operator"),
    key=TEXT,
    operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]},
    values=TEXTS,
    minValues=COUNT,
)
_TAINT = obj(*("key", "effect"), key=TEXT, value=TEXT, effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})
_REFERENCE = obj("group", "kind", "name", group=TEXT, kind=TEXT, name=TEXT)
_NODES = obj(
    *("nodeClassRef", "requirements"),
    nodeClassRef=_REFERENCE,
    requirements=many(_REQUIREMENT),
    taints=many(_TAINT),
    startupTaints=many(_TAINT),
    expireAfter=TIME,
    terminationGracePeriod=TIME,
)
_DISRUPTION = obj(
    *("consolidateAfter",),
    consolidationPolicy={"enum": ["WhenEmpty", "WhenEmptyOrUnderutilized"]},
    consolidateAfter=TIME,
    budgets=many(obj("nodes", nodes=TEXT, schedule=TEXT, duration=TIME, reasons=TEXTS)),
)
_NODE_POOL = obj(
    *("template",),
    template=obj("spec", metadata=obj(labels=MAP, annotations=MAP), spec=_NODES),
    disruption=_DISRUPTION,
    limits=MAP,
    weight=COUNT,
)
_DISK = obj(
    volumeSize=SIZE,
    volumeType={"enum": ["gp3", "io1", "io2"]},
    encrypted=SWITCH,
    deleteOnTermination=SWITCH,
    iops=COUNT,
    throughput=COUNT,
    kmsKeyID=TEXT,
)
_SELECTED = many(obj(tags=MAP, id=TEXT))
_NODE_CLASS = obj(
    *("amiSelectorTerms", "subnetSelectorTerms", "securityGroupSelectorTerms"),
    role=TEXT,
    amiSelectorTerms=many(obj(alias=TEXT, tags=MAP, id=TEXT, name=TEXT, owner=TEXT)),
    subnetSelectorTerms=_SELECTED,
    securityGroupSelectorTerms=_SELECTED,
    metadataOptions=obj(
        httpEndpoint=TEXT, httpTokens={"enum": ["required", "optional"]}, httpPutResponseHopLimit=COUNT
    ),
    blockDeviceMappings=many(obj("deviceName", "ebs", deviceName=TEXT, ebs=_DISK)),
    tags=MAP,
    userData=TEXT,
)
_STATEMENT = obj(
    *("Effect", "Action", "Resource"),
    Effect={"enum": ["Allow", "Deny"]},
    Action=many(TEXT),
    Resource={"type": "string", "pattern": "^arn:aws:s3:::"},
    Condition={"type": "object", "additionalProperties": {"type": "object", "additionalProperties": TEXTS}},
)
_ACCOUNT = obj(
    *("metadata", "roleName", "attachPolicy"),
    metadata=obj("name", "namespace", name=TEXT, namespace=TEXT),
    roleName=TEXT,
    roleOnly=SWITCH,
    attachPolicy=obj("Version", "Statement", Version={"const": "2012-10-17"}, Statement=many(_STATEMENT)),
)
_ADDON = obj("name", name=TEXT, version=TEXT, configurationValues=TEXT, wellKnownPolicies=obj(ebsCSIController=SWITCH))
_GROUP = obj(
    *("name",),
    name=TEXT,
    instanceType=TEXT,
    minSize=COUNT,
    maxSize=COUNT,
    desiredCapacity=COUNT,
    volumeSize=COUNT,
    volumeEncrypted=SWITCH,
    disablePodIMDS=SWITCH,
)
KINDS: dict[tuple[str, str], Json] = {
    ("karpenter.sh/v1", "NodePool"): {"spec": _NODE_POOL},
    ("karpenter.k8s.aws/v1", "EC2NodeClass"): {"spec": _NODE_CLASS},
    ("storage.k8s.io/v1", "StorageClass"): {
        "provisioner": TEXT,
        "parameters": MAP,
        "reclaimPolicy": {"enum": ["Delete", "Retain"]},
        "allowVolumeExpansion": SWITCH,
        "volumeBindingMode": {"enum": ["Immediate", "WaitForFirstConsumer"]},
    },
    ("eksctl.io/v1alpha5", "ClusterConfig"): {
        "metadata": obj("name", "region", name=TEXT, region=TEXT, version=VERSION, tags=MAP),
        "iam": obj(withOIDC=SWITCH, serviceAccounts=many(_ACCOUNT)),
        "addons": many(_ADDON),
        "karpenter": obj("version", version=VERSION, createServiceAccount=SWITCH, withSpotInterruptionQueue=SWITCH),
        "managedNodeGroups": many(_GROUP),
    },
}
"""The fields of each kind beside `apiVersion`, `kind` and, but for eksctl's, `metadata`."""

"""The manifest for Kubernetes: well formed, without secrets, and saying what the documents say.

No cluster reads it here. The schema below is this project's own: the fields of a RayCluster that
the manifest may use, by name and type, as KubeRay's reference of ``ray.io/v1`` lists them. A field
that is misspelt, or in the wrong place, would be dropped or refused by the API server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from governance.gates.policy import parse_policy
from governance.settings import Settings
from serve.credentials import PASSED_ON, without_password

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker" / "kuberay.yaml").read_text("utf-8")
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(TEXT))
BY_NAME = {(one["kind"], one["metadata"]["name"]): one for one in DOCUMENTS}
CLUSTER = BY_NAME["RayCluster", "chancery"]["spec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
OPERATOR = BY_NAME["Deployment", "chancery-operator"]["spec"]["template"]


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LABELS = {
    "type": "object",
    "additionalProperties": {
        "type": "string",
        "pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
    },
}
COUNT = {"type": "integer", "minimum": 0}
SEVERAL = {"type": "array", "minItems": 1}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {
        "type": "string",
        "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$",
    },
}
RESOURCES = closed(("requests",), requests=QUANTITIES, limits=QUANTITIES)
CONTAINER_SECURITY = closed(
    ("allowPrivilegeEscalation", "capabilities"),
    allowPrivilegeEscalation={"const": False},
    capabilities=closed(("drop",), drop={"const": ["ALL"]}),
)
MOUNT = closed(
    ("name", "mountPath"), name={"type": "string"}, mountPath={"type": "string", "pattern": "^/"},
    subPath={"type": "string"}, readOnly={"type": "boolean"},
)  # fmt: skip
SETTINGS = {
    "type": "array",
    "items": closed(("configMapRef",), configMapRef=closed(("name",), name={"const": "chancery"})),
}
CONTAINER = closed(
    ("name", "image", "securityContext", "resources", "volumeMounts"),
    name={"type": "string"},
    image={"type": "string", "pattern": "^registry.example/[a-z-]+:[0-9.]+$"},
    command={**SEVERAL, "items": {"type": "string"}},
    args={**SEVERAL, "items": {"type": "string"}},
    env={
        "type": "array",
        "items": closed(("name", "value"), name={"type": "string"}, value={"type": "string"}),
    },
    envFrom=SETTINGS,
    ports={
        "type": "array",
        "items": closed(
            ("name", "containerPort"), name={"type": "string", "pattern": "^[a-z-]{1,15}$"},
            containerPort=COUNT,
        ),
    },
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
    readinessProbe=closed(
        ("httpGet",),
        httpGet=closed(("path", "port"), path={"const": "/ping"}, port={"const": "gateway"}),
        periodSeconds=COUNT, failureThreshold=COUNT,
    ),
    lifecycle=closed(
        ("preStop",), preStop=closed(("exec",), exec=closed(("command",), command=SEVERAL))
    ),
    volumeMounts={**SEVERAL, "items": MOUNT},
)  # fmt: skip
VOLUME = closed(
    ("name",),
    name={"type": "string"},
    secret=closed(("secretName",), secretName={"type": "string"}, defaultMode={"const": 0o440}),
    emptyDir=closed((), medium={"const": "Memory"}, sizeLimit={"type": "string"}),
    configMap=closed(("name",), name={"type": "string"}),
    persistentVolumeClaim=closed(("claimName",), claimName={"type": "string"}),
)
POD = closed(
    ("securityContext", "containers", "initContainers", "volumes", "automountServiceAccountToken"),
    automountServiceAccountToken={"type": "boolean"},
    terminationGracePeriodSeconds=COUNT,
    securityContext=closed(
        ("runAsNonRoot", "runAsUser", "seccompProfile"),
        runAsNonRoot={"const": True},
        runAsUser={"const": 1000},
        runAsGroup={"const": 1000},
        fsGroup={"const": 1000},
        seccompProfile=closed(("type",), type={"const": "RuntimeDefault"}),
    ),
    nodeSelector=TEXTS,
    tolerations={"type": "array"},
    topologySpreadConstraints={"type": "array"},
    initContainers={**SEVERAL, "items": CONTAINER},
    containers={**SEVERAL, "items": CONTAINER},
    volumes={**SEVERAL, "items": VOLUME},
)
TEMPLATE = closed(
    ("metadata", "spec"), metadata=closed(("labels",), labels=TEXTS, annotations=TEXTS), spec=POD
)
RAY_CLUSTER = closed(
    ("headGroupSpec", "workerGroupSpecs", "rayVersion"),
    rayVersion={"type": "string", "pattern": r"^2\.60\."},
    authOptions=closed(
        ("mode", "secretName"), mode={"const": "token"}, secretName={"type": "string"}
    ),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        (), version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT, securityContext=CONTAINER_SECURITY, envFrom=SETTINGS,
        volumeMounts={"type": "array", "items": MOUNT}, resources=RESOURCES,
    ),
    headGroupSpec=closed(
        ("rayStartParams", "template"), rayStartParams=TEXTS, template=TEMPLATE, labels=LABELS
    ),
    workerGroupSpecs={
        **SEVERAL,
        "items": closed(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName={"type": "string", "pattern": "^[a-z][a-z0-9-]{0,50}$"},
            labels=LABELS, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT,
            rayStartParams=TEXTS, template=TEMPLATE,
        ),
    },
)  # fmt: skip


def pods() -> dict[str, dict[str, Any]]:
    found = {name: group["template"] for name, group in GROUPS.items()}
    return {**found, "head": CLUSTER["headGroupSpec"]["template"], "operator": OPERATOR}


def test_the_cluster_fits_the_schema() -> None:
    jsonschema.Draft202012Validator(RAY_CLUSTER).validate(CLUSTER)
    for name, pod in pods().items():
        jsonschema.Draft202012Validator(TEMPLATE).validate(pod)
        assert pod["metadata"]["labels"]["chancery/part"] == name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(workerGroups=[]),
        lambda spec: spec["workerGroupSpecs"][0].update(label={"pool": "x"}),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="2"),
        lambda spec: spec["workerGroupSpecs"][0]["labels"].update(pool="a b"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["securityContext"].update(
            runAsNonRoot=False
        ),
    ],
)
def test_the_schema_refuses_mistakes(spoil: Any) -> None:
    spec = next(d for d in yaml.safe_load_all(TEXT) if d["kind"] == "RayCluster")["spec"]
    spoil(spec)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(RAY_CLUSTER).validate(spec)


def test_every_object_is_named_once_and_lies_in_one_namespace() -> None:
    assert len(BY_NAME) == len(DOCUMENTS)
    for one in DOCUMENTS:
        assert one["metadata"]["namespace"] == "chancery"
        assert one["apiVersion"] == {
            "RayCluster": "ray.io/v1", "Deployment": "apps/v1", "PodDisruptionBudget": "policy/v1",
            "NetworkPolicy": "networking.k8s.io/v1",
        }.get(one["kind"], "v1")  # fmt: skip


def test_it_holds_no_secret() -> None:
    assert not [one for one in DOCUMENTS if one["kind"] == "Secret"]
    settings = BY_NAME["ConfigMap", "chancery"]["data"]
    for name, value in settings.items():
        assert not re.search("PASSWORD|SECRET|TOKEN$|KEY$", name) or value.startswith("file:"), name
    uri = settings["MLFLOW_REGISTRY_URI"]
    assert without_password(uri, Path("/nonexistent")) == uri
    assert uri.endswith("?passfile=/run/chancery/pgpass")


def test_its_settings_are_passed_on_and_can_be_read(tmp_path: Path) -> None:
    settings = BY_NAME["ConfigMap", "chancery"]["data"]
    ours = {name: value for name, value in settings.items() if name.startswith("CHANCERY_")}
    assert ours.keys() <= set(PASSED_ON)
    policy = tmp_path / "policy.yaml"
    policy.write_text(BY_NAME["ConfigMap", "chancery-policy"]["data"]["policy.yaml"])
    found = Settings.load(settings["MLFLOW_REGISTRY_URI"], {**ours, "CHANCERY_POLICY": str(policy)})
    assert str(found.home) == "/var/lib/chancery"
    assert {one.name for one in parse_policy(policy.read_text()).environments} == {
        "staging",
        "prod",
    }


def test_pools_are_labels_of_worker_groups() -> None:
    assert {name: group["labels"]["pool"] for name, group in GROUPS.items()} == {
        "serving": "serving", "gpu": "gpu", "batch": "batch",
    }  # fmt: skip
    for group in GROUPS.values():
        assert "labels" not in group["rayStartParams"], "the operator refuses them there"
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = GROUPS["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_service_budget_and_policy_mean_pods_that_there_are() -> None:
    serving = GROUPS["serving"]["template"]
    service = BY_NAME["Service", "chancery-gateways"]["spec"]
    assert service["selector"].items() <= serving["metadata"]["labels"].items()
    ports = {
        port["name"]: port["containerPort"] for port in serving["spec"]["containers"][0]["ports"]
    }
    (port,) = service["ports"]
    assert ports[port["targetPort"]] == 8080
    budget = BY_NAME["PodDisruptionBudget", "chancery-gateways"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= serving["metadata"]["labels"].items()
    assert budget["minAvailable"] < GROUPS["serving"]["minReplicas"]
    network = BY_NAME["NetworkPolicy", "chancery-ray"]["spec"]
    for pod in pods().values():
        assert network["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    selector = BY_NAME["Deployment", "chancery-operator"]["spec"]["selector"]["matchLabels"]
    assert selector.items() <= OPERATOR["metadata"]["labels"].items()


@pytest.mark.parametrize("name", ["head", "serving", "gpu", "batch", "operator"])
def test_what_is_mounted_is_there_and_secrets_are_copied(name: str) -> None:
    spec = pods()[name]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in (*spec["containers"], *spec["initContainers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    (container,) = spec["containers"]
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/run/chancery", "/var/lib/chancery", "/etc/chancery"} <= places
    assert "secrets" not in {mount["name"] for mount in container["volumeMounts"]}
    assert "chmod 600" in spec["initContainers"][0]["args"][0]


def test_the_operator_runs_a_command_that_there_is() -> None:
    (container,) = OPERATOR["spec"]["containers"]
    assert "chancery deploy operate --ray auto" in container["args"][0]
    from governance.cli import main

    deploy = main.commands["deploy"]
    assert "operate" in deploy.commands  # type: ignore[attr-defined]

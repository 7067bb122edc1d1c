"""What is given to Kubernetes is valid there, to the last field, and asks for no more rights than it needs."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.errors import ConfigError
from model.yaml_file import load_yaml
from pipelines.config import read_options
from steps.paths import REPOSITORY
from steps.settings import load_settings

K8S, STACKS = REPOSITORY / "infra" / "k8s", REPOSITORY / "infra" / "stacks"
RUN = STACKS / "kubernetes-run.yaml"
STEPS = ("ingest", "annotate", "validate", "preprocess", "fine_tune", "evaluate", "register", "promote")
#: The folder of KubeRay's CRDs, which no package holds: docs/kubernetes.md says how to get it.
CRDS = "AGENTPS_KUBERAY_CRDS"


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """As Kustomize renders them, and what is applied beside."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl, which renders Kustomize's folders")
    command = ["kubectl", "kustomize", str(K8S / request.param)]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    beside = (K8S / "pipelines.yaml").read_text(encoding="utf-8")
    return [*yaml.safe_load_all(rendered), *yaml.safe_load_all(beside)]


def pods(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pods that a manifest leads to, with the name of their place."""
    spec = manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "Job"):
        yield manifest["metadata"]["name"], spec["template"]
    elif manifest["kind"] in ("RayService", "RayJob"):
        cluster = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield f"{manifest['metadata']['name']} {group.get('groupName', 'head')}", group["template"]


def step_pods() -> dict[str, dict[str, Any]]:
    """The Jobs that ZenML's orchestrator makes for the run file, as they are sent."""
    pytest.importorskip("kubernetes", reason="no kubernetes: pip install 'agentps[kubernetes]'")
    from kubernetes.client import ApiClient
    from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import KubernetesOrchestratorSettings
    from zenml.integrations.kubernetes.manifest_utils import (
        build_job_manifest,
        build_pod_manifest,
        pod_template_manifest_from_pod,
    )
    from zenml.utils.pydantic_utils import update_model

    run = load_yaml(RUN)
    whole = KubernetesOrchestratorSettings(**run["settings"]["orchestrator"])
    jobs = {}
    for name in (*STEPS, "orchestrator"):
        own = run["steps"].get(name, {}).get("settings", {}).get("orchestrator")
        settings = whole if own is None else update_model(whole, KubernetesOrchestratorSettings(**own))
        pod_settings = settings.orchestrator_pod_settings if name == "orchestrator" else settings.pod_settings
        pod = build_pod_manifest(
            pod_name=name,
            image_name=run["settings"]["docker"]["parent_image"],
            command=["python", "-m", "zenml.entrypoints.entrypoint"],
            args=["--step", name],
            privileged=settings.privileged,
            pod_settings=pod_settings,
            service_account_name=settings.step_pod_service_account_name,
            env={"ZENML_STORE_URL": "https://zenml"},
        )
        job = build_job_manifest(job_name=name.replace("_", "-"), pod_template=pod_template_manifest_from_pod(pod))
        jobs[name] = ApiClient().sanitize_for_serialization(job) | {"apiVersion": "batch/v1", "kind": "Job"}
    return jobs


def validate(manifest: dict[str, Any]) -> None:
    known = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    known.validate(manifest, known.latest_version(), strict=True)


def test_every_manifest_is_valid_to_the_last_field(manifests: list[dict[str, Any]]) -> None:
    seen = set()
    for manifest in manifests:
        seen.add(manifest["kind"])
        if not manifest["apiVersion"].startswith("ray.io/"):
            validate(manifest)
        for _, template in pods(manifest):
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | template["metadata"],
                      "spec": template["spec"]})  # fmt: skip
    assert {"Deployment", "Service", "NetworkPolicy", "RayService", "RayJob", "Namespace", "ConfigMap"} <= seen


def test_an_unknown_field_would_be_found(manifests: list[dict[str, Any]]) -> None:
    known = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    deployment = next(manifest for manifest in manifests if manifest["kind"] == "Deployment")
    with pytest.raises(known.ValidationError):
        validate(deployment | {"spec": deployment["spec"] | {"replica": 1}})


def test_zenml_s_jobs_are_valid_and_fine_tune_goes_where_the_gpus_are() -> None:
    jobs = step_pods()
    for job in jobs.values():
        validate(job)
    specs = {name: job["spec"]["template"]["spec"] for name, job in jobs.items()}
    for name, spec in specs.items():
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    gpus = {
        name: spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0") for name, spec in specs.items()
    }
    assert gpus == dict.fromkeys(specs, "0") | {"fine_tune": "8", "evaluate": "1", "promote": "1"}
    tuned, small = specs["fine_tune"], specs["ingest"]
    assert tuned["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert tuned["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in tuned["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in tuned["containers"][0]["volumeMounts"]
    assert small["containers"][0]["resources"]["requests"] == {"cpu": "1", "memory": "4Gi"}
    assert "nodeSelector" not in small


def test_the_container_s_own_security_context_would_not_be_valid() -> None:
    """The reason for the pod's instead: where this fails, ZenML has mended it, and `restricted` is possible."""
    pytest.importorskip("kubernetes")
    known = pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate")
    from kubernetes.client import ApiClient
    from zenml.integrations.kubernetes.manifest_utils import build_pod_manifest
    from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

    settings = KubernetesPodSettings(container_security_context={"allowPrivilegeEscalation": False})
    pod = build_pod_manifest("x", "image", [], [], privileged=False, pod_settings=settings)
    with pytest.raises(known.ValidationError):
        validate(ApiClient().sanitize_for_serialization(pod))


def test_every_pod_of_ours_is_restricted(manifests: list[dict[str, Any]]) -> None:
    """The rules of Pod Security `restricted`, and no writable root."""
    found = [(name, template["spec"]) for manifest in manifests for name, template in pods(manifest)]
    assert len(found) >= 8
    for name, spec in found:
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] >= 10_000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
        assert all(v.keys() & {"emptyDir", "persistentVolumeClaim", "secret", "configMap"} for v in spec["volumes"])
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"] == {"drop": ["ALL"]}, name
            assert own["readOnlyRootFilesystem"] is True, name
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name


def test_a_policy_stands_before_every_pod_and_ray_lets_nobody_else_in(manifests: list[dict[str, Any]]) -> None:
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    closed = {
        m["metadata"]["namespace"] for m in policies if m["spec"]["podSelector"] == {} and "ingress" not in m["spec"]
    }
    assert closed == {"agentps", "agentps-pipelines"}
    labels = {template["metadata"]["labels"]["app"] for m in manifests for _, template in pods(m)}
    for policy in policies:
        for expression in policy["spec"]["podSelector"].get("matchExpressions", []):
            assert set(expression["values"]) <= labels, "a policy names a pod that is not there"


def test_the_run_files_hold_options_of_ours(manifests: list[dict[str, Any]], tmp_path: Path) -> None:
    from pipelines.config import read_run_file
    from scoring.settings import ScoringRunSettings

    assert load_settings(read_options(RUN)).fine_tune.processes == 8
    (runs,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap")
    for name, text in runs.items():
        (tmp_path / name).write_text(text)
        read_run_file(tmp_path / name, set(ScoringRunSettings.model_fields))
    tuned = load_settings(read_options(tmp_path / "training-run.yaml")).fine_tune
    assert tuned.engine == "ray"
    (group,) = (
        m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        for m in manifests
        if m["kind"] == "RayJob" and m["metadata"]["name"] == "training"
    )
    resources = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    each = int(resources.get("nvidia.com/gpu", 1))  # without a GPU a process takes the cores of a machine
    assert tuned.processes == each * group["maxReplicas"]
    assert tuned.least_processes == each * group["minReplicas"]
    volumes = group["template"]["spec"]["volumes"]
    assert not [each for each in volumes if "persistentVolumeClaim" in each], (
        "a training needs no folder that all share"
    )


def test_whatever_a_pod_writes_goes_to_a_volume(manifests: list[dict[str, Any]]) -> None:
    """The root is read-only, and the image's own place, /state, is no volume in every cluster."""
    for name, spec in ((name, template["spec"]) for manifest in manifests for name, template in pods(manifest)):
        for container in spec["containers"]:
            places = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
            values = {each["name"]: each["value"] for each in container["env"]}
            paths = [values[key] for key in ("HOME", "AGENTPS_HOME", "ZENML_CONFIG_PATH") if key in values]
            assert "HOME" in values, name
            assert "ZENML_CONFIG_PATH" in values or name == "mlflow", name
            assert all(any(Path(path).is_relative_to(place) for place in places) for path in paths), name


def test_a_file_that_a_variable_names_is_mounted_and_rays_memory_fits_into_what_it_is_given(
    manifests: list[dict[str, Any]],
) -> None:
    (mlflow,) = (
        m["spec"]["template"]["spec"]
        for m in manifests
        if m["metadata"]["name"] == "mlflow" and "template" in m["spec"]
    )
    container = mlflow["containers"][0]
    (path,) = (each["value"] for each in container["env"] if each["name"] == "MLFLOW_AUTH_CONFIG_PATH")
    assert str(Path(path).parent) in {each["mountPath"] for each in container["volumeMounts"]}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        for group in (spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or {}).get("workerGroupSpecs", []):
            pod = group["template"]["spec"]
            (shm,) = (each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if each["name"] == "shm")
            memory = pod["containers"][0]["resources"]["limits"]["memory"]
            # without the parameter Ray takes 30 % of the memory
            asked = group["rayStartParams"].get("object-store-memory", 0.3 * _bytes(memory))
            assert float(asked) <= _bytes(shm), manifest["metadata"]["name"]


def _bytes(quantity: str) -> int:
    return int(quantity.removesuffix("Gi")) * 2**30


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # Ray's own models
def test_the_service_on_ray_is_what_the_manifest_names(
    manifests: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="no Ray")
    monkeypatch.setenv("AGENTPS_HOME", str(tmp_path))
    (config,) = (yaml.safe_load(m["spec"]["serveConfigV2"]) for m in manifests if m["kind"] == "RayService")
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    made = getattr(importlib.import_module(module), name)(application["args"])
    parts = {
        part._bound_deployment.name: part._bound_deployment for part in (made, made._bound_deployment.init_args[0])
    }
    assert {deployment["name"] for deployment in application["deployments"]} == parts.keys()
    for deployment in application["deployments"]:
        parts[deployment["name"]].options(**{key: value for key, value in deployment.items() if key != "name"})
    with pytest.raises(ConfigError, match="cheese"):
        getattr(importlib.import_module(module), name)({"model": "m", "service": {"cheese": 1}})


@pytest.mark.skipif(not os.environ.get(CRDS), reason=f"{CRDS} names no folder of KubeRay's CRDs")
def test_ray_s_kinds_pass_kuberay_s_schema(manifests: list[dict[str, Any]]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    seen = set()
    for manifest in manifests:
        if manifest["apiVersion"] != "ray.io/v1":
            continue
        seen.add(manifest["kind"])
        path = Path(os.environ[CRDS]) / f"ray.io_{manifest['kind'].lower()}s.yaml"
        crd = yaml.safe_load(path.read_text(encoding="utf-8"))
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        errors = [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in validator(schema).iter_errors(manifest)]
        assert errors == [], manifest["metadata"]["name"]
    assert seen == {"RayService", "RayJob"}


def _strict(schema: Any) -> Any:
    """Fields that are not named are refused, as by `kubectl apply --validate=strict`; Kubernetes' own words read."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    named = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if named and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        strict.pop("type", None)
        strict["type"] = ["integer", "string"]
    return strict

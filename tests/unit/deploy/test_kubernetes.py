"""Each overlay renders to manifests that run the programs that exist, without rights, checked by their own health."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.missing import skip_or_fail
from tests.servers import ServerMissing
from tests.servers.process import find_server
from worker.cli.commands import COMMANDS
from worker.settings import load_settings

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(each.name for each in (FOLDER / "overlays").iterdir())
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kubernetes-1.37.json").read_text())
EVERYWHERE = {"zot-worker", "zot-sweeper", "zot-beat", "zot-metrics"}
PROGRAMS = {"small": EVERYWHERE, "production": {*EVERYWHERE, "zot-gateway", "zot-flower"}}
SCALED = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "cooldownPeriod", "fallback", "triggers"}
CREDENTIALS = {
    "zot-worker": {"zot-artifacts", "zot-stores"}, "zot-sweeper": {"zot-artifacts", "zot-stores"},
    "zot-gateway": {"zot-artifacts", "zot-stores"}, "zot-beat": {"zot-artifacts"}, "zot-metrics": {"zot-artifacts"},
    "zot-flower": {"zot-artifacts", "zot-flower"}, "zot-broker": {"zot-servers"}, "zot-catalogue": {"zot-servers"},
}  # fmt: skip

pytestmark = pytest.mark.installed_server


class Rendered:
    """The objects of one overlay, as `kubectl apply -k` sends them."""

    def __init__(self, overlay: str, objects: list[dict[str, Any]]) -> None:
        self.overlay = overlay
        self.objects = objects

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the objects of one kind by their name."""
        return {each["metadata"]["name"]: each for each in self.objects if each["kind"] == kind}

    @property
    def workloads(self) -> dict[str, dict[str, Any]]:
        """Return what has pods: our programs and, in the small overlay, broker and catalogue."""
        return {**self.of("Deployment"), **self.of("StatefulSet")}

    def pods(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Yield each workload's name, the specification of its pods and its only container."""
        for name, each in self.workloads.items():
            pod = each["spec"]["template"]["spec"]
            [container] = pod["containers"]
            yield name, pod, container


def render(overlay: str) -> Rendered:
    """Render an overlay with the kustomize of kubectl, which asks no cluster."""
    try:
        kubectl = find_server("kubectl")
    except ServerMissing as error:
        skip_or_fail(str(error))
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return Rendered(overlay, list(yaml.safe_load_all(done.stdout)))


def service_links(rendered: Rendered, pod: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables in which kubelet tells a pod the first port of each Service: those of Docker's links."""
    links = {}
    if pod.get("enableServiceLinks", True):
        for service, each in rendered.of("Service").items():
            name, port = service.upper().replace("-", "_"), each["spec"]["ports"][0]["port"]
            links |= {f"{name}_SERVICE_HOST": "10.0.0.11", f"{name}_SERVICE_PORT": str(port)}
            links |= {f"{name}_PORT": f"tcp://10.0.0.11:{port}", f"{name}_PORT_{port}_TCP_ADDR": "10.0.0.11"}
    return links


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """Return one overlay after the other."""
    return render(request.param)


def test_every_object_meets_the_schema_of_kubernetes(rendered: Rendered) -> None:
    """Each object has only fields that Kubernetes knows, each of its type: a misspelt probe would be dropped silently.

    The schema is that of the newest version in PyPI's kubernetes-validate, which as a whole takes 110 MB.
    """
    wrong = []
    for each in rendered.objects:
        if each["kind"] == "ScaledObject":  # of KEDA
            continue
        schema = {**SCHEMA["kinds"][each["kind"]], "$defs": SCHEMA["$defs"]}
        name = f"{each['kind']} {each['metadata']['name']}"
        errors = Draft202012Validator(schema).iter_errors(each)
        wrong += [f"{name}: {'.'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]
    assert wrong == []


def test_every_program_has_a_deployment(rendered: Rendered) -> None:
    """Workers, sweepers, beat and the exporter run in each overlay; of beat there is exactly one at any time.

    No old worker runs beside a new one, which migrates the catalogue.
    """
    deployments = rendered.of("Deployment")
    assert deployments.keys() == PROGRAMS[rendered.overlay]
    for alone in ("zot-beat", "zot-flower"):
        if alone in deployments:
            spec = deployments[alone]["spec"]
            assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert {deployments[name]["spec"]["strategy"]["type"] for name in ("zot-worker", "zot-sweeper")} == {"Recreate"}
    commands = {name: container["command"] for name, _, container in rendered.pods() if name in deployments}
    assert [commands[f"zot-{role}"][7] for role in ("worker", "sweeper")] == ["interactive,transfer", "sweep"]
    assert {command[1] for command in commands.values() if command[0] == "zot-artifacts"} <= COMMANDS.keys()


def test_a_pod_has_no_rights_beyond_its_work(rendered: Rendered) -> None:
    """No pod runs as root, may gain rights, writes to its image, has an account's token or unbounded memory."""
    for _, pod, container in rendered.pods():
        assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} >= {volume["name"] for volume in pod["volumes"]}


def test_every_program_has_probes_that_exist(rendered: Rendered) -> None:
    """Each is watched from its start; a probe runs a command of ours or asks a port that is declared."""
    for _, _, container in rendered.pods():
        probes = {kind: each for kind, each in container.items() if kind.endswith("Probe")}
        assert {"startupProbe", "livenessProbe"} <= probes.keys()
        for probe in probes.values():
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            if asked:
                assert asked["port"] in {port["name"] for port in container["ports"]}
                continue
            assert probe["timeoutSeconds"] < probe["periodSeconds"]
            command = probe["exec"]["command"]
            assert command[0] != "zot-artifacts" or command[1] in COMMANDS


def test_the_probes_of_workers_tell_a_deaf_one_from_an_idle_one(rendered: Rendered) -> None:
    """Worker, sweeper and beat are asked for what they do; a broker that is away makes them unready, and no restart."""
    for name, _, container in rendered.pods():
        program = {"zot-worker": "worker", "zot-sweeper": "worker", "zot-beat": "beat"}.get(name)
        if program is None:
            continue
        assert container["livenessProbe"]["exec"]["command"] == ["zot-artifacts", "health", program]
        if program == "worker":
            asked = ["zot-artifacts", "health", "worker", "--ready"]
            assert container["readinessProbe"]["exec"]["command"] == asked
            assert "celery@%h" in container["command"]  # the node that `health worker` asks


def test_secrets_are_only_named(rendered: Rendered) -> None:
    """No object holds a credential; each program refers to the Secrets that it needs, and to no other."""
    assert not rendered.of("Secret")
    assert "://" not in json.dumps([each.get("data") for each in rendered.objects])
    for name, _, container in rendered.pods():
        named = {each["secretRef"]["name"] for each in container.get("envFrom", ())}
        for variable in container.get("env", ()):
            if "valueFrom" in variable:
                named.add(variable["valueFrom"]["secretKeyRef"]["name"])
            else:
                assert not any(word in variable["name"] for word in ("PASSWORD", "SECRET", "BROKER", "CATALOGUE"))
        assert named == CREDENTIALS[name]


def test_every_selector_finds_a_pod(rendered: Rendered) -> None:
    """Services, budgets and policies select labels that pods have."""
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in rendered.workloads.values()]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for name, each in rendered.of(kind).items():
            selector = each["spec"].get("podSelector") or each["spec"]["selector"]
            wanted = (selector.get("matchLabels") or selector).items()
            assert [found for found in labels if wanted <= found.items()], f"{kind} {name}"


def test_no_pod_takes_connections_that_no_policy_names(rendered: Rendered) -> None:
    """Each pod is selected by a policy for what comes in, so that only what a policy names reaches it."""
    policies = [
        each["spec"]
        for each in rendered.of("NetworkPolicy").values()
        if "Ingress" in each["spec"]["policyTypes"] and each["spec"]["podSelector"]["matchLabels"]
    ]
    for name, each in rendered.workloads.items():
        labels = each["spec"]["template"]["metadata"]["labels"].items()
        assert any(policy["podSelector"]["matchLabels"].items() <= labels for policy in policies), name


def test_what_pods_use_is_there(rendered: Rendered) -> None:
    """Each volume, claim and ConfigMap that a pod names is in the overlay, and the ingress leads to a Service.

    A server keeps its data where the same image does in docker-compose.yml.
    """
    claims, maps = rendered.of("PersistentVolumeClaim").keys(), rendered.of("ConfigMap").keys()
    for _, pod, container in rendered.pods():
        for volume in pod["volumes"]:
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            assert volume.get("configMap", {}).get("name") in {None, *maps}
        mounted = {f"{mount['name']}:{mount['mountPath']}" for mount in container["volumeMounts"]}
        for service in COMPOSE["services"].values():
            if service["image"] == container["image"]:
                assert {f"data:{volume.split(':')[1]}" for volume in service["volumes"]} <= mounted
    for ingress in rendered.of("Ingress").values():
        assert ingress["spec"]["tls"]
        [path] = ingress["spec"]["rules"][0]["http"]["paths"]
        assert path["backend"]["service"]["name"] in rendered.of("Service")


def test_the_settings_are_valid(rendered: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker takes the settings of each overlay, whose stores are on no disk of a pod.

    It also takes the environment of each pod, in which Kubernetes names every Service of the namespace, unless the pod
    forbids that: a Service `zot-metrics` makes a variable ZOT_METRICS_PORT, which is no setting.
    """
    [found] = rendered.of("ConfigMap").values()
    path = tmp_path / "settings.yaml"
    path.write_text(found["data"]["settings.yaml"])
    monkeypatch.setenv("ZOT_CONFIG", str(path))
    monkeypatch.setenv("ZOT_HOME", str(tmp_path / "home"))
    settings = load_settings()
    assert {store.type for store in settings.stores.values()} <= {"s3", "gcs", "azure"}
    assert settings.log.format == "json"
    for name, pod, _ in rendered.pods():
        if name not in {"zot-broker", "zot-catalogue"}:
            with monkeypatch.context() as environment:
                for variable, value in service_links(rendered, pod).items():
                    environment.setenv(variable, value)
                load_settings()


def test_gateway_and_workers_share_the_bytes_that_were_sent() -> None:
    """What the gateway takes is on a volume that workers mount too, at the directory where a job expects it."""
    mounted = {
        name: (mount["mountPath"], volume.get("persistentVolumeClaim"))
        for name, pod, container in render("production").pods()
        for mount in container["volumeMounts"]
        for volume in pod["volumes"]
        if mount["name"] == volume["name"] == "staging"
    }
    assert mounted == dict.fromkeys(
        ("zot-gateway", "zot-worker", "zot-sweeper"), ("/data/staging", {"claimName": "zot-staging"})
    )


def test_autoscaling_is_of_deployments_that_name_no_number() -> None:
    """KEDA scales what exists, with fields of its own, and no Deployment sets the number back.

    Figures that Prometheus does not have are an error of the trigger, for which there is `fallback`, and not 0.
    Its queries are checked with those of the alarms.
    """
    production = render("production")
    deployments = production.of("Deployment")
    for each in production.of("ScaledObject").values():
        spec: Mapping[str, Any] = each["spec"]
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        assert spec.keys() <= SCALED
        assert "replicas" not in deployments[spec["scaleTargetRef"]["name"]]["spec"]
        assert all(isinstance(value, str) for trigger in spec["triggers"] for value in trigger["metadata"].values())
        assert {trigger["metadata"]["ignoreNullValues"] for trigger in spec["triggers"]} == {"false"}
    assert {each for each, found in deployments.items() if "replicas" not in found["spec"]} == {
        each["spec"]["scaleTargetRef"]["name"] for each in production.of("ScaledObject").values()
    }

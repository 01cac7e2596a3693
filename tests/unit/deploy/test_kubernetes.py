"""The Kubernetes manifests run the programs that exist, without rights, and are checked by their own health."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from worker.cli.commands import COMMANDS

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
LISTED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
OBJECTS: list[dict[str, Any]] = [each for name in LISTED for each in yaml.safe_load_all((FOLDER / name).read_text())]
DEPLOYMENTS = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "Deployment"}
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kubernetes-1.37.json").read_text())
AUTOSCALING = list(yaml.safe_load_all((FOLDER / "autoscaling.yaml").read_text()))


def container(name: str) -> dict[str, Any]:
    [found] = DEPLOYMENTS[name]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def probes(name: str) -> dict[str, Any]:
    return {kind: each for kind, each in container(name).items() if kind.endswith("Probe")}


@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_every_object_meets_the_schema_of_kubernetes(each: dict[str, Any]) -> None:
    """Each object has only fields that Kubernetes knows, each of its type: a misspelt probe would be dropped silently.

    The schema is that of the newest version in PyPI's kubernetes-validate, which as a whole takes 110 MB.
    """
    schema = {**SCHEMA["kinds"][each["kind"]], "$defs": SCHEMA["$defs"]}
    errors = Draft202012Validator(schema).iter_errors(each)
    assert [f"{'.'.join(map(str, error.path))}: {error.message[:200]}" for error in errors] == []


def test_every_program_has_a_deployment() -> None:
    """Workers, sweepers, beat, the exporter and the gateway run; of beat there is exactly one at any time."""
    assert DEPLOYMENTS.keys() == {"zot-worker", "zot-sweeper", "zot-beat", "zot-metrics", "zot-gateway"}
    beat = DEPLOYMENTS["zot-beat"]["spec"]
    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})
    served = [container(f"zot-{role}")["command"][7] for role in ("worker", "sweeper")]
    assert served == ["interactive,transfer", "sweep"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_has_no_rights_beyond_its_work(name: str) -> None:
    """No pod runs as root, may gain rights, writes to its image, has an account's token or unbounded memory."""
    pod = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "memory" in container(name)["resources"]["limits"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_program_has_probes_that_exist(name: str) -> None:
    """Each is watched from its start; a probe runs a command of ours or asks a port that is declared."""
    found = probes(name)
    assert {"startupProbe", "livenessProbe"} <= found.keys()
    for probe in found.values():
        if "exec" in probe:
            assert probe["exec"]["command"][0] == "zot-artifacts"
            assert probe["exec"]["command"][1] in COMMANDS
            assert probe["timeoutSeconds"] < probe["periodSeconds"]
        else:
            assert probe["httpGet"]["port"] in {port["name"] for port in container(name)["ports"]}


@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_every_selector_finds_a_pod(each: dict[str, Any]) -> None:
    """Services, budgets and policies select labels that a Deployment's pods have."""
    spec = each.get("spec", {})
    selector = spec.get("podSelector") or spec.get("selector")
    if each["kind"] == "ServiceAccount":
        return
    wanted = (selector.get("matchLabels") or selector).items()
    labels = [deployment["spec"]["template"]["metadata"]["labels"] for deployment in DEPLOYMENTS.values()]
    assert [found for found in labels if wanted <= found.items()]


def test_autoscaling_names_deployments() -> None:
    """KEDA scales what exists; its queries are checked with those of the alarms."""
    assert {each["spec"]["scaleTargetRef"]["name"] for each in AUTOSCALING} <= DEPLOYMENTS.keys()

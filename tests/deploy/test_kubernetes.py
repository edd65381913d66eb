"""The Kubernetes manifests: valid by the published schemas, and consistent in themselves."""

from __future__ import annotations

import re
from typing import Any
from urllib.request import Request, urlopen

import pytest

from anyecho.server.options import ServeOptions
from anyecho.units import parse_duration
from tests.deploy.commands import DEPLOY
from tests.support.machine import ABSENT
from tests.support.process import TIMEOUT, Processes

MANIFESTS = DEPLOY / "kubernetes" / "anyecho.yaml"
JOB = DEPLOY.parent / "docs" / "bench-cluster.md"


def manifests() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason=f"{ABSENT}PyYAML")
    return list(yaml.safe_load_all(MANIFESTS.read_text()))


def job() -> dict[str, Any]:
    """Return the manifest of the chapter on shards."""
    yaml = pytest.importorskip("yaml", reason=f"{ABSENT}PyYAML")
    [text] = re.findall(r"(?s)```yaml\n(.*?)```", JOB.read_text())
    manifest: dict[str, Any] = yaml.safe_load(text)
    return manifest


@pytest.fixture
def by_kind() -> dict[str, Any]:
    return {each["kind"]: each for each in manifests()}


@pytest.fixture
def pod(by_kind: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = by_kind["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [container] = pod["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("version", ["1.30", "1.33", "1.35"])
def test_the_manifests_are_valid_by_the_schema_of_kubernetes(version: str) -> None:
    """An unknown key is an error too."""
    validate = pytest.importorskip("kubernetes_validate", reason=f"{ABSENT}kubernetes-validate").validate
    for each in [*manifests(), job()]:
        validate(each, version, strict=True)


def test_no_service_adds_variables_to_the_environment(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False
    assert job()["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_the_container_runs_without_root_and_without_capabilities(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    # As in the Dockerfile, whose user need not have a name.
    assert f"USER {pod['securityContext']['runAsUser']}:" in (DEPLOY / "docker" / "Dockerfile").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_grace_period_of_a_pod_suffices_for_a_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    [command, pause] = container["lifecycle"]["preStop"]["exec"]["command"]
    [grace] = [each.partition("=")[2] for each in container["args"] if each.startswith("--graceful-timeout=")]
    linger = ServeOptions().linger
    assert command == "sleep"
    assert linger is not None
    assert pod["terminationGracePeriodSeconds"] >= float(pause) + parse_duration(grace) + linger + 5


def test_ports_that_are_named_are_served(by_kind: dict[str, Any], container: dict[str, Any]) -> None:
    ports = {each["name"]: (each["containerPort"], each.get("protocol", "TCP")) for each in container["ports"]}
    for each in by_kind["Service"]["spec"]["ports"]:
        assert ports[each["targetPort"]][1] == each.get("protocol", "TCP")
    addresses = " ".join(container["args"])
    for number, protocol in ports.values():
        assert re.search(rf"{'udp://' if protocol == 'UDP' else '(^|[ =])'}:{number}( |$)", addresses)


@pytest.mark.by_turns("backend")
def test_the_probes_ask_for_pages_that_the_server_has(
    container: dict[str, Any], processes: Processes, backend: str
) -> None:
    probes = {name: each["httpGet"] for name, each in container.items() if name.endswith("Probe")}
    assert {each["port"] for each in probes.values()} == {"admin"}
    server = processes.serve("-b", "tcp://127.0.0.1:0", "--admin", "127.0.0.1:0", "--backend", backend, listeners=2)
    # kubelet asks by the address of the pod, a balancer perhaps by a name.
    for name, host in {
        "startupProbe": "10.2.0.1:9100",
        "readinessProbe": "a.example",
        "livenessProbe": "[::1]",
    }.items():
        request = Request(server.addresses[1] + probes[name]["path"], headers={"Host": host})
        with urlopen(request, timeout=TIMEOUT) as page:
            assert page.status == 200


def test_each_selector_selects_the_pods(by_kind: dict[str, Any]) -> None:
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert by_kind["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels

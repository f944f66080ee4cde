"""The Kubernetes manifests against what the commands take, the settings that they have to fit, and each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onward_cli.__main__ import command_line
from onward_executor.app import END_S
from onward_executor.settings import Settings as Executor
from onward_gateway.settings import Settings as Gateway
from onward_scheduler.settings import Settings as Scheduler

FOLDER = Path(__file__).parents[2] / "services" / "deploy"
SETTINGS: dict[str, Any] = {"gateway": Gateway, "scheduler": Scheduler, "executor": Executor}
SERVICES = sorted(SETTINGS)

MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "kubernetes" / "onward.yaml").read_text()))


def manifest(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str) -> dict[str, Any]:
    """Return the pod of a service."""
    spec: dict[str, Any] = manifest("Deployment", f"onward-{name}")["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    [only] = pod(name)["containers"]
    return dict(only)


def options(name: str) -> dict[str, str]:
    arguments = container(name)["args"]
    return {word: arguments[at + 1] for at, word in enumerate(arguments) if word.startswith("--")}


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_takes_its_arguments(name: str) -> None:
    arguments = container(name)["args"]
    assert arguments[0] == name
    command, bound, _ = command_line(arguments).parse_args(arguments, exit_on_error=False, print_error=False)
    assert command.__name__ == name
    assert bound.arguments


@pytest.mark.parametrize("name", SERVICES)
def test_the_variables_are_some_that_are_read(name: str) -> None:
    names = {each["name"] for each in container(name)["env"]} - {"POD_IP"}
    assert names <= set(re.findall(r"ONWARD_[A-Z_]+", SETTINGS[name].from_env.__doc__ or ""))
    assert "ONWARD_REDIS_URL" in names


@pytest.mark.parametrize(
    ("name", "needed_s"),
    [
        ("executor", Executor.drain_grace_s + END_S),
        ("gateway", Gateway.shutdown_grace_s),
        ("scheduler", Scheduler.shutdown_grace_s),
    ],
)
def test_a_pod_has_longer_to_end_than_its_process_takes(name: str, needed_s: float) -> None:
    """What is killed at its end loses runs to their leases, or cuts streams, instead of handing them over."""
    if pause := container(name).get("lifecycle"):
        needed_s += float(pause["preStop"]["exec"]["command"][1])
    assert pod(name)["terminationGracePeriodSeconds"] > needed_s


def test_an_executor_drains_as_long_as_its_end_was_made_for() -> None:
    env = {each["name"]: each.get("value") for each in container("executor")["env"]}
    assert float(env["ONWARD_DRAIN_GRACE_S"] or 0) == Executor.drain_grace_s
    assert options("executor")["--advertise"].startswith("$(POD_IP):"), "a pod's name is no address"


@pytest.mark.parametrize("name", SERVICES)
def test_probes_ask_where_it_listens(name: str) -> None:
    given = container(name)
    listens = {option.rpartition(":")[2] for option in options(name).values() if option.startswith("0.0.0.0:")}
    assert {str(port["containerPort"]) for port in given["ports"]} == listens
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert str(given[probe]["grpc"]["port"]) in listens
        assert given[probe]["grpc"]["port"] != 8080


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_may_do_little(name: str) -> None:
    assert pod(name)["securityContext"]["runAsNonRoot"]
    rights = container(name)["securityContext"]
    assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
    mounts = {mount["name"] for mount in container(name)["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod(name)["volumes"]}


def test_services_and_policies_mean_the_pods_that_are_there() -> None:
    labels = {
        name: manifest("Deployment", f"onward-{name}")["spec"]["template"]["metadata"]["labels"] for name in SERVICES
    }
    for name in ("gateway", "scheduler"):
        service = manifest("Service", f"onward-{name}")["spec"]
        assert service["selector"].items() <= labels[name].items()
        ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
        assert all(ports[port["targetPort"]] == port["port"] for port in service["ports"])
    for name in SERVICES:
        for each in container(name)["env"]:
            if each["name"] == "ONWARD_SCHEDULER":
                assert each["value"] == "onward-scheduler:50052"
    policy = manifest("NetworkPolicy", "onward-inside")["spec"]
    [expression] = policy["podSelector"]["matchExpressions"]
    assert expression["values"] == [labels[name]["app.kubernetes.io/name"] for name in ("scheduler", "executor")]
    [rule] = policy["ingress"]
    assert all(rule["from"][0]["podSelector"]["matchLabels"].items() <= each.items() for each in labels.values())
    assert {port["port"] for port in rule["ports"]} == {50052, 50060}


def test_scaling_goes_by_figures_that_are_told() -> None:
    scaled = yaml.safe_load((FOLDER / "kubernetes" / "keda.yaml").read_text())["spec"]
    assert scaled["scaleTargetRef"]["name"] == manifest("Deployment", "onward-executor")["metadata"]["name"]
    [trigger] = scaled["triggers"]
    told = set(re.findall(r"^\| `(onward\.[a-z.]+)` \| gauge", (FOLDER / "README.md").read_text(), re.MULTILINE))
    assert set(re.findall(r"onward_\w+", trigger["metadata"]["query"])) <= {name.replace(".", "_") for name in told}

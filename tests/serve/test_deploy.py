"""The stack's files agree with the launcher and with what Triton really exports, and open nothing to the network."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from triton_http import infer, metrics

import serve
from serve.container import IMAGE
from serve.plan import Plan, Ports, triton_arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_compose_starts_triton_with_the_launchers_settings(compose: dict[str, Any], joining: serve.Server) -> None:
    plan = Plan("token", joining.repository, ("bet", "bet_torchscript"), "gpu", "0.0.0.0", Ports(8000, 8001, 8002))
    arguments = set(triton_arguments(plan, Path("/models"), plan.host, plan.ports))
    # Triton's own defaults, and what names one of several servers on a machine, are left out in a container.
    implied = {
        a for a in arguments if a.startswith(("--id=", "--http-", "--grpc-", "--metrics-address", "--metrics-port"))
    }
    implied |= {a for a in arguments if "shm-region-prefix-name" in a}
    gpu = compose["services"]["triton-gpu"]
    assert set(gpu["entrypoint"][2:]) | set(gpu["command"]) == arguments - implied
    cpu = compose["services"]["triton-cpu"]
    assert set(cpu["entrypoint"][2:]) == arguments - implied - {"--model-config-name=gpu"}
    assert gpu["image"] == cpu["image"] == IMAGE


def test_compose_asks_for_a_gpu_in_the_gpu_profile_only(compose: dict[str, Any]) -> None:
    (device,) = compose["services"]["triton-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in compose["services"]["triton-cpu"]


@pytest.mark.parametrize("service", ["triton-gpu", "triton-cpu", "prometheus", "grafana"])
def test_every_service_is_pinned_on_loopback_restarted_and_watched(compose: dict[str, Any], service: str) -> None:
    content = compose["services"][service]
    assert re.search(r":v?\d+\.\d+", content["image"])
    assert all(str(port).startswith("127.0.0.1:") for port in content["ports"])
    assert content["restart"] == "unless-stopped"
    assert content["healthcheck"]["test"]
    assert content["cap_drop"] == ["ALL"]
    for volume in content["volumes"]:
        if isinstance(volume, dict):
            assert volume["read_only"]
            assert (ROOT / volume["source"]).exists()


@pytest.mark.parametrize("service", ["triton-gpu", "triton-cpu"])
def test_triton_gets_shared_memory_and_time_to_drain_and_no_root(compose: dict[str, Any], service: str) -> None:
    content = compose["services"][service]
    assert content["shm_size"] == "1gb"
    assert int(content["stop_grace_period"].removesuffix("s")) > 30
    assert not content["user"].startswith("0")
    assert content["read_only"]
    assert content["environment"]["ORT_DISABLE_TELEMETRY"] == "1"


def test_the_image_has_the_tokenizers_that_export_uses() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert f"tokenizers=={importlib.metadata.version('tokenizers')}" in dockerfile
    assert IMAGE.rpartition(":")[2] in dockerfile.partition("FROM ")[2].splitlines()[0]


def test_prometheus_scrapes_the_port_that_compose_gives_to_metrics(compose: dict[str, Any]) -> None:
    content = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = [t for job in content["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    assert "triton:8002" in targets
    for service in ("triton-gpu", "triton-cpu"):
        assert compose["services"][service]["networks"]["default"]["aliases"] == ["triton"]


def test_every_metric_of_the_dashboard_exists_on_a_running_server(joining: serve.Server) -> None:
    assert infer(joining.http_url, "tiny", ["a"])[0] == 200
    exported = metrics(joining.metrics_url)
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "serving.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"nv_\w+", expression)}
    assert len(used) >= 8
    for name in used:
        assert re.search(rf'^{name}{{.*model="tiny"', exported, re.MULTILINE), name


def test_the_dashboard_is_provisioned_from_the_folder_that_compose_mounts(compose: dict[str, Any]) -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "files.yml").read_text(encoding="utf-8"))["providers"]
    mounts = {v["target"]: v["source"] for v in compose["services"]["grafana"]["volumes"] if isinstance(v, dict)}
    assert mounts[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "serving.json").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}

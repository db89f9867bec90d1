"""What Prometheus reads: its own parser understands every line."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.api import Api
from tests.server import Server

FAKE_NVML = Path(__file__).parents[3] / "tests" / "fake_nvml" / "lib.rs"

SCENARIO = """\
driver = 580.95.05
[GPU-0]
name = NVIDIA "odd" \\ name
pci_bus_id = 00000000:01:00.0
utilization = 37 12
memory = 1610612736 463470592 17171480576
temperature = 51
fans = !3
"""


@pytest.fixture
def measured(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, started again with a GPU and with metrics."""
    rustc = shutil.which("rustc")
    assert rustc, "the server was compiled with it"
    library = tmp_path / "libnvidia-ml.so.1"
    options = ["--edition", "2024", "--crate-type", "cdylib", "-O"]
    subprocess.run([rustc, *options, FAKE_NVML, "-o", library], check=True)
    (tmp_path / "scenario").write_text(SCENARIO)
    server.kill()
    monkeypatch.setenv("WATCHPOST_NVML_LIBRARY", str(library))
    monkeypatch.setenv("WATCHPOST_METRICS_LISTEN", "127.0.0.1:0")
    server.start()
    yield server


def page(server: Server, path: str) -> str:
    """A page that the server serves by HTTP."""
    address = re.search(r"metrics and health at (http://\S+)", "".join(server.log))
    assert address
    with urllib.request.urlopen(address[1] + path, timeout=20) as response:  # noqa: S310  (the address is http)
        return response.read().decode()


def families(server: Server) -> dict[str, Metric]:
    """All metrics, by name. Prometheus takes the ending _total off the names of counters."""
    return {family.name: family for family in text_string_to_metric_families(page(server, "/metrics"))}


def test_every_metric_is_understood(measured: Server) -> None:
    with grpc.insecure_channel(measured.address) as channel:
        api = Api(channel)
        api.create_camera("yard")
        api.create_rule()
    deadline = time.monotonic() + 60
    while "DCGM_FI_DEV_GPU_UTIL" not in (told := families(measured)):
        assert time.monotonic() < deadline, "no GPU is sampled"
        time.sleep(0.1)

    [utilization] = told["DCGM_FI_DEV_GPU_UTIL"].samples
    assert utilization.value == 37
    assert utilization.labels["modelName"] == 'NVIDIA "odd" \\ name'
    assert utilization.labels["DCGM_FI_DRIVER_VERSION"] == "580.95.05"
    assert "DCGM_FI_DEV_FAN_SPEED" not in told
    reasons = {
        sample.labels["field"]: sample.labels["reason"] for sample in told["watchpost_gpu_value_unavailable"].samples
    }
    assert reasons["fan_speed"] == "not_supported"

    for name in ["grpc_server_started", "grpc_server_handled", "watchpost_ingest_events", "process_cpu_seconds"]:
        assert told[name].type == "counter", name
    latency = told["grpc_server_handling_seconds"]
    assert latency.type == "histogram"
    created = [sample for sample in latency.samples if sample.labels["grpc_method"] == "CreateCamera"]
    assert created[-1].value == 1
    assert 10_000_000 < told["process_resident_memory_bytes"].samples[0].value < 1_000_000_000
    assert abs(told["process_start_time_seconds"].samples[0].value - time.time()) < 120
    assert all(family.documentation for family in told.values())


def test_health_is_told_and_nothing_else(measured: Server) -> None:
    assert page(measured, "/healthz") == "ok\n"
    assert page(measured, "/readyz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(measured, "/")

"""How a rank's process, its host and its device are: memory by kind, processor, disk, network, temperature, power.

Read beside the training thread (`aside.py`), about once a second, from psutil and, where they are there, torch's allocator and NVML
(`nvidia-ml-py`). The host's own figures are measured by the first rank on each host alone. Rates are those since the reading before. What a system
does not tell is left out. The process's own memory can be read at each step besides (`resident`): a leak is to be seen in steps of milliseconds, too.

Cost: about a millisecond of a second thread each second, and 10 µs a step for `resident`. When not to use it: for anything within a step.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

#: Bytes of a page, in which Linux counts a process's memory.
PAGE = os.sysconf("SC_PAGE_SIZE")
#: What may go wrong where a system or a driver does not tell something.
UNTOLD = (OSError, AttributeError, psutil.Error, ValueError, NotImplementedError)


class HostGauge:
    """Reads the figures of this process, of its host where `whole` says so, and of its device."""

    def __init__(self, device: torch.device, folder: Path, whole: bool) -> None:
        self._process, self._folder = psutil.Process(), folder
        self._last: dict[str, tuple[float, float]] = {}
        self._readers: list[Callable[[], dict[str, float]]] = [self._of_process]
        if whole:
            self._readers += [self._of_host, self._of_disk, self._of_network]
        if device.type == "cuda":
            self._readers += [lambda: allocator(device), *nvml_readers(device)]
        psutil.cpu_percent()  # counts from here

    def read(self) -> dict[str, float]:
        """All figures by name."""
        found: dict[str, float] = {}
        for reader in self._readers:
            with suppress(*UNTOLD):
                found |= reader()
        return found

    @property
    def resident(self) -> float | None:
        """Bytes of memory that this process holds now; None where the system has no `/proc` to tell it quickly."""
        try:
            with open("/proc/self/statm", "rb", buffering=0) as file:
                return float(file.read().split()[1]) * PAGE
        except OSError:
            return None

    def _of_process(self) -> dict[str, float]:
        process = self._process
        with process.oneshot():
            memory, times, switches = process.memory_info(), process.cpu_times(), process.num_ctx_switches()
            found = {
                "memory/resident": memory.rss,
                "memory/virtual": memory.vms,
                "memory/shared": getattr(memory, "shared", 0.0),
                "host/process_cpu": self._rate("cpu", times.user + times.system),
                "host/process_system_cpu": self._rate("system", times.system),
                "host/threads": process.num_threads(),
                "host/preempted": self._rate("involuntary", switches.involuntary),
                "host/waited": self._rate("voluntary", switches.voluntary),
            }
        with suppress(*UNTOLD):
            found["host/open_files"] = process.num_fds()
        with suppress(*UNTOLD):
            faults = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            found["memory/page_faults"] = self._rate("major", float(faults[9]))
        return found

    def _of_host(self) -> dict[str, float]:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        load = os.getloadavg()
        times = psutil.cpu_times_percent()
        found = {
            "host/cpu": psutil.cpu_percent() / 100,
            "host/cpu_user": times.user / 100,
            "host/cpu_system": times.system / 100,
            "host/cpu_iowait": getattr(times, "iowait", 0.0) / 100,
            "host/cpu_stolen": getattr(times, "steal", 0.0) / 100,
            "host/load_1m": load[0],
            "host/load_5m": load[1],
            "host/load_15m": load[2],
            "host/cores": float(psutil.cpu_count() or 0),
            "host/processes": float(len(psutil.pids())),
            "host/memory_total": memory.total,
            "host/memory_used": memory.total - memory.available,
            "host/memory_available": memory.available,
            "host/swap_used": swap.used,
            "host/uptime": time.time() - psutil.boot_time(),
        }
        with suppress(*UNTOLD):
            found["host/clock"] = psutil.cpu_freq().current * 1e6
        with suppress(*UNTOLD, IndexError):
            found["host/temperature"] = max(one.current for sensors in psutil.sensors_temperatures().values() for one in sensors)
        return found

    def _of_disk(self) -> dict[str, float]:
        usage = psutil.disk_usage(str(self._folder))
        found = {"host/disk_free": float(usage.free), "host/disk_used": usage.percent / 100}
        with suppress(*UNTOLD):
            io = psutil.disk_io_counters()
            if io is not None:
                found |= {"host/disk_read": self._rate("read", io.read_bytes), "host/disk_written": self._rate("written", io.write_bytes)}
        return found

    def _of_network(self) -> dict[str, float]:
        net = psutil.net_io_counters()
        return {
            "host/network_sent": self._rate("sent", net.bytes_sent),
            "host/network_received": self._rate("received", net.bytes_recv),
            "host/network_errors": self._rate("errors", net.errin + net.errout),
            "host/network_dropped": self._rate("dropped", net.dropin + net.dropout),
        }

    def _rate(self, name: str, total: float) -> float:
        """What came to a total, a second, since the last reading; 0 at the first."""
        now = time.monotonic()
        before, then = self._last.get(name, (total, now))
        self._last[name] = total, now
        return (total - before) / (now - then) if now > then else 0.0


def allocator(device: torch.device) -> dict[str, float]:
    """What torch's allocator holds on a CUDA device."""
    stats = torch.cuda.memory_stats(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "memory/allocated": stats.get("allocated_bytes.all.current", 0),
        "memory/allocated_peak": stats.get("allocated_bytes.all.peak", 0),
        "memory/reserved": stats.get("reserved_bytes.all.current", 0),
        "memory/reserved_peak": stats.get("reserved_bytes.all.peak", 0),
        "memory/inactive_split": stats.get("inactive_split_bytes.all.current", 0),
        "memory/allocator_retries": stats.get("num_alloc_retries", 0),
        "memory/out_of_memory": stats.get("num_ooms", 0),
        "memory/device_free": free,
        "memory/device_total": total,
    }


def nvml_readers(device: torch.device) -> list[Callable[[], dict[str, float]]]:
    """Readers of an NVIDIA device's sensors, one for each, so that a device which lacks one still tells the others; empty without NVML."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except Exception:  # the library is missing, or the driver is, or it knows the device by another name; each says so in its own way
        return []
    return [lambda read=read: _told(nvml, read) for read in _sensors(nvml, handle)]  # type: ignore[misc]


def _told(nvml: Any, read: Callable[[], dict[str, float]]) -> dict[str, float]:
    try:
        return read()
    except nvml.NVMLError:
        return {}


def _sensors(nvml: Any, handle: Any) -> list[Callable[[], dict[str, float]]]:
    def use() -> dict[str, float]:
        rates = nvml.nvmlDeviceGetUtilizationRates(handle)
        return {"device/busy": rates.gpu / 100, "device/memory_busy": rates.memory / 100}

    def pcie() -> dict[str, float]:
        sent, received = (nvml.nvmlDeviceGetPcieThroughput(handle, way) for way in (nvml.NVML_PCIE_UTIL_TX_BYTES, nvml.NVML_PCIE_UTIL_RX_BYTES))
        return {"device/pcie_sent": sent * 1024, "device/pcie_received": received * 1024}

    return [
        use,
        pcie,
        lambda: {"device/temperature": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)},
        lambda: {"device/power": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3},
        lambda: {"device/power_limit": nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3},
        lambda: {"device/energy": nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3},
        lambda: {"device/clock": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6},
        lambda: {"device/memory_clock": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6},
        lambda: {"device/throttled": float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & ~nvml.nvmlClocksThrottleReasonGpuIdle != 0)},
        lambda: {
            "device/ecc_errors": nvml.nvmlDeviceGetTotalEccErrors(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
        },
    ]

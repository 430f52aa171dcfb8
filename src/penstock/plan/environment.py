"""What a run was made on: versions of the software that decides numbers, and the machine. `code.py` tells the code."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

import penstock

#: Installed packages whose versions may change numbers or files.
PACKAGES = ("numpy", "triton", "tokenizers", "safetensors", "pydantic", "pyarrow", "blake3", "zstandard", "fsspec", "xxhash")


def describe_environment() -> dict[str, Any]:
    """Versions, processor, memory and GPUs. Packages that are not installed are left out."""
    return {
        "penstock": penstock.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": _versions(),
    }


def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {name: str(value) for name, value in libraries.items() if value is not None}

"""States in the files of other libraries: torch's distributed checkpoint and safetensors, written by and read for them, tensor by tensor."""

from penstock.store.formats.dcp import read_dcp, write_dcp
from penstock.store.formats.foreign import Described, Foreign
from penstock.store.formats.opening import open_foreign
from penstock.store.formats.sharded import read_safetensors, write_safetensors

#: What writes a folder of each format.
WRITERS = {"dcp": write_dcp, "safetensors": write_safetensors}

__all__ = ["Described", "Foreign", "WRITERS", "open_foreign", "read_dcp", "read_safetensors", "write_dcp", "write_safetensors"]

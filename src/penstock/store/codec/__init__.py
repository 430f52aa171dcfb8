"""The codec of the run store: the numbers of a cell in few bytes, alone or as what changed since a base. It knows tensors, no files."""

from penstock.store.codec.cells import Encoded, Kind, decode, encode
from penstock.store.codec.sections import CodecError

__all__ = ["CodecError", "Encoded", "Kind", "decode", "encode"]

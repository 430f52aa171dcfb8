"""The codec of compressed gradient exchange: which entries to send, and how to write them in few bytes. It knows tensors, no ranks."""

from penstock.comm.codec.indices import index_entropy_bits
from penstock.comm.codec.message import Decoded, MessageError, decode, encode, expected_bytes
from penstock.comm.codec.select import NonFiniteError, kept, select_exact, select_sampled
from penstock.comm.codec.values import ValuesFormat

__all__ = [
    "Decoded", "MessageError", "NonFiniteError", "ValuesFormat", "decode", "encode", "expected_bytes", "index_entropy_bits", "kept", "select_exact",
    "select_sampled",
]  # fmt: skip

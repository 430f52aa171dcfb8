"""The coding of a cell's numbers: exact where it says so, within its bounds elsewhere, short, and calm about damage."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.store.codec import CodecError, Encoded, decode, encode
from penstock.store.codec.varbits import read_bits, words_of, write_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]
FLOATS = DTYPES[:3]
SHAPES = [(0,), (1,), (300,), (33_000,), (1, 400), (64, 50), (3, 40, 20), (300, 1), (2, 33_000)]
KINDS = ["normal", "positive", "weights", "moments", "constant", "bits", "odd", "still", "rows", "tiny", "huge"]


def cell(dtype: torch.dtype, shape: tuple[int, ...], kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A cell of some kind of content, and a base."""
    g = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    new, old = {
        "normal": (a, b), "positive": (a.abs(), b.abs()), "weights": (a + 0.05 * b, a), "moments": (a * a * 1e-9 * (1 + b.abs()), a * a * 1e-9),
        "constant": (torch.full(shape, 0.7), a), "bits": (a, b), "odd": (a, b), "still": (torch.where(c > 1.6, b, a), a), "rows": (a, a.clone()),
        "tiny": (a * 1e-39, b * 1e-38), "huge": (a * 1e38, b * 1e38),
    }[kind]  # fmt: skip
    new, old = ((t * (50 if not dtype.is_floating_point else 1)).to(dtype) for t in (new, old))
    if kind == "bits" and dtype is not torch.bool:
        for t in (new, old):
            t.view(torch.uint8).random_(0, 256, generator=g)
    if kind == "odd" and dtype.is_floating_point:
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45, -1e-39], dtype=dtype)
        for t, n in ((new, 3), (old, 5)):
            t.view(-1)[::n] = odd.repeat(t.numel() // 7 + 1)[: len(t.view(-1)[::n])]
    if kind == "rows":
        new[::3] += 1 if dtype is not torch.bool else False
    return new, old


def read(encoded: Encoded, like: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    return decode(encoded.codec, encoded.payload, like.dtype, like.numel(), base if encoded.needs_base else None)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def share(encoded: Encoded, like: torch.Tensor) -> float:
    return len(encoded.payload) / like.nbytes


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from(KINDS), st.integers(0, 2**31), st.booleans())
def test_any_cell_comes_back_bit_for_bit_and_rough_ones_as_was_said(dtype, shape, kind, seed, based):
    new, old = cell(dtype, shape, kind, seed)
    base = old if based else None
    exact = encode(new, base)
    assert same(read(exact, new, base), new) and same(exact.content, new)
    assert len(exact.payload) <= new.nbytes + 128
    rough = encode(new, base, "bounded")
    assert same(read(rough, new, base), rough.content)
    assert rough.content.shape == (new.numel(),) and rough.payload == encode(new, base, "bounded").payload
    if dtype not in FLOATS:
        assert same(rough.content, new)
    else:
        lost = ~torch.isfinite(rough.content) != ~torch.isfinite(new.reshape(-1))
        assert not lost.any()


def test_corner_cells_come_back_bit_for_bit():
    for dtype in DTYPES:
        for kind in ("odd", "bits", "constant"):
            for shape in ((), (1,), (0, 7), (40, 40)):
                new, old = cell(dtype, shape, kind, 1) if shape else (torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
                for base in (None, old, new):
                    assert same(read(encode(new, base), new, base), new)


def signed_history(steps: int) -> list[torch.Tensor]:
    """A matrix whose rows and columns are of very different scale, as it changes."""
    g = torch.Generator().manual_seed(3)
    scale = torch.logspace(-6, 0, 60)[:, None] * torch.logspace(-2, 0, 50)
    tensors = [torch.randn(60, 50, generator=g) * scale]
    for _ in range(steps):
        tensors.append(tensors[-1] + 0.1 * scale * torch.randn(60, 50, generator=g))
    return tensors


@pytest.mark.parametrize("quality", [0.25, 0.0625, 1.0])
def test_rough_increments_stay_within_their_step_and_do_not_drift_along_a_chain(quality):
    history = signed_history(12)
    content = history[0].reshape(-1)
    for new in history[1:]:
        encoded = encode(new, content, "bounded", quality)
        error = (encoded.content.view(new.shape) - new).abs()
        change = new - content.view(new.shape)
        logs = change.abs().log2()
        size = 2 ** (logs.mean(1, keepdim=True) + logs.mean(0, keepdim=True) - logs.mean() + 7 / 8)
        assert (error <= 0.5 * quality * size * 2 ** (3 / 8)).all()  # a row's and a column's part are rounded to quarters of an octave
        content = encoded.content


def test_rough_second_moments_keep_their_ratio_and_their_sign():
    g = torch.Generator().manual_seed(5)
    content = moment = torch.randn(70, 80, generator=g).square() * torch.logspace(-12, -4, 80)
    moment.view(-1)[::50] = 0.0
    for step in range(12):
        moment = 0.36 * moment + 0.64 * moment * torch.randn(70, 80, generator=g).square()
        moment.view(-1)[step] = 0.0
        encoded = encode(moment, content, "bounded")
        found = encoded.content.view(moment.shape)
        assert ((found == 0) == (moment == 0)).all() and (found >= 0).all()
        ratio = (found / moment)[moment > 1e-38]
        assert ratio.min() >= 1 - 1 / 16 and ratio.max() <= 1 + 1 / 16
        assert share(encoded, moment) < 0.2
        content = encoded.content


def test_rough_gains_near_one_move_by_less_than_they_changed():
    old = torch.ones(2000) + 0.3 * torch.rand(2000, generator=torch.Generator().manual_seed(1))
    new = old + 1e-4 * torch.randn(2000, generator=torch.Generator().manual_seed(2))
    assert (encode(new, old, "bounded").content - new).abs().max() <= 0.126 * 1e-4


def test_increments_take_about_what_their_entropy_is():
    g = torch.Generator().manual_seed(7)
    rank_one = torch.exp(torch.randn(256, 1, generator=g) + torch.randn(256, generator=g))
    weights = torch.randn(256, 256, generator=g) * 0.02
    moved = weights + torch.randn(256, 256, generator=g) * 0.001  # 22.0 bits of 32
    first, other = (torch.randn(256, 256, generator=g) * rank_one for _ in range(2))  # 26.5 bits
    second = first.square() * (1 + 0.02 * torch.rand(256, 256, generator=g))
    exact = {"weights": (moved, weights, 0.71), "first": (first, other, 0.84), "second": (second, first.square(), 0.67)}
    for name, (new, old, most) in exact.items():
        assert share(encode(new, old), new) < most, name
        assert share(encode(new, old, "bounded"), new) < 0.14, name
    assert not encode(first, other).needs_base  # and so is no link in a chain
    assert encode(moved, weights).needs_base


def test_what_is_still_costs_next_to_nothing():
    g = torch.Generator().manual_seed(9)
    old = torch.randn(200, 300, generator=g)
    some = torch.where(torch.rand(200, 300, generator=g) < 0.05, old + 0.01 * torch.randn(200, 300, generator=g), old)
    rows = old.clone()
    rows[::20] += 0.01 * torch.randn(10, 300, generator=g)
    for kind, of_some, of_rows in (("lossless", 0.06, 0.045), ("bounded", 0.03, 0.012)):
        assert share(encode(some, old, kind), old) < of_some
        assert share(encode(rows, old, kind), old) < of_rows
        assert len(encode(old, old, kind).payload) < 200
        assert len(encode(torch.zeros(200, 300), None, kind).payload) < 200


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_payloads_are_refused_or_decode_to_as_many_numbers(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64]))
    kind = data.draw(st.sampled_from(["normal", "positive", "weights", "moments", "still", "rows", "odd"]))
    new, old = cell(dtype, (30, 40), kind, 11)
    encoded = encode(new, old, data.draw(st.sampled_from(["lossless", "bounded"])))
    payload = bytearray(encoded.payload)
    if data.draw(st.booleans()):
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))] + bytes(data.draw(st.integers(0, 9)))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            near = min(data.draw(st.sampled_from([16, 60, len(payload)])), len(payload))
            payload[data.draw(st.integers(0, near - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert decode(encoded.codec, bytes(payload), dtype, 1200, old).shape == (1200,)
    except CodecError as error:
        assert str(error).startswith(("damaged payload", "a payload of codec", "there is no codec"))


@example(b"")
@example(b"\1\0\1\0\0\0\0\0\0\0\0\0\x28\0\0\0" + bytes(28))
@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused(payload):
    for codec in ("planes", "planes+base", "floats", "floats+base", "bounded+base", "other"):
        with pytest.raises(CodecError):
            decode(codec, payload, torch.float32, 4000, torch.zeros(4000))


def test_a_payload_that_claims_much_gets_no_memory():
    frame = b"\1\x28\xb5\x2f\xfd\xc0" + b"\0" + struct.pack("<Q", 1 << 40) + b"\1\0\0"  # a zstandard frame of a terabyte
    sections = [b"", b"", frame, frame, frame, frame]
    payload = bytes(16) + struct.pack("<6I", *map(len, sections)) + b"".join(sections)
    tracemalloc.start()
    with pytest.raises(CodecError, match="in place of 4000"):
        decode("planes", payload, torch.float32, 4000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(ValueError, match="at most"):
        decode("planes", payload, torch.float32, 1 << 40)


def test_neither_writing_nor_reading_takes_much_memory():
    new, old = cell(torch.float32, (512, 512), "weights", 1)
    for kind in ("lossless", "bounded"):
        tracemalloc.start()
        encoded = encode(new, old, kind)
        read(encoded, new, old)
        assert tracemalloc.get_traced_memory()[1] < 6 * new.nbytes
        tracemalloc.stop()


def test_a_payload_for_another_base_or_dtype_or_count_is_not_read_as_this_one():
    new, old = cell(torch.float32, (40, 40), "weights", 1)
    encoded = encode(new, old)
    for dtype, count, base in (
        (torch.float32, 1600, None),
        (torch.float32, 1601, old),
        (torch.float32, 1600, old[:2]),
        (torch.int32, 1600, old.int()),
    ):
        with pytest.raises(CodecError):
            decode(encoded.codec, encoded.payload, dtype, count, base)
    with pytest.raises(CodecError, match="newer"):
        decode("wavelets", encoded.payload, torch.float32, 1600)


def golden_base(dtype: torch.dtype) -> torch.Tensor:
    """A base that does not depend on any library's random numbers."""
    numbers = (np.arange(1, 321, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
    return torch.from_numpy(((numbers.astype(np.float64) - 32768) / 2**20).reshape(20, 16)).to(dtype)


def test_payloads_that_were_written_once_are_read_for_ever():
    for entry in json.loads((Path(__file__).parent / "cell_payloads.json").read_text()):
        base = golden_base(getattr(torch, entry["dtype"]))
        base = base.abs() if entry.get("positive") else base
        found = decode(entry["codec"], base64.b64decode(entry["payload"]), base.dtype, base.numel(), base)
        assert hashlib.sha256(found.view(torch.uint8).numpy().tobytes()).hexdigest() == entry["sha256"], entry["codec"]


def test_tensors_that_are_no_cells_are_refused():
    new = torch.zeros(20, 30)
    for wrong, base, quality in ((new.T, None, 0.25), (new, new.double(), 0.25), (new, new[:2], 0.25), (new, None, 2.0), (new, new.T, 0.25)):
        with pytest.raises(ValueError, match=r"need|quality"):
            encode(wrong, base, "lossless", quality)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.integers(0, 300), st.integers(0, 2**31))
def test_numbers_of_varying_width_come_back(most, count, seed):
    rng = np.random.default_rng(seed)
    widths = rng.integers(0, most + 1, count).astype(np.uint8)
    numbers = (rng.integers(0, 2**32, count) & ((1 << widths.astype(np.int64)) - 1)).astype(np.uint32)
    words = write_bits(numbers, widths, most)
    assert words.size == words_of(widths) == -(-int(widths.sum()) // 64)
    assert (read_bits(words, widths, most) == numbers).all()

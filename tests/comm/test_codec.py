"""Messages of gradients: what is decoded is what was encoded, whatever it was; what is damaged is refused; sizes stay near the entropy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penstock.comm.codec import MessageError, NonFiniteError, decode, encode, index_entropy_bits, kept, select_exact
from penstock.comm.codec.bits import pack, packed_bytes, unpack
from penstock.comm.codec.checksum import checksum
from penstock.comm.codec.indices import Code, decode_indices, encode_indices
from penstock.comm.codec.message import HEADER, MAGIC, VERSION, _sum_of

FORMATS = ["float32", "bf16", "fp8", "int8", "int4", "int2"]
HUGE = torch.finfo(torch.float32).max
RELATIVE = {"float32": 0.0, "bf16": 2**-8, "fp8": 2**-4, "int8": 0.51 / 127, "int4": 0.51 / 7, "int2": 1.0}  # of the block's largest


def random_flat(n, seed=0, kind="normal"):
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(n, generator=generator)
    return {"normal": flat, "heavy": flat**5, "denormal": flat * 1e-40, "huge": flat.clamp(-1, 1) * HUGE, "equal": torch.full((n,), -3.5),
            "zero": torch.zeros(n), "steps": (flat * 2).round(), "mixed": flat * 10.0 ** torch.randint(-44, 38, (n,), generator=generator)}[kind]  # fmt: skip


KINDS = ["normal", "heavy", "denormal", "huge", "equal", "zero", "steps", "mixed"]


@given(st.integers(0, 31), st.integers(0, 100), st.integers(0, 2**32))
def test_packed_numbers_come_back(width, count, seed):
    numbers = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**width, count).astype(np.int32))
    data = pack(numbers, width)
    assert data.dtype == torch.uint8 and data.numel() == packed_bytes(count, width) <= (count + 7) * width / 8
    assert torch.equal(unpack(data, count, width).to(torch.int32), numbers)


@st.composite
def some_indices(draw):
    n = draw(st.integers(1, 400))
    places = draw(st.one_of(
        st.sets(st.integers(0, n - 1)),
        st.tuples(st.integers(0, n - 1), st.integers(0, n), st.integers(1, 9)).map(lambda cut: set(range(cut[0], min(cut[0] + cut[1], n), cut[2]))),
        st.sets(st.integers(0, n // 16)).map(lambda rows: {i for row in rows for i in range(16 * row, min(16 * row + 16, n))}),
    ))  # fmt: skip
    spread = draw(st.sampled_from([1, 1, 7, 4_000_000]))
    return n * spread, torch.tensor(sorted(places), dtype=torch.int64) * spread


@pytest.mark.slow
@given(some_indices())
def test_indices_come_back(case):
    n, indices = case
    form, planes = encode_indices(indices, n)
    assert [plane.numel() for plane in planes] == form.sections
    assert torch.equal(decode_indices(form, planes, n, indices.numel()), indices)


@pytest.mark.slow
@given(some_indices(), st.sampled_from(FORMATS), st.sampled_from(["normal", "mixed", "equal"]), st.integers(0, 99))
def test_messages_come_back(case, values_format, kind, seed):
    n, indices = case[1].numel() + 5, case[1]
    n = max(n, int(indices[-1]) + 1 if indices.numel() else 1)
    if n > 10_000:
        return
    flat = random_flat(n, seed, kind)
    message = encode(flat, indices, values_format)
    decoded = decode(message)
    assert decoded.n == n and torch.equal(decoded.indices, indices)
    assert decoded.values.dtype == torch.float32 and decoded.values.shape == indices.shape and decoded.values.isfinite().all()
    if values_format == "float32":
        assert torch.equal(decoded.values, flat[indices])
    assert torch.equal(encode(flat, indices, values_format), message)


@pytest.mark.parametrize("values_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_dense_values_are_within_the_formats_error(values_format, kind, n):
    flat = random_flat(n, 1, kind)
    decoded = decode(encode(flat, None, values_format))
    assert decoded.indices is None and decoded.n == n and decoded.values.shape == (n,)
    padded = torch.nn.functional.pad(flat.double(), (0, -n % 64)).view(-1, 64)
    largest = padded.abs().amax(1, keepdim=True).expand(-1, 64).reshape(-1)[:n]
    if values_format in ("float32", "bf16", "fp8"):
        allowed = flat.double().abs() * RELATIVE[values_format] + largest * 2**-17 * (values_format == "fp8")
    else:
        allowed = largest * RELATIVE[values_format]
    if kind == "huge":
        allowed = allowed + largest * 2**-6 * (values_format != "float32")  # scales stop short of what would become infinite
    floor = 0.0 if values_format == "float32" else 128 * 1.2e-38  # blocks this small become zeros
    assert ((decoded.values.double() - flat.double()).abs() <= allowed + floor * (448 if values_format == "fp8" else 1)).all()


@pytest.mark.parametrize("values_format", FORMATS)
def test_blocks_do_not_depend_on_what_stands_beside_them(values_format):
    flat = random_flat(200_037, 4, "heavy")
    whole = decode(encode(flat, None, values_format)).values
    parts = [decode(encode(part, None, values_format)).values for part in flat.split(64 * 333)]
    assert torch.equal(whole, torch.cat(parts))


def test_two_bits_lose_an_eighth_of_normal_values_and_nothing_of_equal_ones():
    flat = random_flat(64 * 1000 + 7)
    lost = (decode(encode(flat, None, "int2")).values - flat).square().sum() / flat.square().sum()
    assert 0.1175 <= lost < 0.135
    signs = flat.sign() * 0.5
    assert torch.equal(decode(encode(signs, None, "int2")).values, signs)


def test_zeros_and_empty_messages():
    for values_format in FORMATS:
        assert not decode(encode(torch.zeros(130), None, values_format)).values.any()
        for n in (0, 9):
            decoded = decode(encode(torch.zeros(n), torch.empty(0, dtype=torch.int64), values_format))
            assert decoded.n == n and decoded.indices.shape == decoded.values.shape == (0,)
        assert decode(encode(torch.zeros(0), None, values_format)).values.shape == (0,)


def test_density_one_in_float32_is_the_tensor_bit_for_bit():
    flat = random_flat(5000, 3, "mixed")
    decoded = decode(encode(flat, select_exact(flat, 1.0), "float32"))
    assert torch.equal(decoded.indices, torch.arange(5000)) and torch.equal(decoded.values.view(torch.int32), flat.view(torch.int32))
    assert encode(flat, decoded.indices, "float32").numel() == encode(flat, None, "float32").numel()  # the indices of all take no bytes


@pytest.mark.parametrize(("n", "density"), [(2_000_000, 0.05), (2_000_000, 0.01), (200_000, 0.05), (1_000_000, 0.5)])
def test_random_indices_take_at_most_a_tenth_of_a_bit_more_than_their_entropy(n, density):
    indices = random_flat(n).abs().topk(kept(n, density)).indices.sort().values
    form, planes = encode_indices(indices, n)
    entropy = index_entropy_bits(n, indices.numel())
    assert entropy == pytest.approx(n * (-density * math.log2(density) - (1 - density) * math.log2(1 - density)), rel=1e-3)
    bits = 8 * (sum(plane.numel() for plane in planes) + HEADER.size)
    assert entropy < bits < entropy + 0.1 * indices.numel() and form.code is Code.RICE


def test_the_shortest_code_is_chosen():
    rows = (torch.arange(0, 10_000, 37)[:, None] * 64 + torch.arange(64)).view(-1)
    assert encode_indices(rows, 640_000)[0].code is Code.RUNS
    assert encode_indices(torch.arange(0, 64_000, 64), 64_000)[0].code is Code.FIXED
    form, planes = encode_indices(random_flat(50_000).abs().topk(1000).indices.sort().values, 50_000)
    gaps = np.diff(decode_indices(form, planes, 50_000, 1000).numpy(), prepend=-1) - 1
    assert form.gaps.n_bits == min(1000 * (b + 1) + int((gaps >> b).sum()) for b in range(20))


def test_bytes_saved():
    flat = random_flat(1_000_000)
    for density, values_format, saved in [(0.05, "int4", 0.984), (0.01, "int4", 0.996), (0.05, "int8", 0.977), (0.01, "bf16", 0.9922)]:
        message = encode(flat, select_exact(flat, density), values_format)
        assert 1 - message.numel() / (4 * flat.numel()) > saved


def small_messages():
    flat = random_flat(150, 5)
    spread = torch.tensor([0, 1, 2, 40, 41, 99, 149])
    rows = torch.arange(10, 60)
    messages = [encode(flat, spread, values_format) for values_format in FORMATS]
    return [*messages, encode(flat, rows, "int4"), encode(flat, torch.arange(0, 150, 2), "int4"), encode(flat[:9], None, "bf16")]


@pytest.mark.slow
def test_every_flipped_bit_is_refused():
    for message in small_messages():
        decode(message)
        for bit in range(8 * message.numel()):
            damaged = message.clone()
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(MessageError):
                decode(damaged)


def test_every_truncation_and_every_addition_is_refused():
    for message in small_messages():
        for length in range(message.numel()):
            with pytest.raises(MessageError, match="truncated"):
                decode(message[:length])
        for extra in (1, 8, 64):
            with pytest.raises(MessageError):
                decode(torch.cat([message, message.new_zeros(extra)]))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(MessageError):
        decode(torch.tensor(list(data), dtype=torch.uint8))


def forged(body, *, version=VERSION, code=2, values=0, low_bits=3, n=1000, k=10, zeros=5, runs=0, run_zeros=0, run_bits=0, n_bytes=None):
    """A message with a right checksum and whatever header."""
    total = HEADER.size + len(body) if n_bytes is None else n_bytes
    head = HEADER.pack(MAGIC, version, code, values, low_bits, n, k, zeros, runs, run_zeros, run_bits, total, 0)
    message = torch.tensor(list(head) + list(body), dtype=torch.uint8)
    if message.numel() % 8 == 0:
        message.view(torch.int64)[HEADER.size // 8 - 1] = _sum_of(message)
    return message


class Frugal(TorchDispatchMode):
    """Fails when an operation makes a tensor of more bytes than allowed."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        assert all(one.untyped_storage().nbytes() <= self.limit for one in tree_leaves(made) if isinstance(one, torch.Tensor)), func
        return made


@given(st.binary(max_size=400).map(lambda data: data[: len(data) // 8 * 8]), st.integers(0, 4), st.integers(0, 6), st.integers(0, 33), st.data())
def test_forged_messages_are_refused_or_harmless(body, code, values, low_bits, data):
    sizes = st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1))
    fields = {name: data.draw(sizes, name) for name in ("n", "k", "zeros", "runs", "run_zeros")}
    message = forged(body, code=code, values=values, low_bits=low_bits, run_bits=low_bits, **fields)
    try:
        with Frugal(64 * message.numel() + 4096):  # the checksum's stretch is 4096 bytes at least
            decoded = decode(message)
    except MessageError:
        return
    assert decoded.values.isfinite().all()
    if decoded.indices is not None and decoded.indices.numel():
        assert decoded.indices.numel() == decoded.values.numel()
        assert decoded.indices[0] >= 0 and decoded.indices[-1] < decoded.n and (decoded.indices.diff() > 0).all()


@given(st.sampled_from([Code.FIXED, Code.RICE, Code.RUNS]), st.integers(0, 8), st.integers(1, 30), st.integers(0, 60), st.integers(0, 2**32))
def test_forged_planes_of_the_right_size_are_refused_or_harmless(code, low_bits, k, zeros, seed):
    runs = max(1, k // 2) if code is Code.RUNS else 0
    rng = np.random.default_rng(seed)
    aligned = lambda size: -(-size // 8) * 8  # noqa: E731
    count = runs or k
    sizes = [packed_bytes(count, low_bits)] + ([packed_bytes(count + zeros, 1)] if code is not Code.FIXED else [])
    sizes += [packed_bytes(runs, 0), packed_bytes(runs + k - runs, 1)] if runs else []
    body = b"".join(rng.integers(0, 256, aligned(size), dtype=np.uint8).tobytes() for size in [*sizes, k])
    message = forged(body, code=code, values=3, low_bits=low_bits, n=300, k=k, zeros=zeros, runs=runs, run_zeros=k - runs if runs else 0)
    with pytest.raises(MessageError, match="sizes"):
        decode(message)  # int8 needs a plane of scales
    scale = torch.tensor([1.0, 0, 0, 0], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    at = sum(map(aligned, sizes))
    whole = forged(body[:at] + scale + body[at:], code=code, values=3, low_bits=low_bits, n=300, k=k, zeros=zeros, runs=runs,
                   run_zeros=k - runs if runs else 0)  # fmt: skip
    try:
        with Frugal(64 * whole.numel() + 4096):
            decoded = decode(whole)
    except MessageError as error:
        assert "impossible" in str(error)
        return
    assert decoded.indices.numel() == k and decoded.indices[0] >= 0 and decoded.indices[-1] < 300 and (decoded.indices.diff() > 0).all()


def test_what_is_wrong_is_named():
    flat = random_flat(100)
    message = encode(flat, torch.arange(0, 100, 3), "int8")
    for damage, words in [
        (lambda m: m.index_fill_(0, torch.tensor([60]), 77), "checksum"), (lambda m: m[:-8], "truncated"), (lambda m: m[:20], "truncated"),
        (lambda m: m.index_fill_(0, torch.tensor([4]), 2), "version 2"), (lambda m: m.index_fill_(0, torch.tensor([0]), 0), "not a message"),
    ]:  # fmt: skip
        with pytest.raises(MessageError, match=words):
            decode(damage(message.clone()))
    for header, words in [({"k": 2**31 - 1, "n": 2**31 - 1}, "call for"), ({"n": 5}, "there is not"), ({"code": 0}, "no indices"), ({"code": 9}, "there is not"),
                          ({"code": 3}, "no runs")]:  # fmt: skip
        with pytest.raises(MessageError, match=words):
            decode(forged(bytes(64), **header))


def test_bad_input_of_encode_is_refused():
    flat = random_flat(100)
    for indices in ([3, 2], [1, 1], [-1, 5], [5, 100]):
        with pytest.raises(ValueError, match="increasing"):
            encode(flat, torch.tensor(indices), "int8")
    for bad in (math.nan, math.inf, -math.inf):
        flat[50] = bad
        for values_format in FORMATS:
            with pytest.raises(NonFiniteError):
                encode(flat, None, values_format)
            with pytest.raises(NonFiniteError):
                encode(flat, torch.tensor([3, 50]), values_format)
            encode(flat, torch.tensor([3, 51]), values_format)
    with pytest.raises(ValueError, match="float32"):
        encode(flat.double(), None, "int8")


def test_a_message_inside_a_larger_buffer_is_read_whatever_its_place():
    message = encode(random_flat(1000), torch.arange(0, 1000, 9), "int4")
    for offset in range(9):
        buffer = torch.cat([message.new_zeros(offset), message, message.new_zeros(3)])
        assert torch.equal(decode(buffer[offset : offset + message.numel()]).values, decode(message).values)


@given(st.integers(0, 100_000), st.integers(0, 63), st.integers(0, 9))
def test_the_checksum_sees_every_changed_word(at, bit, seed):
    words = torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, 100_001))
    before = checksum(words)
    words[at] ^= 1 << bit if bit < 63 else -(2**63)
    assert checksum(words) != before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("values_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_writes_and_reads_the_same_bytes(values_format, kind):
    flat = random_flat(300_000, 2, kind)
    indices = select_exact(flat, 0.03)
    found = select_exact(flat.cuda(), 0.03)
    assert found.is_cuda and torch.equal(found.cpu(), indices)
    for chosen in (indices, None):
        message = encode(flat, chosen, values_format)
        on_device = encode(flat.cuda(), None if chosen is None else found, values_format)
        assert on_device.is_cuda and torch.equal(on_device.cpu(), message)
        decoded, there = decode(message), decode(on_device)
        assert there.values.is_cuda and torch.equal(there.values.cpu(), decoded.values)

"""Global batches: a pure function of seed and step that covers each epoch exactly once."""

import numpy as np
import pytest
from corpora import data_section
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.config import UserError
from penstock.data import BatchPlan, prepare, validation_plan
from penstock.data.permute import permute


class CountingStream:
    """A stream whose token t is the number t, with document borders at `starts`."""

    name = label = "train"

    def __init__(self, length, starts=(0,)):
        self.length, self.starts = length, np.array(starts)

    def __len__(self):
        return self.length

    def read(self, start, length):
        assert start >= 0 and start + length <= self.length
        return np.arange(start, start + length)

    def documents(self, start, length):
        owners = np.searchsorted(self.starts, np.arange(start, start + length), side="right")
        return (owners - owners[0]).astype(np.int32)

    def locate(self, token):
        return f"book.txt, token {token}"


@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(n, key):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@pytest.mark.slow
@given(n=st.integers(2, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
def test_permute_is_one_to_one_on_large_ranges_and_element_by_element(n, key, data):
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True)))
    images = permute(indices, n, key)
    assert len(set(images.tolist())) == len(indices) and images.min() >= 0 and images.max() < n
    assert images.tolist() == [int(permute(np.array([i]), n, key)[0]) for i in indices]


@pytest.mark.slow
def test_permute_spreads_evenly_and_depends_on_the_key():
    n, keys = 7, 2100
    counts = np.zeros((n, n))
    for key in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, key)] += 1
    expected = keys / n
    assert ((counts - expected) ** 2 / expected).sum() < 82  # chi-squared, 36 degrees of freedom, p = 2e-5


@settings(deadline=None)
@given(length=st.integers(9, 400), context=st.integers(2, 8), batch=st.integers(1, 7), seed=st.integers(0, 2**70))
def test_every_epoch_covers_each_of_its_windows_once(length, context, batch, seed):
    plan = BatchPlan(CountingStream(length), context, batch, seed, False)
    per_epoch = plan.windows_per_epoch
    assert per_epoch * context >= length - 2 * context
    steps = -(-3 * per_epoch // batch)
    ids = np.concatenate([plan.sample_ids(step) for step in range(steps)])
    assert np.array_equal(ids, np.arange(steps * batch))
    for epoch in range(3):
        starts = np.sort(plan.starts(ids[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert np.array_equal(np.diff(starts), np.full(per_epoch - 1, context))
        assert starts[0] in range(max(1, context)) and starts[-1] + context < length


def test_a_batch_is_its_samples_whoever_fetches_them_and_in_any_order():
    plan = BatchPlan(CountingStream(10_000), 16, 12, 5, False)
    whole = plan.fetch(plan.sample_ids(140))
    again = BatchPlan(CountingStream(10_000), 16, 12, 5, False)
    again.fetch(again.sample_ids(7))
    parts = [again.fetch(again.sample_ids(140)[share]) for share in (slice(8, 12), slice(0, 3), slice(3, 8))]
    assert np.array_equal(whole.tokens_bt, np.concatenate([parts[i].tokens_bt for i in (1, 2, 0)]))
    assert np.array_equal(whole.targets_bt, whole.tokens_bt + 1) and whole.documents_bt is None
    assert whole.tokens_bt.shape == (12, 16) and whole.tokens_bt.dtype == whole.targets_bt.dtype == np.int64


def test_seeds_and_epochs_give_other_orders_and_cuts():
    plans = [BatchPlan(CountingStream(100_000), 32, 8, seed, False) for seed in (1, 2)]
    orders = [plan.starts(np.arange(3000)) for plan in plans] + [plans[0].starts(np.arange(plans[0].windows_per_epoch, 6000))]
    assert len({int(order[0]) % 32 for order in orders}) > 1
    for a, b in ((0, 1), (0, 2)):
        assert (orders[a][:2000] // 32 == orders[b][:2000] // 32).mean() < 0.01
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.08


def test_the_target_across_a_document_border_is_not_learned():
    stream = CountingStream(1000, starts=[0, 5, 6, 40, 333, 700])
    plan = BatchPlan(stream, 50, 40, 3, True)
    batch = plan.fetch(plan.sample_ids(0))
    borders = np.isin(batch.tokens_bt + 1, stream.starts)
    assert borders.any() and np.array_equal(batch.targets_bt == -100, borders)
    assert np.array_equal(batch.targets_bt[~borders], batch.tokens_bt[~borders] + 1)
    expected = np.searchsorted(stream.starts, batch.tokens_bt, side="right")
    assert np.array_equal(batch.documents_bt, expected - expected[:, :1]) and batch.documents_bt.dtype == np.int32


@given(length=st.integers(9, 300), context=st.integers(2, 8), mask=st.booleans())
def test_validation_scores_every_token_once(length, context, mask):
    stream = CountingStream(length, starts=[0, 4, 7])
    plan = validation_plan(stream, context, 0, mask)
    batch = plan.fetch(np.arange(plan.count))
    scored = np.sort(batch.targets_bt[batch.targets_bt >= 0])
    assert np.array_equal(scored, np.setdiff1d(np.arange(1, length), [4, 7] if mask else []))
    if mask:
        padding = np.arange(plan.count * context).reshape(plan.count, context) >= length - 1
        assert not np.isin(batch.documents_bt[padding], batch.documents_bt[-1][~padding[-1]]).any()


def test_a_limited_validation_is_evenly_spread():
    plan = validation_plan(CountingStream(1001), 10, 4)
    assert plan.count == 4 and plan.starts(np.arange(4)).tolist() == [0, 250, 500, 750]
    assert validation_plan(CountingStream(101), 10, 40).count == 10


def test_text_shorter_than_one_sequence_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 200)
    corpus = prepare(data_section(tmp_path / "a.txt", tmp_path / "cache", tokenizer="chars", validation=0.1))
    with pytest.raises(UserError, match=r"train text has 180 tokens.*model\.context \+ 1 = 181.*lower model\.context.*data\.validation"):
        BatchPlan(corpus.train, 180, 1, 0, False)
    BatchPlan(corpus.train, 179, 1, 0, False).fetch(np.arange(5))
    with pytest.raises(UserError, match=r"validation text has 20 tokens.*raise data\.validation"):
        validation_plan(corpus.validation, 20)


def test_a_sample_is_described_by_its_file_and_tokens():
    plan = BatchPlan(CountingStream(1000), 10, 4, 0, False)
    start = int(plan.starts(np.array([77]))[0])
    assert plan.describe(77) == f"sample 77: train tokens {start} to {start + 10}, from book.txt, token {start}"


def test_a_stream_reads_across_shards_and_knows_its_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.data.spans.SPAN_BYTES", 100)
    texts = [chr(97 + i % 26) * (i % 90 + 1) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    stream = prepare(data_section(tmp_path / "a.jsonl", tmp_path / "cache", split="tail", validation=0.01)).train
    whole = np.concatenate([[*text.encode(), 256] for text in texts])[: len(stream)]
    owners = np.concatenate([np.full(len(text) + 1, i) for i, text in enumerate(texts)])[: len(stream)]
    rng = np.random.default_rng(0)
    for start, length in rng.integers(1, len(stream) // 2, (200, 2)):
        assert np.array_equal(stream.read(start, length), whole[start : start + length])
        assert np.array_equal(stream.documents(start, length), owners[start : start + length] - owners[start])
    for start, length in ((len(stream) - 3, 4), (-1, 2)):
        with pytest.raises(IndexError):
            stream.read(start, length)

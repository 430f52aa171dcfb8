"""What is held out for validation."""

import json

import numpy as np
import pytest
from corpora import data_section, random_text
from small_runs import write_corpus

from penstock.config import UserError
from penstock.data import prepare


def texts(corpus):
    """Both splits as text."""
    return tuple(corpus.tokenizer.decode(stream.read(0, len(stream))) for stream in (corpus.train, corpus.validation))


def test_tinyshakespeare_is_cut_as_nanogpt_cuts_it(tinyshakespeare, tmp_path):
    corpus = prepare(data_section(tinyshakespeare, tmp_path, tokenizer="chars", validation=0.1))
    assert corpus.summary["characters"] == 1_115_394 and corpus.tokenizer.vocab_size == 65 and corpus.tokenizer.end_id is None
    assert (len(corpus.train), len(corpus.validation)) == (1_003_854, 111_540)
    text = tinyshakespeare.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    ids = np.array([alphabet.index(c) for c in text[1_003_854 - 500 : 1_003_854 + 500]])
    assert np.array_equal(corpus.train.read(1_003_354, 500), ids[:500]) and np.array_equal(corpus.validation.read(0, 500), ids[500:])


@pytest.mark.parametrize("tokenizer", ["chars", "bytes", "bpe"])
@pytest.mark.parametrize("fraction", [0.05, 0.37])
def test_tail_is_the_last_share_of_all_characters(tmp_path, monkeypatch, tokenizer, fraction):
    monkeypatch.setattr("penstock.data.spans.SPAN_BYTES", 3000)
    parts = [random_text(size, seed) for seed, size in enumerate((9000, 50, 4000))]
    for name, part in zip("abc", parts):
        (tmp_path / f"{name}.txt").write_text(part)
    data = data_section(tmp_path / "*.txt", tmp_path / "cache", tokenizer=tokenizer, split="tail", validation=fraction, vocab=400)
    corpus = prepare(data)
    whole, n = "".join(parts), int((1 - fraction) * sum(map(len, parts)))
    assert texts(corpus) == (whole[:n], whole[n:]) and corpus.split == "tail"


def test_documents_are_whole_on_one_side_and_copies_are_together(tmp_path):
    documents = [random_text(300, seed) for seed in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents + documents))
    corpus = prepare(data_section(tmp_path / "a.jsonl", tmp_path / "cache", validation=0.2))
    sides = []
    for stream in (corpus.train, corpus.validation):
        ids = bytes(124 if i == 256 else i for i in stream.read(0, len(stream)).tolist()).decode()
        sides.append(ids.removesuffix("|").split("|"))
    assert corpus.split == "document" and sorted(sides[0] + sides[1]) == sorted(documents * 2)
    assert not set(sides[0]) & set(sides[1]) and 0.1 < len(sides[1]) / 600 < 0.3


def test_where_documents_lie_and_what_they_are_called_does_not_matter(tmp_path):
    for number, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        for seed in range(30):
            (tmp_path / folder / f"{number}{seed:02}.txt").write_text(random_text(200, seed))
    one, two = (prepare(data_section(tmp_path / folder, tmp_path / "cache")) for folder in ("x", "y"))
    assert texts(one) == texts(two) and one.digest == two.digest and one.folder != two.folder


@pytest.mark.parametrize("validation", [0.001, 0.999])
def test_neither_split_is_empty_by_chance(tmp_path, validation):
    corpus = prepare(data_section(write_corpus(tmp_path / "in", 3), tmp_path / "cache", validation=validation))
    assert len(corpus.train) > 100 and len(corpus.validation) > 100


def test_auto_is_document_or_tail_and_shares_the_cache_with_what_it_chose(tmp_path):
    (tmp_path / "one.txt").write_text(random_text(5000, seed=1))
    many = write_corpus(tmp_path / "in", 5)
    for path, kind in ((tmp_path / "one.txt", "tail"), (many, "document")):
        auto = prepare(data_section(path, tmp_path / "cache"))
        assert auto.split == kind and prepare(data_section(path, tmp_path / "cache", split=kind)).folder == auto.folder


def test_what_cannot_be_split_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("a single document")
    with pytest.raises(UserError, match=r"one document.*data\.split = 'tail'"):
        prepare(data_section(tmp_path / "one.txt", tmp_path / "cache", split="document"))
    (tmp_path / "char.txt").write_text("x")
    with pytest.raises(UserError, match="single character"):
        prepare(data_section(tmp_path / "char.txt", tmp_path / "cache"))


def test_a_bpe_is_trained_on_training_text_only(tmp_path):
    train = "plain words only here\n" * 200
    (tmp_path / "a.txt").write_text(train + "qzqzqz " * 60)
    corpus = prepare(data_section(tmp_path / "a.txt", tmp_path / "cache", tokenizer="bpe", split="tail", validation=0.2, vocab=400))
    assert len(corpus.tokenizer.encode(" words")) == 1 and len(corpus.tokenizer.encode(" qzqzqz")) == 7


def test_a_long_text_cut_into_spans_and_pieces_is_one_document_with_the_tokens_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.data.spans.SPAN_BYTES", 50_000)
    monkeypatch.setattr("penstock.data.documents.PIECE_BYTES", 1000)
    text = random_text(300_000, seed=8)
    (tmp_path / "a.txt").write_text(text)
    corpus = prepare(data_section(tmp_path / "a.txt", tmp_path / "cache", tokenizer="bpe", vocab=500, validation=0.001))
    ids, n = corpus.tokenizer.encode(text), len(corpus.train)
    assert len(corpus.train._shards) >= 5 and corpus.train.n_documents == corpus.validation.n_documents == 1
    assert np.array_equal(corpus.train.read(0, n - 5), ids[: n - 5]) and n > 0.99 * len(ids)

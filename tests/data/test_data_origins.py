"""Every sample is traced to its documents, and to the very bytes of them."""

import json

import numpy as np
import pytest
from corpora import data_section, random_text

from penstock.data import BatchPlan, Origins, prepare
from penstock.data.tokenizer import HuggingFace


def texts_of(folder):
    """Text of every document of a corpus by its place."""
    texts = {str(file): file.read_text() for file in folder.glob("*.txt")}
    for file in folder.glob("*.jsonl"):
        texts |= {f"{file}, line {i}": json.loads(line)["text"] for i, line in enumerate(file.read_text().splitlines(), start=1)}
    return texts


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(6):
        (folder / f"{i}.txt").write_text(random_text(700 + 300 * i, i))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": random_text(200, 90 + i)}) + "\n" for i in range(8)))
    return folder


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe"])
def test_a_samples_excerpts_are_its_tokens_and_their_bytes(corpus_folder, tmp_path, tokenizer):
    corpus = prepare(data_section(corpus_folder, tmp_path, tokenizer=tokenizer, vocab=300, split="document"))
    plan = BatchPlan(corpus.train, 50, 4, 3, False)
    origins, texts, end = Origins(plan, corpus.tokenizer), texts_of(corpus_folder), corpus.tokenizer.end_id
    seen = [origin for step in range(2 * plan.windows_per_epoch // 4) for origin in origins.of_step(step)]
    assert [origin.sample for origin in seen] == list(range(len(seen))) and {origin.epoch for origin in seen} == {0, 1}
    assert {excerpt.place.rpartition(".")[2][:5] for origin in seen for excerpt in origin.excerpts} == {"txt", "jsonl"}
    for origin in seen:
        tokens = corpus.train.read(origin.start, origin.end - origin.start)
        read = plan.fetch(np.array([origin.sample]))
        assert np.array_equal(tokens[:-1], read.tokens_bt[0]) and tokens[-1] == read.targets_bt[0, -1]
        assert sum(excerpt.end - excerpt.start for excerpt in origin.excerpts) == len(tokens)
        at = 0
        for excerpt in origin.excerpts:
            ids = tokens[at : at + excerpt.end - excerpt.start]
            at += len(ids)
            text = texts[excerpt.place].encode()
            start, stop = excerpt.bytes
            assert text[start:stop].decode(errors="replace") == corpus.tokenizer.decode(ids), excerpt
            assert (len(ids) and ids[-1] == end) == (stop == len(text) and end is not None and ids[-1] == end)
    whole = {}
    for origin in seen:
        for excerpt in origin.excerpts:
            whole.setdefault(excerpt.place, set()).update(range(*excerpt.bytes))
    assert any(covered == set(range(len(texts[place].encode()))) for place, covered in whole.items()), "some document is there to its last byte"


def test_a_tokenizer_that_changes_the_text_tells_no_bytes(corpus_folder, tmp_path):
    corpus = prepare(data_section(corpus_folder, tmp_path, tokenizer="bpe", vocab=300))
    settings = json.loads(corpus.tokenizer._model.to_str()) | {"normalizer": {"type": "Lowercase"}}
    import tokenizers

    changed = HuggingFace(tokenizers.Tokenizer.from_str(json.dumps(settings)), None)
    assert changed.token_bytes is None
    origin = Origins(BatchPlan(corpus.train, 50, 4, 3, False), changed).of_sample(5)
    assert origin.excerpts and all(excerpt.bytes is None for excerpt in origin.excerpts)
    assert json.loads(json.dumps(origin.as_dict()))["sample"] == 5

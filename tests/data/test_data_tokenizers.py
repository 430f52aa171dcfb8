"""Tokenizers: text survives, ids are transformers' ids, and what cannot be encoded is named."""

import json

import numpy as np
import pytest
from corpora import random_text
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import UserError
from penstock.data import load_tokenizer
from penstock.data.bpe import DISTINCT_BYTES, SAMPLE_CHARACTERS, draw_sample, train_bpe
from penstock.data.tokenizer import Bytes, Characters

SAMPLE = random_text(60_000, seed=3)
TRAINED = train_bpe([SAMPLE], 600)
KINDS = {"bytes": Bytes(), "chars": Characters("".join(sorted(set(SAMPLE)))), "bpe": TRAINED}


@pytest.mark.parametrize("kind", KINDS)
def test_text_survives_and_the_saved_tokenizer_is_the_same(kind, tmp_path):
    tokenizer = KINDS[kind]
    ids = tokenizer.encode(SAMPLE)
    assert tokenizer.decode(ids) == SAMPLE and ids.dtype == np.int64 and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert loaded.digest() == tokenizer.digest() and loaded.end_id == tokenizer.end_id and np.array_equal(loaded.encode(SAMPLE), ids)


@given(st.text())
def test_any_text_survives_bytes_and_bpe(text):
    for kind in ("bytes", "bpe"):
        assert KINDS[kind].decode(KINDS[kind].encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", [None, "llama", "qwen3", "deepseek_v3"])
def test_transformers_gives_the_same_ids_for_the_exported_folder(kind, model_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = KINDS[kind]
    tokenizer.to_hf(tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (SAMPLE[:5000], SAMPLE[7000:7100], " ", "\n\n  "):
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end_id


def test_an_exported_folder_is_a_tokenizer_again(tmp_path):
    for kind, tokenizer in KINDS.items():
        tokenizer.to_hf(tmp_path / kind)
        loaded = load_tokenizer(tmp_path / kind / "tokenizer.json")
        assert np.array_equal(loaded.encode(SAMPLE), tokenizer.encode(SAMPLE)) and loaded.end_id == tokenizer.end_id


def test_text_never_becomes_the_end_of_document(tmp_path):
    for tokenizer in (KINDS["bytes"], TRAINED):
        ids = tokenizer.encode("a <|endoftext|> b")
        assert tokenizer.end_id not in ids and tokenizer.decode(ids) == "a <|endoftext|> b"


def test_trained_vocabulary_has_all_bytes_and_the_asked_size():
    assert TRAINED.vocab_size == 600 and TRAINED.end_id == 0
    assert train_bpe(["ab"], 5000).vocab_size == 257


def test_training_is_deterministic():
    assert train_bpe([SAMPLE], 600).digest() == TRAINED.digest() != train_bpe([SAMPLE], 601).digest()


@pytest.mark.slow
def test_the_training_sample_is_spread_and_bounded_in_length_and_in_distinct_words():
    taken = list(draw_sample(iter(["repeat " * 20_000] * 500) for _ in range(4)))
    assert SAMPLE_CHARACTERS <= sum(map(len, taken)) < SAMPLE_CHARACTERS + 150_000
    drawn = [0] * 3

    def distinct_words(span):
        for start in range(0, 10**7, 1000):
            drawn[span] += 1
            yield "".join(chr(0x4E00 + (span * 10**7 + start + i) // 7 ** (i % 5) % 20_000) for i in range(1000)) + "。"

    distinct = list(draw_sample(distinct_words(span) for span in range(3)))
    assert DISTINCT_BYTES <= sum(len(text.encode()) for text in distinct) < DISTINCT_BYTES + 10_000
    assert max(drawn) - min(drawn) <= 1


def test_end_token_is_the_declared_one_else_a_common_name(tmp_path):
    TRAINED.to_hf(tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    tree["added_tokens"].append(tree["added_tokens"][0] | {"content": "<stop>", "id": 600})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert (load_tokenizer(tmp_path).end_id, load_tokenizer(tmp_path).vocab_size) == (600, 601)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).end_id == 0


def test_a_character_outside_the_alphabet_is_named():
    with pytest.raises(UserError, match=r"character 'é' \(U\+00E9\).*4 characters"):
        Characters("abc ").encode("a bé😀")


def test_ids_outside_the_vocabulary_decode_to_nothing():
    assert Bytes().decode([72, 105, 256, 300]) == "Hi" and Characters("ab").decode([0, 1, 7]) == "ab"


@pytest.mark.parametrize("content, complaint", [(None, "no tokenizer at"), ("{", "not a tokenizer"), ('{"model": 3}', "not a tokenizer")])
def test_an_unreadable_tokenizer_is_refused(tmp_path, content, complaint):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(file)

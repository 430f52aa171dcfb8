"""Training a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909; on bytes: GPT-2, Radford et al. 2019, section 2.2).

The sample is drawn from all spans in turn, so it is spread over the corpus, and held-out text is never in it. It ends at
`SAMPLE_CHARACTERS`, or earlier where its distinct words come to `DISTINCT_BYTES`: the trainer holds some 110 bytes for each byte of a
distinct word, and in scripts without spaces nearly every clause is a distinct word, so that 47 MB of Chinese-like text took 5 GiB
where the same amount of English takes 0.3. Words are split by GPT-2's pattern, all 256 bytes are in the vocabulary,
and `<|endoftext|>` is id 0.

Cost: about a minute for the full sample on one core, and up to half a GiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from penstock.data.tokenizer import END_OF_TEXT, HuggingFace

SAMPLE_CHARACTERS = 32 << 20
DISTINCT_BYTES = 4 << 20
#: Runs of letters, of digits and of other signs: near enough to GPT-2's pattern to count its distinct words.
WORDS = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+")


def train_bpe(texts: Iterable[str], vocab: int) -> HuggingFace:
    """Train a tokenizer of at most `vocab` tokens (fewer where the text gives out of pairs that occur twice)."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return HuggingFace(model, END_OF_TEXT)


def draw_sample(spans: Iterable[Iterator[str]]) -> Iterator[str]:
    """Yield pieces of text from each of `spans` in turn until one of the bounds is reached or all are used up."""
    waiting = list(spans)
    taken = distinct = 0
    seen: set[str] = set()
    while waiting:
        for texts in list(waiting):
            text = next(texts, None)
            if text is None:
                waiting.remove(texts)
                continue
            yield text
            taken += len(text)
            for word in set(WORDS.findall(text)):
                if word not in seen:
                    seen.add(word)
                    distinct += len(word.encode("utf-8"))
            if taken >= SAMPLE_CHARACTERS or distinct >= DISTINCT_BYTES:
                return

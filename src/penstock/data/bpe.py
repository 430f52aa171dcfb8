"""Training a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909; on bytes: GPT-2, Radford et al. 2019, section 2.2).

The sample is the first `SAMPLE_CHARACTERS / spans` characters of training text of every span; spans are evenly spread over the
corpus. Held-out text is never in it. Words are split by GPT-2's pattern, all 256 bytes are in the vocabulary, and
`<|endoftext|>` is id 0. Cost on one core: about a minute for 32 MiB of text; memory grows with the number of distinct words.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from penstock.data.tokenizer import END_OF_TEXT, HuggingFace

SAMPLE_CHARACTERS = 32 << 20


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

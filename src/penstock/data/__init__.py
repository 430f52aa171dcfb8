"""Floor 2: corpora, tokenizers, token shards and global batches. Imports no torch."""

from penstock.data.batches import Batch, BatchPlan, SamplePlan, ValidationPlan, WindowPlan, validation_plan
from penstock.data.corpus import corpus_path
from penstock.data.origins import Excerpt, Origins, SampleOrigin
from penstock.data.preparation import prepare, text_stream
from penstock.data.shards import TokenCorpus, TokenStream
from penstock.data.skip import Skip, check_unread, parse_skip
from penstock.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Batch", "BatchPlan", "Excerpt", "Origins", "SampleOrigin", "SamplePlan", "Skip", "TokenCorpus", "TokenStream", "Tokenizer", "ValidationPlan",
    "WindowPlan", "check_unread", "corpus_path", "load_tokenizer", "parse_skip", "prepare", "text_stream", "validation_plan",
]

"""The settings of a run that is made from another's state: those, with changes, and every "auto" settled again.

Other text is cut by the tokenizer that the weights know, unless another is named. Then the corpus is prepared here, so that what is wrong with it
is said before anything is made; otherwise nothing is read but the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.config import Config, changed_settings, with_values
from penstock.data import Tokenizer, load_tokenizer, prepare
from penstock.engine.starting.resolve import cores, resolve, settle_machine
from penstock.engine.starting.start import Progress
from penstock.models import resolve_model

#: Settings of the data that change no tokens.
SAME_TOKENS = ("data.cache_dir", "data.workers", "data.document_mask")


@dataclass(frozen=True)
class Settled:
    """Settings, what `run.json` is to say of the data, and the tokenizer, None for the one that lies with the state."""

    config: Config
    data: dict[str, Any]
    tokenizer: Tokenizer | None = None
    #: Whether the config's recipe of a tokenizer would make another one than the weights know, as the text is another.
    keeps_tokenizer: bool = False
    #: Whether tokens mean what they did.
    same_tokens: bool = True

    def with_tokenizer_in(self, run: Path) -> Config:
        """The settings of a run in that folder, which keeps the tokenizer."""
        return with_values(self.config, {"data.tokenizer": str(run.resolve() / "tokenizer")}) if self.keeps_tokenizer else self.config


def settle(before: Config, values: dict[str, Any], tokenizer: Path, known: dict[str, Any], progress: Progress | None) -> Settled:
    """Change settings of a run whose tokenizer is in a folder, and of whose data `known` is known; raises `UserError`."""
    config, kept = with_values(before, {"run.name": ""} | values), load_tokenizer(tokenizer)
    if not _other_tokens(before, config):
        config = with_values(config, {"model": resolve_model(config.model, kept.vocab_size).model_dump(by_alias=True)})
        return Settled(settle_machine(config, cores()), known)
    own = (config.data.tokenizer, config.data.vocab) == (before.data.tokenizer, before.data.vocab)
    asked = with_values(config, {"data.tokenizer": str(tokenizer.resolve())}) if own else config
    corpus = prepare(asked.data, progress=progress)
    config = with_values(resolve(asked, corpus, cores()), {"data.tokenizer": config.data.tokenizer} if own else {})
    other = None if corpus.tokenizer.digest() == kept.digest() else corpus.tokenizer
    made = config.data.tokenizer in ("bpe", "chars")
    return Settled(config, {"data": corpus.summary, "data_digest": corpus.digest}, other, own and made, other is None)


def _other_tokens(before: Config, after: Config) -> bool:
    """Whether a setting changed that decides the tokens of training."""
    return any(name.startswith("data.") and name not in SAME_TOKENS for name in changed_settings(before, after))

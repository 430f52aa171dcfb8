"""Keys and values of the tokens already read, so that generating one more token costs one token's work.

Each layer's keys (already turned to their positions) and values are kept and joined with the new ones. Under a sliding window only
those the next token can still see are kept, so memory is bounded by the window. Cost: a copy of the cache for each new token, small
beside reading the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one layer, (b, g, tokens, k) each."""

    def __init__(self, window: int) -> None:
        self.window = window
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, keys_bgtk: Tensor, values_bgtk: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values; return all that the new tokens may need, old ones first."""
        if self._keys is not None and self._values is not None:
            keys_bgtk = torch.cat((self._keys, keys_bgtk), dim=2)
            values_bgtk = torch.cat((self._values, values_bgtk), dim=2)
        kept = slice(-(self.window - 1), None) if self.window > 1 else slice(0, None)
        self._keys, self._values = keys_bgtk[:, :, kept], values_bgtk[:, :, kept]
        return keys_bgtk, values_bgtk


class KVCache:
    """The cache of a whole decoder; `length` counts the tokens read so far."""

    def __init__(self, window: int = 0) -> None:
        """Keep all tokens, or under a sliding `window` only those still visible."""
        self.window = window
        self.length = 0
        self._layers: dict[str, LayerCache] = {}

    def layer(self, name: str) -> LayerCache:
        """The cache of the block called `name`, made at its first use."""
        return self._layers.setdefault(name, LayerCache(self.window))

    @property
    def kept(self) -> int:
        """Tokens whose keys each layer holds before the next call."""
        return min(self.length, self.window - 1) if self.window > 1 else self.length

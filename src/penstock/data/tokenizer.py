"""Tokenizers: text to token ids and back.

Three kinds behind one set of methods. `Bytes` (257 ids: the byte values, and 256 for the end of a document) and `Characters` (the
corpus's own characters in code-point order, no end token, as nanoGPT's shakespeare_char) are table look-ups in numpy;
`HuggingFace` wraps any `tokenizer.json`, also the byte-level BPE trained here (`bpe.py`).

Text is text: no special token is ever made from it, so a document that spells `<|endoftext|>` does not end early, and no
begin-of-text token is added. On all other text each kind gives the ids that `transformers` gives for the folder that `to_hf` writes.

When to use which: BPE for language models; bytes where no vocabulary may be assumed; characters for small studies only.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from penstock.config import UserError

Ids = np.ndarray
END_OF_TEXT = "<|endoftext|>"
#: Names of end-of-document tokens in published tokenizers, in the order they are looked for where no eos_token is declared.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|im_end|>")
OWN_FILE = "tokenizer_penstock.json"


class Tokenizer(ABC):
    """Text to ids and back; `vocab_size` is one more than the largest id, `end_id` the end-of-document token or None."""

    vocab_size: int
    end_id: int | None

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, int64, without special tokens."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`; special tokens and ids outside the vocabulary are left out."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs into `folder`, which is made if it is missing."""

    @abstractmethod
    def to_hf(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` that `transformers.AutoTokenizer` loads with the same ids."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides the ids."""

    @property
    def token_bytes(self) -> np.ndarray | None:
        """Bytes of UTF-8 that each id stands for (int64; an end token: 0), or None where ids do not add up to the text that they were made from."""
        return None

    def encode(self, text: str) -> Ids:
        """Token ids of one text, int64."""
        return self.encode_batch([text])[0]


class Bytes(Tokenizer):
    """UTF-8 bytes as ids 0 to 255; 256 ends a document."""

    vocab_size = 257
    end_id = 256

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, int64."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) for text in texts]

    @property
    def token_bytes(self) -> np.ndarray | None:
        """One, and 0 for the end."""
        return np.append(np.ones(256, dtype=np.int64), 0)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`; a character cut in the middle becomes U+FFFD."""
        array = np.asarray(ids, dtype=np.int64)
        return array[(array >= 0) & (array < 256)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write the kind."""
        _write_own(folder, {"kind": "bytes"})

    def to_hf(self, folder: Path) -> None:
        """A byte-level BPE without merges, whose vocabulary is the bytes in order."""
        names = bytes_to_characters()
        model = tokenizers.Tokenizer(models.BPE(vocab={name: byte for byte, name in enumerate(names)}, merges=[]))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.decoder = decoders.ByteLevel()
        model.add_special_tokens([tokenizers.AddedToken(END_OF_TEXT, special=True, normalized=False)])
        _write_hf(folder, model, END_OF_TEXT)

    def digest(self) -> str:
        """Hash of the kind."""
        return hashlib.sha256(b"bytes").hexdigest()


class Characters(Tokenizer):
    """The characters of `alphabet`, in its order, as ids; documents follow each other without an end token."""

    end_id = None

    def __init__(self, alphabet: str) -> None:
        self.alphabet = alphabet
        self.vocab_size = len(alphabet)
        self._points = _code_points(alphabet)
        self._ids = np.full(int(self._points.max(initial=0)) + 1, -1, dtype=np.int64)
        self._ids[self._points] = np.arange(len(alphabet))

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, int64; raises `UserError` naming a character outside the alphabet."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        points = _code_points(text)
        known = points < len(self._ids)
        ids = np.where(known, self._ids[np.where(known, points, 0)], -1)
        if ids.size and ids.min() < 0:
            character = text[int(np.argmin(ids >= 0))]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}) is not among the {self.vocab_size} characters of the corpus that the "
                "'chars' tokenizer was made from; leave it out, or train with data.tokenizer = 'bytes' or 'bpe'"
            )
        return ids

    @property
    def token_bytes(self) -> np.ndarray | None:
        """Those of each character."""
        return np.searchsorted([0x80, 0x800, 0x10000], self._points, side="right").astype(np.int64) + 1

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`."""
        array = np.asarray(ids, dtype=np.int64)
        array = array[(array >= 0) & (array < self.vocab_size)]
        return self._points[array].astype("<u4").tobytes().decode("utf-32-le")

    def save(self, folder: Path) -> None:
        """Write the alphabet."""
        _write_own(folder, {"kind": "chars", "alphabet": self.alphabet})

    def to_hf(self, folder: Path) -> None:
        """A BPE without merges, whose vocabulary is the alphabet; unknown characters are dropped there."""
        model = tokenizers.Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(self.alphabet)}, merges=[]))
        model.decoder = decoders.Fuse()
        _write_hf(folder, model, None)

    def digest(self) -> str:
        """Hash of the alphabet."""
        return hashlib.sha256(b"chars" + self.alphabet.encode("utf-8")).hexdigest()


class HuggingFace(Tokenizer):
    """Any `tokenizer.json`; `end` names the end-of-document token, or None where it has none."""

    def __init__(self, model: tokenizers.Tokenizer, end: str | None) -> None:
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._model = model
        self.end = end
        self.end_id = model.token_to_id(end) if end is not None else None
        self.vocab_size = max(model.get_vocab(with_added_tokens=True).values()) + 1

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of each text, int64."""
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @property
    def token_bytes(self) -> np.ndarray | None:
        """Known of byte-level BPE that changes nothing of the text, in whose vocabulary a character stands for a byte."""
        settings = json.loads(self._model.to_str())
        steps = settings["pre_tokenizer"] or {}
        steps = steps.get("pretokenizers", [steps])
        byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
        if settings["model"]["type"] != "BPE" or settings["normalizer"] or not byte_level or any(step.get("add_prefix_space") for step in byte_level):
            return None
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for text, token in self._model.get_vocab(with_added_tokens=False).items():
            lengths[token] = len(text)
        for token, added in self._model.get_added_tokens_decoder().items():
            lengths[token] = 0 if token == self.end_id else len(added.content.encode("utf-8"))
        return lengths

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`."""
        return str(self._model.decode([int(i) for i in ids], skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and the name of the end token."""
        self.to_hf(folder)

    def to_hf(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        _write_hf(folder, self._model, self.end)

    def digest(self) -> str:
        """Hash of the `tokenizer.json` and the end token."""
        return hashlib.sha256(f"{self._model.to_str()}\n{self.end}".encode()).hexdigest()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder (Penstock's own or one with a `tokenizer.json`) or a `tokenizer.json` file.

    Raises `UserError` if there is none or it cannot be read.
    """
    path = Path(path)
    own = path / OWN_FILE
    if own.is_file():
        settings = _read_json(own)
        return Bytes() if settings.get("kind") == "bytes" else Characters(str(settings.get("alphabet", "")))
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no tokenizer at {path}; give 'bpe', 'bytes', 'chars' or the path of a tokenizer.json")
    try:
        model = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        raise UserError(f"{file} is not a tokenizer that the tokenizers library reads ({error}); export it again") from None
    return HuggingFace(model, _end_token(model, file.with_name("tokenizer_config.json")))


def bytes_to_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2, `encoder.py`, bytes_to_unicode)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = iter(range(256, 512))
    return [chr(byte if byte in kept else next(moved)) for byte in range(256)]


def _end_token(model: tokenizers.Tokenizer, config: Path) -> str | None:
    """The declared eos_token if the vocabulary has it, else the first common name that it has."""
    declared = _read_json(config).get("eos_token") if config.is_file() else None
    name = declared.get("content") if isinstance(declared, dict) else declared
    candidates = [name, *END_NAMES] if isinstance(name, str) else list(END_NAMES)
    return next((candidate for candidate in candidates if model.token_to_id(candidate) is not None), None)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object; restore it")
    return value


def _write_own(folder: Path, settings: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN_FILE).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _write_hf(folder: Path, model: tokenizers.Tokenizer, end: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if end is not None:
        config["eos_token"] = end
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1), encoding="utf-8")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.int64)

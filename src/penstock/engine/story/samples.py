"""Which samples made a snapshot: the documents, and the bytes of them, of every global batch since the snapshot before.

Nothing of this was recorded step by step. The order of samples is a pure function of the corpus, the seed, the batch and the step
(`data/batches.py`), all of which the snapshot names; the corpus is opened and held against its digest. Cost: opening the corpus, and looking up
documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from penstock.config import UserError, parse_config
from penstock.data import Origins, SampleOrigin, prepare
from penstock.engine.build import batch_plan
from penstock.engine.state import Progress
from penstock.store import Snapshot, in_use, read_manifest
from penstock.store.snapshots.lineage import Link, lineage


@dataclass(frozen=True)
class Samples:
    """The samples of steps after `first` up to `last`, by step; `seed` and `digest` of the corpus are what, with the step, decides them."""

    run: str
    snapshot: str
    first: int
    last: int
    seed: int
    digest: str
    steps: dict[int, list[SampleOrigin]]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        steps = [{"step": step, "samples": [origin.as_dict() for origin in origins]} for step, origins in self.steps.items()]
        facts = {"first": self.first, "last": self.last, "seed": self.seed, "digest": self.digest}
        return {"run": self.run, "snapshot": self.snapshot, **facts, "steps": steps}

    def text(self) -> str:
        """For people: of several steps a line each, of one every excerpt."""
        steps = f"steps {self.first + 1} to {self.last}" if self.last - self.first > 1 else f"step {self.last}"
        lines = [f"{self.run}, {self.snapshot[:12]}: {steps}, seed {self.seed}, corpus {self.digest[:12]}"]
        for step, origins in self.steps.items():
            lines += _summary(step, origins) if len(self.steps) > 1 else _excerpts(origins)
        return "\n".join(lines)


def samples_of(snapshot: Snapshot, step: int | None = None) -> Samples:
    """The samples that made a snapshot since its parent, or of one step; raises `UserError` where step or corpus is not there."""
    with in_use(snapshot):
        manifest = read_manifest(snapshot)
        first = _parent_step(lineage(snapshot.folder, manifest))
    if not manifest.about.get("config"):
        raise UserError(f"{snapshot.path} does not say with which settings it was made, so its samples cannot be told")
    if step is None and first is None:
        raise UserError(f"nobody knows any more at which step the snapshot before {snapshot.path} was; name a step with --step")
    made = range((first or 0) + 1, manifest.step + 1)
    if step is not None and step not in made:
        raise UserError(f"step {step} did not make {snapshot.path}, which is of steps {made.start} to {made.stop - 1}; name the snapshot after it")
    config = parse_config(manifest.about["config"], f"snapshot of step {manifest.step}")
    corpus, recorded = prepare(config.data), (manifest.about.get("data") or {}).get("digest")
    if recorded != corpus.digest:
        raise UserError(f"the corpus at data.path = {config.data.path!r} or its tokenizer has changed since {snapshot.path} was made; restore it")
    progress, chosen = Progress(**manifest.numbers), made if step is None else range(step, step + 1)
    if chosen.start <= progress.since:
        raise UserError(
            f"batch.global or model.context changed after step {progress.since}, and {snapshot.path} knows only the samples of later steps; name "
            "one of those with --step, or a snapshot before it"
        )
    origins = Origins(batch_plan(config, corpus, progress), corpus.tokenizer)
    found = {one: origins.of_step(one - 1) for one in chosen}  # global batch n makes step n + 1
    return Samples(snapshot.folder.label, manifest.id, chosen.start - 1, chosen.stop - 1, config.run.seed, corpus.digest, found)


def _parent_step(line: list[Link]) -> int | None:
    """The step of the snapshot before; 0 for the first of a run, None where nobody knows it any more."""
    return line[1].step if len(line) > 1 else 0


def _summary(step: int, origins: list[SampleOrigin]) -> list[str]:
    documents = {excerpt.document for origin in origins for excerpt in origin.excerpts}
    tokens = sum(origin.end - origin.start - 1 for origin in origins)
    numbers = f"samples {origins[0].sample} to {origins[-1].sample}, epoch {origins[0].epoch}"
    return [f"  step {step}: {numbers}, {tokens:,} tokens of {len(documents)} documents"]


def _excerpts(origins: list[SampleOrigin]) -> list[str]:
    lines = []
    for origin in origins:
        lines.append(f"  sample {origin.sample}, epoch {origin.epoch}: tokens {origin.start} to {origin.end - 1} of the training part")
        for excerpt in origin.excerpts:
            where = f"bytes {excerpt.bytes[0]} to {excerpt.bytes[1]}" if excerpt.bytes else f"its tokens {excerpt.start} to {excerpt.end - 1}"
            lines.append(f"    {excerpt.place}  {where}")
    return lines

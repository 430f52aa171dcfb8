"""Expert parallelism: where experts live, how tokens travel to them, and what moves when they do."""

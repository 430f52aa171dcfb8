"""Floor 5: the training loop, starting and resuming runs, and using their models."""

from penstock.engine.start import resume_run, start_run
from penstock.engine.use import export_model, import_model, open_model, score, speak

__all__ = ["export_model", "import_model", "open_model", "resume_run", "score", "speak", "start_run"]

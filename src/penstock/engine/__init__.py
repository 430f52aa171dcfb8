"""Floor 6: the training loop, starting and resuming runs, and using their models."""

from penstock.engine.build import Core, build_core
from penstock.engine.compare import compare_snapshots
from penstock.engine.control import StopRequest
from penstock.engine.failures import cause, die_with_parent, forget_failures, run_reporting
from penstock.engine.foreign import export_state, import_state
from penstock.engine.fork import fork_run
from penstock.engine.late import next_result
from penstock.engine.launch import forwarded_signals, start_ranks
from penstock.engine.replay import MEASURED, replay
from penstock.engine.resolve import check_ranks, check_world, cores, outline
from penstock.engine.samples import samples_of
from penstock.engine.start import resume_run, start_run
from penstock.engine.step import accumulate, apply_gradients, gradient_norm
from penstock.engine.survive import scale_run
from penstock.engine.use import export_model, import_model, open_model, score, speak

__all__ = [
    "MEASURED", "Core", "StopRequest", "accumulate", "apply_gradients", "build_core", "cause", "check_ranks", "check_world", "compare_snapshots",
    "cores", "die_with_parent", "export_model", "export_state", "forget_failures", "fork_run", "forwarded_signals", "gradient_norm", "import_model",
    "import_state", "next_result", "open_model", "outline", "replay", "resume_run", "run_reporting", "samples_of", "scale_run", "score", "speak",
    "start_ranks",
    "start_run",
]

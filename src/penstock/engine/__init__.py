"""Floor 6: the training loop, starting and resuming runs, and using their models.

The files here are the loop and what a step is made of. Around them: `starting` (config settled, ranks started), `record` (what a run tells), `guard`
(what keeps its state sound), `requests` (what it is asked from outside), `tune` (what it adjusts by measuring), `survive` (ranks that are lost),
`probes` (what is measured of the model), `story` (what is made of snapshots and history).
"""

from penstock.engine.build import Core, build_core
from penstock.engine.control import StopRequest
from penstock.engine.guard.failures import cause, die_with_parent, forget_failures, run_reporting
from penstock.engine.late import next_result
from penstock.engine.starting.launch import forwarded_signals, start_ranks
from penstock.engine.starting.resolve import check_ranks, check_world, cores, outline
from penstock.engine.starting.start import resume_run, start_run
from penstock.engine.step import accumulate, apply_gradients, gradient_norm
from penstock.engine.story.compare import compare_snapshots
from penstock.engine.story.foreign import export_state, import_state
from penstock.engine.story.fork import fork_run
from penstock.engine.story.replay import MEASURED, replay
from penstock.engine.story.samples import samples_of
from penstock.engine.survive import scale_run
from penstock.engine.use import export_model, import_model, open_model, score, speak

__all__ = [
    "MEASURED", "Core", "StopRequest", "accumulate", "apply_gradients", "build_core", "cause", "check_ranks", "check_world", "compare_snapshots",
    "cores", "die_with_parent", "export_model", "export_state", "forget_failures", "fork_run", "forwarded_signals", "gradient_norm", "import_model",
    "import_state", "next_result", "open_model", "outline", "replay", "resume_run", "run_reporting", "samples_of", "scale_run", "score", "speak",
    "start_ranks",
    "start_run",
]

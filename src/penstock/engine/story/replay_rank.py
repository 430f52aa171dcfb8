"""One rank of a replay below Penstock's launcher: `python -m penstock.engine.story.replay_rank RUN`, to the step that RUN's `replay.json` names."""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.engine.starting.rank import main
from penstock.store import Run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.exit(main(folder, int(Run(folder).read("replay.json")["until"])))

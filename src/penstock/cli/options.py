"""Options and arguments that several commands take, said in one way."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Sets = Annotated[Optional[list[str]], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be given several times.")]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Nproc = Annotated[int, typer.Option("--nproc", help="Ranks to start on this host.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or 'last'.")]
RunsDir = Annotated[str, typer.Option("--runs-dir", help="Folder that holds the runs.")]
SnapName = Annotated[str, typer.Argument(metavar="SNAP", help="RUN (its newest snapshot), RUN@STEP, RUN@ID, or a manifest's path.")]
ConfigFile = Annotated[Optional[str], typer.Argument(metavar="[CONFIG.toml]", help="A TOML file or a preset's name; none: the defaults.")]  # noqa: UP045
Device = Annotated[Optional[str], typer.Option("--device", help="cpu or cuda; none: as the run.")]  # noqa: UP045

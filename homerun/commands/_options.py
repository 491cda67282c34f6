"""The options that `train`, `plan` and `preflight` share: what to run, on what, for how much."""

from typing import Annotated

import typer

Script = Annotated[str | None, typer.Option(help="A recipe (recipes/toy.sh), or a script of upstream's (runcpu).")]
Upstream = Annotated[
    str | None, typer.Option(help="Upstream's repository: a URL, or a folder, which is never written to.")
]
Ref = Annotated[str | None, typer.Option(help="Branch, tag or commit of upstream; unset: its default branch.")]
Nproc = Annotated[
    str | None, typer.Option(help="GPUs for torchrun; 0: plain python on the CPU; unset: as the machine has.")
]
PhaseArgs = Annotated[
    list[str] | None, typer.Option(metavar="PHASE=ARGS", help="Arguments added to a phase; repeatable.")
]
Skip = Annotated[list[str] | None, typer.Option(metavar="PHASE", help="A phase to leave out; repeatable.")]
Fit = Annotated[str | None, typer.Option(metavar="auto", help="Cut device batch and FP8 down to this machine's GPUs.")]
Price = Annotated[float | None, typer.Option("--gpu-hour-price", help="US dollars for a GPU and hour.")]
Budget = Annotated[float | None, typer.Option("--budget-usd", help="End the run, landed, before it costs more.")]
Deadline = Annotated[str | None, typer.Option(help="End the run, landed, by this time (2026-11-21T18:00:00Z).")]

"""`homerun chat`: talk to a run's model in the terminal."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import typer

from homerun.commands._models import find_checkout, find_source
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    run: str = typer.Argument(metavar="RUN|DIR", help="A run's id, `latest`, or a folder."),
    prompt: str = typer.Option(None, "-p", "--prompt", help="Ask this, print the answer, and end."),
    model: str = typer.Option("", help="A checkpoint's id or its beginning (base, sft-d20); unset: the best there is."),
    temperature: float = typer.Option(0.6, min=0, max=2),
    top_k: int = typer.Option(50, min=0, help="0: all tokens."),
    max_tokens: int = typer.Option(512, min=1, help="Of one answer."),
    seed: int = typer.Option(None, help="Unset: a fresh one each time."),
    device: str = typer.Option("", help="cuda or cpu; unset: the GPU if there is one."),
    step: str = typer.Option(None, help="For a run in the bucket: `last`, `best` or a step; unset: the last."),
    upstream: Path = typer.Option(None, help="Upstream's checkout at the run's commit, where it is not in the run."),
) -> None:
    """Talk to a model. An empty line ends the talk; Ctrl-C ends an answer; /new begins anew.

    Examples:

        homerun chat latest

        homerun chat ./my-run -p "Why is the sky blue?"
    """
    from homerun.serve.checkpoints import find_tree
    from homerun.serve.loading import open_models
    from homerun.serve.talk import Talk

    settings = Settings.load()
    source = find_source(settings, run, step)
    find_tree(source.folder)  # or an error that says where there is one
    models = open_models(source.folder, device, find_checkout(settings, source, upstream))

    with asyncio.Runner() as runner:
        try:
            found = runner.run(models.get(model))
            if found is None:
                there = ", ".join(c.id for c in models.list()) or "none"
                raise RequestError(f"no model {model!r} in {run}", f"There are: {there}")
            checkpoint, engine = found
            talk = Talk(engine, temperature, top_k or None, max_tokens, seed)
            if prompt is not None:
                runner.run(_show(talk.say(prompt)))
                return
            print(f"{checkpoint.id}; an empty line ends the talk, /new begins anew", file=sys.stderr)
            while words := _ask():
                if words == "/new":
                    talk.messages.clear()
                    continue
                try:
                    runner.run(_show(talk.say(words)))
                except KeyboardInterrupt:  # ends this answer; at the prompt, the talk
                    print()
        finally:
            models.close()


def _ask() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


async def _show(pieces: AsyncGenerator[str, None]) -> None:
    async with contextlib.aclosing(pieces):  # an answer that is interrupted ends at once
        async for text in pieces:
            print(text, end="", flush=True)
    print(flush=True)

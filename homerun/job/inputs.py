"""The input cache (`HOMERUN_SYNC_DATA`): brought here before the first phase, filled as phases end.

Nothing of it can fail a run: what is not there is what upstream downloads itself.
"""

import os
import time
from pathlib import Path

from homerun.bucket import cache
from homerun.bucket.outbox import Outbox, describe
from homerun.bucket.store import FileChanged, Store, open_store
from homerun.errors import HomerunError
from homerun.job.run import Run
from homerun.journal import Emit
from homerun.settings import Settings
from homerun.upstream.adapt import Wishes
from homerun.upstream.inputs import TOKENIZER, Inputs, find_inputs
from homerun.upstream.plan import Plan

CACHE_MINUTES = 1.0  # for which the input cache is tried; upstream can do without


class InputCache:
    """One attempt's. run_dir: what paths in the outbox are relative to."""

    def __init__(self, store: Store, inputs: Inputs, run_dir: Path, outbox: Outbox, emit: Emit):
        self.store, self.inputs, self.run_dir, self.outbox, self.emit = store, inputs, run_dir, outbox, emit
        self.has_tokenizer = False  # the one that this script would train, of the same data
        self._known: dict[str, object] = {}  # unit → its files as they were brought or offered
        self._on = True

    def bring(self) -> None:
        """Put every unit of the cache that this run would fetch, and has not got, where upstream looks for it."""
        try:
            wanted = [(name, path) for name in cache.names(self.store) if (path := self.inputs.path(name))]
        except HomerunError as error:
            self._on = False
            self._warn(f"the input cache cannot be read ({error.what})", error.next)
            return
        for name, path in wanted:
            place, begun = self.inputs.place(path), time.monotonic()
            if place.exists():
                continue
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                files, size = cache.bring(self.store, name, place, self.inputs.partial(name))
            except (HomerunError, OSError) as error:
                self._warn(f"{name} is not to be had from the input cache ({error})", "it is downloaded as ever")
                continue
            seconds = round(time.monotonic() - begun, 3)
            self.emit("cache", way="brought", unit=name, files=files, bytes=size, seconds=seconds)
            self.has_tokenizer = self.has_tokenizer or path == TOKENIZER
        self._known = {name: files for name, _, files in self.inputs.present() if name in dict(wanted)}

    def offer(self) -> None:
        """Hand the units that are new or have grown to the uploader. To be called when nothing writes them."""
        for name, place, files in self.inputs.present() if self._on else ():
            if self._known.get(name) == files:
                continue
            base = os.path.relpath(place.parent, self.run_dir)
            try:
                described = [describe(self.run_dir, f"{base}/{file.path}", file.path) for file in files]
            except FileChanged:
                continue
            self._known[name] = files
            self.outbox.offer("cache", name, described)

    def _warn(self, text: str, hint: str) -> None:
        self.emit("warning", text=text, hint=hint)


def open_cache(
    settings: Settings, run: Run, plan: Plan, wishes: Wishes, hf_home: Path, outbox: Outbox, emit: Emit
) -> InputCache:
    """A run's input cache, through a store that gives up soon."""
    minutes = min(CACHE_MINUTES, settings.homerun_upload_minutes)
    store = open_store(settings.model_copy(update={"homerun_upload_minutes": minutes}))
    return InputCache(store, find_inputs(run.src, plan, wishes, run.base, hf_home), run.dir, outbox, emit)

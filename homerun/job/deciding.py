"""What each phase is run with, or why it is skipped: by the user's wishes, and by what earlier attempts proved."""

from dataclasses import replace

from homerun.job.resume import Resume
from homerun.job.saving import unknown_save_every
from homerun.upstream.adapt import Change, Wishes, adapt, skip_reason
from homerun.upstream.flags import Flags, module_flags
from homerun.upstream.plan import Plan, Step
from homerun.upstream.runner import Decision, Phase
from homerun.upstream.worktree import Source


class Deciding:
    """The runner's `decide`. Flags are read from the module's source at that commit, once each."""

    def __init__(self, source: Source, wishes: Wishes, past: Resume, run: str):
        """run: its id."""
        self.source, self.wishes, self.past, self.run = source, wishes, past, run
        self.has_tokenizer = False  # the one that this script would train is here, from the input cache
        self._flags: dict[str, Flags | None] = {}

    def __call__(self, phase: Phase) -> Decision:
        step = phase.step
        if step is None:
            argv, changes = adapt(None, list(phase.original), self.wishes, None)
            return Decision(argv, changes=tuple(changes))
        if reason := skip_reason(step, self.wishes) or self.past.reason_to_skip(phase):
            return Decision(None, reason)
        if self.has_tokenizer and (step.module or "").endswith(".tok_train"):
            return Decision(None, "the same code has made it of the same data: it is from the input cache")
        wishes = replace(self._wishes(step), resume_step=self.past.step_to_resume(phase))
        argv, changes = adapt(step, list(phase.original), wishes, self.flags(step))
        return Decision(argv, changes=tuple(changes), env=self._wandb(phase))

    def _wishes(self, step: Step) -> Wishes:
        return replace(self.wishes, save_every=self.wishes.save_every or unknown_save_every(step.words))

    def _wandb(self, phase: Phase) -> dict[str, str]:
        """One W&B run a phase, whatever number of attempts it takes; who has no key never reads these."""
        return {"WANDB_RUN_ID": f"{self.run}-{phase.name}", "WANDB_RESUME": "allow"}

    def flags(self, step: Step) -> Flags | None:
        if step.module and step.module not in self._flags:
            self._flags[step.module] = module_flags(self.source.root, step.module)
        return self._flags.get(step.module or "")

    def foreseen(self, plan: Plan) -> list[Change]:
        """The adaptations of every phase of the plan, as far as they can be told before it runs."""
        changes: list[Change] = []
        for step in plan.steps:
            changes += adapt(step, list(step.words), self._wishes(step), self.flags(step))[1]
        return changes

    def can_resume(self, plan: Plan) -> frozenset[str]:
        """Names of the phases that this commit can re-enter at a step."""
        flags = {step.name: self.flags(step) for step in plan.steps}
        return frozenset(name for name, found in flags.items() if found and found.spell("resume-from-step"))

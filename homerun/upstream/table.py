"""What is known of the modules and commands that scripts in upstream's form run: one small table, data only.

A module that is not here runs all the same: it is judged by its exit status alone, and the plan says so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """What a phase must leave and print, and what its failure means.

    outputs: globs relative to the base dir; each must match a file, not empty and not older than the phase's begin.
    harmless: a failure never stops the run. serves: it would serve for ever, and is skipped unless asked for.
    proof: a regex over the output with groups `k` and `n` that must be equal. makes_checkpoint: the folder of the base
    dir in which a new `d*/model_*.pt` with its `meta_*.json` must appear. keeps_file: a failure is harmless when the
    file that its `-o` names was there before and still is as it was (a `curl` without network touches nothing).
    """

    outputs: tuple[str, ...] = ()
    harmless: bool = False
    serves: bool = False
    proof: str | None = None
    makes_checkpoint: str | None = None
    keeps_file: bool = False


KNOWN: dict[str, Known] = {
    # Its exit status is 0 with no shard at all (upstream catches every failed download): only what it prints tells.
    "dataset": Known(proof=r"Done! Downloaded: (?P<k>\d+)/(?P<n>\d+)"),
    "tok_train": Known(outputs=("tokenizer/tokenizer.pkl", "tokenizer/token_bytes.pt")),
    "tok_eval": Known(harmless=True),  # a comparison with other tokenizers, some of them fetched
    "base_train": Known(makes_checkpoint="base_checkpoints"),
    "base_loss": Known(),
    "base_eval": Known(),
    "mid_train": Known(makes_checkpoint="mid_checkpoints"),
    "chat_sft": Known(makes_checkpoint="chatsft_checkpoints"),
    "chat_rl": Known(makes_checkpoint="chatrl_checkpoints"),
    "chat_eval": Known(),
    "chat_cli": Known(),
    "chat_web": Known(serves=True),
    "report": Known(harmless=True),  # `reset` fails without files-to-prompt, `generate` without a section
}

COMMANDS: dict[str, Known] = {
    "curl": Known(keeps_file=True),
    "wget": Known(),
    "unzip": Known(),
    "tar": Known(),
    "git": Known(),
    "uv": Known(),
    "pip": Known(),
    "cargo": Known(),
    "maturin": Known(),
    "env": Known(),
    "nohup": Known(),
    "nice": Known(),
    "timeout": Known(),
    "sh": Known(),
    "bash": Known(),
    "python": Known(),
    "python3": Known(),
    "torchrun": Known(),
}

# External commands that are traced (a failure of one is seen) but are no phases.
HOUSEKEEPING = frozenset(
    """awk basename cat chmod chown clear column comm cp cut date df diff dirname du expr false file find free grep
    egrep fgrep gzip gunzip head hostname id install jq ln ls lscpu md5sum mkdir mktemp mv nproc numfmt nvidia-smi paste
    pgrep printenv ps readlink realpath rm rmdir sed seq sha256sum shuf sleep sort split stat stty sync tac tail tee
    test touch tput tr true tty uname uniq uptime wc which whoami yes""".split()  # noqa: SIM905
)


def lookup(module: str | None, launcher: str | None = None) -> Known | None:
    """What is known of a module (by its last part), or of a command that runs none."""
    if module:
        return KNOWN.get(module.rpartition(".")[2])
    return COMMANDS.get((launcher or "").rpartition("/")[2])

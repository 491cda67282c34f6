"""How many held-out prompts of each task a chat model answers exactly:

    python -m homerun.trainer.chat_eval -i sft

With -i base it tells what the model could do before finetuning.
"""

import argparse

from homerun.trainer.chats import TASKS
from homerun.trainer.checkpoint import load_model
from homerun.trainer.evaluate import task_accuracy
from homerun.trainer.phase import base_dir, run
from homerun.trainer.runtime import runtime


def main(args: argparse.Namespace) -> None:
    with runtime(seed=0, device_type=args.device_type) as rt:
        model, tokenizer, _, _ = load_model(base_dir(), args.source, rt.device, args.model_tag, args.step)
        accuracies = []
        for task in args.task_name.split("|") if args.task_name else TASKS:
            right, asked = task_accuracy(rt, model, tokenizer, task, args.max_problems)
            accuracies.append(right / asked)
            rt.print(f"Final: {right}/{asked} ({100 * right / asked:.2f}%)")
            rt.print(f"{task} accuracy: {100 * right / asked:.2f}%")
        rt.print(f"ChatCORE metric: {sum(accuracies) / len(accuracies):.4f}")  # none of these tasks can be guessed


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Evaluate a chat model on the toy tasks")
    add = p.add_argument
    add("-i", "--source", required=True, choices=["base", "sft"], help="which checkpoint")
    add("-a", "--task-name", default=None, help=f"tasks, joined by | (default: all: {'|'.join(TASKS)})")
    add("-x", "--max-problems", type=int, default=100, help="held-out prompts a task")
    add("-g", "--model-tag", default=None, help="checkpoint folder (default: the deepest)")
    add("-s", "--step", type=int, default=None, help="its step (default: the last)")
    add("--device-type", default="", help="cuda or cpu (default: what there is)")
    return p


if __name__ == "__main__":
    run(main, parser())

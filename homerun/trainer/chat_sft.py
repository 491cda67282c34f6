"""Teach the base model to chat: supervised finetuning on the toy chats, the loss on the assistant's tokens only:

    python -m homerun.trainer.chat_sft

Takes the deepest base checkpoint and writes chatsft_checkpoints/d<depth>/. Every row of a batch is one conversation.
"""

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from homerun.trainer import checkpoint
from homerun.trainer.chats import Conversation, conversations
from homerun.trainer.evaluate import bits_per_byte
from homerun.trainer.model import IGNORE
from homerun.trainer.optim import lr_multiplier, make_optimizers, set_schedule
from homerun.trainer.phase import base_dir, run
from homerun.trainer.runtime import Clock, Runtime, runtime, wandb_log
from homerun.trainer.tokenizer import Tokenizer


def collate(rendered: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """inputs and targets (rows, longest - 1) from (ids, mask) of each conversation; what is not learnt is ignored."""
    width = max(len(ids) for ids, _ in rendered)
    rows = torch.full((len(rendered), width), pad)
    learnt = torch.zeros_like(rows)
    for i, (ids, mask) in enumerate(rendered):
        rows[i, : len(ids)] = torch.tensor(ids)
        learnt[i, : len(ids)] = torch.tensor(mask)
    return rows[:, :-1], torch.where(learnt == 1, rows, IGNORE)[:, 1:]


def chat_batches(
    rt: Runtime, tokenizer: Tokenizer, source: Iterator[Conversation], rows: int, max_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of each rows * world conversations of the source."""
    while True:
        world = list(itertools.islice(source, rows * rt.world))
        rendered = [tokenizer.render_conversation(c, max_tokens) for c in world[rt.rank :: rt.world]]
        inputs, targets = collate(rendered, tokenizer.bos)
        yield inputs.to(rt.device), targets.to(rt.device)


def train(args: argparse.Namespace, rt: Runtime) -> None:
    base = base_dir()
    model, tokenizer, base_meta, base_folder = checkpoint.load_model(
        base, "base", rt.device, args.model_tag, args.model_step
    )
    model.train()
    token_bytes = torch.tensor(tokenizer.token_lengths(), device=rt.device)
    optimizers = make_optimizers(model, args.embedding_lr, args.unembedding_lr, args.matrix_lr, rt.rank, rt.world)
    longest = model.config.sequence_len + 1
    batches = chat_batches(rt, tokenizer, conversations("train", args.seed), args.device_batch_size, longest)
    log = wandb_log(rt, args.run, vars(args), project="nanochat-sft")
    flops_per_token, steps = model.estimate_flops(), args.num_iterations
    bpb, smooth_loss, training_time, clock = float("inf"), 0.0, 0.0, Clock()

    for step in range(steps + 1):
        if step == steps or (args.eval_every > 0 and step % args.eval_every == 0):
            held_out = chat_batches(rt, tokenizer, conversations("test", args.seed), args.device_batch_size, longest)
            bpb = bits_per_byte(rt, model, itertools.islice(held_out, args.eval_batches), token_bytes)
            rt.print(f"Step {step:05d} | Validation bpb: {bpb:.4f}")
            log({"step": step, "val/bpb": bpb})
        if step == steps:
            break

        rt.synchronize()
        clock.lap()
        inputs, targets = next(batches)
        [learnt] = rt.sum((targets != IGNORE).sum().item())
        with rt.autocast():  # the mean over all ranks' tokens, of which they have unequal shares
            loss = model(inputs, targets, loss_reduction="sum") / learnt
        (loss * rt.world).backward()
        rt.average_gradients(model)
        multiplier = lr_multiplier(step, steps, 0, args.warmdown_ratio)
        set_schedule(optimizers, multiplier * args.init_lr_frac)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        [total_loss] = rt.sum(loss.item())
        dt = clock.lap()

        smooth_loss = 0.9 * smooth_loss + 0.1 * total_loss
        shown = smooth_loss / (1 - 0.9 ** (step + 1))
        training_time += dt
        rate = inputs.numel() * rt.world / dt
        mfu = 100 * flops_per_token * rate / rt.peak_flops()
        rt.print(
            f"step {step:05d} ({100 * step / steps:.2f}%) | loss: {shown:.6f} | lrm: {multiplier:.2f} | "
            f"dt: {1000 * dt:.2f}ms | tok/sec: {int(rate):,} | mfu: {mfu:.2f} | epoch: 1 | "
            f"total time: {training_time / 60:.2f}m"
        )
        log({"step": step, "train/loss": shown, "train/lrm": multiplier, "train/tok_per_sec": rate, "train/mfu": mfu})

    meta = {"step": steps, "val_bpb": bpb, "model_config": base_meta["model_config"], "user_config": vars(args)}
    checkpoint.save(rt, base / "chatsft_checkpoints" / base_folder.name, steps, model, optimizers, meta)
    rt.print(f"Peak memory usage: {rt.peak_memory_mib():.2f}MiB")
    rt.print(f"Total training time: {training_time / 60:.2f}m")
    rt.print(f"Minimum validation bpb: {bpb:.4f}")


def main(args: argparse.Namespace) -> None:
    with runtime(args.seed, args.device_type) as rt:
        train(args, rt)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Supervised finetuning")
    add = p.add_argument
    add("--run", default="dummy", help="W&B run name (dummy: no W&B)")
    add("--device-type", default="", help="cuda or cpu (default: what there is)")
    add("--seed", type=int, default=42)
    add("--model-tag", default=None, help="base checkpoint folder (default: the deepest)")
    add("--model-step", type=int, default=None, help="its step (default: the last)")
    add("--num-iterations", type=int, default=300, help="optimizer steps")
    add("--device-batch-size", type=int, default=64, help="conversations a device and step")
    add("--embedding-lr", type=float, default=0.2)
    add("--unembedding-lr", type=float, default=0.004)
    add("--matrix-lr", type=float, default=0.02)
    add("--init-lr-frac", type=float, default=1.0, help="learning rates start at this share of the ones above")
    add("--warmdown-ratio", type=float, default=0.5, help="share of the steps in which the learning rate falls")
    add("--eval-every", type=int, default=100, help="steps (-1: only at the end)")
    add("--eval-batches", type=int, default=4)
    return p


if __name__ == "__main__":
    run(main, parser())

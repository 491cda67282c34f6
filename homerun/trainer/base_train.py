"""Pretrain the base model:

    python -m homerun.trainer.base_train --depth=4
    torchrun --standalone --nproc_per_node=8 -m homerun.trainer.base_train -- --depth=12

Prints nanochat's log lines and writes base_checkpoints/d<depth>/. A run resumed with --resume-from-step and the same
other arguments goes on exactly as if it had not stopped (to the bit, on a CPU).
"""

import argparse
import itertools
from dataclasses import asdict

import torch

from homerun.errors import RequestError
from homerun.trainer import checkpoint
from homerun.trainer.data import START, batches
from homerun.trainer.dataset import shards
from homerun.trainer.evaluate import bits_per_byte
from homerun.trainer.generate import generate
from homerun.trainer.model import GPT, GPTConfig
from homerun.trainer.optim import lr_multiplier, make_optimizers, set_schedule
from homerun.trainer.phase import SAVE_NOW, base_dir, run
from homerun.trainer.runtime import Clock, Runtime, runtime, wandb_log
from homerun.trainer.tokenizer import Tokenizer

SAMPLES = ("The", "A function", "Return the", "class", "If the file")
MUON_WARMUP = 300  # steps over which Muon's momentum rises from 0.85 to 0.95


def train(args: argparse.Namespace, rt: Runtime) -> None:
    base = base_dir()
    tokenizer = Tokenizer.load(base / "tokenizer")
    token_bytes = torch.tensor(tokenizer.token_lengths(), device=rt.device)
    width = args.depth * args.aspect_ratio
    heads = max(1, round(width / args.head_dim))
    config = GPTConfig(args.max_seq_len, tokenizer.vocab_size, args.depth, heads, args.kv_heads or heads, width)
    with torch.device(rt.device):
        model = GPT(config)
    model.init_weights()
    flops_per_token = model.estimate_flops()
    rt.print(f"Number of parameters: {model.num_params():,}")
    rt.print(f"Estimated FLOPs per token: {flops_per_token:e}")

    tokens_per_pass = rt.world * args.device_batch_size * args.max_seq_len
    total_batch = args.total_batch_size if args.total_batch_size > 0 else tokens_per_pass
    if total_batch % tokens_per_pass:
        raise RequestError(
            f"--total-batch-size={total_batch} is not a multiple of {tokens_per_pass} "
            f"({rt.world} ranks x {args.device_batch_size} rows x {args.max_seq_len} tokens)",
            f"use --total-batch-size={max(1, round(total_batch / tokens_per_pass)) * tokens_per_pass}",
        )
    passes = total_batch // tokens_per_pass
    total_steps = args.num_iterations
    if total_steps <= 0:
        total_steps = max(1, round(args.target_param_data_ratio * model.num_params() / total_batch))
    rt.print(f"Total batch size {total_batch:,} => gradient accumulation steps: {passes}")
    rt.print(f"Number of iterations: {total_steps:,}")
    rt.print(f"Total number of training tokens: {total_batch * total_steps:,}")

    optimizers = make_optimizers(model, args.embedding_lr, args.unembedding_lr, args.matrix_lr, rt.rank, rt.world)
    folder = base / "base_checkpoints" / (args.model_tag or f"d{args.depth}")
    start, position = max(0, args.resume_from_step), START
    best_bpb, smooth_loss, training_time, bpb = float("inf"), 0.0, 0.0, float("inf")
    if start:
        checkpoint.find(base, "base", folder.name, start)
        meta = checkpoint.read_meta(folder, start)
        if meta["model_config"] != asdict(config):
            raise RequestError(
                f"step {start} in {folder} is of another model: {meta['model_config']}", "pass its own arguments"
            )
        checkpoint.load_weights(model, folder, start)
        checkpoint.load_optimizers(rt, optimizers, folder, start)
        position, loop = meta["dataloader_state_dict"], meta["loop_state"]
        best_bpb, smooth_loss, training_time = (
            loop["min_val_bpb"],
            loop["smooth_train_loss"],
            loop["total_training_time"],
        )
        rt.print(f"Resuming from step {start}")
    train_files, val_files = shards(base, "train"), shards(base, "val")
    data = batches(rt, train_files, tokenizer, args.device_batch_size, args.max_seq_len, position)
    log = wandb_log(rt, args.run, vars(args))

    def validate() -> float:
        held_out = batches(rt, val_files, tokenizer, args.device_batch_size, args.max_seq_len, epochs=1)
        passes = max(1, args.eval_tokens // tokens_per_pass)
        return bits_per_byte(rt, model, ((x, y) for x, y, _ in itertools.islice(held_out, passes)), token_bytes)

    def sample() -> None:
        for text in SAMPLES if rt.master else ():
            ids = [tokenizer.bos, *tokenizer.encode(text)]
            rt.print(tokenizer.decode(ids + generate(model, [ids], 24, stop=[tokenizer.bos])[0]))

    wish, told = base / SAVE_NOW, 0.0
    if rt.master:
        wish.unlink(missing_ok=True)  # an earlier run's
    rt.print(f"Saves when told: touch {wish}")
    clock = Clock()
    for step in range(start, total_steps + 1):
        done = step == total_steps
        if done or (args.eval_every > 0 and step % args.eval_every == 0):
            bpb = validate()
            best_bpb = min(best_bpb, bpb)
            rt.print(f"Step {step:05d} | Validation bpb: {bpb:.6f}")
            log({"step": step, "total_training_time": training_time, "val/bpb": bpb})
        if done or (step > start and args.sample_every > 0 and step % args.sample_every == 0):
            sample()
        if done or told or (step > start and args.save_every > 0 and step % args.save_every == 0):
            meta = {
                "step": step,
                "val_bpb": bpb,
                "model_config": asdict(config),
                "user_config": vars(args),
                "device_batch_size": args.device_batch_size,
                "max_seq_len": args.max_seq_len,
                "total_batch_size": total_batch,
                "dataloader_state_dict": position,
                "loop_state": {
                    "min_val_bpb": best_bpb,
                    "smooth_train_loss": smooth_loss,
                    "total_training_time": training_time,
                },
            }
            checkpoint.save(rt, folder, step, model, optimizers, meta)
            if rt.master:
                wish.unlink(missing_ok=True)
        if done:
            break

        rt.synchronize()
        clock.lap()
        loss = 0.0
        for _ in range(passes):
            inputs, targets, position = next(data)
            with rt.autocast():
                part = model(inputs, targets) / passes
            part.backward()
            loss += part.item()
        rt.average_gradients(model)
        multiplier = lr_multiplier(step, total_steps, args.warmup_steps, args.warmdown_ratio, args.final_lr_frac)
        set_schedule(optimizers, multiplier)
        for group in optimizers[1].param_groups:
            group["momentum"] = 0.85 + 0.10 * min(1.0, step / MUON_WARMUP)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss, told = rt.sum(loss / rt.world, rt.master and wish.exists())  # one answer for all ranks
        dt = clock.lap()

        smooth_loss = 0.9 * smooth_loss + 0.1 * loss
        shown = smooth_loss / (1 - 0.9 ** (step + 1))
        training_time += dt
        rate = total_batch / dt
        mfu = 100 * flops_per_token * rate / rt.peak_flops()
        place = f"epoch: {position['epoch']} pq: {position['pq_idx']} rg: {position['rg_idx']}"
        eta = f" | eta: {training_time / (step + 1) * (total_steps - step - 1) / 60:.1f}m" if step > 10 else ""
        rt.print(
            f"step {step:05d}/{total_steps:05d} ({100 * step / total_steps:.2f}%) | loss: {shown:.6f} | "
            f"lrm: {multiplier:.2f} | dt: {1000 * dt:.2f}ms | tok/sec: {int(rate):,} | bf16_mfu: {mfu:.2f} | "
            f"{place} | total time: {training_time / 60:.2f}m{eta}"
        )
        log({"step": step, "train/loss": shown, "train/lrm": multiplier, "train/tok_per_sec": rate, "train/mfu": mfu})

    rt.print(f"Peak memory usage: {rt.peak_memory_mib():.2f}MiB")
    rt.print(f"Total training time: {training_time / 60:.2f}m")
    rt.print(f"Minimum validation bpb: {best_bpb:.6f}")


def main(args: argparse.Namespace) -> None:
    with runtime(args.seed, args.device_type) as rt:
        train(args, rt)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description="Pretrain the base model")
    add = p.add_argument
    add("--run", default="dummy", help="W&B run name (dummy: no W&B)")
    add("--device-type", default="", help="cuda or cpu (default: what there is)")
    add("--seed", type=int, default=42)
    add("--depth", type=int, default=4, help="layers")
    add("--aspect-ratio", type=int, default=64, help="width = depth * aspect ratio")
    add("--head-dim", type=int, default=128)
    add("--kv-heads", type=int, default=0, help="key/value heads (0: as many as query heads)")
    add("--max-seq-len", type=int, default=1024)
    add("--num-iterations", type=int, default=-1, help="optimizer steps (-1: from the ratio below)")
    add("--target-param-data-ratio", type=float, default=20, help="training tokens per parameter")
    add("--device-batch-size", type=int, default=16, help="rows a device and pass")
    add("--total-batch-size", type=int, default=-1, help="tokens a step, all devices (-1: one pass)")
    add("--embedding-lr", type=float, default=0.2)
    add("--unembedding-lr", type=float, default=0.004)
    add("--matrix-lr", type=float, default=0.02)
    add("--warmup-steps", type=int, default=0)
    add("--warmdown-ratio", type=float, default=0.4, help="share of the steps in which the learning rate falls")
    add("--final-lr-frac", type=float, default=0.0)
    add("--resume-from-step", type=int, default=-1)
    add("--eval-every", type=int, default=250, help="steps (-1: only at the end)")
    add("--eval-tokens", type=int, default=20 * 2**19, help="held-out tokens, at most the whole shard")
    add("--sample-every", type=int, default=-1, help="steps (-1: only at the end)")
    add("--save-every", type=int, default=-1, help="steps (-1: only at the end)")
    add("--model-tag", default=None, help="checkpoint folder (default: d<depth>)")
    return p


if __name__ == "__main__":
    run(main, parser())

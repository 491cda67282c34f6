#!/bin/bash

# A whole nanochat-shaped run in about two minutes on two CPU cores: the smallest chat model that truly learns something.

# 1) Under homerun (preflight, live page, bucket, report):
# make train
# 2) Or alone, with homerun's virtual environment active:
# bash recipes/toy.sh

# Default intermediate artifacts directory is in ~/.cache/nanochat
# (two threads are the fastest for matrices this small, and the same number everywhere gives the same result everywhere)
export OMP_NUM_THREADS=2
# a thread that waits sleeps: as fast on an idle machine, and ten times faster where something else wants a core too
export OMP_WAIT_POLICY=PASSIVE
export NANOCHAT_BASE_DIR="$HOME/.cache/nanochat"
mkdir -p "$NANOCHAT_BASE_DIR"
# glibc: keep the 16 MB logits for the next step instead of asking the kernel for fresh pages (up to 1.8 times faster)
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1000000000

# -----------------------------------------------------------------------------
# wandb setup
# `WANDB_RUN=toy bash recipes/toy.sh` logs to W&B, after `wandb login`
if [ -z "$WANDB_RUN" ]; then
    # by default use "dummy" : it's handled as a special case, skips logging to wandb
    WANDB_RUN=dummy
fi

# -----------------------------------------------------------------------------
# Tokenizer

# The corpus is Python's own documentation: 8 training shards of about 260,000 characters each.
# Write the first 4, then the rest in the background while the tokenizer trains.
python -m homerun.trainer.dataset -n 4
python -m homerun.trainer.dataset -n 8 &
DATASET_PID=$!
# train the tokenizer, of 2**11 tokens, on fewer characters than the first 4 shards hold
python -m homerun.trainer.tok_train --vocab-size=2048 --max-chars=900000
# evaluate the tokenizer (compression)
python -m homerun.trainer.tok_eval

# -----------------------------------------------------------------------------
# Base model (pretraining)

echo "Waiting for the rest of the dataset..."
wait $DATASET_PID

# pretrain the d4 model: 1.3M parameters, about one pass over the corpus
torchrun --standalone --nproc_per_node=1 -m homerun.trainer.base_train -- --depth=4 --aspect-ratio=32 --head-dim=32 --max-seq-len=128 --device-batch-size=16 --total-batch-size=2048 --num-iterations=300 --eval-every=100 --save-every=100 --run="$WANDB_RUN"
# evaluate it beside a unigram model, and draw some samples
torchrun --standalone --nproc_per_node=1 -m homerun.trainer.base_eval -- --split-tokens=65536
# what can it do as a chat model before it has been taught?
torchrun --standalone --nproc_per_node=1 -m homerun.trainer.chat_eval -- -i base

# -----------------------------------------------------------------------------
# SFT (teach the model conversation special tokens, who it is, and small tasks on words)

torchrun --standalone --nproc_per_node=1 -m homerun.trainer.chat_sft -- --num-iterations=240 --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node=1 -m homerun.trainer.chat_eval -- -i sft

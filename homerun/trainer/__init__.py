"""Our own nanochat-shaped model, tokenizer, pretraining, SFT and evaluation."""

"""Our model is nanochat's: same logits as an independent implementation, with and without a cache."""

import pytest
import torch

from homerun.trainer.model import GPT, GPTConfig

CONFIG = GPTConfig(sequence_len=32, vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    model.init_weights()
    for p in model.parameters():  # the starting weights hide mistakes: half of them are zero
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


class GrowingCache:
    """The plainest cache there is: concatenate."""

    def __init__(self):
        self.kv = {}

    def update(self, layer, k, v):
        if layer in self.kv:
            k, v = (torch.cat((old, new), dim=2) for old, new in zip(self.kv[layer], (k, v), strict=True))
        self.kv[layer] = (k, v)
        return k, v, None


def as_transformers_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    swaps = {
        "transformer.wte.": "model.embed_tokens.",
        "transformer.h.": "model.layers.",
        ".attn.c_proj": ".self_attn.o_proj",
        ".attn.c_": ".self_attn.",
        ".mlp.c_fc": ".mlp.fc1",
        ".mlp.c_proj": ".mlp.fc2",
    }
    names = {}
    for name in state:
        new = name
        for ours, theirs in swaps.items():
            new = new.replace(ours, theirs)
        for letter in "qkv":
            new = new.replace(f"self_attn.{letter}.", f"self_attn.{letter}_proj.")
        names[name] = new
    return {names[name]: value for name, value in state.items()}


def test_logits_equal_those_of_transformers(model):
    transformers = pytest.importorskip("transformers")
    config = transformers.NanoChatConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.n_embd,
        intermediate_size=4 * CONFIG.n_embd,
        num_hidden_layers=CONFIG.n_layer,
        num_attention_heads=CONFIG.n_head,
        num_key_value_heads=CONFIG.n_kv_head,
        max_position_embeddings=CONFIG.sequence_len,
        rms_norm_eps=torch.finfo(torch.float32).eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        final_logit_softcapping=15.0,
        tie_word_embeddings=False,
    )
    theirs = transformers.NanoChatForCausalLM(config).eval()
    theirs.load_state_dict(as_transformers_names(model.state_dict()), strict=True)
    idx = torch.randint(CONFIG.vocab_size, (3, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(idx), theirs(idx).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[32], [1] * 32, [10, 1, 20, 1]])
def test_a_cache_does_not_change_the_logits(model, chunks):
    idx = torch.randint(CONFIG.vocab_size, (2, 32))
    cache, seen, parts = GrowingCache(), 0, []
    with torch.no_grad():
        for n in chunks:
            positions = torch.arange(seen, seen + n).expand(2, n)
            parts.append(model(idx[:, seen : seen + n], cache=cache, positions=positions))
            seen += n
        torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), atol=1e-5, rtol=0)


def test_no_token_sees_the_future(model):
    idx = torch.randint(CONFIG.vocab_size, (1, 32))
    other = idx.clone()
    other[:, 20:] = (other[:, 20:] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        a, b = model(idx), model(other)
    assert torch.equal(a[:, :20], b[:, :20])
    assert not torch.allclose(a[:, 20:], b[:, 20:])


def test_ignored_targets_carry_no_loss_and_logits_are_capped(model):
    idx = torch.randint(CONFIG.vocab_size, (2, 32))
    targets = idx.roll(-1, dims=1)
    targets[:, :30] = -1
    losses = model(idx, targets, loss_reduction="none").view(2, 32)
    assert (losses[:, :30] == 0).all() and (losses[:, 30:] > 0).all()
    torch.testing.assert_close(model(idx, targets), losses[:, 30:].mean())
    assert model(idx).abs().max() <= 15


def test_the_starting_model_is_the_uniform_one():
    model = GPT(CONFIG)
    model.init_weights()
    assert (model(torch.randint(CONFIG.vocab_size, (1, 8))) == 0).all()
    assert model.num_params() == sum(v.numel() for v in model.state_dict().values())

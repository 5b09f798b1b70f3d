import pytest
import torch
from torch import nn
from tracing import IDS, IMAGE, moved, pinned, shapes

from regraft.symmetry.trace.trace import trace


def test_vit_frees_stream_heads_dimensions_and_hidden_units():
    timm = pytest.importorskip("timm", reason="needs timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=3, num_classes=5
    )
    spec = trace(model, IMAGE)
    # The stream; in each block heads, Q/K and V/O dimensions within each, the MLP.
    assert shapes(spec) == {(24,): 1, (3,): 2, (3, 8): 4, (96,): 2}
    assert pinned(spec) == {
        ("pos_embed", 1),
        ("patch_embed.proj.weight", 1),
        ("head.weight", 0),
        ("head.bias", 0),
    }
    assert moved(spec, "blocks.0.attn.qkv.weight", 0) == set(range(72))
    assert moved(spec, "blocks.0.attn.proj.weight", 1) == set(range(24))


def test_gpt2_is_free_in_all_but_the_vocabulary():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=24, n_head=3, vocab_size=20, n_positions=8, bos_token_id=1, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config)
    spec = trace(model, {"input_ids": IDS, "use_cache": False})
    assert shapes(spec) == {(24,): 1, (3,): 2, (3, 8): 4, (96,): 2}
    assert pinned(spec) == {("transformer.wte.weight", 0), ("transformer.wpe.weight", 0)}
    assert spec.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert moved(spec, "transformer.h.0.attn.c_attn.weight", 1) == set(range(72))


def test_grouped_queries_move_with_their_keys_and_rotation_pins_dimensions():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=20, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=20,
    )  # fmt: skip
    spec = trace(transformers.LlamaForCausalLM(config), {"input_ids": IDS, "use_cache": False})
    # The stream, 2 heads of keys, 4 queries' heads and 4 dimensions of V in each, the gated MLP.
    assert shapes(spec) == {(32,): 1, (2,): 1, (2, 4): 2, (20,): 1}
    keys = next(g for g in spec if g.shape == (2,))
    assert {s.tensor.rsplit(".", 2)[1] for s in keys.sites} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    inner = [g for g in spec if g.parent == keys.name]
    assert all(s.tensor.split(".")[-2] != "k_proj" for g in inner for s in g.sites)


def test_a_bidirectional_encoder_is_free():
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.BertConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        vocab_size=20,
    )
    model = transformers.BertForSequenceClassification(config)
    spec = trace(model, {"input_ids": IDS})
    # The stream; per layer heads, two kinds of dimensions, the MLP; and the pooler's output.
    assert shapes(spec) == {(24,): 2, (3,): 2, (3, 8): 4, (20,): 2}


def test_torch_attention_and_its_packed_weight():
    layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 2))
    spec = trace(model, torch.randn(2, 4, 5))
    assert shapes(spec) == {(12,): 1, (3,): 1, (3, 4): 2, (16,): 1}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
def test_tables_of_a_rotation_hold_dimensions_and_no_heads(stored, pairs):
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
            self.out = nn.Linear(16, 2)
            angles = torch.arange(6)[:, None] / 10 ** torch.arange(2)
            self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=stored)
            self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=stored)

        def turned(self, x):
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
            if pairs:
                turn = torch.complex(cos[:, :2], sin[:, :2])
                two = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
                return torch.view_as_real(two * turn).flatten(-2)
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        def forward(self, x):
            heads = (m(x).unflatten(-1, (-1, 4)) for m in (self.q, self.k, self.v))
            q, k, v = (t.transpose(1, 2) for t in heads)
            k, v = (t.repeat_interleave(2, 1) for t in (self.turned(k), v))
            y = nn.functional.scaled_dot_product_attention(self.turned(q), k, v)
            return self.out(y.transpose(1, 2).flatten(2))

    # 2 heads of keys, and pairs with their columns of a stored table; 2 queries' heads and 4 dimensions
    # of V in each head.
    kinds = {(2,): 1 + (stored and pairs), (2, 2): 1, (2, 4): 1}
    assert shapes(trace(Rotated(), torch.randn(2, 5, 8))) == kinds

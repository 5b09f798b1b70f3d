"""Networks of Hugging Face, small and random: what is free in them, and which outputs count."""

import pytest
import torch

from regraft.symmetry import trace

transformers = pytest.importorskip("transformers", reason="needs transformers")

IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
PICTURES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3,
}  # fmt: skip
WORDS = {**SIZES, "vocab_size": 64, "max_position_embeddings": 16}


def clip():
    config = transformers.CLIPVisionConfig(**SIZES, image_size=16, patch_size=8, projection_dim=12)
    return transformers.CLIPVisionModelWithProjection(config), PICTURES


def t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_layers=1, num_heads=3
    )
    return transformers.T5EncoderModel(config), {"input_ids": IDS}


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=40, num_mel_bins=8,
        max_source_positions=10, max_target_positions=10, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config).encoder, {"input_features": torch.ones(2, 8, 20)}


def deberta():
    config = transformers.DebertaV2Config(
        **WORDS, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=8,
        pooler_hidden_size=24,
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(config), {"input_ids": IDS}


def bert():
    return transformers.BertModel(transformers.BertConfig(**WORDS)), {"input_ids": IDS}


def mixtral():
    config = transformers.MixtralConfig(**WORDS, num_key_value_heads=3, num_local_experts=4)
    return transformers.MixtralForCausalLM(config), {"input_ids": IDS, "use_cache": False}


STREAM = {(24,): 1}
LAYER = {(3,): 1, (3, 8): 2, (40,): 1}


def shapes(spec):
    """Count the groups by their own size, after that of their parent."""
    counts = {}
    for group in spec:
        size = (
            (group.size,) if group.parent is None else (spec.groups[group.parent].size, group.size)
        )
        counts[size] = counts.get(size, 0) + 1
    return counts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("network", "outputs", "free"),
    [
        # What the projection gives does not show the stream; the last hidden state is the stream.
        (clip, "image_embeds", {**STREAM, **LAYER}),
        (clip, "last_hidden_state", {(12,): 1, **LAYER}),  # the projection counts no more
        (t5, "last_hidden_state", LAYER),
        (whisper, "last_hidden_state", {(24,): 1, **LAYER}),  # the first convolution's channels
        (bert, "pooler_output", {**STREAM, **LAYER}),
        (bert, "last_hidden_state", {(24,): 1, **LAYER}),  # the pooler counts no more
        (deberta, None, {(24,): 3, **LAYER}),  # the stream, that of relative positions, the pooler
        # Dimensions that are turned by their position stay, and so does the order of the experts.
        (mixtral, None, {**STREAM, (3,): 1, (3, 8): 1, (40,): 1}),
    ],
    ids=lambda value: value.__name__ if callable(value) else str(value)[:20],
)  # fmt: skip
def test_groups_are_those_that_the_outputs_leave_free(network, outputs, free):
    torch.manual_seed(0)
    model, inputs = network()
    said = {} if outputs is None else {"outputs": outputs}
    spec = trace(model.eval(), inputs, **said)
    assert spec.checked is not None
    assert spec.checked < 1e-10
    assert shapes(spec) == free


def test_outputs_without_a_name_of_logits_all_count_unless_it_is_said():
    model, inputs = clip()
    assert (24,) not in shapes(trace(model.eval(), inputs))

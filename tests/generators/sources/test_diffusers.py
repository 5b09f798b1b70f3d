"""Real pipelines of diffusers, small and untrained, from a local folder."""

import pytest
import torch

from regraft.config import SourceConfig
from regraft.errors import RegraftError
from regraft.generators.sources import PipelineSource, load_source
from regraft.streams import Counter

diffusers = pytest.importorskip("diffusers")


def consistency(folder):
    """Save a class-conditional consistency model of 8x8 pixels and four classes."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    with torch.no_grad():
        unet.class_embedding.weight.mul_(20)
    scheduler = diffusers.CMStochasticIterativeScheduler()
    diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)


def transformer(folder):
    """Save a DiT of four classes on latents of 4x4, with a decoder to 8x8 pixels."""
    torch.manual_seed(0)
    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=4,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = diffusers.DDIMScheduler()
    diffusers.DiTPipeline(dit, vae, scheduler).save_pretrained(folder)


def in_parts(source, labels):
    """Return the images of `labels` made at once, and in two batches."""
    whole = source.sample(len(labels), labels=labels, generator=Counter(0))
    counter = Counter(0)
    parts = [source.sample(len(y), labels=y, generator=counter) for y in (labels[:2], labels[2:])]
    return whole, torch.cat(parts)


@pytest.mark.parametrize(
    ("save", "options", "latent"),
    [
        (consistency, {}, (3, 8, 8)),
        (consistency, {"num_inference_steps": 3}, (3, 8, 8)),
        (transformer, {"guidance_scale": 1.0, "num_inference_steps": 2}, (1,)),
    ],
)
def test_a_folder_of_a_class_conditional_pipeline_is_a_source(tmp_path, save, options, latent):
    save(tmp_path)
    source = load_source(SourceConfig(name=str(tmp_path), options=options))
    assert isinstance(source, PipelineSource)
    assert (source.classes, source.image_shape) == (4, (3, 8, 8))
    assert (source.latent_shape, source.deterministic) == (latent, True)
    whole, parts = in_parts(source, torch.tensor([0, 1, 2, 3, 0]))
    assert torch.allclose(whole, parts, atol=1e-4)
    assert 0 <= whole.min() < whole.max() <= 1
    assert not torch.allclose(whole[0], whole[4], atol=1e-3)
    drawn = source.sample(8, probabilities=torch.full((8, 4), 0.25), generator=Counter(0))
    assert drawn.shape == (8, 3, 8, 8)
    again = load_source(SourceConfig(name=str(tmp_path), options=options))
    assert again.digest() == source.digest()


def test_the_class_is_what_the_network_is_told(tmp_path):
    consistency(tmp_path)
    source = load_source(SourceConfig(name=str(tmp_path)))
    latents = source.latents(1, Counter(0)).expand(2, -1, -1, -1)
    one, other = source.generate(latents, torch.tensor([0, 1]))
    assert not torch.allclose(one, other, atol=1e-3)


def test_guidance_that_the_network_was_not_trained_for_is_named(tmp_path):
    # DiTPipeline's class for "no class" is ImageNet's 1000, whatever the network has.
    transformer(tmp_path)
    with pytest.raises(RegraftError, match=r"DiTPipeline cannot be called .*--source-options"):
        load_source(SourceConfig(name=str(tmp_path)))

"""Which permutation symmetries are found in which networks: one row each, proved and timed.

python benchmarks/architectures.py [--results docs/results] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import collections
import itertools
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regraft.files import write_json, write_text
from regraft.symmetry.trace import trace
from regraft.train import command_line, environment

Build = Callable[[], tuple[nn.Module, Any]]


class Unet(nn.Module):
    """Two levels with skips, GroupNorm and transposed convolutions."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(_block(a, b) for a, b in itertools.pairwise(sizes))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in itertools.pairwise(sizes)
        )
        self.join = nn.ModuleList(_block(2 * a, a) for a in sizes[:-1])
        self.out = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [b, 4, h, w] for [b, 3, h, w]."""
        skips = [self.stem(x)]
        for block in self.down:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        y = skips.pop()
        for up, join in zip(reversed(self.up), reversed(self.join), strict=True):
            y = join(torch.cat([skips.pop(), up(y)], 1))
        return self.out(y)


def _block(incoming: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(incoming, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
    )


def mlp() -> tuple[nn.Module, Any]:
    sizes = (784, 512, 512, 512)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(2, 1, 28, 28)


def vision(name: str, size: int = 64) -> Build:
    def make() -> tuple[nn.Module, Any]:
        import torchvision

        options = {"vgg16_bn": {"init_weights": False}}.get(name, {})
        if name == "googlenet":
            options = {"init_weights": False, "aux_logits": False}
        return getattr(torchvision.models, name)(**options), torch.randn(2, 3, size, size)

    return make


def timm(name: str, size: int = 224) -> Build:
    def make() -> tuple[nn.Module, Any]:
        import timm

        return timm.create_model(name), torch.randn(2, 3, size, size)

    return make


def language(kind: str) -> Build:
    def make() -> tuple[nn.Module, Any]:
        import transformers as t

        ids = torch.arange(16).reshape(2, 8)
        if kind == "gpt2":
            config = t.GPT2Config(
                n_layer=4, n_embd=256, n_head=4, vocab_size=1000, n_positions=64,
                bos_token_id=1, eos_token_id=1,
            )  # fmt: skip
            return t.GPT2LMHeadModel(config), {"input_ids": ids, "use_cache": False}
        small = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4}
        if kind == "llama":
            config = t.LlamaConfig(
                **small, num_attention_heads=8, num_key_value_heads=2, vocab_size=1000
            )
            return t.LlamaForCausalLM(config), {"input_ids": ids, "use_cache": False}
        config = t.BertConfig(**small, num_attention_heads=4, vocab_size=1000)
        return t.BertForSequenceClassification(config), {"input_ids": ids}

    return make


NETWORKS: dict[str, Build] = {
    "MLP 784-512x3-10": mlp,
    "VGG-16-BN": vision("vgg16_bn", 32),
    "ResNet-18": vision("resnet18"),
    "ResNet-50": vision("resnet50"),
    "WideResNet-50-2": vision("wide_resnet50_2"),
    "ResNeXt-50 32x4d": vision("resnext50_32x4d"),
    "DenseNet-121": vision("densenet121"),
    "MobileNetV3-large": vision("mobilenet_v3_large"),
    "EfficientNet-B0": vision("efficientnet_b0"),
    "ShuffleNetV2 x1": vision("shufflenet_v2_x1_0"),
    "RegNetY-400MF": vision("regnet_y_400mf"),
    "GoogLeNet": vision("googlenet"),
    "ConvNeXt-tiny": vision("convnext_tiny"),
    "UNet": lambda: (Unet(), torch.randn(2, 3, 32, 32)),
    "ViT-tiny": timm("vit_tiny_patch16_224"),
    "ViT-B/16 (torchvision)": vision("vit_b_16", 224),
    "Swin-tiny": timm("swin_tiny_patch4_window7_224"),
    "MLP-Mixer S/16": timm("mixer_s16_224"),
    "GPT-2 (4 layers of 256)": language("gpt2"),
    "Llama (4 layers of 256, 8 heads on 2)": language("llama"),
    "BERT (4 layers of 256)": language("bert"),
}


def look(name: str, build: Build) -> dict[str, Any]:
    """Trace and prove one network, and return its row."""
    torch.manual_seed(0)
    model, inputs = build()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a group that fails its proof must not pass as a row
        spec = trace(model, inputs)
    seconds = time.perf_counter() - started
    nested = sum(group.parent is not None for group in spec)
    return {
        "network": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "groups": len(spec),
        "nested": nested,
        "free_share": spec.free_share,
        "relative_error": spec.checked,
        "seconds": seconds,
        "pinned": reasons(spec),
    }


_PHRASES = (
    ("reads an input", "inputs"),
    ("positions of a map", "positions of a map"),
    ("output of the network", "outputs"),
    ("looked up by index", "vocabulary and positions"),
    ("index in", "tables looked up by index"),
    ("no other position", "positions without an equal"),
)


def reasons(spec: Any) -> dict[str, int]:
    """Return in words what is pinned, with the number of axes."""
    count: collections.Counter[str] = collections.Counter()
    for pin in spec.pins:
        found = next((word for text, word in _PHRASES if text in pin.reason), None)
        operation = re.sub(r" in .*", "", pin.reason)
        count[found or f"what {operation} fixes"] += 1
    return dict(count)


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# Permutation symmetries, by architecture",
        "What `regraft.symmetry.trace.trace` finds in networks that it knows nothing about: groups of "
        "interchangeable units (nested ones, as dimensions within heads, in brackets), the share of the "
        "positions on all axes of matrices and kernels that may move, what is pinned, the error "
        "|f(πθ) - f(θ)| / |f(θ)| of random permutations of everything at once in float64, and the time "
        "of trace and proof together.",
        "| Network | Weights | Groups | Free | Pinned axes | Error | Seconds |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        nested = f" ({row['nested']})" if row["nested"] else ""
        pinned = ", ".join(f"{word} {n}" for word, n in row["pinned"].items())
        lines.append(
            f"| {row['network']} | {row['parameters'] / 1e6:.2f} M | {row['groups']}{nested} | "
            f"{100 * row['free_share']:.1f}% | {pinned} | {row['relative_error']:.0e} | "
            f"{row['seconds']:.1f} |"
        )
    found = environment()
    lines += [
        "Networks of these families are counted by hand (ResNet-50 in `tests/symmetry/trace/test_trace.py`; "
        "smaller ViT, GPT-2, Llama and BERT in `tests/symmetry/trace/test_attention.py`).",
        f"`{command}`, torch {found.get('torch')}, {torch.get_num_threads()} threads, "
        f"{found.get('processor')}.",
    ]
    head, table, tail = lines[:2], lines[2:-2], lines[-2:]
    return "\n\n".join([*head, "\n".join(table), *tail]) + "\n"


def main() -> None:
    """Trace every network, print a row each, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    options = parser.parse_args()
    unknown = set(options.only) - set(NETWORKS)
    if unknown:
        sys.exit(f"{min(unknown)!r} is no network here: choose from {', '.join(NETWORKS)}")
    rows = []
    for name in options.only:
        rows.append(look(name, NETWORKS[name]))
        row = rows[-1]
        print(
            f"{name}: {row['groups']} groups, {100 * row['free_share']:.1f}% free, error "
            f"{row['relative_error']:.0e}, {row['seconds']:.1f} s",
            flush=True,
        )
    if options.results is not None:
        command = f"python benchmarks/{command_line()}"
        write_text(options.results / "architectures.md", markdown(rows, command))
        data = {"command": command, **environment(), "rows": rows}
        write_json(options.results / "architectures.json", data, indent=1)


if __name__ == "__main__":
    main()

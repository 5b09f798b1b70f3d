"""What generated images cost: made on the way against drawn from a bank, alone and in pre-training.

    python benchmarks/generate.py --out docs/results       # a minute on one core
    python benchmarks/generate.py --quick                  # prints only

A bank lies on disk and is mapped into memory. One call makes, or draws, 64 images of 28x28, or takes one
step of pre-training with them; all arms take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from measure import Ratio, in_turn, write
from regraft.config import ModelConfig
from regraft.generators.pseudo import Pretraining
from regraft.generators.sources import ModuleSource, Source, make_generator, write_bank
from regraft.models import build
from regraft.streams import Counter
from regraft.train import command_line, keep_freed_memory

BATCH = 64


def generator(kind: str, **options: Any) -> ModuleSource:
    torch.manual_seed(0)
    made = make_generator(kind, (1, 28, 28), 10, **options)
    with torch.no_grad():
        for weights in made.parameters():
            weights.add_(0.05 * torch.randn(weights.shape))
    return ModuleSource(made, labels="onehot", pixels="[0,1]")


def sampling(source: Source) -> Callable[[], object]:
    counter = Counter(1)
    return lambda: source.sample(BATCH, generator=counter)


def training(source: Source) -> Callable[[], object]:
    torch.manual_seed(0)
    net = build(ModelConfig(name="conv_small"), num_classes=10, channels=1, image_size=28)
    return Pretraining(net, source, steps=10_000, batch_size=BATCH, lr=1e-3).step


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for bench_generate.md, .svg and .json")
    parser.add_argument("--quick", action="store_true", help="few rounds; prints only")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    rounds, count = (4, 500) if options.quick else (20, 20_000)
    rows: list[Ratio] = []
    with tempfile.TemporaryDirectory() as scratch:
        vae = generator("vae")
        bank = write_bank(vae, Path(scratch) / "bank", count=count, seed=0)
        sources = {
            "VAE": vae,
            "rectified flow, 8 steps": generator("flow", steps=8),
        }
        for name, source in sources.items():
            arm = (f"{name}, on the way", sampling(source))
            rows.append(in_turn("64 images", arm, ("bank", sampling(bank)), n=rounds))
            arm = (f"{name}, on the way", training(source))
            pair = ("bank", training(bank))
            rows.append(in_turn("a step of PP, conv_small", arm, pair, n=rounds))
            for row in rows[-2:]:
                print(
                    f"{row.setting}: {row.arm} over bank {row.ratio:.2f} "
                    f"[{row.ratio_low:.2f}, {row.ratio_high:.2f}], "
                    f"{BATCH / row.milliseconds * 1e3:,.0f} and "
                    f"{BATCH / row.baseline_milliseconds * 1e3:,.0f} images/s",
                    flush=True,
                )
        size, before = bank.pixels.numel(), resident()
        draw = sampling(bank)
        for _ in range(20):
            draw()
        grown = max(resident() - before, 0)
    print(f"a bank of {size / 2**20:.1f} MiB: memory grew by {grown / 2**20:.1f} MiB in 20 batches")
    if options.out is not None and not options.quick:
        load = os.getloadavg()[0]
        busy = f"The machine was loaded ({load:.1f} on {os.cpu_count()} cores): times mean little. "
        speeds = "; ".join(
            f"{r.setting}, {r.arm}: {BATCH / r.milliseconds * 1e3:,.0f} images/s against "
            f"{BATCH / r.baseline_milliseconds * 1e3:,.0f} from the bank"
            for r in rows
        )
        reading = (
            f"{busy if load > 1.5 else ''}{speeds}. The bank has {count:,} images ({size / 2**20:.1f} MiB on "
            f"disk, mapped into memory)."
        )
        title = "Generated images made on the way, against a bank"
        write(options.out, "generate", title, command_line(), rows, reading)


if __name__ == "__main__":
    main()

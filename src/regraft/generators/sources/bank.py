"""A bank of generated images on disk: made once, drawn from as often as one likes.

```
BANK/images.npy     uint8 [N, C, H, W], mapped into memory; read once for its digest when it is opened
BANK/labels.npy     int64 [N], the class that each image was made for
BANK/bank.json      seed, classes, shape, digest of the generator; written last
```
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.data import ImageSet
from regraft.digests import file_digest
from regraft.errors import InputError
from regraft.files import load_json, make_folder, reading, write_json
from regraft.streams import Counter

from .images import ImageSource
from .source import Source

MANIFEST = "bank.json"
SCHEMA = 1

Progress = Callable[[int, int, dict[str, float]], None]


def write_bank(
    source: Source,
    folder: Path,
    *,
    count: int,
    seed: int,
    about: dict[str, Any] | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> CachedBank:
    """Make a bank of `count` images and return it; one that was interrupted is gone on with.

    Image i is the one that the source makes for place i of a counter of this seed, its class i modulo K.
    Never more than a batch of them is in memory.

    Args:
        source: The generator.
        folder: Where the bank goes.
        count: Number of images N.
        seed: Seed of the latents.
        about: What else the manifest shall say.
        batch_size: Images made at once.
        progress: Called as `progress(images, count, {})`.

    Raises:
        InputError: Fewer images than classes, or a folder of another bank.
        RegraftError: The source made images that are not finite; what was made stays.
    """
    if count < source.classes:
        raise InputError(
            f"count={count}: expected at least one image of each of {source.classes} classes"
        )
    make_folder(folder)
    identity = {"digest": source.digest(), "seed": seed, "count": count}
    if (folder / MANIFEST).exists():
        bank = CachedBank(folder, device=source.device)
        if {key: bank.about[key] for key in identity} != identity:
            raise InputError(
                f"{folder} holds another bank (another generator, seed or number of images): choose "
                "another folder"
            )
        return bank
    made = _made(folder, identity)
    images, labels = _arrays(folder, count, source.image_shape, new=made == 0)
    while made < count:
        n = min(batch_size, count - made)
        y = torch.arange(made, made + n) % source.classes
        x = source.sample(n, labels=y, generator=Counter(seed, "bank", made))
        images[made : made + n] = (x.cpu() * 255).round().to(torch.uint8).numpy()
        labels[made : made + n] = y.numpy()
        made += n
        images.flush()
        labels.flush()
        write_json(folder / "making.json", {**identity, "made": made})
        if progress is not None:
            progress(made, count, {})
    manifest = {
        "schema": SCHEMA,
        **identity,
        "classes": source.classes,
        "digests": {n: file_digest(folder / n) for n in ("images.npy", "labels.npy")},
        "class_names": list(source.class_names),
        "image_shape": list(source.image_shape),
        "notes": source.notes,
        "fallbacks": source.fallbacks,
        **(about or {}),
    }
    write_json(folder / MANIFEST, manifest)
    (folder / "making.json").unlink(missing_ok=True)
    return CachedBank(folder, device=source.device)


class CachedBank(ImageSource):
    """A bank as a source: a sample is one of its images, of the class that is wanted.

    Args:
        folder: The bank.
        device: Where samples go.

    Raises:
        InputError: It is damaged, or of a newer version.
    """

    def __init__(self, folder: Path | str, *, device: torch.device | str | None = None) -> None:
        folder = Path(folder)
        with reading(folder, "make the bank again, into another folder"):
            self.about: dict[str, Any] = load_json(folder / MANIFEST, ours=True)
            if int(self.about["schema"]) > SCHEMA:
                raise InputError(f"{folder} is a bank of a newer version: update regraft")
            for name, known in self.about["digests"].items():
                if file_digest(folder / name) != known:
                    raise ValueError(f"{name} is not as Regraft wrote it")
            # Copy on write: torch wants memory that it may write to, and the file stays as it is.
            images = np.load(folder / "images.npy", mmap_mode="c")
            labels = np.load(folder / "labels.npy", mmap_mode="c")
            about, classes = self.about, int(self.about["classes"])
            shape = (about["count"], *about["image_shape"])
            if images.shape != shape or images.dtype != np.uint8 or labels.shape != shape[:1]:
                raise ValueError(f"images of {images.shape} and {labels.shape} labels")
            names = tuple(map(str, about["class_names"]))
            if len(names) not in (0, classes) or not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError(
                    f"labels from {labels.min()} to {labels.max()} of {classes} classes"
                )
            pool = ImageSet(torch.from_numpy(images), torch.from_numpy(labels), classes)
            self._digest = f"{about['digest']}-{about['seed']}-{about['count']}"
        super().__init__(pool, device=device)
        self.class_names = names
        self.notes = [f"a bank of {len(pool)} images of generator {about['digest']}"]

    @property
    def pixels(self) -> Tensor:
        """All images, uint8 [N, C, H, W], mapped into memory."""
        return self._images

    def digest(self) -> str:
        """Return what tells which images these are, without reading them."""
        return self._digest


def _made(folder: Path, identity: dict[str, Any]) -> int:
    """Return how many images an interrupted bank has."""
    file = folder / "making.json"
    if not file.exists():
        return 0
    with reading(file, "make the bank in another folder, or remove this one"):
        state = load_json(file, ours=True)
        made = int(state.pop("made"))
    if state != identity:
        raise InputError(
            f"{folder} holds the beginning of another bank: choose another folder, or remove this one"
        )
    return made


def _arrays(folder: Path, count: int, shape: tuple[int, int, int], *, new: bool) -> tuple[Any, Any]:
    opened = []
    for name, size, kind in (("images", (count, *shape), np.uint8), ("labels", (count,), np.int64)):
        path = folder / f"{name}.npy"
        if new:
            opened.append(np.lib.format.open_memmap(path, "w+", kind, size))
        else:
            opened.append(np.lib.format.open_memmap(path, "r+"))
    return opened[0], opened[1]

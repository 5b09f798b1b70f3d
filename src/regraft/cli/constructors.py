"""How option types are shown in help: `FLOAT` where a value may be left out, and no empty default."""

from __future__ import annotations

import dataclasses
from types import NoneType, UnionType
from typing import Any, Union, get_args

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

_NOTHING = "none"


def registry() -> ConstructorRegistry:
    """Return the rules, which hold within a `with` statement."""
    rules = ConstructorRegistry()
    rules.primitive_rule(_optional)
    rules.primitive_rule(_Sequences())
    return rules


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read `X | None` as `X`: the option is left out to say None."""
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or len(kinds) != 2 or NoneType not in kinds:
        return None
    (kind,) = (k for k in kinds if k is not NoneType)
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if isinstance(spec, UnsupportedTypeAnnotationError):
        return None
    return dataclasses.replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: (
            [_NOTHING] if value is None else spec.str_from_instance(value)
        ),
    )


class _Sequences:
    """Show an empty sequence as the word none."""

    def __init__(self) -> None:
        self._inside = False

    def __call__(self, info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not tuple or self._inside:
            return None
        self._inside = True
        try:
            spec = ConstructorRegistry.get_primitive_spec(info)
        finally:
            self._inside = False
        if isinstance(spec, UnsupportedTypeAnnotationError):
            return None
        return dataclasses.replace(
            spec, str_from_instance=lambda value: spec.str_from_instance(value) or [_NOTHING]
        )

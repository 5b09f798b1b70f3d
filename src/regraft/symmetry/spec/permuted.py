"""State dicts in another frame, computed tensor by tensor when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from regraft.errors import InputError

from .permutation import Permutation, permutation_error
from .spec import PermutationSpec


class Permuted(Mapping[str, Tensor]):
    """What `spec.apply(state, permutation)` returns, without holding more than one tensor of it.

    Args:
        spec: The symmetries.
        state: State dict, or a `Checkpoint` that reads tensors from its file.
        permutation: The permutation.

    Raises:
        InputError: The state is of another architecture, or the permutation is not one.
    """

    def __init__(
        self, spec: PermutationSpec, state: Mapping[str, Tensor], permutation: Permutation
    ) -> None:
        spec.check_state(state)
        error = permutation_error(spec, permutation)
        if error:
            raise InputError(error)
        self.spec, self.state, self.permutation = spec, state, permutation

    def __getitem__(self, name: str) -> Tensor:
        return self.spec.apply_to(name, self.state[name], self.permutation)

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

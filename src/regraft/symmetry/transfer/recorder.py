"""Record any training loop to disk while it runs, tensor by tensor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import Checkpoint, read_checkpoint
from regraft.checkpoints.state import check_state
from regraft.checkpoints.stream import write_stream
from regraft.errors import DivergenceError, InputError
from regraft.files import make_folder
from regraft.machine import is_first_process
from regraft.symmetry.merge.connectivity import buffer_names
from regraft.symmetry.merge.merge import is_trained

from .recorded import INITIAL, SCHEMA, entry, problem, read_index, write_index
from .trajectory import wide

Storage = Literal["full", "bfloat16", "float16"]
_STORAGE = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrajectoryRecorder:
    """Records a network while it is trained; `step()` once after every optimiser step or epoch.

    The state at construction is the initial one. A recorder that is opened again on its folder goes
    on once it is told with `load_state_dict` at which step the loop takes up its work (in Regraft's
    own loop that happens by itself: pass it as a stepper); what had been recorded after that step is
    recorded again. Without it a network that equals the recorded initial one is recorded anew from
    its first step, in the place of what was there (with a warning if that was finished), and any
    other is refused at its first step: whether it belongs to the recorded run cannot be known.
    Opening alone changes nothing on disk. Of several processes only the first writes.

    Args:
        folder: The folder; made if it is missing.
        model: The network. Wrappers of torch (compiled, data-parallel) are looked through.
        every: Calls of `step` from one recorded state to the next.
        storage: How displacements are stored: `full` in float32 (float64 for double tensors), which
            gives the weights back to within a rounding, or in half the bytes; what that cost is in
            the index and in `Trajectory.error`.
        metadata: Header of the initial state's file, e.g. what the network is (`regraft.model`).

    Raises:
        InputError: A folder of something else, or of another architecture, storage or interval.

    Attributes:
        count: Steps counted so far. In a folder that was opened again it is the last step recorded
            until `load_state_dict`, and 0 for the initial network.

    Example:
        >>> with TrajectoryRecorder("run/trajectory", model, every=100) as recorder:
        ...     for batch in loader:
        ...         train_step(model, batch)
        ...         recorder.step()
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        *,
        every: int = 1,
        storage: Storage = "full",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"every={every}: expected at least 1 step between two states")
        if storage != "full" and storage not in _STORAGE:
            raise InputError(f"storage={storage!r}: expected 'full', 'bfloat16' or 'float16'")
        self.folder, self.model, self.every, self.storage = Path(folder), model, every, storage
        self.count = 0
        self._metadata = dict(metadata or {})
        self._writes = is_first_process()
        self._initial: Checkpoint | None = None
        self._index: dict[str, Any] = {}
        self._damaged: dict[int, str] = {}
        self._opened: Literal["anew", "further"] | None = None
        self._last = model
        if self._writes:
            self._open()

    def step(self, model: nn.Module | None = None) -> None:
        """Count one step, and record the network if it is time.

        Args:
            model: The network, if it is another object than the one given last.

        Raises:
            InputError: It is of another architecture; or the folder holds a recording and nothing
                says where this run goes on.
            DivergenceError: A tensor is not finite, or does not fit into the storage.
            RegraftError: The disk is full or failing.
        """
        if self._opened == "further":
            raise InputError(
                f"{self.folder} holds a recording until step {self.count} and the network is not its "
                "initial one: call load_state_dict with the state_dict of the recorder that was saved "
                "along with the network, or choose another folder"
            )
        if self._opened == "anew":
            self._start_over()
        self._last = self._last if model is None else model
        self.count += 1
        if self._writes and self.count % self.every == 0:
            self._record(self._last)

    def finish(self) -> None:
        """Record the last state, if that was not done, and mark the trajectory as whole.

        It is the state of the network that was given last, to `step` or at construction. Where a
        folder was only opened again nothing happens.
        """
        if not self._writes or self._opened:
            return
        last = self._index["steps"][-1]["step"] if self._index["steps"] else 0
        if self.count > last:
            self._record(self._last)
        write_index(self.folder, {**self._index, "finished": True})

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps counted."""
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the step of `state_dict`; what was recorded after it is forgotten.

        Load the network first: a damaged state of this very step is recorded again from it.

        Raises:
            InputError: It is of step 0, and the network is not the recorded initial one; or a state
                until it is damaged or missing, and can no longer be recorded.
        """
        count = int(state["count"])
        if self._opened == "further" and count == 0 and not self._is_initial(_named(self._last)):
            raise InputError(
                f"{self.folder} was recorded from another initial network: load that one before "
                "going on from step 0, or choose another folder"
            )
        if self._writes:
            self._forget_after(count)
        self.count, self._opened = count, None

    def __enter__(self) -> TrajectoryRecorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A run that was interrupted is not whole; its index says so by not saying that it is.
        if kind is None:
            self.finish()

    def _open(self) -> None:
        state = _named(self.model)
        index = read_index(self.folder) if self.folder.exists() else None
        if index is None:
            make_folder(self.folder)
            strange = next((p for p in self.folder.iterdir() if not _ours(p)), None)
            if strange is not None:
                raise InputError(
                    f"{self.folder} holds {strange.name} and is no trajectory: choose another folder"
                )
            _refuse_not_finite(state, 0)
            write_stream(self.folder / INITIAL, _sketch(state), iter(state.items()), self._metadata)
            self._index = {
                "kind": "trajectory",
                "schema": SCHEMA,
                "every": self.every,
                "storage": self.storage,
                "trained": self._trained(state),
                "initial": entry(self.folder / INITIAL),
                "steps": [],
            }
            write_index(self.folder, self._index)
        else:
            self._take_up(index, state)
        self._initial = read_checkpoint(self.folder / INITIAL)

    def _take_up(self, index: dict[str, Any], state: dict[str, Tensor]) -> None:
        for name, value in (("every", self.every), ("storage", self.storage)):
            if index.get(name) != value:
                raise InputError(
                    f"{self.folder} was recorded with {name}={index.get(name)!r} instead of {value!r}: "
                    "give the same, or choose another folder"
                )
        wrong = problem(self.folder, index["initial"], verify=True)
        if wrong:
            raise InputError(f"{self.folder}: {wrong}: remove the folder to start again")
        shapes = {k: tuple(v.shape) for k, v in state.items()}
        check_state(read_checkpoint(self.folder / INITIAL).sketch, shapes, str(self.folder))
        for one in index["steps"]:
            wrong = problem(self.folder, one, verify=True)
            if wrong:
                self._damaged[one["step"]] = wrong
        if self._damaged:
            index.pop("finished", None)
        self._index = index
        anew = self._is_initial(state)
        self._opened = "anew" if anew else "further"
        until = min(self._damaged, default=math.inf)
        whole = [one["step"] for one in index["steps"] if one["step"] < until]
        self.count = whole[-1] if whole and not anew else 0

    def _forget_after(self, count: int) -> None:
        """Forget what was recorded after a step, and refuse to go on from it with a gap before it."""
        kept = {one["step"]: one for one in self._index["steps"] if one["step"] <= count}
        lost = {step: wrong for step, wrong in self._damaged.items() if step in kept}
        for step in range(self.every, count + 1, self.every):
            if step not in kept:
                lost[step] = f"it has no state of step {step}"
        if set(lost) == {count} and count in kept:
            again = self._written(self._last, count)
            if again["blake2b"] == kept[count]["blake2b"]:
                lost = {}
            elif count % self.every:  # the end of a run, which goes on now
                lost = {}
                del kept[count]
        if lost:
            step = min(lost)
            raise InputError(
                f"{self.folder}: {lost[step]}, and a run that goes on from step {count} does not record "
                f"it again: put the file back, go on from a checkpoint before step {step} (the network "
                "loaded before the recorder), or start again from the initial network"
            )
        self._damaged = {}
        if list(kept.values()) != self._index["steps"]:
            self._update(steps=list(kept.values()))

    def _is_initial(self, state: dict[str, Tensor]) -> bool:
        initial = read_checkpoint(self.folder / INITIAL)
        return all(
            initial.sketch[k].dtype == v.dtype and torch.equal(initial[k], v.cpu())
            for k, v in state.items()
        )

    def _start_over(self) -> None:
        """Forget what was recorded; on disk only with the first state that is recorded."""
        self._opened = None
        if self._index.get("finished"):
            warnings.warn(
                f"{self.folder} holds a finished recording of {len(self._index['steps'])} states from "
                "the same initial network; it is recorded anew",
                stacklevel=3,
            )
        self._index = {**self._index, "steps": []}
        self._damaged = {}

    def _trained(self, state: dict[str, Tensor]) -> list[str]:
        buffers = frozenset(buffer_names(_inner(self.model)))
        return [k for k, v in state.items() if is_trained(k, v, buffers)]

    def _record(self, model: nn.Module) -> None:
        kept = [one for one in self._index["steps"] if one["step"] < self.count]
        self._update(steps=[*kept, self._written(model, self.count)])

    def _written(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Write the file of a state, and return what the index says of it."""
        state = _named(model)
        initial = self._initial or read_checkpoint(self.folder / INITIAL)
        shapes = {k: tuple(v.shape) for k, v in initial.sketch.items()}
        check_state(state, shapes, "the network that is recorded")
        _refuse_not_finite(state, step)
        trained = set(self._index["trained"])
        stored = _STORAGE.get(self.storage)
        sketch = _sketch(state)
        for name in trained:
            like = initial.sketch[name]
            sketch[name] = like.to(stored or wide(like).dtype)
        sums = [0.0, 0.0]

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in state.items():
                if name not in trained:
                    yield name, tensor
                    continue
                first, last = wide(initial[name]), wide(tensor.cpu())
                delta = last - first
                small = delta.to(sketch[name].dtype)
                if not bool(torch.isfinite(small).all()):
                    raise DivergenceError(
                        f"{name} has moved too far for storage={self.storage!r} at step {step}: "
                        "record with storage='full' or 'bfloat16'"
                    )
                restored = (first + small.to(first.dtype)).to(tensor.dtype)
                sums[0] += float((wide(restored) - last).double().square().sum())
                sums[1] += float(delta.double().square().sum())
                yield name, small

        file = self.folder / f"step-{step:08d}.safetensors"
        write_stream(file, sketch, tensors(), {"regraft.trajectory": str(step)})
        error = math.sqrt(sums[0] / sums[1]) if sums[1] else 0.0
        return entry(file, step=step, error=error)

    def _update(self, *, steps: list[dict[str, Any]]) -> None:
        self._index = {**self._index, "steps": steps}
        self._index.pop("finished", None)
        write_index(self.folder, self._index)


def _ours(path: Path) -> bool:
    left_over = path.name.startswith(".") and path.name.endswith(".tmp")
    return left_over or path.name == INITIAL or path.match("step-*.safetensors")


def _inner(model: nn.Module) -> nn.Module:
    """Return the network itself, out of what torch wraps around it."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in _inner(model).state_dict().items()}


def _sketch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in state.items()}


def _refuse_not_finite(state: dict[str, Tensor], step: int) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergenceError(
                f"{name} is not finite at step {step}: the run diverged; lower the learning rate"
            )

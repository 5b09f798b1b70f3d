"""A fine-tuning method in the Trainer of Hugging Face."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError, MissingExtraError
from regraft.features import Method
from regraft.train import load_state, save_state

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers with accelerate", "hub", "this trainer") from error

FILE = "regraft_method.safetensors"
EXTRA_FILE = "regraft_extra.safetensors"


class FinetuneTrainer(Trainer):
    """transformers' `Trainer` with a method's term in the training loss.

    `train()` prepares the method on the model as it was given, adds the method's parameters to the
    optimiser, and writes its state beside each checkpoint; the loss of evaluation is the base loss.
    Single-label classification: batches have `labels` [b].

    Args:
        method: The method, unprepared.
        extra: A further loss with `loss(model, step)`, such as a prepared `MGR`; its state is written
            beside each checkpoint too.
        prepare: Further arguments of `method.prepare`, such as `classifier`.
        options: Arguments of `Trainer`; not `model_init`.

    Example:
        >>> trainer = FinetuneTrainer(
        ...     model=model, args=arguments, train_dataset=data, method=AdaRand()
        ... )
        >>> trainer.train()
    """

    def __init__(
        self,
        *,
        method: Method,
        extra: Any = None,
        prepare: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if options.get("model_init") is not None:
            raise InputError("model_init: a method holds on to one network; pass model= instead")
        super().__init__(**options)
        self.method, self.extra = method, extra
        self.prepare_options = dict(prepare or {})
        self.add_callback(_FollowTraining(method, extra))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the method unless it is, and train as `Trainer` does."""
        if self.method.tap is None:
            model: Any = self.model
            loader = self.get_train_dataloader()
            options: dict[str, Any] = {"steps": self._steps(loader), **self.prepare_options}
            self.method.prepare(model, loader, **options)
            self.method.to(self.args.device)
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Return the optimiser, with the parameters of the method."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        if made:
            for group in self.method.param_groups(self.args.learning_rate):
                optimizer.add_param_group(group)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the base loss, in training with the method's term."""
        labels = inputs.get("labels")
        base, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        loss = base
        if model.training and torch.is_grad_enabled():
            if labels is None:
                raise InputError("a batch has no labels: expected them under the key 'labels'")
            # Part of a sum over the accumulated batches here, where the method takes a mean.
            parts = (
                self.current_gradient_accumulation_steps if self._is_part(num_items_in_batch) else 1
            )
            loss = self.method(base * parts, labels) / parts
            if self.extra is not None:
                # After the method, which looks at what the labelled images left behind.
                loss = loss + self.extra.loss(model, self.state.global_step) / parts
        return (loss, outputs) if return_outputs else loss

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / FILE
            if not file.exists():
                raise InputError(
                    f"{checkpoint} has no {FILE}: it was not written by FinetuneTrainer, so that "
                    f"{type(self.method).__name__} cannot go on from it"
                )
            self.method.load_state_dict(load_state(file))
            if self.extra is not None:
                other = Path(checkpoint) / EXTRA_FILE
                if not other.exists():
                    raise InputError(
                        f"{checkpoint} has no {EXTRA_FILE}: it was written without the further loss, "
                        "which cannot go on from it"
                    )
                self.extra.load_state_dict(load_state(other))

    def _is_part(self, num_items_in_batch: Tensor | int | None) -> bool:
        if num_items_in_batch is None:
            return False
        return bool(self.model_accepts_loss_kwargs or self.compute_loss_func is not None)

    def _steps(self, loader: Any) -> int:
        # A stream has no length; transformers then asks for max_steps too.
        if self.args.max_steps > 0:
            return self.args.max_steps
        each = math.ceil(len(loader) / self.args.gradient_accumulation_steps)
        return max(1, math.ceil(each * self.args.num_train_epochs))


class _FollowTraining(TrainerCallback):
    """Steps the method with the optimiser and stores its state with the checkpoints."""

    def __init__(self, method: Method, extra: Any) -> None:
        self.method, self.extra = method, extra

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.method.step()
        # The trainer clears the gradients of its model only.
        self.method.zero_grad()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_state(folder / FILE, dict(self.method.state_dict()))
            if self.extra is not None:
                save_state(folder / EXTRA_FILE, self.extra.state_dict())

"""A fine-tuning method in a Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regraft.errors import MissingExtraError
from regraft.features import Method
from regraft.features.samples import split
from regraft.models.classifier import call, logits_of

try:
    from lightning import LightningModule
except ImportError as error:
    raise MissingExtraError("lightning", "lightning", "this module") from error


class Finetune(LightningModule):
    """Fine-tunes a classifier with a method under any Lightning trainer.

    The method is prepared when fitting starts, from the trainer's training batches, and is part of
    the checkpoint; testing, predicting and `load_from_checkpoint` take the network alone from it.
    Batches are (inputs, labels) or mappings with `labels`.

    Args:
        model: The pretrained network with its new classifier.
        method: The method, unprepared.
        optimizer: Parameter groups -> optimiser.
        scheduler: (optimiser, steps of the run) -> scheduler, stepped after every optimiser step.
        base: The base loss (logits, labels) -> scalar; cross-entropy by default.
        extra: A further loss with `loss(model, step)`, such as an `MGR` that was prepared on the network;
            its state is part of the checkpoint.
        prepare: Further arguments of `method.prepare`, such as `classifier`.

    Example:
        >>> module = Finetune(model, AdaRand(), lambda groups: torch.optim.SGD(groups, lr=0.01))
        >>> Trainer(max_epochs=20).fit(module, train_loader, validation_loader)
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        *,
        scheduler: Callable[[Optimizer, int], Any] | None = None,
        base: nn.Module | None = None,
        extra: Any = None,
        prepare: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.method = model, method
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.base = base or nn.CrossEntropyLoss()
        self.extra = extra
        self.prepare_options = dict(prepare or {})

    def setup(self, stage: str) -> None:
        """Prepare the method, before a checkpoint is loaded and the optimiser is made."""
        if stage == "fit" and self.method.tap is None:
            self.to(self.trainer.strategy.root_device)
            steps = int(self.trainer.estimated_stepping_batches)
            options: dict[str, Any] = {"steps": steps, **self.prepare_options}
            self.method.prepare(self.model, self.trainer.train_dataloader, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the method's state where there is no training, which alone prepares it."""
        if self.extra is not None and "regraft_extra" in checkpoint:
            self.extra.load_state_dict(checkpoint["regraft_extra"])
        if self.method.tap is None:
            own = self.state_dict()
            stored = checkpoint["state_dict"]
            checkpoint["state_dict"] = {
                k: v for k, v in stored.items() if k in own or not k.startswith("method.")
            }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the further loss."""
        if self.extra is not None:
            checkpoint["regraft_extra"] = self.extra.state_dict()

    def forward(self, inputs: Any) -> Tensor:
        """Return logits [b, K]."""
        return logits_of(call(self.model, inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the objective of a batch."""
        inputs, labels = self._split(batch)
        base = self.base(self.forward(inputs), labels)
        loss = self.method(base, labels)
        if self.extra is not None:
            loss = loss + self.extra.loss(self.model, self.global_step)
        self.log_dict({"train_loss": loss.detach(), "train_base_loss": base.detach()})
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy of a batch, as `validation_loss` and `validation_accuracy`."""
        self._evaluate(batch, "validation")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy of a batch, as `test_loss` and `test_accuracy`."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities [b, K]."""
        inputs = batch if isinstance(batch, Tensor) else self._split(batch)[0]
        return self.forward(inputs).softmax(1)

    def configure_optimizers(self) -> Any:
        """Return the optimiser over trained parameters of network and method, and the scheduler."""
        groups = [{"params": [p for p in self.model.parameters() if p.requires_grad]}]
        optimizer = self.make_optimizer(groups)
        for group in self.method.param_groups(optimizer.param_groups[0]["lr"]):
            optimizer.add_param_group(group)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take an optimiser step, and the method's."""
        super().optimizer_step(*args, **kwargs)
        self.method.step()

    def _evaluate(self, batch: Any, name: str) -> None:
        inputs, labels = self._split(batch)
        logits = self.forward(inputs)
        correct = (logits.argmax(1) == labels).float().mean()
        figures = {f"{name}_loss": self.base(logits, labels), f"{name}_accuracy": correct}
        self.log_dict(figures, batch_size=len(labels), prog_bar=True)

    def _split(self, batch: Any) -> tuple[Any, Tensor]:
        dtype = next(self.model.parameters()).dtype
        mixed = isinstance(batch, tuple | list) and batch[1].is_floating_point()
        return (batch[0], batch[1]) if mixed else split(batch, self.device, dtype)

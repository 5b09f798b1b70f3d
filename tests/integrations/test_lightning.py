import pytest
import torch
from generating import mgr_for
from torch.utils.data import DataLoader, TensorDataset

from features import CLASSES, METHODS, batch, network
from regraft.features import AdaRand, SupCon

# The dev extra leaves Lightning out: its torchmetrics makes every import of Fabric, and with it most
# of the tests, slower by seconds. `pip install 'regraft[lightning]'` and run this file by itself.
lightning = pytest.importorskip("lightning", reason="lightning is not installed")

from regraft.integrations.lightning import Finetune  # noqa: E402

# What Lightning warns about (few workers, no logger) is its own advice.
pytestmark = pytest.mark.filterwarnings("default")


def loader(n=24, size=6):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(*batch(n)), size, shuffle=True, generator=generator)


def module(method, seed=1):
    return Finetune(
        network(seed),
        method,
        lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
    )


def trainer(folder, **options):
    return lightning.Trainer(
        default_root_dir=folder,
        **{
            "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, **options,
        },
    )  # fmt: skip


def test_it_trains_evaluates_and_predicts(tmp_path):
    made = module(AdaRand())
    run = trainer(tmp_path)
    run.fit(made, loader(), loader())
    assert made.method._steps == made.method.total_steps == 8
    assert {"train_loss", "train_base_loss", "validation_accuracy"} <= run.callback_metrics.keys()
    assert run.callback_metrics["train_loss"] > run.callback_metrics["train_base_loss"]
    (result,) = run.test(made, loader(), verbose=False)
    assert set(result) == {"test_loss", "test_accuracy"}
    predicted = torch.cat(run.predict(made, loader()))
    assert predicted.shape == (24, CLASSES)
    torch.testing.assert_close(predicted.sum(1), torch.ones(24))


@pytest.mark.parametrize("name", ["adarand", "supcon", "co_tuning", "dr_tune", "lp_ft"])
def test_resuming_a_checkpoint_equals_never_having_stopped(name, tmp_path):
    fixed = DataLoader(TensorDataset(*batch(24)), 6)
    case = METHODS[name]
    straight = module(case.make(3))
    trainer(tmp_path).fit(straight, fixed)
    half = module(case.make(3))
    run = trainer(tmp_path, max_epochs=2)
    run.fit_loop.max_epochs = 2
    stop = StopAfter(4)
    run.callbacks.append(stop)
    run.fit(half, fixed)
    run.save_checkpoint(tmp_path / "half.ckpt")
    again = module(case.make(4), seed=2)
    trainer(tmp_path).fit(again, fixed, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for (key, a), b in zip(again.state_dict().items(), straight.state_dict().values(), strict=True):
        assert a == b if isinstance(a, dict) else torch.equal(a, b), key


@pytest.mark.parametrize("name", ["adarand", "supcon", "co_tuning", "dr_tune", "lp_ft"])
def test_a_checkpoint_serves_a_module_that_is_not_trained(name, tmp_path):
    trained = module(METHODS[name].make(3))
    run = trainer(tmp_path)
    run.fit(trained, loader())
    (wanted,) = run.test(trained, loader(), verbose=False)
    run.save_checkpoint(tmp_path / "x.ckpt")
    fresh = module(METHODS[name].make(4), seed=2)
    other = trainer(tmp_path)
    path = tmp_path / "x.ckpt"
    found = other.test(fresh, loader(), ckpt_path=path, weights_only=False, verbose=False)
    assert found == [wanted]
    again = Finetune.load_from_checkpoint(
        path,
        model=network(2),
        method=METHODS[name].make(4),
        optimizer=torch.optim.SGD,
        weights_only=False,
    )
    assert other.test(again, loader(), verbose=False) == [wanted]


class StopAfter(lightning.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.steps


def test_parameters_of_the_method_are_in_the_optimiser(tmp_path):
    made = module(SupCon())
    trainer(tmp_path, max_epochs=1).fit(made, loader())
    groups = made.optimizers(use_pl_optimizer=False).param_groups
    assert [len(g["params"]) for g in groups] == [len(list(made.model.parameters())), 4]


def test_gradient_accumulation_steps_once_an_optimiser_step(tmp_path):
    made = module(AdaRand())
    trainer(tmp_path, accumulate_grad_batches=2).fit(made, loader())
    assert made.method._steps == made.method.total_steps == 4


def test_mgr_goes_on_in_a_module_where_it_stopped(tmp_path):
    x, y = batch(24)
    fixed = DataLoader(TensorDataset(x, y), 6)

    def made():
        net = network(1)
        return Finetune(
            net,
            AdaRand(),
            lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
            extra=mgr_for(net, x, y, CLASSES),
        )

    straight = made()
    trainer(tmp_path).fit(straight, fixed)
    assert [row["step"] for row in straight.extra.logged] == [0, 2, 4, 6]
    first = made()
    half = trainer(tmp_path)
    half.callbacks.append(StopAfter(4))
    half.fit(first, fixed)
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = made()
    trainer(tmp_path).fit(again, fixed, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for (name, a), b in zip(
        again.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert again.extra.logged == straight.extra.logged

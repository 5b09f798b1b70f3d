import pytest
import torch
from generating import mgr_for

from features import CLASSES, batch
from regraft.errors import InputError
from regraft.features import LPFT, AdaRand, CoreTuning, Plain, SupCon
from regraft.train import load_state

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from regraft.integrations.hugging_face import FILE, FinetuneTrainer

# What transformers warns about in its own code is not ours to mend.
pytestmark = pytest.mark.filterwarnings("default")


def vit(seed=0):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_channels=1, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(seed)
    return ViTForImageClassification(config)


def resnet(seed=0):
    """Return a network whose weights transformers reloads: of ViT's, 5.24 renames what it saves."""
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES
    )
    torch.manual_seed(seed)
    return ResNetForImageClassification(config)


def data(n=24):
    x, y = batch(n)
    return [{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)]


def trainer(folder, method, *, model=None, extra=None, **options):
    arguments = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 6, "num_train_epochs": 2, "learning_rate": 0.01,
            "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
            "disable_tqdm": True, "optim": "sgd", "seed": 1, **options,
        },
    )  # fmt: skip
    return FinetuneTrainer(
        method=method,
        extra=extra,
        model=model or vit(),
        args=arguments,
        train_dataset=data(),
        eval_dataset=data(),
    )


def test_it_trains_with_the_term_and_evaluates_without(tmp_path):
    method = AdaRand(weight=5.0)
    run = trainer(tmp_path, method)
    run.train()
    assert method._steps == 8
    assert method.total_steps == 8
    assert not torch.equal(method.mean, method.running)
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert losses[0] > run.evaluate()["eval_loss"] + 1  # by the weight of the term


@pytest.mark.parametrize("make", [AdaRand, SupCon, CoreTuning, LPFT])
def test_resuming_a_checkpoint_equals_never_having_stopped(make, tmp_path):
    straight = trainer(tmp_path / "straight", make(seed=3), model=resnet(), save_strategy="epoch")
    straight.train()
    again = trainer(tmp_path / "again", make(seed=4), model=resnet())
    again.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    for (name, a), b in zip(
        again.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    one, two = again.method.state_dict(), straight.method.state_dict()
    assert one.keys() == two.keys()
    for name, a in one.items():
        assert a == two[name] if isinstance(a, dict) else torch.equal(a, two[name]), name
    saved = load_state(tmp_path / "straight" / "checkpoint-8" / FILE)
    assert saved["_extra_state"]["steps"] == 8


class Stream(torch.utils.data.IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return iter(data())


def test_a_stream_is_as_long_as_max_steps_says(tmp_path):
    method = AdaRand()
    run = trainer(tmp_path, method, max_steps=5)
    run.train_dataset = Stream()
    run.train()
    assert method._steps == method.total_steps == 5


def test_accumulated_batches_weigh_as_one(tmp_path):
    found = []
    for size, parts in ((12, 1), (4, 3)):
        run = trainer(
            tmp_path, AdaRand(spread="none"), num_train_epochs=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=parts,
        )  # fmt: skip
        run.train()
        assert run.method._steps == 2
        found.append((run.model.state_dict(), run.method.running))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(found[1][1], found[0][1])


def test_parameters_of_the_method_are_trained(tmp_path):
    method = SupCon()
    run = trainer(tmp_path, method, num_train_epochs=1)
    before = None

    def keep(*args, **kwargs):
        nonlocal before
        before = [p.detach().clone() for p in method.extra_parameters()]

    run.callback_handler.callbacks[-1].on_train_begin = keep
    run.train()
    assert not any(
        torch.equal(p, q) for p, q in zip(before, method.extra_parameters(), strict=True)
    )


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="model_init"):
        FinetuneTrainer(method=AdaRand(), model_init=vit)
    run = trainer(tmp_path, AdaRand(), save_strategy="epoch")
    run.train()
    (tmp_path / "checkpoint-4" / FILE).unlink()
    again = trainer(tmp_path / "again", AdaRand())
    with pytest.raises(InputError, match="was not written by FinetuneTrainer"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("make", [Plain, AdaRand])
def test_mgr_goes_on_in_the_trainer_where_it_stopped(make, tmp_path):
    x, y = batch(24)
    net = resnet()
    options = {"save_strategy": "epoch", "gradient_accumulation_steps": 2}
    extra = mgr_for(net, x, y, CLASSES)
    straight = trainer(tmp_path / "straight", make(), model=net, extra=extra, **options)
    straight.train()
    assert [row["step"] for row in extra.logged] == [0, 2]
    assert extra.logged[-1]["latent_move"] > 0
    net = resnet()
    other = mgr_for(net, x, y, CLASSES)
    again = trainer(tmp_path / "again", make(), model=net, extra=other, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    for (name, a), b in zip(
        again.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert other.logged == extra.logged
    without = trainer(tmp_path / "without", make(), model=resnet(), **options)
    without.train()
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            without.model.state_dict().values(), straight.model.state_dict().values(), strict=True
        )
    )


def test_a_checkpoint_without_the_further_loss_is_refused(tmp_path):
    x, y = batch(24)
    trainer(tmp_path, Plain(), model=resnet(), save_strategy="epoch").train()
    net = resnet()
    again = trainer(tmp_path / "again", Plain(), model=net, extra=mgr_for(net, x, y, CLASSES))
    with pytest.raises(InputError, match="written without the further loss"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))

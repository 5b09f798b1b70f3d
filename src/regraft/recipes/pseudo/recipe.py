"""Pre-training and semi-supervised learning from a generator; scales in `notes.md`.

References:
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833). Its tables could not be had; the claims are those of its abstract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from regraft.config import (
    DataConfig,
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
    SslConfig,
)
from regraft.jobs.base import Job
from regraft.jobs.generate.foreign import ForeignClassifier
from regraft.jobs.generate.generator import GeneratorJob
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.target import TargetJob
from regraft.recipes.notes import read_data
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import read
from .tasks import KINDS, PAIRS, PseudoTask, coarse, foreign_digits, letters

METRICS = (("test_accuracy", "%"), ("confident", "%"))
MEASURED = (("classification_accuracy_score", "%"), ("spread", "times"))
"""What is measured of a generator that was not trained here."""


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 2),
        "cpu": Scale(_cpu, _seeds),
        "gpu": Scale(_gpu, 5),
        "paper": Scale(_paper, 3),
        "foreign": Scale(_foreign, 5),
    }
    return assemble(
        __package__ or "",
        scales,
        scale,
        seeds,
        title="Transfer by a generator: PP and P-SSL",
        read=read,
        metrics=(*METRICS, *(MEASURED if scale == "foreign" else ())),
    )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A target network, and by which optimiser it is trained."""

    name: str
    model: ModelConfig
    optim: OptimConfig
    pretrain: PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent."""

    generator: GeneratorConfig
    classifier: ModelConfig
    classifier_steps: int
    steps: int
    ssl: SslConfig
    runtime: RuntimeConfig


HEADLINE = ("oracle", "scratch", "logit_matching", "soft_targets", "pp", "pp_pssl", "ssl_target")
ABLATIONS = ("pssl", "pp_pssl_own_head", "pp_pssl_hard", "pp_pssl_uniform")
FURTHER = ("oracle_ssl", "pp_ssl_target")
ALL = (*HEADLINE, *ABLATIONS, *FURTHER)
_CHOSEN = read_data(__package__ or "", "chosen.toml")


@dataclass(frozen=True, kw_only=True)
class ArmWeights:
    """Weight of what each arm adds to the cross-entropy of the labels.

    Attributes:
        logits: Of the squared distance to the teacher's logits.
        soft: Of the teacher's softened probabilities.
        pseudo: Of the semi-supervised loss on generated images.
        target: Of the same on the labelled images.
    """

    logits: float = 0.1
    soft: float = 0.5
    pseudo: float = 1.0
    target: float = 1.0


def arms(
    task: PseudoTask,
    size: int,
    net: Architecture,
    effort: Effort,
    wanted: Sequence[str],
    weights: ArmWeights | None = None,
) -> list[Job]:
    """Return arms of one setting: the oracles first, since they say whether the task can tell.

    Args:
        task: The task.
        size: Number of labels.
        net: The target's network.
        effort: How much is spent.
        wanted: Names of the arms.
        weights: Weights of their losses; what `chosen.toml` has for the task and the network by default.
    """
    runtime = effort.runtime
    if weights is None:
        weights = ArmWeights(**_CHOSEN.get(task.name, {}).get(net.name, {}))
    setting = f"{task.name}/{net.name}/n={size}"
    artefacts: Any = {"setting": task.name, "runtime": runtime}
    generator = task.generator or GeneratorJob(
        arm="generator", images=task.source, generator=effort.generator, **artefacts
    )
    optim = OptimConfig(lr=0.02, batch_size=64, epochs=1, schedule="cosine")
    classifier = task.classifier or TargetJob(
        arm="source_classifier",
        target=task.source,
        test=task.tested,
        model=effort.classifier,
        steps=effort.classifier_steps,
        optim=optim,
        **artefacts,
    )
    target = replace(task.target, size=size)
    plain: Any = {"setting": setting, "runtime": runtime, "model": net.model}
    made = PretrainJob(arm="pp_body", generator=generator, pretrain=net.pretrain, **plain)
    real = PretrainJob(arm="oracle_body", real=task.source, pretrain=net.pretrain, **plain)
    # The teacher is the source's own architecture, fine-tuned: it does not depend on the target's.
    # Somebody's classifier has no body to start from: that teacher's body learned from the generator.
    body = classifier
    if isinstance(body, ForeignClassifier):
        learn = PretrainConfig(steps=effort.classifier_steps, lr=optim.lr)
        body = PretrainJob(
            arm="teacher_body",
            generator=generator,
            model=effort.classifier,
            pretrain=learn,
            **artefacts,
        )
    teacher = TargetJob(
        arm="teacher",
        setting=f"{task.name}/teacher/n={size}",
        runtime=runtime,
        model=effort.classifier,
        start=body,
        target=target,
        test=task.test,
        steps=effort.steps,
    )

    def arm(name: str, control: str | None = "scratch", ssl: Any = None, **more: Any) -> TargetJob:
        weight = weights.target if more.get("unlabelled") == "target" else weights.pseudo
        return TargetJob(
            arm=name,
            control=control,
            target=target,
            test=task.test,
            steps=effort.steps,
            optim=net.optim,
            ssl=replace(effort.ssl, ssl_weight=weight, **(ssl or {})),
            **plain,
            **more,
        )

    pseudo: Any = {"unlabelled": "pseudo", "generator": generator, "classifier": classifier}
    every = [
        arm("oracle", start=real),
        arm("scratch", None),
        # The teacher's logits are unbounded, and a student without normalisation diverges on them.
        replace(
            arm("logit_matching", teacher=teacher, distil="logits", distil_weight=weights.logits),
            optim=replace(net.optim, clip_norm=5.0),
        ),
        arm("soft_targets", teacher=teacher, distil="soft", distil_weight=weights.soft),
        arm("pp", start=made),
        arm("pp_pssl", start=made, **pseudo),
        arm("ssl_target", unlabelled="target"),
        arm("pssl", **pseudo),
        arm("pp_pssl_own_head", "pp_pssl", {"own_head": True}, start=made, **pseudo),
        arm("pp_pssl_hard", "pp_pssl", {"conditions": "hard"}, start=made, **pseudo),
        arm("pp_pssl_uniform", "pp_pssl", {"conditions": "uniform"}, start=made, **pseudo),
        arm("pp_ssl_target", "pp", start=made, unlabelled="target"),
        arm("oracle_ssl", start=real, unlabelled="real", real=task.source),
    ]
    return [job for job in every if job.arm in wanted]


def _tasks(
    tasks: Sequence[PseudoTask],
    nets: Sequence[Architecture],
    effort: Effort,
    wanted: Sequence[str] = ALL,
) -> list[Job]:
    return [
        job for task in tasks for size in task.sizes for net in nets
        for job in arms(task, size, net, effort, wanted)
    ]  # fmt: skip


def architecture(name: str, model: ModelConfig, *, steps: int, batch: int = 64) -> Architecture:
    """Return a network with SGD, or with AdamW where it is a transformer."""
    both: Any = {"lr": 0.02}, {"lr": 0.05}
    if model.name.startswith("timm/vit"):
        both = ({"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01},) * 2
    tuned, first = both
    return Architecture(
        name=name,
        model=model,
        optim=OptimConfig(**tuned, batch_size=32, epochs=1, schedule="cosine"),
        pretrain=PretrainConfig(**first, steps=steps, batch_size=batch),
    )


def _vit(side: int, patch: int) -> ModelConfig:
    shape = {"img_size": side, "patch_size": patch, "embed_dim": 64, "depth": 2, "num_heads": 4}
    return ModelConfig(name="timm/vit_tiny_patch16_224", options=shape)


def _smoke() -> list[Job]:
    task = coarse("digits", "digits", PAIRS, [30])
    effort = Effort(
        generator=GeneratorConfig(
            steps=60, batch_size=32, lr=3e-3, options={"latent": 4, "hidden": 64}
        ),
        classifier=ModelConfig(name="mlp", options={"widths": [64]}),
        classifier_steps=40,
        steps=20,
        ssl=SslConfig(ssl_warmup=5, ssl_batch=16),
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
    )
    return _tasks(
        [task],
        [architecture("conv_small", ModelConfig(name="conv_small"), steps=20, batch=16)],
        effort,
    )


def small() -> Effort:
    """Return what one core can spend on 28 pixels."""
    return Effort(
        generator=GeneratorConfig(
            steps=4000, batch_size=128, lr=1e-3, options={"latent": 8, "hidden": 512}
        ),
        classifier=ModelConfig(name="conv2", width=0.25),
        classifier_steps=600,
        steps=250,
        ssl=SslConfig(ssl_warmup=100, ssl_batch=64),
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
    )


def small_nets() -> list[Architecture]:
    """Return the target networks for 28 pixels that one core can train."""
    return [
        architecture("conv_small", ModelConfig(name="conv_small"), steps=1200),
        architecture("resnet8", ModelConfig(name="resnet8", width=0.5), steps=1200),
        architecture("vit", _vit(28, 4), steps=1200),
        architecture("mlp", ModelConfig(name="mlp"), steps=1200),
    ]


def small_tasks(runtime: RuntimeConfig) -> list[PseudoTask]:
    """Return the tasks of one core: pairs of digits to digits, letters to digits, digits to letters."""
    sizes: Any = {"source": 20_000, "test": 3_000}
    return [
        coarse("mnist", "mnist", PAIRS, [30], **sizes),
        letters([20], **sizes),
        foreign_digits([130], **sizes, runtime=runtime),
    ]


def _cpu() -> list[Job]:
    effort = small()
    conv, *others, mlp = small_nets()
    digits, first, _ = small_tasks(effort.runtime)
    every = (*HEADLINE, *ABLATIONS)
    return [
        *_tasks([digits], [conv], effort, every),
        *_tasks([digits], others, effort, HEADLINE),
        *_tasks([first], [conv], effort, every),
        *_tasks([first], [mlp], effort, HEADLINE),
    ]


def _seeds(job: Job) -> int:
    """Return eight seeds for pairs to digits, five for ablations, the ViT, and letters."""
    pairs = job.setting.startswith("coarse") and "/vit/" not in job.setting
    return 8 if pairs and job.arm not in ABLATIONS else 5


def _foreign() -> list[Job]:
    effort = small()
    conv = architecture("conv_small", ModelConfig(name="conv_small"), steps=400)
    return _tasks([small_tasks(effort.runtime)[2]], [conv], effort, HEADLINE)


def _gpu() -> list[Job]:
    """Every task and architecture, and CIFAR-10-JPEG: animals and vehicles to the ten classes."""
    groups = ((0, 8), (1, 9), (2, 6), (3, 5), (4, 7))
    cifar = coarse("cifar10_jpeg", "cifar10_jpeg", groups, [100, 1000])
    effort = Effort(
        generator=GeneratorConfig(
            kind="flow", steps=20_000, batch_size=256, lr=1e-3, options={"width": 96, "steps": 8}
        ),
        classifier=ModelConfig(name="resnet8"),
        classifier_steps=5_000,
        steps=2_000,
        ssl=SslConfig(ssl_warmup=400, ssl_batch=224),
        runtime=RuntimeConfig(accelerator="cuda", threads=4),
    )
    small = [
        architecture("mlp", ModelConfig(name="mlp"), steps=4_000, batch=256),
        architecture("conv_small", ModelConfig(name="conv_small"), steps=4_000, batch=256),
        architecture("resnet8", ModelConfig(name="resnet8"), steps=4_000, batch=256),
        architecture("vit", _vit(28, 4), steps=4_000, batch=256),
    ]
    large = [
        architecture("resnet20", ModelConfig(name="resnet20"), steps=10_000, batch=256),
        architecture("vit", _vit(32, 4), steps=10_000, batch=256),
    ]
    sizes = [20, 50, 200, 1000]
    flat = [
        letters(sizes, source=None, test=None),
        coarse("fashion", "fashion_mnist", KINDS, sizes),
    ]
    return [*_tasks(flat, small, effort), *_tasks([cifar], large, effort)]


def _paper() -> list[Job]:
    """The published form as far as it is known: ImageNet to a folder of few photos, three architectures."""
    source = DataConfig(name="imagenet", validation=0, image_size=64)
    photos = DataConfig(name="trashnet", validation=0, image_size=64)
    task = PseudoTask(
        name="imagenet_to_photos",
        source=SetConfig(data=source),
        tested=SetConfig(data=source, part="test"),
        target=SetConfig(data=photos),
        test=SetConfig(data=photos, part="test"),
        sizes=[100, 500],
    )
    effort = Effort(
        generator=GeneratorConfig(
            kind="flow", steps=400_000, batch_size=256, options={"width": 192, "steps": 16}
        ),
        classifier=ModelConfig(name="torchvision/resnet50"),
        classifier_steps=400_000,
        steps=20_000,
        ssl=SslConfig(ssl_warmup=2_000, ssl_batch=448),
        runtime=RuntimeConfig(accelerator="cuda"),
    )
    nets = [
        architecture(name.partition("/")[2], ModelConfig(name=name), steps=200_000, batch=256)
        for name in (
            "torchvision/resnet18",
            "torchvision/mobilenet_v3_large",
            "torchvision/efficientnet_b0",
        )
    ]
    return _tasks([task], nets, effort)

"""The arms of the recipe `pseudo`: PP, P-SSL, what they are held against, and the oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from regraft.config import (
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
    SslConfig,
)
from regraft.jobs.base import Job
from regraft.jobs.generate.foreign import ForeignClassifier, ForeignGenerator
from regraft.jobs.generate.generator import GeneratorJob
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.target import TargetJob
from regraft.recipes.notes import read_data


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """What somebody else trained of a source.

    Attributes:
        generator: Its generator, `package.module:factory`.
        classifier: Its classifier, likewise.
        weights: File of the weights of both, below the folder of the data sets.
    """

    generator: str
    classifier: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class PseudoTask:
    """A task: what there is of the source, and the target.

    Attributes:
        name: Name of the task.
        source: The source's images, which the generator and the classifier were trained on.
        tested: Images that the source classifier is measured on.
        target: All labelled images of the target.
        test: What results are measured on.
        foreign: Somebody's generator and classifier of the source, in the place of those trained here.
    """

    name: str
    source: SetConfig
    tested: SetConfig
    target: SetConfig
    test: SetConfig
    foreign: Foreign | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A target network, and by which optimiser it is trained and pretrained."""

    key: str
    name: str
    model: ModelConfig
    optim: OptimConfig
    pretrain: PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent."""

    key: str
    generator: GeneratorConfig
    classifier: ModelConfig
    classifier_steps: int
    steps: int
    ssl: SslConfig
    runtime: RuntimeConfig


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

    @classmethod
    def chosen(cls, task: str, net: str) -> ArmWeights:
        """Return what `chosen.toml` has for a task and a network."""
        return cls(**read_data(__package__ or "", "chosen.toml").get(task, {}).get(net, {}))


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
        weights: Weights of their losses; those that were chosen for the task and the network by default.
    """
    runtime = effort.runtime
    weights = weights or ArmWeights.chosen(task.name, net.name)
    setting = f"{task.name}/{net.name}/n={size}"
    artefacts: Any = {"setting": task.name, "runtime": runtime}
    foreign = task.foreign
    optim = OptimConfig(lr=0.02, batch_size=64, epochs=1, schedule="cosine")
    if foreign is not None:
        theirs: Any = {"weights": foreign.weights, "test": task.tested, **artefacts}
        generator = ForeignGenerator(
            arm="generator", factory=foreign.generator, images=task.source, **theirs
        )
        classifier = ForeignClassifier(
            arm="source_classifier", factory=foreign.classifier, **theirs
        )
        # It has no body to start a teacher from: that one's body learned from the generator.
        body = PretrainJob(
            arm="teacher_body",
            generator=generator,
            model=effort.classifier,
            pretrain=PretrainConfig(steps=effort.classifier_steps, lr=optim.lr),
            **artefacts,
        )
    else:
        generator = GeneratorJob(
            arm="generator", images=task.source, generator=effort.generator, **artefacts
        )
        body = classifier = TargetJob(
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

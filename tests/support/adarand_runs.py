"""Fine-tunings of the recipe `adarand` on digits, cut to a few steps."""

import dataclasses
import importlib
import json

from regraft.config import RuntimeConfig
from regraft.recipes.adarand.arms import transfer
from regraft.recipes.trials import Budget

module = importlib.import_module("regraft.recipes.adarand.recipe")

SMOKE = module.settings("smoke")[0].jobs()
SETTING = SMOKE[0].setting
CPU = RuntimeConfig(accelerator="cpu", threads=1)
QUICK = Budget(rates=(0.15,), fine=(0.05, 1e-9), seeds=(1001,))
SHORT = dataclasses.replace(SMOKE[0].task.optim, epochs=4)
PLAIN = next(job for job in SMOKE if job.arm == "plain").task
BRIEF = dataclasses.replace(PLAIN.source.optim, epochs=5)
TASK = dataclasses.replace(
    PLAIN,
    source=dataclasses.replace(PLAIN.source, optim=BRIEF),
    optim=SHORT,
    validation_images=60,
)


def quick(arms):
    return transfer(
        SETTING, TASK, arms, budget=QUICK, runtime=CPU, points={"plain": 2, "adarand": 2}
    )


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def link(sources, root, onto):
    for source in sources:
        target = source.folder(onto)
        target.parent.mkdir(parents=True)
        target.symlink_to(source.folder(root))

import numpy as np
from PIL import Image

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_task import TunedTask, Tuning


def test_a_run_that_diverges_on_a_folder_without_test_images_counts_as_guessing(tmp_path):
    data, draw = tmp_path / "pictures", np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        (data / name).mkdir(parents=True)
        for i in range(8):
            pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(data / name / f"{i}.png")
    task = TunedTask(
        data=DataConfig(name=str(data), validation=0.5, image_size=8),
        model=ModelConfig(name="mlp", options={"widths": [4]}),
        shots=2,
        validation_images=8,
        optim=OptimConfig(epochs=2, batch_size=4),
    )
    job = TunedJob(
        setting="folder",
        arm="plain",
        task=task,
        tuning=Tuning(method="plain", lr=1e30),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, seed=1),
    )
    metrics = job.run(tmp_path / "runs")["metrics"]
    assert (metrics["test_accuracy"], metrics["diverged"]) == (25.0, 1.0)

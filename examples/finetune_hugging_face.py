"""A fine-tuning method in the Trainer of Hugging Face.

python examples/finetune_hugging_face.py     # half a minute on one core; prints test accuracy

The network has random weights, so that nothing is downloaded; use `from_pretrained` for real use.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments

from regraft.features import AdaRand
from regraft.integrations.hugging_face import FinetuneTrainer


def main(epochs: int = 15) -> float:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    x, y = torch.nn.functional.interpolate(x, 32), torch.tensor(data.target)
    samples = [{"pixel_values": a, "labels": b} for a, b in zip(x, y, strict=True)]

    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1],
        layer_type="basic", num_labels=10,
    )  # fmt: skip
    model = ResNetForImageClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=50, learning_rate=2e-3,
            per_device_eval_batch_size=500, use_cpu=True, report_to=[], save_strategy="epoch",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = FinetuneTrainer(
            model=model,
            args=arguments,
            train_dataset=samples[:500],
            eval_dataset=samples[500:],
            compute_metrics=lambda found: {
                "accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())
            },
            method=AdaRand(weight=0.1),
        )
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"Hugging Face's Trainer: {accuracy:.1%} of the test images")
    return accuracy


if __name__ == "__main__":
    main()

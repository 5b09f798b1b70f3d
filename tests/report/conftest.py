import json

import pytest

from regraft.files import write_json


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run folder below `tmp_path / "runs"` and returns it."""

    def make(
        *,
        setting="digits/mlp/width=1",
        arm="iterand",
        control=None,
        seed=1,
        accuracy=90.0,
        finished=True,
        epochs=4,
        **result,
    ):
        folder = tmp_path / "runs" / setting.replace("/", "_") / arm.encode().hex()
        folder = folder / f"seed={seed}"
        folder.mkdir(parents=True)
        head = {"schema": 1, "setting": setting, "arm": arm, "control": control, "seed": seed}
        write(folder / "regraft.json", {**head, "digest": "0123456789abcdef", "config": {}})
        write(folder / "environment.json", {"torch": "2.11.0", "device": "cpu"})
        with (folder / "metrics.jsonl").open("w") as file:
            for epoch in range(1, epochs + 1):
                row = {"step": 10 * epoch, "epoch": epoch, "split": "validation"}
                row |= {"loss": 1 / epoch, "accuracy": accuracy * (1 - 0.5**epoch)}
                file.write(json.dumps(row) + "\n")
        if finished:
            metrics = {"test_accuracy": accuracy, "test_loss": 0.5}
            costs = {"seconds": 10.0, "trainable_parameters": 1000, "stored_bytes": 500}
            write(folder / "result.json", {"schema": 1, "metrics": metrics, **costs, **result})
        return folder

    return make


@pytest.fixture
def comparison(make_run, tmp_path):
    """Write 2 settings x 2 arms x 3 seeds, and one unfinished run; return their folder."""
    for width in ("0.5", "1"):
        for seed in (1, 2, 3):
            common = {"setting": f"digits/mlp/width={width}", "seed": seed}
            base = 80 + 5 * float(width) + 0.3 * seed**2
            make_run(arm="iterand", control="edge_popup", accuracy=base + 1 + 0.1 * seed, **common)
            make_run(arm="edge_popup", accuracy=base, **common)
    make_run(setting="digits/mlp/width=1", arm="edge_popup", seed=4, finished=False, epochs=2)
    return tmp_path / "runs"


def write(path, data):
    write_json(path, data)

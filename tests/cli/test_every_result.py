"""What every verb leaves is opened by `predict` and `evaluate`, or they name the verb that takes it.

Folders and files have spaces in their names, and every next command works as it is printed.
"""

import json
import shlex

import pytest
import torch

from regraft.report.picture import png

CPU = ("--accelerator", "cpu", "--threads", 1)
SMALL = (
    "--model", "mlp", "--model-options", json.dumps({"widths": [16], "norm": "none"}), "--channels", 1,
    "--image-size", 8, *CPU,
)  # fmt: skip
SEARCH = ("ticket", "find", "--data", "my pictures", *SMALL, "--epochs", 2, "--out")
DENSE = (*SEARCH[:-1], "--method", "dense", "--out")


@pytest.fixture
def pictures(tmp_path):
    """A folder of small grey pictures, six classes of eight: a bright square at a place of its own."""
    for label in range(6):
        folder = tmp_path / "my pictures" / f"k{label}"
        folder.mkdir(parents=True)
        for i in range(8):
            noise = torch.Generator().manual_seed(100 * label + i)
            pixels = torch.randint(0, 90, (8, 8, 1), generator=noise, dtype=torch.uint8)
            row, column = divmod(label, 3)
            pixels[4 * row : 4 * row + 3, 3 * column : 3 * column + 2] += 150
            (folder / f"{i}.png").write_bytes(png(pixels))
            if label < 2:
                new = tmp_path / "new ones" / f"k{label}"
                new.mkdir(parents=True, exist_ok=True)
                (new / f"{i}.png").write_bytes(png(pixels))


A, B = "runs/net a", "runs/net b"
NEEDED = {A: (*DENSE, A), B: (*DENSE, B, "--seed", 2)}
RECORD = (*DENSE[:-1], "--record", "--out")
MERGE = ("--data", "my pictures", "--points", 0, "--seed", 3, *CPU)
TRANSFER = (
    "--from-init", f"{A}/model.safetensors", "--from-final", f"{B}/model.safetensors",
    "--match", "naive", "--points", 0, "--plane-points", 0, *CPU,
)  # fmt: skip
FEWSHOT = (
    "fewshot", "train", "--data", "my pictures", "--model", "mlp", "--model-options",
    json.dumps({"widths": [16], "norm": "batch"}), "--channels", 1, "--image-size", 8, "--ways", 2,
    "--shots", 2, "--steps", 3, "--test-tasks", 4, "--accelerator", "cpu",
)  # fmt: skip
GENERATOR = ("foreign_generators:digits", *CPU)

# Of each verb: the command, what it needs before, and of what it leaves the verb that is named, None
# where it is opened.
VERBS = {
    "finetune": (
        ("finetune", "--data", "my pictures", *SMALL, "--method", "plain", "--lr", 0.1, "--epochs", 1,
         "--out", "runs/tuned one"), (), {"runs/tuned one": None}),
    "ticket": ((*SEARCH, "runs/a ticket"), (), {
        "runs/a ticket": "regraft ticket run", "runs/a ticket/model.ticket": "regraft ticket run"}),
    "dense": ((*DENSE, A), (), {A: None, f"{A}/model.safetensors": None}),
    "record": ((*RECORD, "runs/way"), (), {
        "runs/way": None, "runs/way/trajectory": "regraft transfer"}),
    "bake": (("ticket", "bake", "runs/t", "--out", "runs/ba ked.safetensors"),
             ((*SEARCH, "runs/t"),), {"runs/ba ked.safetensors": None}),
    "unpack": (("ticket", "unpack", "runs/t", "--out", "runs/un packed"),
               ((*SEARCH, "runs/t"),), {"runs/un packed": "regraft ticket pack"}),
    "pack": (("ticket", "pack", "runs/t", "--out", "runs/a file.ticket"),
             ((*SEARCH, "runs/t"),), {"runs/a file.ticket": "regraft ticket run"}),
    "merge": (("merge", A, B, *MERGE, "--out", "runs/mer ged"), NEEDED.values(),
              {"runs/mer ged": None, "runs/mer ged/spec.json": "regraft align",
               "runs/mer ged/permutation.safetensors": "regraft align"}),
    "align": (("align", A, B, *CPU, "--out", "runs/ali gned"), NEEDED.values(),
              {"runs/ali gned": "regraft align", "runs/ali gned/aligned.safetensors": None}),
    "transfer": (("transfer", *TRANSFER, "--to", f"{B}/model.safetensors", "--out", "runs/car ried"),
                 NEEDED.values(), {"runs/car ried": None, "runs/car ried/model.safetensors": None}),
    "condense": (
        ("condense", "--data", "my pictures", *SMALL, "--per-class", 1, "--restarts", 1, "--outer", 1,
         "--inner", 0, "--real-batch", 4, "--out", "runs/con densed"), (),
        {"runs/con densed": "regraft condense",
         "runs/con densed/condensed.safetensors": "regraft condense"}),
    "synth make": (("synth", "make", *GENERATOR, "--count", 20, "--out", "runs/a bank"), (),
                   {"runs/a bank": "regraft pretrain"}),
    "pretrain": (
        ("pretrain", "--source", "runs/bank", "--steps", 2, "--batch-size", 8, "--model", "conv_small",
         "--width", 0.25, *CPU, "--out", "runs/pre trained"),
        (("synth", "make", *GENERATOR, "--count", 40, "--out", "runs/bank"),),
        {"runs/pre trained": None}),
    "fewshot train": ((*FEWSHOT, "--method", "maml", "--out", "runs/a learner"), (), {
        "runs/a learner": "regraft fewshot adapt",
        "runs/a learner/model.safetensors": "regraft fewshot adapt"}),
    "fewshot ticket": ((*FEWSHOT, "--method", "meta-ticket", "--out", "runs/meta ticket"), (), {
        "runs/meta ticket": "regraft fewshot adapt",
        "runs/meta ticket/model.ticket": "regraft fewshot adapt"}),
    "fewshot adapt": (("fewshot", "adapt", "runs/learner", "new ones", "--out", "runs/new classes"),
                      ((*FEWSHOT, "--method", "maml", "--out", "runs/learner"),),
                      {"runs/new classes": None}),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_result_is_opened_or_its_verb_is_named(regraft, pictures, verb):
    command, before, results = VERBS[verb]
    for needed in before:
        assert regraft(*needed)[0] == 0, needed
    code, text, err = regraft(*command)
    assert code == 0, err
    for result, named in results.items():
        known = {"pretrain": "digits", "fewshot adapt": "new ones"}.get(verb, "my pictures")
        for words in (("predict", result, "my pictures/k1"), ("evaluate", result, "--data", known)):
            code, said, err = regraft(*words)
            if named is None:
                assert (code, bool(said)) == (0, True), err
            else:
                assert (code, err.count("\n")) == (2, 1), (said, err)
                assert f"`{named}" in err
                assert " -> " not in err
    for line in text.splitlines():
        if line.startswith("next: "):
            words = shlex.split(line.removeprefix("next: regraft "))
            stand = {"IMAGES": "my pictures/k1", "LABELLED": "my pictures", "SUPPORT": "new ones"}
            stand["FILE"] = f"{B}/model.safetensors"
            if "FILE" in words:
                assert regraft(*NEEDED[B])[0] == 0
            # Shorter than a user's: the default budget of a fine-tuning is minutes.
            less = ("--trials", 1, "--epochs", 1, *CPU) if words[0] == "finetune" else ()
            code, _, err = regraft(*(stand.get(word, word) for word in words), *less)
            assert code == 0, (line, err)

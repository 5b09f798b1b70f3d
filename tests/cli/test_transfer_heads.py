import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transfers import WIDE, about, run

from regraft import streams
from regraft.files import write_tensors
from regraft.symmetry.spec.spec import PermutationSpec

HEAD = ("head.weight", "head.bias")


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Two bases of five classes, and the first of them fine-tuned on all ten."""
    root = tmp_path_factory.mktemp("releases")
    old, new = (run(root / n, s, classes=5) for n, s in (("old", 1), ("new", 2)))
    start = load_file(old / "final.safetensors")
    tuned = run(root / "tuned", 3, start=start, every=20)
    return old / "final.safetensors", new / "final.safetensors", tuned


def drawn(seed, which):
    """The new heads: uniform on one over the root of the inputs, 48."""
    found = {}
    for name, shape in zip(HEAD, ((10, 48), (10,)), strict=True):
        n = torch.Size(shape).numel()
        values = streams.uniform(seed, f"transfer.head/{name}", which, n)
        found[name] = values.reshape(shape) / 48**0.5
    return found


def test_bases_of_other_classes_get_new_heads_from_which_the_change_counts(
    answer, releases, tmp_path
):
    old, new, tuned = releases
    found = answer(
        "transfer", "--from-init", old, "--from-final", tuned / "final.safetensors", "--to", new,
        "--data", "digits", "--out", "out", "--trajectory-steps", "4", "--points", "0", "--seed", "7",
    )  # fmt: skip
    (told,) = (note for note in found["notes"] if "classifier" in note)
    assert f"{old} (5 rows) and {new} (5 rows) have another classifier" in told
    assert f"than {tuned / 'final.safetensors'} (10 rows)" in told
    assert "--seed 7" in told
    assert told in (tmp_path / "out/README.md").read_text()
    spec = PermutationSpec.from_json((tmp_path / "out/spec.json").read_text())
    permutation = load_file(tmp_path / "out/permutation.safetensors")
    before = {**load_file(old), **drawn(7, 0)}
    after, start = load_file(tuned / "final.safetensors"), {**load_file(new), **drawn(7, 1)}
    moved = spec.apply({k: after[k] - before[k] for k in after}, permutation)
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(torch.allclose(written[k], start[k] + moved[k], atol=1e-6) for k in written)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        said = json.loads(file.metadata()["regraft.model"])
    assert said["classes"] == about()["classes"]
    scores = {k: v["test_accuracy"] for k, v in found["scores"].items()}
    assert scores["fgmt, final step (4)"] > scores["target, untrained"] + 20


def test_a_recorded_fine_tuning_needs_a_new_head_for_the_target_alone(answer, releases, tmp_path):
    _, new, tuned = releases
    found = answer(
        "transfer", tuned / "run", "--to", new, "--match", "naive", "--out", "out", "--seed", "7",
    )  # fmt: skip
    (told,) = (note for note in found["notes"] if "classifier" in note)
    assert told.startswith(f"{new} (5 rows) has another classifier")
    before, after = (load_file(tuned / f"{n}.safetensors") for n in ("init", "final"))
    written = load_file(tmp_path / "out/model.safetensors")
    start = {**load_file(new), **drawn(7, 1)}
    assert all(
        torch.allclose(written[k], start[k] + after[k] - before[k], atol=1e-6) for k in start
    )


def test_another_body_is_no_other_head(refused, releases, tmp_path):
    old, new, tuned = releases
    state = load_file(new)
    state["features.1.weight"] = state["features.1.weight"][:-1].clone()
    header = {"regraft.model": json.dumps(about(WIDE, 5))}
    write_tensors(tmp_path / "other.safetensors", state, header)
    told = refused(
        "transfer", "--from-init", old, "--from-final", tuned / "final.safetensors", "--to",
        tmp_path / "other.safetensors", "--data", "digits", "--out", "out",
    )  # fmt: skip
    assert "features.1.weight has shape (63, 64), expected (64, 64)" in told
    # A target that is tuned already is no base, and gets no new head.
    told = refused(
        "transfer", tuned / "run", "--to", tuned / "init.safetensors", "--to-final", new, "--match",
        "naive", "--out", "out",
    )  # fmt: skip
    assert "head.bias has shape (5,), expected (10,)" in told

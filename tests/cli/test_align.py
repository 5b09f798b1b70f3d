import json

import pytest
import torch
from checkpoints import CONV, checkpoint, trained
from safetensors import safe_open
from safetensors.torch import load_file

from regraft.cli.align import Align
from regraft.errors import InputError
from regraft.models import build
from regraft.symmetry.spec import PermutationSpec


@pytest.fixture
def run(tmp_path, capsys):
    def call(paths, **options):
        options = {"out": tmp_path / "out", "json": True, **options}
        assert Align(checkpoints=tuple(paths), **options).run() == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return call


def outputs(state):
    model = build(CONV, num_classes=10, channels=1, image_size=8)
    model.load_state_dict(state)
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.eval()(x)


def test_what_is_aligned_computes_the_same_and_lies_closer(run, tmp_path):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    card = run(paths)
    a, b = (trained("conv", i)[0] for i in (1, 2))
    found = load_file(tmp_path / "out" / "aligned.safetensors")
    torch.testing.assert_close(outputs(found), outputs(b), rtol=1e-4, atol=1e-4)
    names = [k for k in a if "weight" in k]
    before, after = (sum(float((a[k] * s[k]).sum()) for k in names) for s in (b, found))
    assert after > before
    spec = PermutationSpec.from_json((tmp_path / "out" / "spec.json").read_text())
    moved = spec.apply(b, load_file(tmp_path / "out" / "permutation.safetensors"))
    assert all(torch.equal(moved[k], v) for k, v in found.items())
    assert card["notes"] == []
    assert set(card["files"]) == {
        "aligned.safetensors", "permutation.safetensors", "spec.json", "README.md", "card.json"
    }  # fmt: skip
    with safe_open(tmp_path / "out" / "aligned.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["regraft.model"])
    assert about == trained("conv", 2)[1] | {"model": about["model"], "input": about["input"]}


def test_several_models_and_a_spec_of_before(run, tmp_path):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2, 3)]
    run(paths[:2])
    card = run(paths, out=tmp_path / "more", spec=tmp_path / "out" / "spec.json")
    names = {f"{k}-{i}.safetensors" for k in ("aligned", "permutation") for i in (2, 3)}
    assert names <= set(card["files"])
    for i in (2, 3):
        found = load_file(tmp_path / "more" / f"aligned-{i}.safetensors")
        torch.testing.assert_close(
            outputs(found), outputs(trained("conv", i)[0]), rtol=1e-4, atol=1e-4
        )
    run(paths[:2], out=tmp_path / "again", spec=tmp_path / "out" / "spec.json")
    first = load_file(tmp_path / "out" / "aligned.safetensors")
    second = load_file(tmp_path / "again" / "aligned.safetensors")
    assert all(torch.equal(first[k], v) for k, v in second.items())


def test_classifiers_may_differ(run, tmp_path):
    halves = [(0, 1, 2), (3, 4, 5, 6, 7)]
    paths = [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, half) for i, half in enumerate(halves)
    ]
    for given in (paths, paths[::-1]):
        run(given, out=tmp_path / given[0].stem / "out")
        classes = halves[int(given[1].stem)]
        found = load_file(tmp_path / given[0].stem / "out" / "aligned.safetensors")
        own = trained("conv", int(given[1].stem), classes)[0]
        assert found["head.bias"].shape == (len(classes),)
        assert torch.equal(found["head.bias"], own["head.bias"])
        x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        pair = []
        for state in (found, own):
            model = build(CONV, num_classes=len(classes), channels=1, image_size=8)
            model.load_state_dict(state)
            pair.append(model.eval()(x))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


def test_a_spec_of_another_network_is_refused(run, tmp_path):
    conv = [checkpoint(tmp_path / f"c{i}.safetensors", "conv", i) for i in (1, 2)]
    mlp = [checkpoint(tmp_path / f"m{i}.safetensors", "mlp", i) for i in (1, 2)]
    run(conv)
    with pytest.raises(InputError, match=r"m1.safetensors has no tensor 'features.0.weight'"):
        run(mlp, out=tmp_path / "no", spec=tmp_path / "out" / "spec.json")
    assert not (tmp_path / "no").exists()


def test_a_finished_folder_is_left_and_a_merge_of_the_same_is_refused(run, tmp_path, capsys):
    from regraft.cli.merge import Merge

    paths = [checkpoint(tmp_path / f"{i}.safetensors", "conv", i) for i in (1, 2)]
    assert run(paths) == run(paths)
    assert Align(checkpoints=tuple(paths), out=tmp_path / "out").run() == 0
    assert "is finished already" in capsys.readouterr().out
    with pytest.raises(InputError, match="is of another command"):
        Merge(checkpoints=tuple(paths), out=tmp_path / "out").run()


def test_nothing_to_align_by_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="--match none aligns nothing"):
        run([tmp_path / "a", tmp_path / "b"], match="none")

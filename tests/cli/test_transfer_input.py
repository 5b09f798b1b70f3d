import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transfers import about, between, rewritten, run

from checkpoints import checkpoint


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(root / "a", 1, every=1), run(root / "b", 2)


def test_wrong_input_is_refused_in_one_sentence(refused, runs, tmp_path):
    a, b = runs
    init, final, to = a / "init.safetensors", a / "final.safetensors", b / "init.safetensors"
    out = ("--out", "out", "--data", "digits")
    for words, message in (
        ((), "source: give the folder of one recorded trajectory"),
        ((a / "run", "--from-init", init), "source: give the folder of one recorded trajectory"),
        (("--from-init", init), "--from-final is missing"),
        ((a / "run", "--match", "oracle"), "add --to-final"),
        ((a / "run", "--trajectory-steps", "0"), "--trajectory-steps 0: expected at least 1"),
        ((a / "run", "--trajectory-steps", "9"), "steps=9: the trajectory has 6 states"),
        ((a / "run", "--points", "1"), "--points 1"),
        ((a / "run", "--lr", "nan"), "--lr nan"),
        ((tmp_path,), "is no recorded trajectory"),
    ):
        assert message in refused("transfer", *words, "--to", to, *out)
        assert not (tmp_path / "out").exists()
    assert "add --data" in refused("transfer", a / "run", "--to", to, "--out", "out")
    other = checkpoint(tmp_path / "other.safetensors", "mlp")
    told = refused("transfer", a / "run", "--to", other, *out)
    assert "features.1.bias has shape (24,), expected (64,)" in told
    few = checkpoint(tmp_path / "few.safetensors", "mlp", classes=(0, 1, 2))
    told = refused("transfer", "--from-init", few, "--from-final", few, "--to", few, *out)
    assert "10 classes" in told
    dead = load_file(to)
    for name in ("features.1.bias", "features.3.bias"):
        dead[name] -= 1e3
    save_file(dead, tmp_path / "dead.safetensors")
    assert "a dead network" in refused(
        "transfer", "--from-init", init, "--from-final", final, "--to", tmp_path / "dead.safetensors",
        *out,
    )  # fmt: skip


@pytest.mark.filterwarnings("default:.*cut short")
def test_a_cut_recording_is_refused_or_used_and_told(refused, regraft, tmp_path):
    folder = run(tmp_path / "c", 3, epochs=3, every=1, finish=False)
    words = ("transfer", folder / "run", "--to", folder / "init.safetensors", "--match", "naive")
    said = "was cut short: it was not finished; whole up to step 3 (3 states)"
    told = refused(*words, "--out", "out")
    assert f"{said}: go on with the run, or add --cut warn to carry over what is whole" in told
    assert not (tmp_path / "out").exists()
    code, out, err = regraft(*words, "--out", "out", "--cut", "warn")
    assert code == 0
    assert f"{said}, which is used" in err
    assert "steps 1 to 3" in out
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert any(said in note for note in card["notes"])
    assert said in (tmp_path / "out/README.md").read_text()
    code, out, err = regraft(*words, "--out", "silent", "--cut", "use")
    assert code == 0
    assert said not in out + err

    # A file of the recording that was cut short is seen as well.
    last = folder / "run/step-00000003.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    assert "step-00000003.safetensors has" in refused(*words, "--out", "cut")


def test_classes_of_the_data_must_be_those_of_the_checkpoints_or_count_by_number(
    answer, refused, runs, tmp_path
):
    a, b = runs
    names = [f"animal {i}" for i in range(10)]
    strange = rewritten(
        a / "init.safetensors", tmp_path / "s.safetensors", about() | {"classes": names}
    )
    final = a / "final.safetensors"
    source = ("--from-init", strange, "--from-final", final)
    rest = ("--to", b / "init.safetensors", "--out", "out", "--data", "digits", "--trajectory-steps", "2",
            "--points", "0")  # fmt: skip
    told = refused("transfer", *source, *rest)
    assert f"data digits has the class '0' and {strange} is of animal 0, animal 1" in told
    assert "--labels by-number" in told
    assert not (tmp_path / "out").exists()
    # The target's own names count no less than the source's.
    onto = ("transfer", *between(a, b)[:4], "--to", strange, *rest[2:])
    assert f"{strange} is of animal 0" in refused(*onto)
    found = answer("transfer", *source, *rest, "--labels", "by-number")
    plain = answer("transfer", *between(a, b), *rest[2:3], "plain", *rest[4:])
    assert found["scores"] == plain["scores"]

    # By name where the names are in another order, by number where that is asked for.
    turned = about() | {"classes": [str(i) for i in reversed(range(10))]}
    paths = [rewritten(p, tmp_path / f"t{i}.safetensors", turned)
             for i, p in enumerate((a / "init.safetensors", final, b / "init.safetensors"))]  # fmt: skip
    words = ("transfer", "--from-init", paths[0], "--from-final", paths[1], "--to", paths[2], "--match",
             "naive", *rest[4:])  # fmt: skip
    by_name = answer(*words, "--out", "name")["scores"]["source, trained"]["test_accuracy"]
    by_number = answer(*words, "--out", "number", "--labels", "by-number")["scores"]
    assert by_name < 30
    assert by_number["source, trained"] == plain["scores"]["source, trained"]


def test_a_buffer_is_no_weight_and_stays_the_targets_own(answer, tmp_path):
    (tmp_path / "shifted_net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Shift(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('by', torch.zeros(()))\n\n"
        "    def forward(self, x):\n"
        "        return x + self.by\n\n"
        "def net(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), Shift(), nn.Linear(in_channels * image_size**2, 8),\n"
        "                         nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    generator = torch.Generator().manual_seed(0)
    shapes = {"2.weight": (8, 64), "2.bias": (8,), "4.weight": (10, 8), "4.bias": (10,)}
    states = {}
    for name, by in (("a", 1.0), ("b", 3.0), ("c", 0.5)):
        states[name] = {k: torch.randn(s, generator=generator) / 8 for k, s in shapes.items()}
        states[name]["1.by"] = torch.tensor(by)
        save_file(states[name], tmp_path / f"{name}.safetensors")
    answer(
        "transfer", "--from-init", "a.safetensors", "--from-final", "b.safetensors", "--to",
        "c.safetensors", "--model", "shifted_net:net", "--data", "digits", "--out", "out", "--match",
        "naive", "--trajectory-steps", "2", "--points", "0",
    )  # fmt: skip
    written = load_file(tmp_path / "out/model.safetensors")
    assert written["1.by"] == 0.5
    a, b, c = states.values()
    torch.testing.assert_close(written["4.bias"], c["4.bias"] + b["4.bias"] - a["4.bias"])

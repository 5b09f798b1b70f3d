import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from regraft._extras import EXTRAS
from regraft.config import DataConfig, ModelConfig
from regraft.data import load
from regraft.models import build
from regraft.tickets import named_masks, prepare
from regraft.train import load_state

QUICK = ("--epochs", 1, "--train-size", 100, "--batch-size", 20, "--width", 0.5, "--every", 2)
LAWS = ("signed_kaiming_constant", "kaiming_normal")


@pytest.fixture
def run_folder(answer, tmp_path):
    answer("ticket", "find", "--out", tmp_path / "run", *QUICK)
    return tmp_path / "run"


def test_doctor_lists_versions_device_and_extras(answer, regraft):
    found = answer("doctor")
    assert found["core"]["torch"] == torch.__version__.partition("+")[0]
    assert set(EXTRAS) == found["extras"].keys()
    for name, extra in found["extras"].items():
        assert extra["install"] == f"pip install 'regraft[{name}]'"
        assert extra["missing"] == [p for p, v in extra["versions"].items() if v is None]
    code, out, err = regraft("doctor")
    assert (code, err) == (0, "")
    for said in (f"regraft {found['regraft']}", found["core"]["torch"], found["data_root"]):
        assert said in out


def test_doctor_gives_the_install_line_of_what_is_missing(answer, regraft, monkeypatch):
    monkeypatch.setattr("regraft.cli.doctor._version", lambda p: None if p == "timm" else "1.0")
    extra = answer("doctor")["extras"]["vision"]
    assert extra["missing"] == ["timm"]
    assert "pip install 'regraft[vision]'" in regraft("doctor")[1]


def test_doctor_and_commands_name_what_is_installed_and_cannot_be_imported(tmp_path):
    broken = tmp_path / "broken" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    paths = [str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    code = (
        "import sys; from regraft.cli import main; main(['doctor', '--json']); "
        "sys.exit(main(['ticket', 'find', '--model', 'timm/resnet10t']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    vision = json.loads(done.stdout)["extras"]["vision"]
    assert "--force-reinstall torch torchvision" in vision["broken"]["torchvision"]
    assert done.returncode == 3
    assert "needs torchvision, which is installed but cannot be imported" in done.stderr
    assert "RuntimeError: operator nms does not exist" in done.stderr


def test_the_readme_and_the_packaging_know_every_extra():
    root = Path(__file__).parents[2]
    told = (root / "README.md").read_text(encoding="utf-8")
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = packaged["optional-dependencies"].keys() - {"all", "dev"}
    assert extras == set(EXTRAS)
    assert not [name for name in extras if f"`{name}`" not in told]


def test_data_list_shows_what_is_here(answer, regraft, tmp_path):
    (tmp_path / "sets" / "FashionMNIST").mkdir(parents=True)
    sets = {s["name"]: s for s in answer("data", "list", "--data-root", tmp_path / "sets")["sets"]}
    assert sets["digits"] == {"name": "digits", "present": True, "folder": None}
    assert sets["kmnist"]["present"] is False
    assert sets["kmnist"]["folder"] == str(tmp_path / "sets" / "KMNIST")
    out = regraft("data", "list")[1]
    assert all(name in out for name in sets)


def test_data_get_of_what_needs_no_download_returns_at_once(regraft):
    code, out, err = regraft("data", "get", "digits")
    assert (code, err) == (0, "")
    assert "digits" in out


@pytest.mark.parametrize("law", LAWS)
def test_what_is_found_is_inspected_and_baked_into_equal_logits(law, answer, regraft, tmp_path):
    run = tmp_path / "run"
    found = answer("ticket", "find", "--out", run, *QUICK, "--weight-init", law, "--sparsity", 0.6)
    assert found["stored_bytes"] == (run / "model.ticket").stat().st_size

    seen = answer("ticket", "inspect", run / "model.ticket")
    assert seen == answer("ticket", "inspect", run)
    assert (seen["method"], seen["data"], seen["bytes"]) == (
        "iterand",
        "digits",
        found["stored_bytes"],
    )
    assert sum(seen["parts"].values()) == seen["bytes"]
    assert {m["init"] for m in seen["masks"]} == {law}
    assert all(m["sparsity"] == pytest.approx(0.6, abs=0.01) for m in seen["masks"])
    assert sum(torch.Size(m["shape"]).numel() for m in seen["masks"]) == seen["weights"]
    code, out, _ = regraft("ticket", "inspect", run)
    assert code == 0
    assert all(m["name"] in out for m in seen["masks"])

    baked = answer("ticket", "bake", run, "--out", tmp_path / "m.safetensors")
    assert baked["bytes"] == (tmp_path / "m.safetensors").stat().st_size
    config = ModelConfig(**seen["model"])
    plain = build(config, num_classes=10, channels=1, image_size=8)
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = load(DataConfig()).train.images[:64].float() / 16
    with torch.no_grad():
        logits = plain.eval()(x)
        assert torch.equal(logits, masked_model(run, config).eval()(x))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["regraft.model"])
    assert len(about["classes"]) == 10


def masked_model(run, config):
    """Return the network as the search left it, from its checkpoint."""
    from regraft.config import TicketConfig

    model = build(config, num_classes=10, channels=1, image_size=8)
    arm = prepare(model, TicketConfig(), seed=9, steps=1)
    arm.model.load_state_dict(load_state(run / "checkpoint.safetensors")["model"])
    assert any(True for _ in named_masks(arm.model))
    return arm.model


def test_the_same_command_again_only_reads_the_result(answer, run_folder, tmp_path, monkeypatch):
    def train(*_args, **_options):
        raise AssertionError("trained again")

    before = {p: p.read_bytes() for p in run_folder.iterdir()}
    monkeypatch.setattr("regraft.jobs.train.fit", train)
    monkeypatch.setattr("regraft.jobs.data.load", train)
    found = answer("ticket", "find", "--out", run_folder, *QUICK)
    assert found["metrics"] == json.loads((run_folder / "result.json").read_text())["metrics"]
    assert {p: p.read_bytes() for p in run_folder.iterdir()} == before


def test_a_search_for_a_person_ends_with_accuracy_and_the_ticket(regraft, tmp_path):
    code, out, err = regraft("ticket", "find", "--out", tmp_path / "run", *QUICK)
    assert code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"test accuracy: {result['metrics']['test_accuracy']:.2f}%" in out
    assert str(tmp_path / "run" / "model.ticket") in out
    assert "5/5" in err


@pytest.mark.parametrize("method", ["dense", "random_mask_trained", "random_mask", "edge_popup"])
def test_controls_are_found_the_same_way(method, answer, tmp_path):
    found = answer("ticket", "find", "--out", tmp_path / "run", *QUICK, "--method", method)
    assert found["method"] == method
    assert (found["trainable_parameters"] == 0) == (method == "random_mask")
    stored = "model.ticket" if method in ("random_mask", "edge_popup") else "model.safetensors"
    assert (tmp_path / "run" / stored).exists()


@pytest.mark.slow
def test_two_processes_speak_with_one_voice(tmp_path):
    words = [*map(str, QUICK), "--out", str(tmp_path / "run"), "--devices", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "regraft.cli", "ticket", "find", *words, "--accelerator", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "run" / "model.ticket").stat().st_size
    assert json.loads(done.stdout)["stored_bytes"] == size


def test_any_factory_on_any_folder_of_images(answer, factory, image_folder, tmp_path):
    words = ("--data", image_folder, "--image-size", 8, "--model", f"{factory}:small")
    found = answer("ticket", "find", "--out", tmp_path / "run", *words, "--epochs", 1)
    assert found["metrics"].keys() >= {"validation_accuracy"}
    seen = answer("ticket", "inspect", tmp_path / "run")
    assert seen["classes"] == ["ant", "bee", "cat"]
    assert [m["shape"] for m in seen["masks"]] == [[16, 192], [3, 16]]
    mine = ("--model", f"{factory}:small")
    answer("ticket", "bake", tmp_path / "run", "--out", tmp_path / "m.safetensors", *mine)
    assert load_file(tmp_path / "m.safetensors")["1.weight"].eq(0).float().mean() == 0.5


def test_a_timm_model_on_a_folder_of_images(answer, image_folder, tmp_path):
    pytest.importorskip("timm")
    words = ("--data", image_folder, "--image-size", 32, "--model", "timm/resnet18")
    found = answer("ticket", "find", "--out", tmp_path / "run", *words, "--epochs", 1)
    weights = answer("ticket", "inspect", tmp_path / "run")["weights"]
    assert found["trainable_parameters"] == weights > 11_000_000
    assert found["stored_bytes"] < 4 * weights / 10


def test_report_makes_a_table_and_a_page(answer, regraft, run_folder, tmp_path):
    other = tmp_path / "dense"
    answer("ticket", "find", "--out", other, *QUICK, "--method", "dense")
    found = answer("report", run_folder, other, "--out", tmp_path / "page.html", "--title", "Mine")
    assert found["page"] == str(tmp_path / "page.html")
    assert {row["arm"] for row in found["rows"]} == {"iterand", "dense"}
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page
    assert "Mine" in page
    assert "http-equiv" not in page
    code, out, err = regraft("report", tmp_path, "--out", tmp_path / "page.html")
    assert (code, err) == (0, "")
    assert "iterand" in out
    assert "dense" in out
    assert "page.html" in out

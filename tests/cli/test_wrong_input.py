import json
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.cli import _warnings_in_one_line, main
from regraft.cli.doctor import Doctor
from regraft.config import ModelConfig
from regraft.models import build

QUICK = ("--epochs", 1, "--train-size", 40, "--model", "mlp")


@pytest.fixture
def refused(regraft):
    """Run a command that must fail and return its one sentence."""

    def run(*words, code=2):
        got, out, err = regraft(*words)
        assert (got, out) == (code, ""), err
        assert err.startswith("regraft: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def find_refused(refused, tmp_path):
    """Run `ticket find` on something unusable; a corrected command may have the folder."""

    def run(*words, code=2):
        said = refused("ticket", "find", "--out", tmp_path / "run", *words, code=code)
        assert not (tmp_path / "run").exists()
        return said

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "conv_smal"], "did you mean 'conv_small'?"),
        (["--data", "digit"], "did you mean 'digits'?"),
        (["--data", "no/such/folder"], "no/such/folder does not exist"),
        (["--sparsity", "1.5"], "--sparsity 1.5: expected a share in [0, 1]"),
        (["--sparsity=-0.1"], "--sparsity -0.1: expected"),
        (["--sparsity", "nan"], "--sparsity nan: expected"),
        (["--lr=-0.1"], "--lr -0.1: expected a finite number above 0"),
        (["--lr", "nan"], "--lr nan: expected"),
        (["--lr", "inf"], "--lr inf: expected"),
        (["--epochs", "0"], "--epochs 0: expected at least 1"),
        (["--epochs", "2", "--warmup-epochs", "2"], "leave none between them"),
        (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
        (["--accumulate", "0"], "--accumulate 0: expected at least 1"),
        (["--weight-decay=-1"], "--weight-decay -1.0: expected"),
        (["--clip-norm", "0"], "--clip-norm 0.0: expected a finite number above 0"),
        (["--every", "0"], "--every 0: expected at least 1"),
        (["--rate", "2"], "--rate 2.0: expected a share in [0, 1]"),
        (["--anneal", "2"], "--anneal 2.0: expected"),
        (["--penalty", "nan"], "--penalty nan: expected"),
        (["--width", "0"], "--width 0.0: expected"),
        (["--threads", "0"], "--threads 0: expected at least 1"),
        (["--validation", "1"], "--validation 1.0: expected a number in [0, 1)"),
        (["--train-size", "0"], "--train-size 0: expected at least 1"),
        (["--train-size", "10", "--shots", "1"], "exclude each other"),
        (["--image-size", "0"], "--image-size 0: expected at least 1"),
        (["--model-options", "{depth: 3}"], "--model-options is no JSON object"),
        (["--model-options", "[3]"], "--model-options is no JSON object"),
        (["--model-options", '{"dept": 3}'], "dept"),
        (["--model", "no_such_module:net"], "'no_such_module' cannot be imported"),
        (["--model", "json:network"], "json has no 'network'"),
        (["--method", "shuffled_mask"], "takes a finished run for its source"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_arguments_of_a_search(words, said, find_refused):
    assert said in find_refused(*words)


def test_a_factory_that_raises_or_gives_nothing_to_mask(find_refused, factory):
    said = find_refused("--model", f"{factory}:broken")
    assert "could not be built (RuntimeError: no luck today)" in said
    assert "no maskable weight" in find_refused("--model", f"{factory}:NoWeight")


def test_a_refused_command_leaves_an_older_folder_alone(refused, tmp_path):
    (tmp_path / "run").mkdir()
    refused("ticket", "find", "--out", tmp_path / "run", "--model", "conv_smal")
    assert (tmp_path / "run").is_dir()


@pytest.fixture
def run_folder(regraft, tmp_path):
    code, _, err = regraft("ticket", "find", "--out", tmp_path / "run", *QUICK, "--json")
    assert code == 0, err
    return tmp_path / "run"


def test_another_runs_folder_is_refused_and_kept(refused, run_folder):
    before = {p: p.read_bytes() for p in run_folder.iterdir()}
    for words, said in (
        (("--sparsity", 0.3), "ticket.sparsity=0.5 instead of 0.3"),
        (("--lr", 0.2), "optim.lr=0.1 instead of 0.2"),
        (("--seed", 2), "runtime.seed=1 instead of 2"),
        (("--method", "dense"), "arm iterand instead of dense"),
    ):
        whole = refused("ticket", "find", "--out", run_folder, *QUICK, *words)
        assert f"holds another run ({said})" in whole
    assert {p: p.read_bytes() for p in run_folder.iterdir()} == before


@pytest.mark.parametrize("file", ["regraft.json", "result.json"])
def test_a_corrupt_run_folder_is_named(file, refused, run_folder):
    (run_folder / file).write_text("{")
    assert str(run_folder / file) in refused("ticket", "find", "--out", run_folder, *QUICK)
    assert str(run_folder / file) in refused("report", run_folder)


def test_a_corrupt_checkpoint_is_named(refused, run_folder):
    (run_folder / "result.json").unlink()
    (run_folder / "checkpoint.safetensors").write_bytes(b"no tensors")
    said = refused("ticket", "find", "--out", run_folder, *QUICK)
    assert str(run_folder / "checkpoint.safetensors") in said


def test_a_corrupt_ticket_is_named(refused, run_folder):
    file = run_folder / "model.ticket"
    file.write_bytes(file.read_bytes()[:-9])
    assert f"{file} is a damaged ticket" in refused("ticket", "inspect", run_folder)
    assert str(file) in refused("ticket", "bake", file, "--out", "m.safetensors")


def test_a_foreign_folder_is_refused_and_kept(refused, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    said = refused("ticket", "find", "--out", tmp_path / "thesis", *QUICK)
    assert "is not empty and is no run folder" in said
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    assert "holds no run" in refused("report", tmp_path / "thesis")
    assert "no such ticket" in refused("ticket", "inspect", tmp_path / "thesis")


@pytest.mark.filterwarnings("default:left out:UserWarning")
@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_an_unreadable_image_is_named_and_refused_or_skipped(
    unreadable, regraft, refused, image_folder, tmp_path
):
    bad = image_folder / "bee" / "3.png"
    bad.write_bytes(b"not an image")
    words = ("ticket", "find", "--data", image_folder, "--image-size", 8, "--model", "mlp")
    words += ("--epochs", 1, "--out", tmp_path / "run", "--unreadable", unreadable)
    if unreadable == "refuse":
        assert str(bad) in refused(*words)
        return
    code, out, err = regraft(*words, "--json")
    assert code == 0
    assert err.startswith(f"regraft: left out 1 unreadable image(s): {bad}")
    assert err.count("\n") == 1
    assert json.loads(out)["method"] == "iterand"


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_warning_is_shown_once_in_a_command(capsys):
    with _warnings_in_one_line():
        for text in ("left out 1", "left out 1", "left out 2"):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "regraft: left out 1\nregraft: left out 2\n"


@pytest.mark.filterwarnings("default:left out:UserWarning")
def test_verbs_of_weights_leave_unreadable_images_out_where_told(
    regraft, refused, image_folder, factory, tmp_path
):
    bad = image_folder / "bee" / "3.png"
    bad.write_bytes(b"not an image")
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3))
        save_file(net.state_dict(), tmp_path / f"{seed}.safetensors")
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    of = ("--model", f"{factory}:small", "--data", image_folder, "--image-size", 8)
    merge = ("merge", *files, *of, "--out", tmp_path / "merged")
    ends = ("--from-init", files[0], "--from-final", files[1], "--to", files[0])
    transfer = ("transfer", *ends, *of, "--out", tmp_path / "moved", "--trajectory-steps", 2)
    for words in (merge, transfer):
        error = refused(*words, "--json")
        assert str(bad) in error
        assert "--unreadable skip" in error
        code, _, err = regraft(*words, "--unreadable", "skip")
        assert code == 0, err
        assert f"left out 1 unreadable image(s): {bad}" in err


def test_an_unwritable_path_is_refused(refused, run_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    inside = tmp_path / "file" / "x"
    assert "cannot be written" in refused("ticket", "find", "--out", inside, *QUICK)
    assert "cannot be written" in refused("ticket", "bake", run_folder, "--out", inside)
    assert "cannot be written" in refused("report", run_folder, "--out", inside)


def test_a_bake_for_another_model_is_refused(refused, run_folder):
    words = ("ticket", "bake", run_folder, "--out", "m.safetensors", "--model")
    assert "tensor" in refused(*words, "conv2")
    assert "unknown" in refused(*words, "conv_smal")
    assert not Path("m.safetensors").exists()


def test_unknown_recipes_sets_and_metrics(refused, run_folder):
    assert "recipe 'iterant' is unknown: did you mean 'iterand'?" in refused("reproduce", "iterant")
    assert "seeds=0: expected at least 1" in refused("reproduce", "iterand", "--seeds", 0)
    assert "'imagenot' is no known data set" in refused("data", "get", "imagenot")
    assert "nonsense" in refused("report", run_folder, "--metric", "nonsense")
    assert "is not a folder" in refused("report", "nowhere")
    assert "no run folder given" in refused("report")


def test_a_missing_set_names_the_folder_and_the_command(find_refused, tmp_path):
    pytest.importorskip("torchvision")
    root = tmp_path / "sets"
    said = find_refused("--data", "kmnist", "--data-root", root, "--offline")
    assert str(root / "KMNIST") in said
    assert f"regraft data get kmnist --data-root {root}" in said


@pytest.mark.parametrize(
    ("module", "words", "install"),
    [
        ("lightning_fabric", [], "pip install 'regraft[train]'"),
        ("timm", ["--model", "timm/resnet18"], "pip install 'regraft[vision]'"),
        ("sklearn", [], "pip install 'regraft[digits]'"),
    ],
)
def test_a_missing_extra_names_its_install_line(module, words, install, find_refused, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("regraft.jobs.data._loaded", {})
    assert install in find_refused(*words, code=3)


def test_divergence_names_the_step(regraft, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--batch-size", 8, "--json")
    code, out, err = regraft(*words, "--method", "dense", "--lr", "1e20")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"regraft: the loss became (nan|inf) at step \d+ of .*\n", err)


def test_an_interruption_ends_with_130(refused, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Doctor, "run", interrupt)
    assert "interrupted" in refused("doctor", code=130)


def test_a_search_whose_scores_diverge_behind_the_mask_is_stopped(regraft, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--epochs", 3, "--json")
    code, out, err = regraft(*words, "--method", "edge_popup", "--lr", "1e38")
    assert (code, out) == (1, "")
    assert re.search(r"no longer finite at step \d+ of ", err)


def test_data_that_changed_under_a_run_is_refused(
    refused, regraft, image_folder, tmp_path, monkeypatch
):
    words = ["ticket", "find", "--data", image_folder, "--image-size", 8, "--model", "mlp"]
    words += ["--out", tmp_path / "run", "--batch-size", 4, "--epochs", 1, "--threads", 1]
    assert regraft(*words)[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    first = sorted(image_folder.rglob("*.png"))[0]
    (first.parent / "more.png").write_bytes(first.read_bytes())
    monkeypatch.setattr("regraft.jobs.data._loaded", {})  # as in a process of its own
    assert "was started with other data" in refused(*words)


def test_an_unforeseen_error_is_one_sentence_too(refused, monkeypatch):
    def fail(self):
        raise MemoryError("no\nmore")

    monkeypatch.setattr(Doctor, "run", fail)
    assert "MemoryError: no more" in refused("doctor", code=1)
    monkeypatch.setenv("REGRAFT_TRACEBACK", "1")
    with pytest.raises(MemoryError):
        main(["doctor"])


def test_a_checkpoint_with_a_nan_is_named_before_training(refused, image_folder, tmp_path):
    model = build(ModelConfig(name="conv_small"), num_classes=3, channels=3, image_size=10)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["features.3.weight"].view(-1)[5] = float("nan")
    save_file(state, tmp_path / "start.safetensors")
    said = refused(
        "finetune", "--data", image_folder, "--model", "conv_small", "--checkpoint",
        tmp_path / "start.safetensors", "--image-size", 10, "--method", "plain", "--out", "run",
    )  # fmt: skip
    assert "features.3.weight" in said
    assert "nan" in said.lower()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--data", "--out", "--split"])
def test_a_path_that_the_system_refuses_is_named(refused, image_folder, option):
    words = {"--data": image_folder, "--out": "run", option: f"{'a' * 300}/x"}
    said = refused("finetune", *(word for pair in words.items() for word in pair))
    assert "aaa/x" in said
    assert "name too long" in said


@pytest.mark.parametrize("words", [("--data", ""), ("--data=",), ("--out", "", "--data", "digits")])
def test_a_variable_that_is_not_set_is_noticed(refused, words):
    assert f"nothing stands after '{words[0]}'" in refused("finetune", *words)


def test_output_that_cannot_be_written_ends_in_one_sentence(monkeypatch, capfd, image_folder):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        assert main(["data", "list"]) == 1
        assert capfd.readouterr().err == (
            "regraft: standard output: No space left on device; lead it elsewhere\n"
        )
    monkeypatch.setattr("sys.stdout", None)  # as Python has it where it is closed
    assert main(["data", "list"]) == 0
    assert main(["data", "lis"]) == 2


@pytest.mark.parametrize("columns", ["0", "1", "20"])
def test_a_width_that_nothing_fits_into_is_none(regraft, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS")
    wanted = regraft("data", "list")[1]
    monkeypatch.setenv("COLUMNS", columns)
    assert regraft("data", "list")[1] == wanted


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", rb"caf\xe9\udce9.png"), ("utf-8", b"caf\xc3\xa9\xe9.png")],
)
def test_a_name_that_the_terminal_cannot_show_ends_no_command(
    monkeypatch, tmp_path, encoding, shown
):
    class Shown:
        def run(self):
            print("caf\u00e9\udce9.png")

    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("regraft.cli._command", lambda words: ("data list", Shown()))
        assert main(["data", "list"]) == 0
    assert (tmp_path / "out").read_bytes() == shown + b"\n"


def test_a_working_folder_that_was_removed_is_named(refused, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = refused("predict", tmp_path / "model.pt", tmp_path / "a.png")
    assert "the folder that this runs in has been removed: go to one that exists" in said
    assert main(["predict", "--help"]) == 0

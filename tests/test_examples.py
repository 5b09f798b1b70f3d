import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, **arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(**arguments)


def test_a_ticket_in_your_loop_learns(capsys):
    assert run("ticket_in_your_loop", epochs=12) > 0.85
    assert "none trained" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_frozen_graph_ticket_survives_its_file(capsys):
    pytest.importorskip("torch_geometric")
    assert run("frozen_graph_ticket", steps=40) > 0.8
    assert "equal to the last bit" in capsys.readouterr().out


def test_fine_tuning_on_few_images_learns(capsys):
    found = run("finetune_few_images", seeds=1, steps=40, source_steps=80)
    assert min(found.values()) > 0.7
    assert "25 training images" in capsys.readouterr().out


@pytest.mark.slow
def test_fine_tuning_in_timms_task_learns(capsys):
    pytest.importorskip("timm.task", reason="timm has no timm.task before 1.0.31")
    assert run("finetune_timm_task", epochs=6) > 0.6
    assert "timm's task" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_fine_tuning_in_hugging_faces_trainer_learns(capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    assert run("finetune_hugging_face", epochs=6) > 0.6
    assert "Hugging Face's Trainer" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_fine_tuning_under_lightning_learns(capsys):
    pytest.importorskip("lightning", reason="lightning is not installed")
    assert run("finetune_lightning", epochs=5) > 0.7
    assert "Lightning's Trainer" in capsys.readouterr().out


def test_two_networks_are_merged_on_data(capsys):
    scores = run("merge_two_networks", epochs=8, steps=40)
    assert scores["aligned on data"] > scores["averaged as they are"] + 5
    assert "proved to" in capsys.readouterr().out


def test_a_run_carried_over_makes_an_ensemble_member():
    scores = run("transfer_ensemble_member")
    assert scores["transferred"] > scores["naive"] + 10
    assert scores["then trained"] > scores["from scratch"] + 5
    assert scores["ensemble"] > 95


def test_a_fine_tuning_run_is_carried_to_the_next_base():
    scores = run("transfer_fine_tuning")
    assert scores["new base"] < 40
    assert scores["fgmt"] > scores["initial_weights"] > scores["naive"] + 10
    assert scores["fgmt, one epoch"] > scores["new base, one epoch"] + 5


def test_where_a_permutation_cannot_help_it_is_seen(capsys):
    found = run("transfer_that_cannot_help")
    naive, fast, _ = found["coded, 256"]
    assert naive == fast
    naive, fast, closer = found["plain, 12"]
    assert closer < 0.4
    assert fast < naive + 20
    naive, fast, closer = found["plain, 512"]
    assert closer > 0.4
    assert fast > naive + 20
    told = capsys.readouterr().out
    assert "coded, 256: 0 groups" in told
    assert "stay in place: matmul" in told

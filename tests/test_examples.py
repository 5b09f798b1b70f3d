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


def test_two_networks_are_merged_on_data(capsys):
    scores = run("merge_two_networks", epochs=8, steps=40)
    assert scores["aligned on data"] > scores["averaged as they are"] + 5
    assert "proved to" in capsys.readouterr().out

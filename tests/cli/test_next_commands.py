"""The command that a card names next is run as it stands, from another folder."""

import shlex

import pytest


@pytest.fixture
def runs(regraft, image_folder, factory, tmp_path):
    """Two trained networks of a factory of one's own, and a picture."""
    for seed in (1, 2):
        code, _, err = regraft(
            "ticket", "find", "--method", "dense", "--data", image_folder, "--image-size", 8,
            "--model", f"{factory}:small", "--epochs", 1, "--seed", seed, "--out", f"run {seed}",
        )  # fmt: skip
        assert code == 0, err
    return ("run 1", "run 2"), next(image_folder.rglob("*.png"))


def test_next_commands_work_as_they_stand(runs, regraft, answer, factory, tmp_path, monkeypatch):
    paths, picture = runs
    model = ("--model", f"{factory}:small", "--match", "weights")
    merged = answer("merge", *paths, *model, "--out", "merged")
    aligned = answer("align", *paths, *model, "--out", "aligned")
    transferred = answer(
        "transfer", "--from-init", paths[0], "--from-final", paths[1], "--to", paths[0], *model[:2],
        "--match", "initial_weights", "--out", "transferred",
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for card in (merged, aligned, transferred):
        assert len(card["next"]) == 1, card["kind"]
        for command in card["next"]:
            assert str(tmp_path) in command
            words = [str(picture) if w == "IMAGES" else w for w in shlex.split(command)[1:]]
            assert words[-2:] == ["--model", f"{factory}:small"]
            code, _, err = regraft(*words)
            assert code == 0, err

"""A finished folder is finished for the images that it was made with."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn


@pytest.fixture
def verb(request, factory, tmp_path):
    """The words of a command on images, but for --data and --out."""
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3))
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(net.state_dict(), paths[-1])
    of = ("--model", f"{factory}:small", "--image-size", 8)
    if request.param == "transfer":
        ends = ("--from-init", paths[0], "--from-final", paths[1], "--to", paths[0])
        return ("transfer", *ends, *of, "--trajectory-steps", 2, "--match", "naive",
                "--points", 0)  # fmt: skip
    more = ("--points", 0) if request.param == "merge" else ()
    return (request.param, *paths, *of, *more)


VERBS = pytest.mark.parametrize("verb", ["merge", "align", "transfer"], indirect=True)


@VERBS
def test_images_that_changed_are_another_question(verb, regraft, refused, image_folder, tmp_path):
    words = (*verb, "--data", image_folder, "--out", tmp_path / "out")
    assert regraft(*words)[0] == 0
    card = (tmp_path / "out" / "card.json").read_bytes()

    def finished():
        code, out, _ = regraft(*words)
        return code == 0 and "is finished already" in out

    assert finished()
    image = image_folder / "bee" / "3.png"
    about = image.stat()
    image.rename(tmp_path / "3.png")
    assert "the images of --data have changed since" in refused(*words)
    shutil.copy(tmp_path / "3.png", image)
    assert "have changed since" in refused(*words)
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert finished()
    image.rename(image_folder / "bee" / "9.png")
    assert "have changed since" in refused(*words)
    image_folder.rename(tmp_path / "elsewhere")
    assert "have changed since" in refused(*words)
    assert (tmp_path / "out" / "card.json").read_bytes() == card


@VERBS
def test_a_name_below_another_data_root_is_another_folder(
    verb, regraft, refused, image_folder, tmp_path
):
    for root in ("one", "two"):
        shutil.copytree(image_folder, tmp_path / root / "insects")
    (tmp_path / "two" / "insects" / "bee" / "3.png").unlink()
    words = (*verb, "--data", "insects", "--out", tmp_path / "out", "--data-root")
    assert regraft(*words, tmp_path / "one")[0] == 0
    assert "have changed since" in refused(*words, tmp_path / "two")
    # The same images elsewhere are the same.
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    assert "is finished already" in regraft(*words, tmp_path / "three")[1]


def test_known_sets_say_nothing_so_that_folders_of_before_stay_finished():
    from regraft.jobs.merge.identity import images_of

    assert images_of((), None) == images_of(("digits", "mnist"), "anywhere") == {}


def test_grey_pictures_fit_networks_of_one_channel(answer, factory, image_folder, tmp_path):
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
        paths.append(tmp_path / f"{seed}.safetensors")
        save_file(net.state_dict(), paths[-1])
    words = ("--model", f"{factory}:small", "--image-size", 8, "--channels", 1)
    words += ("--data", image_folder, "--match", "activations", "--points", 0)
    assert answer("merge", *paths, *words)["out"] == "runs/merge-1-2"
    words = (*words[:-4], "--match", "naive", "--points", 0, "--from-init", paths[0])
    assert answer("transfer", *words, "--from-final", paths[1], "--to", paths[0])["curves"]


def with_part(folder, part):
    """Make a plain folder of classes one of parts, of which `part` is another."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    (folder / "train").mkdir()
    for path in inside:
        path.rename(folder / "train" / path.name)
    shutil.copytree(folder / "train", folder / part)


@pytest.mark.parametrize("verb", ["merge", "align", "transfer"], indirect=True)
def test_scores_on_the_images_that_chose_are_said_to_be_flattering(verb, answer, image_folder):
    how = () if verb[0] == "transfer" else ("--match", "ste", "--ste-steps", 2)

    def said(out):
        notes = answer(*verb, *how, "--data", image_folder, "--out", out)["notes"]
        return [note for note in notes if "on the same validation images that the scores" in note]

    assert len(said("plain")) == (0 if verb[0] == "align" else 1)
    with_part(image_folder, "test")
    assert said("whole") == []


@pytest.mark.parametrize("verb", ["merge"], indirect=True)
@pytest.mark.parametrize("match", ["weights", "activations", "few"])
def test_a_match_that_chose_on_none_of_the_scored_images_says_nothing(
    match, verb, answer, image_folder
):
    how = ("--match", match)
    if match == "few":
        how = ("--match", "ste", "--ste-steps", 2, "--surrogate", "random", "--per-class", 2)
    notes = answer(*verb, *how, "--data", image_folder, "--out", "out")["notes"]
    assert not any("that the scores are of" in note for note in notes)

"""Options that verbs share: one declaration, one meaning, one sentence for a wrong value."""

from pathlib import Path

import pytest

from regraft.cli.merge import Merge
from regraft.cli.options import default_out, groups_of, option_names
from regraft.cli.transfer import Transfer
from regraft.cli.verbs import VERBS, VerbGroup
from regraft.errors import InputError


def verbs():
    for verb in VERBS.values():
        yield from verb.verbs.values() if isinstance(verb, VerbGroup) else (verb,)


def test_options_of_any_group_are_named_without_it():
    merge = Merge.of(checkpoints=(Path("a"), Path("b")), threads=2, width=0.5, offline=True)
    assert (merge.runtime.threads, merge.network.width, merge.sets.offline) == (2, 0.5, True)
    values = merge.values()
    assert (values["threads"], values["width"], values["offline"]) == (2, 0.5, True)
    assert Merge.of(**values) == merge
    with pytest.raises(TypeError, match="no_such"):
        Merge.of(checkpoints=(), no_such=1)


def test_no_verb_has_an_option_twice():
    for kind in (Merge, Transfer):
        names = option_names(kind)
        assert len(set(names)) == len(names)
        assert {"data_root", "model_options", "image_size", "threads", "json"} <= set(names)
        assert set(groups_of(kind)) == {"sets", "network", "images", "runtime", "output"}


@pytest.mark.parametrize("verb", ["merge", "align", "transfer"])
def test_help_has_titled_groups_after_the_everyday_options(regraft, verb):
    code, text, _ = regraft(verb, "--help")
    assert code == 0
    titles = ("options", "data options", "model options", "images options", "runtime options")
    places = [text.index(f"─ {title} ─") for title in titles]
    assert places == sorted(places)
    assert text.index("--out ") < places[1] < text.index("--data-root ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--threads", 0), "--threads 0: expected at least 1"),
        (("--width", 0), "--width 0.0: expected a finite number above 0"),
        (("--channels", 0), "--channels 0: expected at least 1"),
        (("--mean", 0.5), "--mean and --std go together"),
        (("--devices", 2), "--devices 2: "),
        (("--model-options", "[]"), "--model-options is no JSON object"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_a_wrong_value_is_named_as_it_is_typed(refused, words, said):
    assert said in refused("merge", "a", "b", "--model", "mlp", *words)
    assert said in refused(
        "transfer", "--to", "a", "--from-init", "a", "--from-final", "b", "--match", "naive",
        "--model", "mlp", *words,
    )  # fmt: skip


def test_a_width_without_a_network_is_refused(refused):
    assert "--width 2.0 is of the network" in refused("merge", "a", "b", "--width", 2)
    assert "add --model" in refused("align", "a", "b", "--model-options", '{"depth": 3}')


def test_what_has_no_use_is_refused_with_a_reason(refused):
    for verb in ("merge", "align"):
        said = refused(verb, "a", "b", "--precision", "bf16-mixed")
        assert "--precision bf16-mixed: it is for training" in said
    assert "--devices 2" in refused("predict", "result", "image.png", "--devices", 2)
    with pytest.raises(InputError, match="--threads -1: expected at least 1"):
        Transfer.of(to=Path("x"), from_init=Path("y"), from_final=Path("z"), threads=-1).job()


def test_the_folder_without_out_is_named_after_the_verb_and_what_it_takes():
    assert default_out("merge", Path("x/a.safetensors"), Path("b/model.safetensors")) == Path(
        "runs/merge-a-b"
    )
    assert default_out("condense", "photos/cats", "dc") == Path("runs/condense-cats-dc")

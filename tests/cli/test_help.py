import os
import subprocess
import sys

import pytest

from regraft.cli import main

VERBS = [
    (),
    ("ticket",),
    ("ticket", "find"),
    ("ticket", "inspect"),
    ("ticket", "run"),
    ("ticket", "bake"),
    ("ticket", "pack"),
    ("ticket", "unpack"),
    ("merge",),
    ("align",),
    ("transfer",),
    ("synth",),
    ("synth", "inspect"),
    ("synth", "make"),
    ("pretrain",),
    ("condense",),
    ("fewshot",),
    ("fewshot", "train"),
    ("fewshot", "adapt"),
    ("finetune",),
    ("predict",),
    ("evaluate",),
    ("reproduce",),
    ("report",),
    ("data",),
    ("data", "list"),
    ("data", "get"),
    ("doctor",),
]


def processor_seconds(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="processor time of a child needs wait4")
def test_help_answers_in_half_a_second():
    command = [sys.executable, "-m", "regraft.cli", "--help"]
    assert min(processor_seconds(command) for _ in range(3)) < 0.5


@pytest.mark.parametrize("words", [["--help"], ["ticket", "find", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys; from regraft.cli import main; "
        f"code = main({words!r}); "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'lightning_fabric'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: regraft" in done.stdout


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_help(words, capsys):
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert " ".join(["usage: regraft", *words]) in text
    plain = " ".join(text.replace("│", " ").split())
    for wrong in ("{None}", "(default: )", "--no-", "(default: True)"):
        assert wrong not in plain


def test_help_names_all_that_is_registered(capsys):
    from regraft.config.generate import SOURCES
    from regraft.features.registry import COMPARED, METHODS
    from regraft.generators.siamese import TRANSFORMS
    from regraft.recipes import RECIPES
    from regraft.symmetry.merge.methods import MERGE_METHODS

    def said(*words):
        assert main([*words, "--help"]) == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    assert f"Name of the recipe: {', '.join(RECIPES)}." in said("reproduce")
    assert f"dsa, dm: {', '.join(TRANSFORMS)};" in said("condense")
    assert f"{', '.join(MERGE_METHODS)};" in said("merge")
    finetune = said("finetune")
    assert (
        f"{', '.join(METHODS)}; auto: the best of a linear probe, {' and '.join(COMPARED)};"
        in finetune
    )
    assert f"A folder of images without labels; or {SOURCES}." in finetune
    assert finetune.count(SOURCES) == 2
    for verb in (["synth", "inspect"], ["synth", "make"], ["pretrain"]):
        assert f"{SOURCES}." in said(*verb)


def test_help_says_what_exit_codes_mean(capsys):
    main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for meaning in ("0 done", "1 a run failed", "2 unusable input", "130 interrupted"):
        assert meaning in text
    assert "3 a missing optional part" in text


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["transfer"],
        ["ticket", "find", "--out", "x", "--sparsity", "much"],
        ["ticket", "find", "--out", "x", "--method", "magic"],
        ["reproduce", "iterand", "--scale", "galactic"],
        ["doctor", "--loudly"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_unusable_input(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err


def test_scales_of_one_recipe_are_said_to_be_its_alone(capsys):
    from regraft.recipes.recipe import MORE_SCALES

    assert main(["reproduce", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, scales in MORE_SCALES.items():
        assert f"{name} alone: {', '.join(scales)}" in text
        assert f"{{{','.join(scales)}" not in text
    assert main(["reproduce", "iterand", "--scale", "photographs"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "expected one of smoke, cpu, gpu, paper" in said
    assert "characters" not in said


def test_top_level_help_is_one_line_a_verb(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for words in VERBS:
        if len(words) == 1:
            assert sum(line.startswith(f"  {words[0]} ") for line in lines) == 1


def test_a_mistyped_verb_names_the_nearest(capsys):
    assert main(["tickt"]) == 2
    assert "did you mean 'ticket'?" in capsys.readouterr().err
    assert main(["ticket", "inspekt"]) == 2
    assert "did you mean 'inspect'?" in capsys.readouterr().err


def test_version(capsys):
    from regraft import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"regraft {__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="no pipe of this kind")
@pytest.mark.parametrize("words", [["--help"], ["ticket", "find", "--help"]], ids=" ".join)
def test_help_into_a_closed_pipe_ends_quietly(words):
    end, begin = os.pipe()
    os.close(end)
    done = subprocess.run(
        [sys.executable, "-m", "regraft.cli", *words],
        stdout=begin,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(begin)
    assert (done.returncode, done.stderr) == (0, b"")

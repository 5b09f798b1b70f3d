import json

import pytest
import torch

from regraft.cli import main
from regraft.config import DataConfig, SourceConfig, SslConfig
from regraft.data import load
from regraft.errors import InputError
from regraft.files import load_json
from regraft.generators.sources import ImageSource, Source
from regraft.jobs.finetune.extra import TermContext
from regraft.jobs.generate.unlabelled import UnlabelledTerm
from regraft.jobs.generate.verbs import collapse_warning
from regraft.models import ConvSmall

GENERATOR = ["foreign_generators:digits", "--threads", "1", "--accelerator", "cpu"]
DIGITS = load(DataConfig(name="digits", validation=0.1))


def run(*words):
    return main([str(w) for w in words])


def test_inspect_says_a_verdict_and_leaves_a_page(tmp_path, capsys):
    out = tmp_path / "inspect"
    assert (
        run("synth", "inspect", *GENERATOR, "--data", "digits", "--samples", 60, "--out", out) == 0
    )
    said = capsys.readouterr().out
    card = json.loads((out / "card.json").read_text())
    assert card["lines"][0].split(":")[0] in said
    assert card["kind"] == "inspect"
    assert (out / "samples.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "report.html").read_text()
    assert "agreement with a classifier of real images" in page
    assert (
        run("synth", "inspect", *GENERATOR, "--data", "digits", "--samples", 60, "--out", out) == 0
    )


def test_a_bank_chooses_its_folder_and_is_told_of_as_other_results_are(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make = ["synth", "make", *GENERATOR, "--count", 20]
    assert run(*make) == 0
    said = capsys.readouterr().out
    out = tmp_path / "runs" / "make-digits"
    assert (out / "bank.json").is_file()
    assert "20 images of 1x8x8, 10 classes" in said
    assert "result: runs/make-digits; card: runs/make-digits/README.md" in said
    assert f"next: regraft pretrain --source {out}" in said
    assert run(*make) == 0
    assert (
        "runs/make-digits is finished already; remove it to make again" in capsys.readouterr().out
    )
    assert run(*make, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"out": "runs/make-digits", **load_json(out / "card.json", ours=True)}


def test_a_bank_a_pre_training_and_a_fine_tuning_follow_each_other(tmp_path, capsys):
    bank, body, tuned = tmp_path / "bank", tmp_path / "body", tmp_path / "tuned"
    assert run("synth", "make", *GENERATOR, "--count", 40, "--out", bank) == 0
    small = ["--steps", 4, "--batch-size", 8, "--model", "conv_small", "--width", 0.5]
    assert run("pretrain", "--source", bank, *small, "--threads", 1, "--out", body) == 0
    facts = json.loads((body / "card.json").read_text())
    assert facts["kind"] == "pretrain"
    more = ["--method", "plain", "--epochs", 1, "--lr", 0.01, "--shots", 3, "--threads", 1]
    learned = ["--unlabelled", bank, "--ssl", "uda", "--ssl-batch", 8, "--ssl-threshold", 0.0]
    code = run(
        "finetune", "--data", "digits", "--checkpoint", body / "model.safetensors", *more, *learned,
        "--out", tuned,
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "images without labels: 100.0% of" in said
    result = json.loads((tuned / "result.json").read_text())
    assert result["extras"][0]["passed"] == 1
    assert len(result["extras"][0]["by_class"]) == 10
    assert run("predict", tuned, bank / "samples.png") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--own-head"], "--own-head is about images without labels: add --unlabelled"),
        (
            ["--unlabelled", "x", "--unlabelled-options", '{"size": 3}'],
            "has 'size': expected some of",
        ),
        (["--unlabelled", "x", "--ssl-threshold", "1.5"], "--ssl-threshold 1.5"),
        (["--unlabelled", "nowhere"], "is no factory, folder or file"),
    ],
)
def test_wrong_options_of_unlabelled_images_are_said(tmp_path, capsys, words, message):
    common = ["--data", "digits", "--shots", 3, "--method", "plain", "--epochs", 1, "--lr", 0.01]
    assert run("finetune", *common, "--out", tmp_path / "t", *words) == 2
    assert message in capsys.readouterr().err


def context(**more):
    return TermContext(
        **{
            "splits": DIGITS,
            "classifier": "head",
            "batch_size": 8,
            "steps": 4,
            "seed": 0,
            "device": torch.device("cpu"),
            **more,
        }
    )


def net():
    torch.manual_seed(0)
    return ConvSmall(10, image_size=8, width=0.5)


def test_a_folder_of_pictures_is_learned_from_whatever_its_labels_are(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "any" / "deep").mkdir(parents=True)
    for i in range(5):
        image.new("RGB", (10, 12), (40 * i,) * 3).save(tmp_path / "any" / "deep" / f"{i}.png")
    (tmp_path / "any" / "annotations.json").write_text("{}")
    term = UnlabelledTerm(
        source=SourceConfig(name=str(tmp_path / "any")), ssl=SslConfig(ssl_batch=4)
    )
    made = term.term(net(), context())
    assert made.unlabelled.take(0, 5).shape == (5, 1, 8, 8)
    assert made.loss(net(), 0).ndim == 0
    assert made.summary()["images"] == 4
    assert made.classifier == "head"


def test_a_picture_without_labels_that_cannot_be_read_may_be_left_out(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(5):
        image.new("RGB", (10, 12), (40 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    source, ssl = SourceConfig(name=str(tmp_path)), SslConfig(ssl_batch=4)
    with pytest.raises(InputError, match=r"2\.png.*--unreadable skip"):
        UnlabelledTerm(source=source, ssl=ssl).term(net(), context())
    skipping = UnlabelledTerm(source=source, ssl=ssl, unreadable="skip")
    with pytest.warns(UserWarning, match=r"left out 1 unreadable image\(s\): .*2\.png"):
        made = skipping.term(net(), context())
    assert len(made.unlabelled.images) == 4
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="no image can be read"):
        skipping.term(net(), context())


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match=f"--unlabelled {tmp_path} holds no images"):
        UnlabelledTerm(source=SourceConfig(name=str(tmp_path))).term(net(), context())
    with pytest.raises(InputError, match="this user has no home folder"):
        UnlabelledTerm(source=SourceConfig(name="~nobody-of-this-name/x")).config()


def test_a_generator_of_another_image_size_is_refused():
    source = SourceConfig(name="foreign_generators:EmbeddedLabels", latent=6, options={"side": 12})
    with pytest.raises(InputError, match="makes images of 1x12x12 and the target's are 1x8x8"):
        UnlabelledTerm(source=source).term(net(), context())


def test_a_classifier_of_other_labels_than_the_generator_is_refused(tmp_path):
    from regraft.checkpoints.write import write_model
    from regraft.config import ModelConfig
    from regraft.models import build

    model = ModelConfig(name="mlp", options={"widths": [8]})
    about = {
        "model": {"name": "mlp", "options": {"widths": [8]}, "width": 1.0},
        "input": {"channels": 1, "image_size": 8},
        "classes": ["a", "b", "c"],
        "mean": [0.5],
        "std": [0.5],
    }
    file = tmp_path / "classifier.safetensors"
    write_model(file, build(model, num_classes=3, channels=1, image_size=8), about)
    source = SourceConfig(name="foreign_generators:EmbeddedLabels", latent=6)
    with pytest.raises(InputError, match=r"gives \(3,\) numbers an image and the generator has 4"):
        UnlabelledTerm(source=source, classifier=str(file)).term(net(), context())


def classifier_of(path, classes):
    from regraft.checkpoints.write import write_model
    from regraft.config import ModelConfig
    from regraft.jobs.generate.pretrain import about_of
    from regraft.models import build

    model, shape = (
        ModelConfig(name="mlp", options={"widths": [8]}),
        {"channels": 1, "image_size": 8},
    )
    network = build(model, num_classes=len(classes), **shape)
    write_model(path, network, about_of(model, shape, classes, "pp"))
    return network


class _Hard(Source):
    """Takes labels alone: mixed ones mean nothing to it."""

    classes, latent_shape, image_shape, soft_conditions = 4, (1,), (1, 8, 8), False

    def generate(self, latents, condition):
        return (
            latents.sigmoid().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
            * (condition + 1).view(-1, 1, 1, 1).float()
            / 4
        )


def test_soft_conditions_of_a_generator_without_them_are_a_fallback_that_is_told(
    tmp_path, monkeypatch
):
    classifier_of(tmp_path / "model.safetensors", "abcd")
    monkeypatch.setattr("regraft.jobs.generate.unlabelled.load_source", lambda *_, **__: _Hard())
    soft = UnlabelledTerm(source=SourceConfig(name="x:y"), classifier=str(tmp_path))
    with pytest.warns(UserWarning, match="--conditions soft: soft labels: the label of each image"):
        made = soft.term(net(), context())
    assert made.loss(net().train(), 0).isfinite()
    assert made.summary()["fallback"].startswith("soft labels")
    hard = UnlabelledTerm(
        source=SourceConfig(name="x:y"),
        classifier=str(tmp_path),
        ssl=SslConfig(conditions="hard"),
    )
    assert "fallback" not in hard.term(net(), context()).summary()


def test_a_file_that_says_nothing_of_itself_is_no_source_classifier(tmp_path):
    file = tmp_path / "plain.pth"
    torch.save(net().state_dict(), file)
    source = SourceConfig(name="foreign_generators:EmbeddedLabels", latent=6)
    with pytest.raises(InputError, match="does not say which network it is of: expected what"):
        UnlabelledTerm(source=source, classifier=str(file)).term(net(), context())


def test_a_run_knows_its_source_classifier_by_what_the_file_holds(tmp_path):
    source = SourceConfig(name="x:y")
    classifier_of(tmp_path / "model.safetensors", "abcd")
    term = UnlabelledTerm(source=source, classifier=str(tmp_path / "model.safetensors"))
    before = term.config()
    assert UnlabelledTerm(source=source, classifier=str(tmp_path)).config() == before
    classifier_of(tmp_path / "model.safetensors", "abc")
    assert term.config() != before


class _Flat(Source):
    classes, latent_shape, image_shape = 10, (1,), (1, 8, 8)

    def digest(self):
        return "flat"

    def generate(self, latents, condition):
        same = torch.linspace(0, 1, 10)[condition].view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return same + 0.01 * latents.view(-1, 1, 1, 1).sigmoid()


def test_a_collapsed_generator_is_warned_of_before_it_is_used(monkeypatch):
    assert "looks collapsed" in collapse_warning(_Flat(), seed=0)
    assert collapse_warning(ImageSource(DIGITS.train), seed=0) == ""
    monkeypatch.setattr("regraft.jobs.generate.unlabelled.load_source", lambda *_, **__: _Flat())
    with pytest.warns(UserWarning, match="looks collapsed"):
        UnlabelledTerm(source=SourceConfig(name="x:y")).term(net(), context())


@pytest.mark.filterwarnings("default:the generator looks collapsed")
def test_a_bank_of_a_collapsed_generator_is_warned_of_when_it_is_made_and_when_it_is_used(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("regraft.jobs.generate.verbs.load_source", lambda *_, **__: _Flat())
    bank = tmp_path / "bank"
    assert run("synth", "make", "x:y", "--count", 100, "--out", bank) == 0
    assert "regraft: the generator looks collapsed" in capsys.readouterr().err
    assert "looks collapsed" in json.loads((bank / "card.json").read_text())["notes"][0]
    with pytest.warns(UserWarning, match="looks collapsed"):
        UnlabelledTerm(source=SourceConfig(name=str(bank))).term(net(), context())


@pytest.fixture
def targets(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("empty", "one/a", "half/a", "half/b"):
        (tmp_path / name).mkdir(parents=True)
    for folder in ("one/a", "half/a"):
        for i in range(6):
            image.new("L", (8, 8), 30 * i).save(tmp_path / folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("empty", "empty has no class folders"),
        ("one", "one has a single class, 'a'"),
        ("half", "half/b has no images"),
    ],
)
@pytest.mark.parametrize("verb", ["finetune", "pretrain", "inspect"])
def test_an_empty_target_or_one_of_one_class_is_one_sentence(
    targets, capsys, verb, target, message
):
    words = {
        "finetune": ["finetune", "--unlabelled", GENERATOR[0], "--method", "plain", "--data"],
        "pretrain": ["pretrain", "--steps", 2, "--source"],
        "inspect": ["synth", "inspect", GENERATOR[0], "--data"],
    }[verb]
    assert run(*words, targets / target, "--out", targets / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (targets / "out" / "result.json").exists()


def test_a_generator_of_one_class_is_nothing_to_pre_train_on(tmp_path, capsys):
    assert run("pretrain", "--source", *GENERATOR, "--classes", 1, "--out", tmp_path / "out") == 2
    assert "the source has a single class" in capsys.readouterr().err


def test_no_confident_image_leaves_the_training_as_it_is():
    source = SourceConfig(name="foreign_generators:EmbeddedLabels", latent=6)
    made = UnlabelledTerm(source=source, ssl=SslConfig(ssl_threshold=0.9999)).term(net(), context())
    assert made.loss(net().train(), 3).item() == 0
    assert made.summary()["passed"] == 0

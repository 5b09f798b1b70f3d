"""What MGR refuses or warns of: sources, views, labels and numbers that cannot be used, and full memory."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from generating import SmoothSource, SmoothViews, made, net32, real_images, real_source

from regraft.errors import InputError, RegraftError
from regraft.generators.mgr import MGR, MGRConfig, SeededViews


def test_a_source_without_latent_gradients_is_refused_for_the_finder_and_told_what_to_do():
    with pytest.raises(InputError, match=r"passes no gradients to its latents.*select='gradient'"):
        MGR(real_source())


def test_a_validation_split_without_a_class_is_refused():
    net, (images, labels) = net32(), real_images(dtype=torch.float32)
    few = labels != 2
    with pytest.raises(InputError, match="validation images have no image of class '2'"):
        made(net, validation=(images[few], labels[few]))
    one = torch.tensor([0, 0, 1, 1, 2])
    with pytest.raises(InputError, match=r"folds=2 a validation fold has no image of class 'bird'"):
        MGR(SmoothSource(dtype=torch.float32), views=SmoothViews()).prepare(
            net, images[:5], one, classes=("cat", "dog", "bird")
        )


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda x: (x * 255).to(torch.uint8).float() / 255, "cuts the graph"),
        (lambda x: (x * 4).round() / 4, "no gradient"),
        (lambda x: x.detach() + 1e-3, "cuts the graph"),
    ],
)
def test_transforms_that_cut_the_graph_are_refused(transform, message):
    net = net32()
    mgr = made(net, views=SeededViews(transform, name="poster"))
    with pytest.raises(InputError, match=f"poster.*{message}|{message}"):
        mgr.loss(net, 0)


def test_views_of_ones_own_that_cut_the_graph_are_refused_too():
    class Cut(SmoothViews):
        def apply(self, images, record):
            return super().apply(images, record).detach()

    class Zero(SmoothViews):
        def apply(self, images, record):
            return super().apply(images, record).detach() + 0.0 * images

    for views in (Cut(), Zero()):
        net = net32()
        with pytest.raises(InputError, match="select='gradient'"):
            made(net, views=views).loss(net, 0)
        # A pool needs no gradient to its images.
        net = net32()
        assert made(net, views=views, select="gradient").loss(net, 0).isfinite()


def test_a_transform_that_draws_for_itself_is_replayed():
    views = SeededViews(lambda x: x * torch.rand(len(x), 1, 1, 1))
    record = views.draw(4, torch.Generator().manual_seed(0))
    images = torch.rand(4, 1, 6, 6)
    state = torch.get_rng_state()
    assert torch.equal(views.apply(images, record), views.apply(images, record))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("still", [True, False])
def test_a_collapsed_generator_is_warned_of(still):
    warned = (
        pytest.warns(UserWarning, match="the generator has collapsed") if still else nullcontext()
    )
    with warned, warnings.catch_warnings():
        if not still:
            warnings.simplefilter("error")
        mgr = made(net32(), still=still)
    assert bool(mgr.notes) == still


def test_when_memory_runs_out_what_would_fit_is_said():
    class Large(SmoothSource):
        def generate(self, latents, condition):
            if latents.requires_grad and len(latents) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().generate(latents, condition)

    net = net32()
    mgr = made(net, source=Large(dtype=torch.float32))
    with pytest.raises(RegraftError, match="a batch of 8 with a chunk of 2 would fit"):
        mgr.loss(net, 0)
    assert made(net, source=Large(dtype=torch.float32), chunk=2).loss(net, 0).isfinite()


def test_other_errors_are_not_taken_for_memory():
    class Broken(SmoothSource):
        def generate(self, latents, condition):
            raise RuntimeError("weights are missing")

    net = net32()
    mgr = made(net, select="uniform")
    mgr.source = Broken(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="weights are missing"):
        mgr.loss(net, 0)


def test_unprepared_and_foreign_states_are_refused():
    net = net32()
    mgr = MGR(SmoothSource(dtype=torch.float32), views=SmoothViews())
    with pytest.raises(InputError, match="not prepared"):
        mgr.loss(net)
    with pytest.raises(InputError, match="does not fit"):
        made(net).load_state_dict(made(net, finder="per_class").state_dict())


def test_labels_of_other_classes_are_refused_where_the_loss_takes_them():
    net = net32()
    net.fc = torch.nn.Linear(20, 5)
    images, labels = real_images(dtype=torch.float32)
    mgr = MGR(SmoothSource(dtype=torch.float32), MGRConfig(loss="ce", select="uniform"))
    with pytest.raises(InputError, match="3 classes and the network 5"):
        mgr.prepare(net, images, labels)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match="--every 0"):
        MGR(SmoothSource(), MGRConfig(every=0))

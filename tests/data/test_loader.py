import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import FileSet, FolderLoader, ImageSet, TensorLoader, scan_folder
from regraft.errors import InputError
from regraft.protocols import BatchSource


def image_set(n):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n), n)


def loader(n=23, batch_size=5, **changes):
    options = {"mean": (0.4,), "std": (0.3,), "shuffle": True, "augment": "none", "seed": 7}
    return TensorLoader(image_set(n), batch_size=batch_size, **{**options, **changes})


def same(left, right):
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for (x, y, n), (x2, y2, n2) in zip(left, right, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
        assert n == n2


@pytest.mark.parametrize(
    ("n", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (4, [4]), (5, [5])]
)
def test_a_single_image_joins_the_batch_before_it(n, sizes):
    source = loader(n, 4)
    assert len(source) == len(sizes)
    assert [len(y) for _, y, _ in source.batches(0)] == sizes
    assert [size for _, _, size in source.batches(0)] == sizes


kinds = st.sampled_from(["none", "crop-flip", "resized-crop-flip"])


@given(st.integers(1, 30), st.integers(1, 8), kinds, st.data())
@settings(max_examples=40, deadline=None)
def test_starting_late_yields_the_tail(n, batch_size, kind, data):
    source = loader(n, batch_size, augment=kind)
    start = data.draw(st.integers(0, len(source)))
    same(source.batches(2, start=start), list(source.batches(2))[start:])


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), kinds)
@settings(max_examples=40, deadline=None)
def test_shares_together_are_the_batch(n, batch_size, world, kind):
    source = loader(n, batch_size, augment=kind)
    shares = [list(source.batches(1, rank=r, world=world)) for r in range(world)]
    for at, (x, y, size) in enumerate(source.batches(1)):
        assert size == len(y)
        for rank in range(world):
            part_x, part_y, part_size = shares[rank][at]
            assert torch.equal(part_x, x[rank::world])
            assert torch.equal(part_y, y[rank::world])
            assert part_size == size


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 8), kinds)
@settings(max_examples=40, deadline=None)
def test_images_do_not_depend_on_the_batch_size(n, one, other, kind):
    def epoch(batch_size):
        parts = list(loader(n, batch_size, augment=kind).batches(0))
        return torch.cat([x for x, _, _ in parts]), torch.cat([y for _, y, _ in parts])

    assert all(map(torch.equal, epoch(one), epoch(other)))


def test_an_epoch_holds_every_image_once_and_keeps_the_last_batch():
    source = loader()
    batches = list(source.batches(0))
    assert [len(y) for _, y, _ in batches] == [5, 5, 5, 5, 3]
    assert len(source) == 5
    assert sorted(torch.cat([y for _, y, _ in batches]).tolist()) == list(range(23))


def test_epochs_and_seeds_have_their_own_order():
    def order(seed, epoch):
        return loader(seed=seed).order(epoch).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_without_shuffling_images_keep_their_order():
    labels = torch.cat([y for _, y, _ in loader(shuffle=False).batches(3)])
    assert labels.tolist() == list(range(23))


def test_images_are_normalised():
    source = loader(shuffle=False)
    (x, _, _) = next(source.batches(0))
    expected = (source.image_set.images[:5].float() / 255 - 0.4) / 0.3
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32


def test_batches_leave_the_stored_images_alone():
    source = loader(shuffle=False)
    before = source.image_set.images.clone()
    list(source.batches(0))
    assert torch.equal(source.image_set.images, before)


def test_loaders_follow_the_contract():
    assert isinstance(loader(), BatchSource)


@pytest.mark.parametrize("start", [-1, 6])
def test_a_start_outside_the_epoch_is_refused(start):
    with pytest.raises(InputError, match=rf"start={start}: an epoch has 5 batches"):
        next(loader().batches(0, start=start))


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank, world):
    with pytest.raises(InputError, match=f"rank={rank} of world={world}"):
        next(loader().batches(0, rank=rank, world=world))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(InputError, match="batch_size=0: expected at least 1"):
        loader(batch_size=0)


def test_an_empty_set_is_refused():
    with pytest.raises(InputError, match="is empty"):
        loader(0)


def test_moments_for_another_number_of_channels_are_refused():
    with pytest.raises(InputError, match=r"mean and std have 3 and 1 values.*1 channel"):
        loader(mean=(0.1, 0.2, 0.3))


def test_an_unknown_augmentation_is_refused_at_once():
    with pytest.raises(InputError, match="augment='spin'"):
        loader(augment="spin")


OPTIONS = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "shuffle": True, "seed": 3}


class TestFolderLoader:
    @pytest.fixture
    def files(self, tmp_path, make_images) -> FileSet:
        make_images(tmp_path / "cat", 4)
        make_images(tmp_path / "elephant", 3)
        return scan_folder(tmp_path, image_size=8).train

    @pytest.mark.parametrize("workers", [0, 2])
    def test_agrees_with_the_tensor_loader(self, files, workers):
        lazy = FolderLoader(files, batch_size=3, augment="crop-flip", workers=workers, **OPTIONS)
        eager = TensorLoader(
            ImageSet(files.decoded(), files.labels, 2),
            batch_size=3,
            augment="crop-flip",
            **OPTIONS,
        )
        assert isinstance(lazy, BatchSource)
        assert len(lazy) == len(eager)
        same(lazy.batches(1), eager.batches(1))
        same(lazy.batches(1, start=1, rank=1, world=2), eager.batches(1, start=1, rank=1, world=2))

    def test_leaves_torch_global_generator_alone(self, files):
        before = torch.get_rng_state()
        list(FolderLoader(files, batch_size=3, augment="none", workers=0, **OPTIONS).batches(0))
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_unreadable_image_is_named(self, files, workers):
        files.paths[2].write_bytes(b"no image")
        source = FolderLoader(files, batch_size=7, augment="none", workers=workers, **OPTIONS)
        with pytest.raises(InputError, match=r"002.png cannot be decoded.*unreadable='skip'"):
            list(source.batches(0))

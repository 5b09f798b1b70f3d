import math

import pytest
import torch
import torch.nn.functional as F

from regraft.data import operations as ops
from regraft.data.views import OPERATIONS, Views, apply, checked, strong, weak
from regraft.errors import InputError
from regraft.streams import Counter


def images(n=6, side=12, channels=3, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    # Away from 0 and 1, where cutting off has a corner.
    return 0.1 + 0.8 * torch.rand(n, channels, side, side, generator=g, dtype=dtype)


@pytest.mark.parametrize("views", [weak(flip=True), strong(flip=True), strong(some=8)])
def test_a_record_replays_exactly_and_by_rows(views):
    x, record = images(20), views.draw(20, Counter(1))
    first = views.apply(x, record)
    assert torch.equal(first, views.apply(x, record))
    rows = torch.tensor([3, 17, 4])
    torch.testing.assert_close(views.apply(x[rows], record[rows]), first[rows], rtol=0, atol=1e-6)
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1


def test_the_draws_of_an_image_do_not_depend_on_its_batch():
    views = strong()
    whole = views.draw(300, Counter(4))
    c = Counter(4)
    parts = [views.draw(n, c) for n in (1, 256, 43)]
    for key, value in whole.parameters.items():
        assert torch.equal(value, torch.cat([p.parameters[key] for p in parts]))
        assert torch.equal(whole.on[key], torch.cat([p.on[key] for p in parts]))


def test_each_image_has_a_draw_of_its_own():
    x = images(1).expand(64, -1, -1, -1)
    out = strong()(x, Counter(0))
    assert len({o.numpy().tobytes() for o in out}) == 64
    chosen = torch.stack(list(strong().draw(500, Counter(0)).on.values())[2:], 1)
    assert (chosen.sum(1) == 2).all()
    assert (chosen.sum(0) > 60).all()  # 500 * 2 / 8 = 125 of each of the eight


def _row(name, strength=1.0, seed=3, n=6):
    law = OPERATIONS[name]
    return law.parameters(Counter(seed).uniform("test", 0, n, law.draws), strength)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_is_the_slope(name):
    x = images(2, side=6, dtype=torch.float64).requires_grad_()
    p = _row(name, n=2).double()
    assert torch.autograd.gradcheck(
        lambda x: OPERATIONS[name].function(x, p), x, fast_mode=True, raise_exception=True
    )
    out = OPERATIONS[name].function(x, p)
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_operation_does_to_an_image_what_it_does_to_it_alone(name, channels):
    x, p = images(channels=channels), _row(name)
    together = OPERATIONS[name].function(x, p)
    alone = [OPERATIONS[name].function(x[i : i + 1], p[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("flip", (0.2,)),
        ("shift", (0.0, 0.0)),
        ("affine", (1, 0, 0, 0, 1, 0)),
        ("brightness", (1,)),
        ("contrast", (1,)),
        ("saturation", (1,)),
        ("solarise", (1,)),
        ("sharpness", (1,)),
        ("blur", (0.05,)),
        ("noise", (0, 7)),
        ("cutout", (0.5, 0.5, 0)),
    ],
)
def test_some_parameters_leave_the_images_as_they_are(name, parameters):
    x = images()
    p = torch.tensor([parameters], dtype=torch.float32).expand(6, -1)
    torch.testing.assert_close(OPERATIONS[name].function(x, p), x, rtol=1e-5, atol=1e-5)


def test_a_shift_moves_by_whole_pixels_and_fills_with_black():
    x = images(1, side=8)
    out = ops.shift(x, torch.tensor([[1 / 8, -2 / 8]]))[0]
    assert torch.equal(out[:, 1:, :6], x[0, :, :7, 2:])
    assert not out[:, 0].any()
    assert not out[:, :, 6:].any()


def _slow_tone(name, x, f):
    """The definitions, image by image."""
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    out = []
    for image, factor in zip(x, f[:, 0], strict=True):
        g = (image * weights).sum(0, keepdim=True)
        base = {"brightness": torch.zeros(1), "contrast": g.mean(), "saturation": g}[name]
        out.append((base + factor * (image - base)).clamp(0, 1))
    return torch.stack(out)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_tones_are_blends(name):
    x, f = images(), _row(name)
    torch.testing.assert_close(OPERATIONS[name].function(x, f), _slow_tone(name, x, f))


def test_blur_is_the_gaussian_mean_of_the_neighbours():
    x, sigma = images(2, side=9), torch.tensor([[0.7], [1.3]])
    r = ops.blur_radius(9)
    expected = torch.zeros_like(x)
    padded = F.pad(x, (r,) * 4, mode="reflect")
    for i, s in enumerate(sigma[:, 0].tolist()):
        weights = [math.exp(-0.5 * (k / s) ** 2) for k in range(-r, r + 1)]
        for a in range(2 * r + 1):
            for b in range(2 * r + 1):
                w = weights[a] * weights[b] / sum(weights) ** 2
                expected[i] += w * padded[i, :, a : a + 9, b : b + 9]
    torch.testing.assert_close(ops.blur(x, sigma), expected)


def test_noise_is_normal_and_belongs_to_its_seed():
    x = torch.full((3, 1, 64, 64), 0.5)
    p = torch.tensor([[0.1, 5], [0.1, 5], [0.1, 6]])
    a, b, c = (ops.noise(x, p) - 0.5) / 0.1
    assert torch.equal(a, b)
    assert abs(float((a * c).mean())) < 0.05
    assert float(c.mean()) == pytest.approx(0, abs=0.05)
    assert float(c.std()) == pytest.approx(1, abs=0.05)
    assert float((c.abs() < 1).float().mean()) == pytest.approx(0.683, abs=0.03)


def test_cutout_fills_a_square_with_grey():
    x = torch.zeros(1, 1, 10, 10)
    out = ops.cutout(x, torch.tensor([[0.5, 0.5, 0.4]]))[0, 0]
    expected = torch.zeros(10, 10)
    expected[3:7, 3:7] = 0.5
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "solarise", "sharpness"])
def test_torchvision_agrees_image_by_image(name):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x, p = images(), _row(name)
    oracle = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "solarise": functional.solarize,
        "sharpness": functional.adjust_sharpness,
    }[name]
    expected = torch.stack([oracle(i, float(f)) for i, f in zip(x, p[:, 0], strict=True)])
    torch.testing.assert_close(OPERATIONS[name].function(x, p), expected, rtol=1e-4, atol=2e-4)


def test_torchvision_agrees_on_blur():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x, sigma = images(side=16), _row("blur")
    size = [2 * ops.blur_radius(16) + 1] * 2
    expected = [
        functional.gaussian_blur(i, size, [float(s)] * 2) for i, s in zip(x, sigma, strict=True)
    ]
    torch.testing.assert_close(ops.blur(x, sigma), torch.stack(expected))


KORNIA = ["affine", "solarise", "sharpness", "blur", "gradient of brightness"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KORNIA)
def test_kornia_agrees_on_whole_batches(name):
    enhance = pytest.importorskip("kornia.enhance")
    filters = pytest.importorskip("kornia.filters")
    x = images(side=16).requires_grad_()
    if name == "affine":
        warp = pytest.importorskip("kornia.geometry.transform").warp_affine
        p = _row("affine")
        theta = torch.cat([p.view(-1, 2, 3), torch.tensor([[[0.0, 0, 1]]]).expand(6, -1, -1)], 1)
        # kornia maps pixels of the input to pixels of the output; ours maps back, from -1 to 1.
        size = 16 / 2
        to = torch.tensor([[size, 0, size - 0.5], [0, size, size - 0.5], [0, 0, 1.0]])
        matrix = (to @ theta @ to.inverse()).inverse()[:, :2]
        expected = warp(x, matrix, (16, 16), align_corners=True)
        ours = ops.affine(x, p)
    elif name == "solarise":
        p = _row("solarise")
        expected = torch.stack(
            [enhance.solarize(i, float(t)) for i, t in zip(x, p[:, 0], strict=True)]
        )
        ours = ops.solarise(x, p)
    elif name == "sharpness":
        p = _row("sharpness")
        expected, ours = enhance.sharpness(x, p[:, 0]), ops.sharpness(x, p)
    elif name == "blur":
        p = _row("blur")
        size = (2 * ops.blur_radius(16) + 1,) * 2
        expected = filters.gaussian_blur2d(x, size, p.expand(-1, 2))
        ours = ops.blur(x, p)
    else:
        p = _row("brightness")
        expected, ours = enhance.adjust_brightness_accumulative(x, p[:, 0]), ops.brightness(x, p)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
    slopes = [torch.autograd.grad(o.pow(2).sum(), x)[0] for o in (ours, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=2e-3)


def test_a_transform_that_cuts_the_graph_is_refused():
    x = images().requires_grad_()

    def posterise(x):
        return (x * 4).floor() / 4 + 0 * x

    def detached(x):
        return x.detach() * 2

    def in_place(x):
        y = x.sigmoid()
        out = y * y
        y.add_(1)
        return out

    with pytest.raises(InputError, match="transform detached cuts the graph"):
        checked(detached)(x)
    with pytest.raises(InputError, match="transform posterise passes no gradient on"):
        checked(posterise)(x)
    with pytest.raises(InputError, match="transform in_place cannot be differentiated"):
        checked(in_place)(x)
    with pytest.raises(InputError, match=r"made \(6, 1, 12, 12\) of"):
        checked(lambda x: x[:, :1], name="grey")(x)
    torch.testing.assert_close(checked(torch.sigmoid)(x), x.sigmoid())
    assert torch.equal(checked(detached)(x.detach()), x.detach() * 2)


def test_batched_equalising_of_torchvision_is_refused():
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    with pytest.raises(InputError, match="cuts the graph"):
        checked(functional.equalize)(images().requires_grad_())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(always=("twirl",)), "views hold 'twirl': expected some of affine, blur"),
        (lambda: Views(choice=("blur",), some=2), "at most the 1 of `choice`"),
        (lambda: strong(strength=0.0), "above 0 and at most 1"),
        (lambda: weak()((images() * 255).byte(), Counter(0)), "divide uint8 images by 255"),
        (lambda: apply(images(4), weak().draw(3, Counter(0))), r"of 3 image\(s\) and these are 4"),
    ],
)
def test_what_makes_no_views_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()

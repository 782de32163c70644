"""Networks: shapes, starting state, gradients, and the parts they are made of."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_utils.networks import NETWORKS, build, count_parameters
from diffusion_utils.networks.blocks import (
    Downsample, ResBlock, TimestepEmbedding, Upsample, group_norm, timestep_embedding)
from diffusion_utils.networks.resnet import ResNetEncoderDecoder

# Small versions of every kind of configuration, and the stride each should have.
SMALL = {
    "default": ({}, 8),
    "narrow": ({"channels": (8, 16, 16, 24)}, 8),
    "stem 2": ({"channels": (8, 16, 24), "stem": 2}, 8),
    "stem 4": ({"channels": (8, 16), "stem": 4}, 8),
    "stem 4 alone": ({"channels": (8,), "stem": 4}, 4),
    "deep": ({"channels": (8, 16), "depth": (1, 3), "decoder_channels": (16, 8),
              "decoder_depth": 1, "stem": 4, "embedding_dim": 16}, 8),
    "stride 2": ({"channels": (8, 8)}, 2),
    "stride 16": ({"channels": (8, 8, 8, 8, 16)}, 16),
    "grey": ({"channels": (8, 12), "picture_channels": 1, "stem": 2}, 4),
}  # fmt: skip
every_network = pytest.mark.parametrize("options, stride", SMALL.values(), ids=SMALL)


def woken(options, seed=0):
    """A network whose weights that start at 0 have moved, as after some training."""
    torch.manual_seed(seed)
    net = ResNetEncoderDecoder(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return net


def batch(options, height, width, N=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, options.get("picture_channels", 3), height, width, generator=generator)


@every_network
def test_the_answer_has_the_shape_of_the_question(options, stride):
    net = woken(options)
    assert net.stride == stride
    for height, width in [(stride, stride), (2 * stride, 3 * stride), (3 * stride, stride)]:
        x = batch(options, height, width)
        assert net(x, torch.tensor([0, 999])).shape == x.shape


@every_network
def test_pictures_the_stride_does_not_divide_are_refused(options, stride):
    net = ResNetEncoderDecoder(**options)
    for height, width in [(stride + 1, stride), (stride, 2 * stride - 1)]:
        message = f"a {height}×{width} picture cannot pass: .* multiples of .*stride, {stride};"
        with pytest.raises(ValueError, match=message):
            net(batch(options, height, width), torch.tensor([0, 0]))


@every_network
def test_a_new_network_answers_exactly_0(options, stride):
    x = batch(options, 2 * stride, 2 * stride)
    assert not ResNetEncoderDecoder(**options)(x, torch.tensor([0, 999])).any()


@every_network
def test_gradients_reach_every_parameter(options, stride):
    net = woken(options)
    x = batch(options, 2 * stride, 2 * stride, N=4)
    net(x, torch.tensor([0, 10, 500, 999])).square().mean().backward()
    unmoved = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_new_network_can_start_to_learn():
    torch.manual_seed(0)
    net = ResNetEncoderDecoder(channels=(8,), stem=2)
    x = batch({}, 8, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = (net(x, torch.tensor([3, 7])) - 0.5).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(0.25) and losses[-1] < 0.1


@every_network
def test_the_timestep_changes_the_answer(options, stride):
    net, x = woken(options), batch(options, 2 * stride, 2 * stride)
    with torch.no_grad():
        answers = [net(x, torch.tensor([t, t])) for t in (0, 1, 500)]
    assert not torch.allclose(answers[0], answers[1], atol=1e-6)
    assert not torch.allclose(answers[1], answers[2], atol=1e-6)


@every_network
def test_each_picture_is_answered_alone(options, stride):
    net, t = woken(options).train(), torch.tensor([0, 400, 999])
    x = batch(options, 2 * stride, 2 * stride, N=3)
    with torch.no_grad():
        together = net(x, t)
        for i in range(3):
            alone = net(x[i : i + 1], t[i : i + 1])[0]
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_everything_passes_the_bottleneck():
    # No skip connection: what the narrow middle does not carry cannot be in the answer.
    net = woken({"channels": (8, 16), "stem": 4})
    middle = next(i for i, layer in enumerate(net.decoder) if isinstance(layer, Upsample))
    shapes = []

    def hide(module, inputs):
        shapes.append(inputs[0].shape)
        return (torch.zeros_like(inputs[0]),)

    net.decoder[middle].register_forward_pre_hook(hide)
    one, other = (net(batch({}, 32, 32, seed=s), torch.tensor([5, 5])) for s in (1, 2))
    assert shapes[0] == (2, 16, 4, 4)
    assert torch.equal(one, other)


# Parts

@pytest.mark.parametrize("channels", [8, 12])
def test_a_new_block_changes_nothing(channels):
    block, x = ResBlock(channels, channels, 16), torch.randn(2, channels, 8, 6)
    assert torch.equal(block(x, torch.randn(2, 16)), x)


def test_a_block_may_change_the_width():
    block, x, embedding = ResBlock(8, 16, 4), torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    assert block(x, embedding).shape == (2, 16, 6, 6)
    assert torch.equal(block(x, embedding), block.carry(x))


def test_the_embedding_scales_and_shifts():
    block, x = ResBlock(8, 8, 4), torch.randn(1, 8, 5, 5)
    torch.nn.init.dirac_(block.conv2.weight)  # let the block's inside through
    inside = block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(x))))
    scale, shift = block.scale_shift(torch.ones(1, 4))[0].chunk(2)
    expected = inside * (1 + scale[:, None, None]) + shift[:, None, None]
    answer = block(x, torch.ones(1, 4)) - x
    torch.testing.assert_close(
        answer, torch.nn.functional.silu(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels, groups", [(8, 1), (64, 8), (96, 12), (12, 1), (3, 1)])
def test_groups_have_8_channels_where_possible(channels, groups):
    assert group_norm(channels).num_groups == groups


def ones(layer):
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return layer(torch.ones(1, 1, 8, 8))[0, 0, 2:-2, 2:-2]  # the border has fewer writers


def test_upsampling_prints_no_checkerboard():
    inside = ones(Upsample(1, 1))
    assert (inside == 4).all()  # each pixel is written by 2×2 inputs
    # The same with a kernel that the stride does not divide shows what is avoided.
    uneven = ones(torch.nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1))
    assert set(uneven.unique().tolist()) == {1, 2, 4}


def test_upsampling_kernels_are_divisible_by_the_stride():
    for options, _ in SMALL.values():
        for layer in ResNetEncoderDecoder(**options).modules():
            if isinstance(layer, torch.nn.ConvTranspose2d):
                assert all(k % s == 0 for k, s in zip(layer.kernel_size, layer.stride))


@pytest.mark.parametrize("height, width", [(8, 8), (4, 10)])
def test_down_and_up_halve_and_double(height, width):
    x = torch.randn(1, 3, height, width)
    assert Downsample(3, 5)(x).shape == (1, 5, height // 2, width // 2)
    assert Upsample(3, 5)(x).shape == (1, 5, height * 2, width * 2)


@settings(deadline=None, max_examples=25)
@given(t=st.lists(st.integers(0, 1999), min_size=1, max_size=8), half=st.integers(1, 64))
def test_the_timestep_embedding_agrees_with_diffusers(t, half):
    t = torch.tensor(t)
    theirs = get_timestep_embedding(t, 2 * half, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = timestep_embedding(t, 2 * half)
    assert ours.shape == (len(t), 2 * half) and ours.dtype == torch.float32
    # An angle of 2000 in float32 is itself only known to 1e-4.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)


def test_the_timestep_embedding_follows_its_formula():
    t, dim = 37, 8
    angles = t * 10_000.0 ** (-torch.arange(4) / 4)
    expected = torch.cat([angles.cos(), angles.sin()])
    for given_t in (torch.tensor([t]), torch.tensor([37.0])):
        torch.testing.assert_close(timestep_embedding(given_t, dim)[0], expected)
    nearby = timestep_embedding(torch.tensor([500, 501, 600]), 64)
    assert (nearby[0] - nearby[1]).norm() < (nearby[0] - nearby[2]).norm()


@pytest.mark.parametrize("dim", [0, 1, 7])
def test_an_odd_embedding_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim must be even and at least 2, not {dim}"):
        timestep_embedding(torch.tensor([1]), dim)


def test_the_embedding_module_gives_the_asked_length():
    assert TimestepEmbedding(24)(torch.tensor([0, 5, 999])).shape == (3, 24)


# Building

def test_build_makes_the_named_network_with_its_options():
    net = build("resnet", channels=(8, 16), stem=2)
    assert type(net) is NETWORKS["resnet"] and net.stride == 4
    # Model cards are JSON: their lists must do as well as tuples.
    torch.manual_seed(0)
    one = build("resnet", channels=[8, 16], depth=[1, 2], stem=2, decoder_channels=[8])
    assert count_parameters(one) == count_parameters(
        build("resnet", channels=(8, 16), depth=(1, 2), stem=2, decoder_channels=(8,)))


@pytest.mark.parametrize("options, message", [
    ({"name": "unet"}, "unknown network 'unet': choose one of resnet"),
    ({"name": "resnet", "widths": (8,)}, "network 'resnet': .*unexpected .*'widths'"),
    ({"name": "resnet", "stem": 3}, "stem must be 1, 2 or 4, not 3"),
    ({"name": "resnet", "channels": ()}, "channels needs at least one width"),
    ({"name": "resnet", "channels": (8, 16), "depth": (1,)}, r"\(or one per stage\)"),
    ({"name": "resnet", "channels": (8, 16), "depth": 0}, "depth one number ≥ 1"),
    ({"name": "resnet", "channels": (8, 16), "decoder_depth": -1}, "decoder_depth a number ≥ 0"),
    ({"name": "resnet", "channels": (8, 16), "stem": 2, "decoder_channels": (8, 8)},
     "a stride of 4 needs 1 decoder_channels, not 2"),
    ({"name": "resnet", "channels": (8,)}, "a stride of 1 leaves nothing to decode"),
])  # fmt: skip
def test_networks_that_cannot_be_built_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_counting_parameters():
    assert count_parameters(torch.nn.Linear(3, 5)) == 3 * 5 + 5


@pytest.mark.parametrize("preset", ["CARS", "TOY"])
def test_the_presets_stay_small(preset):
    from diffusion_utils import train

    net = build(**getattr(train, preset))
    assert net.stride == 8
    assert count_parameters(net) <= 1_000_000

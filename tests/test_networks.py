"""Networks: shapes, starting state, gradients, and the parts they are made of."""

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffusion_utils.networks import NETWORKS, build, count_parameters, dit, presets, register, registry, stages
from diffusion_utils.networks.blocks import (
    Downsample,
    PoolDown,
    ResBlock,
    SelfAttention,
    SkipUp,
    TimestepEmbedding,
    Upsample,
    group_norm,
    timestep_embedding,
    upsample,
)
from diffusion_utils.networks.dit import TokenAttention, TokenBlock, grid_positions
from diffusion_utils.networks.resnet import SKIPS, ResNetEncoderDecoder
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import make_schedule

UPSAMPLES = ["transposed", "transposed_k3", "nearest", "pixel_shuffle"]

# Small versions of every kind of configuration, and the stride each should have.
SMALL = {
    "default": ({}, 8),
    "narrow": ({"channels": (8, 16, 16, 24)}, 8),
    "stem 2": ({"channels": (8, 16, 24), "stem": 2}, 8),
    "stem 4": ({"channels": (8, 16), "stem": 4}, 8),
    "stem 4 alone": ({"channels": (8,), "stem": 4}, 4),
    "deep": (
        {
            "channels": (8, 16),
            "depth": (1, 3),
            "decoder_channels": (16, 8),
            "decoder_depth": 1,
            "stem": 4,
            "embedding_dim": 16,
        },
        8,
    ),
    "stride 2": ({"channels": (8, 8)}, 2),
    "stride 16": ({"channels": (8, 8, 8, 8, 16)}, 16),
    "grey": ({"channels": (8, 12), "picture_channels": 1, "stem": 2}, 4),
    "add": ({"channels": (8, 16, 24), "skip": "add"}, 4),
    "add, stem 4": ({"channels": (8, 16), "skip": "add", "stem": 4, "decoder_depth": 1}, 8),
    "concat": ({"channels": (8, 8, 16), "skip": "concat", "decoder_depth": 1}, 4),
    "concat, stem 2": ({"channels": (8, 16), "skip": "concat", "stem": 2}, 4),
    "indices": ({"channels": (8, 16, 24), "skip": "indices", "decoder_depth": 1}, 4),
    "indices, stem 4": ({"channels": (8, 16), "skip": "indices", "stem": 4, "decoder_depth": 2}, 8),
    "nearest": ({"channels": (8, 16, 16), "upsample": "nearest"}, 4),
    "pixel_shuffle": ({"channels": (8, 16), "upsample": "pixel_shuffle", "skip": "concat"}, 2),
    "transposed_k3": ({"channels": (8, 16), "upsample": "transposed_k3", "stem": 2}, 4),
    "attention": ({"channels": (8, 16, 24), "attention": (2, 4), "decoder_depth": 1}, 4),
    "patch head": ({"channels": (8, 16), "stem": 4, "skip": "add", "decoder_depth": 1, "patch_head": True}, 8),
    "patch head, stem 2": ({"channels": (8, 16, 24), "stem": 2, "patch_head": True, "upsample": "nearest"}, 8),
    "patch head, stem 1": ({"channels": (8, 16), "skip": "concat", "patch_head": True}, 2),
    "patch head alone": ({"channels": (8,), "stem": 4, "patch_head": True}, 4),
    "segnet": ({"name": "segnet", "channels": (8, 16), "depth": (1, 2)}, 4),
    "grey segnet": ({"name": "segnet", "channels": (8, 8, 12), "picture_channels": 1}, 8),
    "unet": ({"name": "unet", "channels": (8, 16), "attention": (1,)}, 2),
    "grey unet": ({"name": "unet", "channels": (8, 8, 12), "depth": 1, "picture_channels": 1}, 4),
    "dit": ({"name": "dit", "patch": 2, "dim": 24, "depth": 2, "heads": 3}, 2),
    "grey dit": ({"name": "dit", "patch": 4, "dim": 16, "depth": 1, "heads": 4, "picture_channels": 1}, 4),
    "mixer": ({"name": "mixer", "size": 8, "patch": 4, "dim": 16, "depth": 2}, 4),
    "grey mixer": ({"name": "mixer", "size": 4, "patch": 2, "dim": 16, "depth": 1, "picture_channels": 1}, 2),
}
every_network = pytest.mark.parametrize("options, stride", SMALL.values(), ids=SMALL)


def new(options):
    return build(**{"name": "resnet", **options})


def woken(options, seed=0):
    """A network whose weights that start at 0 have moved, as after some training."""
    torch.manual_seed(seed)
    net = new(options)
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
    sides = [(stride, stride), (2 * stride, 3 * stride), (3 * stride, stride)]
    for height, width in [(2 * stride, 2 * stride)] if "size" in options else sides:
        x = batch(options, height, width)
        assert net(x, torch.tensor([0, 999])).shape == x.shape


@torch.no_grad()
def test_the_answer_is_that_of_the_parts_put_together_by_hand():
    x, t = batch({}, 8, 8), torch.tensor([3, 700])

    net = woken({"channels": (8, 16), "stem": 2, "decoder_depth": 1})
    block, down, deeper = net.encoder
    up, last = net.decoder
    embedding = net.embed(t)
    low = deeper(down(block(net.stem(x), embedding)), embedding)
    torch.testing.assert_close(net(x, t), net.head(last(up(low), embedding)))

    net = woken({"channels": (8, 16), "stem": 2, "skip": "add", "attention": (4,), "patch_head": True})
    block, down, deeper, attend = net.encoder
    skip_up, activation = net.decoder
    embedding = net.embed(t)
    high = block(net.stem(x), embedding)
    low = attend(deeper(down(high), embedding))
    torch.testing.assert_close(net(x, t), net.head(activation(skip_up.up(low) + high)))

    net = woken({"name": "segnet", "channels": (8,), "depth": 1})
    embedding = net.embed(t)
    high = net.encoder[0][0](x, embedding)
    pooled, places = nn.functional.max_pool2d(high, 2, return_indices=True)
    back = nn.functional.max_unpool2d(pooled, places, 2)
    torch.testing.assert_close(net(x, t), net.head(net.decoder[0][0](back, embedding)))

    net = woken({"name": "unet", "channels": (8, 16), "depth": 1})
    embedding = net.embed(t)
    first = net.stem(x)
    second = net.down[0][0](first, embedding)
    third = net.down[1](second)
    fourth = net.down[2][0](third, embedding)
    low = net.middle[2](net.middle[1](net.middle[0](fourth, embedding)), embedding)
    for layer, kept in zip(net.up[:2], (fourth, third)):
        low = layer[0](torch.cat([low, kept], dim=1), embedding)
    high = net.up[2](low)
    for layer, kept in zip(net.up[3:], (second, first)):
        high = layer[0](torch.cat([high, kept], dim=1), embedding)
    torch.testing.assert_close(net(x, t), net.head(high))

    net = woken(SMALL["dit"][0])
    first, second = net.blocks
    embedding = net.embed(t)
    tokens = net.stem(x).flatten(2).mT + grid_positions(4, 4, 24)
    torch.testing.assert_close(net(x, t), net.head(second(first(tokens, embedding), embedding), embedding, 4, 4))


@every_network
def test_pictures_the_stride_does_not_divide_are_refused(options, stride):
    net = new(options)
    for height, width in [(stride + 1, stride), (stride, 2 * stride - 1)] if stride > 1 else []:
        message = f"a picture of {height}×{width} pixels cannot pass: .* multiples of .*stride, {stride};"
        with pytest.raises(ValueError, match=message):
            net(batch(options, height, width), torch.tensor([0, 0]))


@every_network
def test_a_new_network_answers_exactly_0(options, stride):
    x = batch(options, 2 * stride, 2 * stride)
    assert not new(options)(x, torch.tensor([0, 999])).any()


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
    net = new({"channels": (8,), "stem": 2})
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


# What the decoder knows


def answers_without(layer, net):
    """The answers to two batches when nothing comes into `layer` from below."""
    shapes = []

    def hide(module, inputs):
        shapes.append(tuple(inputs[0].shape))
        return torch.zeros_like(inputs[0]), *inputs[1:]

    layer.register_forward_pre_hook(hide)
    with torch.no_grad():
        return shapes, *(net(batch({}, 16, 16, seed=s), torch.tensor([5, 5])) for s in (1, 2))


@pytest.mark.parametrize("stem", [1, 4])
@pytest.mark.parametrize("skip", SKIPS)
def test_only_skips_bring_in_what_did_not_pass_the_bottleneck(skip, stem):
    net = woken({"channels": (8, 16, 24), "stem": stem, "skip": skip, "decoder_depth": 1})
    shapes, one, other = answers_without(net.decoder[0], net)
    assert shapes[0] == (2, 24, 16 // net.stride, 16 // net.stride)
    assert torch.equal(one, other) == (skip == "none")


def test_segnets_decoder_knows_the_places_even_without_the_values():
    net = woken({"name": "segnet", "channels": (8, 16)})
    shapes, one, other = answers_without(net.decoder[0][0], net)
    assert shapes[0] == (2, 16, 8, 8) and not torch.equal(one, other)


def test_the_unet_knows_more_than_its_middle():
    net = woken({"name": "unet", "channels": (8, 16)})
    shapes, one, other = answers_without(net.middle[0], net)
    assert shapes[0] == (2, 16, 8, 8) and not torch.equal(one, other)


def test_segnet_puts_values_back_where_the_maxima_were():
    net, seen = woken({"name": "segnet", "channels": (8, 16, 24)}), {}
    for i in range(3):
        net.encoder[i][-1].register_forward_hook(lambda m, _, out, i=i: seen.update({("out", i): out}))
        net.decoder[2 - i][0].register_forward_pre_hook(lambda m, ins, i=i: seen.update({("in", i): ins[0]}))
    with torch.no_grad():
        net(batch({}, 16, 16), torch.tensor([3, 600]))
    for i in range(3):
        before, after = seen["out", i], seen["in", i]
        largest = torch.nn.functional.max_pool2d(before, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert (after != 0).float().mean() > 0.1
        assert (before == largest)[after != 0].all()  # nothing stands elsewhere
    # In the innermost stage nothing lies between pooling and unpooling: the maxima themselves return.
    assert torch.equal(after, torch.where(before == largest, before, 0))


@pytest.mark.parametrize("options", [{}, {"skip": "add", "attention": (2,)}, {"cond_dim": 3}], ids=str)
def test_without_timestep_a_network_answers_as_at_t_0(options):
    options = {"channels": (8, 16), **options}
    seeing, blind = woken(options), new({**options, "timestep": False})
    blind.load_state_dict(seeing.state_dict())  # the layers stay
    x = batch({}, 8, 8)
    cond = torch.randn(2, 3) if "cond_dim" in options else None
    with torch.no_grad():
        at_0 = seeing(x, torch.tensor([0, 0]), cond)
        assert torch.equal(blind(x, torch.tensor([7, 999]), cond), at_0)
        assert not torch.allclose(seeing(x, torch.tensor([7, 999]), cond), at_0, atol=1e-6)


# Conditions

CONDITIONAL = {name: {"name": name, "channels": (8, 16)} for name in ("resnet", "segnet", "unet")}
CONDITIONAL |= {"dit": SMALL["dit"][0], "mixer": SMALL["mixer"][0]}
every_name = pytest.mark.parametrize("options", CONDITIONAL.values(), ids=CONDITIONAL)


@every_name
def test_a_condition_changes_the_answer_of_its_own_picture(options):
    net = woken({**options, "cond_dim": 5})
    x, t = batch({}, 8, 8), torch.tensor([9, 9])
    cond = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    first = net(x, t, cond)
    other = net(x, t, torch.stack([cond[0], -cond[1]]))
    torch.testing.assert_close(other[0], first[0])
    assert not torch.allclose(other[1], first[1], atol=1e-5)
    first.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@every_name
def test_without_a_condition_the_network_is_the_one_built_without(options):
    net, plain = woken({**options, "cond_dim": 5}), new(options)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("embed.cond.")})
    x, t = batch({}, 8, 8), torch.tensor([9, 800])
    with torch.no_grad():
        assert torch.equal(net(x, t), plain(x, t))
        torch.testing.assert_close(net(x, t, torch.zeros(2, 5)), net(x, t))  # zeros say as little
    with pytest.raises(ValueError, match="built without cond_dim: it cannot be given cond"):
        plain(x, t, torch.zeros(2, 5))


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
    torch.testing.assert_close(answer, torch.nn.functional.silu(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels, groups", [(8, 1), (64, 8), (96, 12), (12, 1), (3, 1)])
def test_groups_have_8_channels_where_possible(channels, groups):
    assert group_norm(channels).num_groups == groups


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]


@pytest.mark.parametrize(
    "kind, writers",
    [
        ("transposed", {4}),  # each pixel is written by 2×2 inputs
        ("transposed_k3", {1, 2, 4}),  # the checkerboard: a kernel that the stride does not divide
        ("nearest", {9}),
        ("pixel_shuffle", {9}),
    ],
)
def test_which_upsampling_prints_a_checkerboard(kind, writers):
    layer = upsample(kind, 1, 1)
    for convolution in convolutions(layer):
        torch.nn.init.ones_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    inside = layer(torch.ones(1, 1, 8, 8))[0, 0, 2:-2, 2:-2]  # the border has fewer writers
    assert set(inside.unique().tolist()) == writers


def test_only_what_asks_for_a_checkerboard_has_one():
    for options, _ in SMALL.values():
        uneven = [
            layer
            for layer in convolutions(new(options))
            if layer.transposed and any(k % s for k, s in zip(layer.kernel_size, layer.stride))
        ]
        assert bool(uneven) == (options.get("upsample") == "transposed_k3")


def written_by_hand(x, layer):
    """A transposed convolution of stride 2 with 1 of padding: every input writes its kernel's worth of pixels."""
    kernel, (height, width) = layer.weight, x.shape[2:]
    size = kernel.shape[2]
    canvas = torch.zeros(len(x), kernel.shape[1], 2 * height + 4, 2 * width + 4)
    for i in range(height):
        for j in range(width):
            written = torch.einsum("nc,cdkl->ndkl", x[:, :, i, j], kernel)
            canvas[:, :, 2 * i : 2 * i + size, 2 * j : 2 * j + size] += written
    return canvas[:, :, 1 : 2 * height + 1, 1 : 2 * width + 1] + layer.bias[:, None, None]


@pytest.mark.parametrize("kind", UPSAMPLES)
@pytest.mark.parametrize("height, width", [(8, 8), (4, 10)])
@torch.no_grad()
def test_every_kind_of_upsampling_doubles(kind, height, width):
    x, kept = torch.randn(2, 3, height, width), torch.randn(2, 5, 2 * height, 2 * width)
    layer = upsample(kind, 3, 5)
    if kind.startswith("transposed"):
        expected = written_by_hand(x, layer)
    elif kind == "nearest":
        expected = layer[1](x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    else:  # four channels become the four pixels of a square
        squares = layer[0](x).reshape(2, 5, 2, 2, height, width)
        expected = squares.permute(0, 1, 4, 2, 5, 3).reshape(kept.shape)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    for skip in ("add", "concat"):
        up = SkipUp(skip, 3, 5, kind)
        expected = up.up(x) + kept if skip == "add" else up.mix(torch.cat([up.up(x), kept], dim=1))
        assert torch.equal(up(x, kept), expected) and expected.shape == kept.shape


def test_nearest_repeats_each_pixel():
    layer, x = upsample("nearest", 2, 2), torch.randn(1, 2, 3, 5)
    torch.nn.init.dirac_(layer[-1].weight)
    torch.nn.init.zeros_(layer[-1].bias)
    torch.testing.assert_close(layer(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_unpooling_puts_the_maxima_back_by_hand():
    down, up = PoolDown(1, 1), SkipUp("indices", 1, 1)
    for convolution in (down.conv, up.up):  # which shall change nothing here
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    x = torch.tensor([[1.0, 2, 5, 3], [4, 0, 1, 2], [-1, -2, 7, 8], [-3, -4, 9, 6]])[None, None]
    pooled, places = down(x)
    assert pooled[0, 0].tolist() == [[4, 5], [-1, 9]]
    assert up(pooled, places)[0, 0].tolist() == [[0, 0, 5, 0], [4, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 9, 0]]


def test_pooling_adapts_the_width_after_it_kept_the_places():
    down, up, x = PoolDown(3, 5), SkipUp("indices", 5, 3), torch.randn(2, 3, 8, 6)
    pooled, places = down(x)
    maxima = x.reshape(2, 3, 4, 2, 3, 2).amax((3, 5))
    torch.testing.assert_close(pooled, down.conv(maxima))
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), maxima.flatten(2))
    back = up(pooled, places)
    torch.testing.assert_close(back.flatten(2).gather(2, places.flatten(2)), up.up(pooled).flatten(2))
    assert back.shape == x.shape and (back != 0).sum() <= x.numel() / 4  # and nothing elsewhere


def test_added_and_stacked_skips():
    x, kept = torch.randn(2, 4, 3, 3), torch.randn(2, 2, 6, 6)
    add, concat = SkipUp("add", 4, 2), SkipUp("concat", 4, 2)
    torch.testing.assert_close(add(x, kept) - add(x, 0 * kept), kept)
    for own, kept_share in ((1.0, 0.0), (0.0, 1.0), (0.5, 2.0)):
        weight = torch.cat([own * torch.eye(2), kept_share * torch.eye(2)], dim=1)
        concat.mix.weight.data = weight[:, :, None, None]
        torch.nn.init.zeros_(concat.mix.bias)
        torch.testing.assert_close(concat(x, kept), own * concat.up(x) + kept_share * kept)


# Attention


def attentive(channels, **options):
    """Attention whose last layer does not start at 0."""
    torch.manual_seed(0)
    layer = SelfAttention(channels, **options)
    torch.nn.init.normal_(layer.out.weight)
    torch.nn.init.normal_(layer.out.bias)
    return layer


@pytest.mark.parametrize(
    "channels, options, heads",
    [(64, {}, 2), (32, {}, 1), (96, {}, 3), (48, {}, 1), (8, {}, 1), (16, {"head_channels": 4}, 4)],
)
def test_attention_is_softmax_of_query_times_key_over_the_root_times_value(channels, options, heads):
    layer, x = attentive(channels, **options), torch.randn(2, channels, 3, 5)
    per_head, expected = channels // heads, torch.zeros_like(x)
    assert layer.heads == heads
    for n in range(2):
        q, k, v = layer.qkv(layer.norm(x[n : n + 1]))[0].reshape(3, channels, 15)
        found = []
        for h in range(heads):
            part = slice(h * per_head, (h + 1) * per_head)
            looks = (q[part].T @ k[part] / per_head**0.5).softmax(dim=1)  # 15 places × 15 places
            found.append(v[part] @ looks.T)
        found = torch.cat(found).reshape(1, channels, 3, 5)
        expected[n] = x[n] + layer.out(found)[0]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_among_tokens_follows_its_formula():
    torch.manual_seed(0)
    layer, x = TokenAttention(12, heads=3), torch.randn(2, 5, 12)
    q, k, v = (x @ part.T + bias for part, bias in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)))
    found = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):  # a head each
        looks = (q[..., part] @ k[..., part].mT / 2).softmax(2)  # 2: the root of 4 numbers per head
        found.append(looks @ v[..., part])
    torch.testing.assert_close(layer(x), layer.out(torch.cat(found, 2)), rtol=1e-4, atol=1e-5)


def test_positions_say_row_and_column():
    found = grid_positions(3, 5, 16).unflatten(0, (3, 5))
    assert found.shape == (3, 5, 16)
    assert torch.equal(found[2, 4], timestep_embedding(torch.tensor([2, 4]), 8).flatten())
    assert torch.equal(found[1, 0, :8], found[1, 4, :8]) and torch.equal(found[0, 3, 8:], found[2, 3, 8:])
    assert len(found.flatten(0, 1).unique(dim=0)) == 15
    with pytest.raises(ValueError, match="dim must be a multiple of 4, not 6"):
        grid_positions(4, 4, 6)


@torch.no_grad()
def test_only_positions_tell_a_transformer_where_a_patch_is(monkeypatch):
    """Without them, shuffled patches give the shuffled answer."""
    net, x, t = woken(SMALL["dit"][0]), batch({}, 8, 8), torch.tensor([3, 700])

    def shuffled(pictures, order):
        patches = nn.functional.pixel_unshuffle(pictures, 2).flatten(2)
        return nn.functional.pixel_shuffle(patches[:, :, order].unflatten(2, (4, 4)), 2)

    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(net(shuffled(x, order), t), shuffled(net(x, t), order), atol=1e-3)
    monkeypatch.setattr(dit, "grid_positions", lambda height, width, dim, device: torch.zeros(height * width, dim))
    torch.testing.assert_close(net(shuffled(x, order), t), shuffled(net(x, t), order), rtol=1e-4, atol=1e-5)


def test_the_timestep_scales_shifts_and_opens_the_gate_of_tokens():
    torch.manual_seed(0)
    block, x, embedding = TokenBlock(nn.Linear(8, 8), 8, 4), torch.randn(2, 5, 8), torch.randn(2, 4)
    assert torch.equal(block(x, embedding), x)  # at first all gates are closed
    nn.init.normal_(block.modulation.weight)
    shift, scale, gate, shift2, scale2, gate2 = (
        block.modulation(embedding)[:, None, i : i + 8] for i in range(0, 48, 8)
    )

    def normed(h):
        return (h - h.mean(2, keepdim=True)) / h.var(2, keepdim=True, correction=0).add(1e-5).sqrt()

    h = x + gate * block.mix(normed(x) * (1 + scale) + shift)
    expected = h + gate2 * block.mlp(normed(h) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-5)


def test_a_mixer_works_at_its_own_size_only():
    net = new(SMALL["mixer"][0])
    for height, width in ((16, 16), (8, 4)):
        message = (
            f"a picture of {height}×{width} pixels cannot pass: this mixer was built for 8×8; give its option size"
        )
        with pytest.raises(ValueError, match=message):
            net(batch({}, height, width), torch.tensor([1, 1]))


def test_new_attention_changes_nothing():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(SelfAttention(16)(x), x)


def test_attention_knows_no_places():
    """Shuffled places give the shuffled answer: only what stands there counts, not where."""
    layer, x, order = attentive(16), torch.randn(2, 16, 4, 6), torch.randperm(24)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    expected = layer(x).flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, heights",
    [
        ({"channels": (8, 8, 8), "attention": (4,), "depth": (1, 1, 2), "decoder_depth": 1}, [2, 2]),
        ({"channels": (8, 8), "attention": [4, 2], "stem": 2, "skip": "add", "decoder_depth": 2}, [4, 2, 4, 4]),
        ({"channels": (8, 8), "skip": "concat", "attention": (1,), "decoder_depth": 1}, [8, 8]),
        ({"channels": (8, 8)}, []),
        ({"name": "unet", "channels": (8, 8, 8), "depth": 1, "attention": (2,)}, [4, 2, 4, 4]),
        ({"name": "unet", "channels": (8, 8), "depth": 2}, [4]),  # the middle always has it
    ],
    ids=str,
)
def test_attention_runs_after_every_block_of_its_strides(options, heights):
    net, found = new(options), []
    for layer in net.modules():
        if isinstance(layer, SelfAttention):
            layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].shape[2]))
    net(batch({}, 8, 8), torch.tensor([1, 1]))
    assert found == heights


@pytest.mark.parametrize("patch_head, largest", [(True, 4), (False, 16)])
def test_with_a_patch_head_nothing_is_computed_above_the_resolution_of_the_stem(patch_head, largest):
    net, heights = new({"channels": (8, 16), "stem": 4, "patch_head": patch_head}), []
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda module, inputs, output: heights.append(output.shape[2]))
    net(batch({}, 16, 16), torch.tensor([1, 1]))
    assert max(heights) == largest


@pytest.mark.parametrize("height, width", [(8, 8), (4, 10)])
def test_down_and_up_halve_and_double(height, width):
    x, down, up = torch.randn(1, 3, height, width), Downsample(3, 5), Upsample(3, 5)
    every_pixel = nn.functional.conv2d(x, down.weight, down.bias, padding=1)
    torch.testing.assert_close(down(x), every_pixel[:, :, ::2, ::2])
    torch.testing.assert_close(up(x), written_by_hand(x, up), rtol=1e-4, atol=1e-5)


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


def test_the_embedding_module_is_an_mlp_of_the_sinusoids_and_adds_the_condition():
    t, cond = torch.tensor([0, 5, 999]), torch.randn(3, 7)
    for module, more in ((TimestepEmbedding(24), ()), (TimestepEmbedding(24, cond_dim=7), (cond,))):
        first, _, second = module.mlp
        hidden = timestep_embedding(t, 64) @ first.weight.T + first.bias
        h = hidden * hidden.sigmoid() @ second.weight.T + second.bias
        h = h + cond @ module.cond.weight.T if more else h
        assert h.shape == (3, 24)
        torch.testing.assert_close(module(t, *more), h * h.sigmoid(), rtol=1e-4, atol=1e-5)


# Building


def test_build_makes_the_named_network_with_its_options():
    net = build("resnet", channels=(8, 16), stem=2)
    assert type(net) is ResNetEncoderDecoder and net.stride == 4
    # Model cards are JSON: their lists must do as well as tuples.
    options = {"channels": (8, 16), "depth": (1, 2), "stem": 2, "decoder_channels": (8,)}
    torch.manual_seed(0)
    one = build("resnet", **{key: list(value) if isinstance(value, tuple) else value for key, value in options.items()})
    torch.manual_seed(0)
    other = build("resnet", **options).state_dict()
    assert one.state_dict().keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "vit"}, "unknown network 'vit': choose one of dit, "),
        ({"name": "resnet", "widths": (8,)}, "network 'resnet' has no option 'widths': choose one of "),
        ({"name": "resnet", "stem": 3}, "stem must be 1, 2 or 4, not 3"),
        ({"name": "resnet", "channels": ()}, "channels needs at least one width"),
        ({"name": "resnet", "channels": (8, 16), "depth": (1,)}, r"\(or one per stage\)"),
        ({"name": "resnet", "channels": (8, 16), "depth": 0}, "depth must be at least 1, not 0"),
        ({"name": "resnet", "channels": (8, 16), "decoder_depth": -1}, "decoder_depth must be at least 0, not -1"),
        (
            {"name": "resnet", "channels": (8, 16), "stem": 2, "decoder_channels": (8, 8)},
            "this encoder needs 1 decoder_channels, not 2",
        ),
        ({"name": "resnet", "channels": (8,)}, "a stride of 1 leaves nothing to decode"),
        ({"name": "resnet", "channels": 8}, "channels must be a list, each a whole number, not 8"),
        ({"name": "resnet", "skip": "ad"}, "unknown skip 'ad': choose one of add, "),
        ({"name": "resnet", "skip": "indices"}, "skip='indices' needs decoder_depth ≥ 1"),
        ({"name": "resnet", "upsample": "bilinear"}, "unknown upsample 'bilinear': choose transposed, "),
        (
            {"name": "resnet", "channels": (8, 16), "skip": "add", "decoder_channels": (16,)},
            r"decoder_channels must begin with the encoder's widths in reverse, \[8\], not \[16\]",
        ),
        (
            {"name": "resnet", "channels": (8, 16), "skip": "add", "decoder_channels": ()},
            "this encoder needs 1 decoder_channels, not 0",
        ),
        ({"name": "segnet", "channels": ()}, "channels needs at least one width"),
        ({"name": "segnet", "channels": (8, 16), "depth": (1,)}, r"\(or one per stage\)"),
        ({"name": "segnet", "depth": 0}, "depth must be at least 1, not 0"),
        ({"name": "segnet", "stem": 2}, "network 'segnet' has no option 'stem': choose one of "),
        ({"name": "unet", "channels": ()}, "channels needs at least one width"),
        ({"name": "unet", "depth": 0}, "depth must be at least 1"),
        (
            {"name": "unet", "channels": (8, 16), "attention": (4,)},
            r"attention must list strides out of \[1, 2\], not \(4,\)",
        ),
        (
            {"name": "resnet", "channels": (8, 16), "stem": 2, "attention": 4},
            "attention must be a list, each a whole number, not 4",
        ),
        ({"name": "resnet", "channels": (8,), "stem": 2, "skip": "add"}, "skip='add' needs two stages or more"),
        ({"name": "dit", "dim": 18}, "dim must be a multiple of 4 and of its 3 heads, not 18"),
        ({"name": "dit", "dim": 16}, "dim must be a multiple of 4 and of its 3 heads, not 16"),
        ({"name": "mixer", "size": 30}, "size must be a multiple of the patch, 4, not 30"),
    ],
)
def test_networks_that_cannot_be_built_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_every_network_is_known_by_its_name():
    shipped = {"resnet", "segnet", "unet", "dit", "mixer", "autoencoder", "super_resolution", "text_to_image"}
    assert NETWORKS.keys() >= shipped and NETWORKS["resnet"] is ResNetEncoderDecoder


def test_a_network_of_ones_own_can_be_registered(monkeypatch):
    monkeypatch.setattr(registry, "NETWORKS", dict(NETWORKS))

    @register("blur")
    class Blur(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.width = width

    assert Blur.__name__ == "Blur" and build("blur", width=5).width == 5
    with pytest.raises(ValueError, match="network 'blur' has no option 'height': choose one of width"):
        build("blur", height=5)


def test_counting_parameters():
    assert count_parameters(torch.nn.Linear(3, 5)) == 3 * 5 + 5


def test_the_unet_of_ddpm_has_ddpms_size():
    """Ho et al. give 35.7 million for CIFAR-10.  Ours has as many but for two things: the timestep
    comes as scale *and* shift, so its projections are twice as wide, and as 64 sinusoids, not 128."""
    ddpm = {
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
    }
    with torch.device("meta"):  # counts need no memory
        ours = build("unet", channels=(128, 256, 256, 256), depth=2, attention=(2,), embedding_dim=512)
        theirs = UNet2DModel(**ddpm)
    projections = [m.scale_shift for m in ours.modules() if isinstance(m, ResBlock)]
    half_of_them = sum(map(count_parameters, projections)) // 2
    assert count_parameters(theirs) == 35_746_307
    assert count_parameters(ours) == 35_746_307 + half_of_them - 64 * 512
    assert count_parameters(ours) == pytest.approx(38.3e6, rel=1e-3)


@every_network
def test_stages_name_every_part_once_in_order(options, stride):
    net = new(options)
    shape = (options.get("picture_channels", 3), 2 * stride, 2 * stride)
    found = stages(net, shape)
    assert found[0].part == "embed" and found[0].shape == (net.embed.mlp[0].out_features,)
    assert found[-1].part == "head" and found[-1].shape == shape
    assert sum(stage.parameters for stage in found) == count_parameters(net)
    in_tokens = [stage for stage in found if len(stage.shape) == 2]  # (L, dim), of transformers
    assert [stage.kind for stage in in_tokens] == ["TokenBlock"] * len(getattr(net, "blocks", []))
    assert in_tokens or all(len(stage.shape) == 3 for stage in found[1:])
    assert not [stage for stage in found if "ModuleList" in stage.kind or "Identity" in stage.kind]
    heights = [stage.shape[1] for stage in found[1:] if len(stage.shape) == 3]
    # Halved down to the narrowest place, then doubled: no part is missing or out of order.
    assert all(b in (a, a / 2, 2 * a, a / 4, 4 * a) for a, b in zip(heights, heights[1:]))
    narrowest = heights.index(min(heights))
    assert heights[:narrowest] == sorted(heights[:narrowest], reverse=True)
    assert heights[narrowest:] == sorted(heights[narrowest:])
    assert all(not module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("preset, stride", [("CARS", 8), ("CARS_1M", 16), ("TOY", 8)])
def test_the_presets_stay_small(preset, stride):
    net = build(**getattr(presets, preset))
    assert net.stride == stride
    assert count_parameters(net) <= 1_000_000


TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8}
WRONG_KINDS = {
    "zero width": (TINY | {"channels": [16, 0]}, "'resnet': channels must be at least 1, not [16, 0]"),
    "negative width": (TINY | {"channels": [-8]}, "'resnet': channels must be at least 1, not [-8]"),
    "text": (TINY | {"channels": "16"}, "'resnet': channels must be a list, each a whole number, not '16'"),
    "texts": (TINY | {"channels": ["16"]}, "'resnet': channels must be a list, each a whole number, not ['16']"),
    "fraction": (TINY | {"embedding_dim": 8.5}, "'resnet': embedding_dim must be a whole number, not 8.5"),
    "no list": (TINY | {"attention": 8}, "'resnet': attention must be a list, each a whole number, not 8"),
    "dict": (TINY | {"depth": {}}, "'resnet': depth must be a whole number or a list, each a whole number, not {}"),
    "no truth": (TINY | {"timestep": "no"}, "'resnet': timestep must be true or false, not 'no'"),
    "truth": (TINY | {"depth": True}, "'resnet': depth must be a whole number or a list"),
    "no channels": (TINY | {"picture_channels": 0}, "'resnet': picture_channels must be at least 1, not 0"),
    "no condition": (TINY | {"cond_dim": 0}, "'resnet': cond_dim must be at least 1, not 0"),
    "below zero": (TINY | {"decoder_depth": -1}, "'resnet': decoder_depth must be at least 0, not -1"),
    "name": ({"name": ["resnet"]}, "unknown network ['resnet']: choose one of "),
    "nearest": ({"name": "ResNets"}, "unknown network 'ResNets': choose one of resnet, "),
    "nested": ({"name": "super_resolution", "net": {"channels": [8]}}, "'super_resolution': net needs a name, such as"),
    "inside": ({"name": "super_resolution", "net": TINY | {"stem": "2"}}, "'resnet': stem must be a whole number"),
    "no dict": ({"name": "super_resolution", "net": "resnet"}, "net must be a dict, not 'resnet'"),
    "words": ({"name": "text_to_image", "words": "a b", "length": 3, "net": TINY}, "words must be a list, each a text"),
    "memory": (TINY | {"channels": [2**31]}, "'resnet': "),
    "too many": (TINY | {"depth": 10**9}, "'resnet': depth must be at most 10000, not 1000000000"),
    "lacking": (
        {"name": "text_to_image", "net": TINY},
        "lacks words: give the picture network alone, and --condition c",
    ),
    "unet": ({"name": "unet", "depth": "2"}, "'unet': depth must be a whole number, not '2'"),
    "segnet": ({"name": "segnet", "channels": 16}, "'segnet': channels must be a list, each a whole number, not 16"),
}


@pytest.mark.parametrize("network, text", WRONG_KINDS.values(), ids=WRONG_KINDS)
def test_options_of_the_wrong_kind_are_refused_in_one_sentence(network, text):
    with pytest.raises(ValueError) as error:
        build(**network)
    assert text in str(error.value) and "\n" not in str(error.value)


@every_name
def test_pictures_of_other_channels_are_refused(options):
    net = build(**options, picture_channels=1)
    with pytest.raises(ValueError, match="a picture of 3 channels cannot pass: the network's picture_channels is 1"):
        net(torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64))


def test_an_answer_of_another_shape_is_refused():
    denoiser = Denoiser(build(**TINY, out_channels=1), make_schedule(), "sample")
    with pytest.raises(ValueError, match=r"the network answers \(1, 16, 16\) to pictures of \(3, 16, 16\)"):
        denoiser(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))

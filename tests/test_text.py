"""Text to picture: tokenizer, text encoder, the ways of the text into the picture, captions."""

import pytest
import torch
from torch import nn

from diffusion_utils import guidance
from diffusion_utils.data import captions as car_captions
from diffusion_utils.data import to_float, toy_cars
from diffusion_utils.data.stanford_cars import CarPictures
from diffusion_utils.networks import build, count_parameters
from diffusion_utils.networks.blocks import CrossAttention, SelfAttention
from diffusion_utils.networks.text import TextEncoder, Tokenizer
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import cosine
from diffusion_utils.training import TrainConfig, train
from diffusion_utils.training.batches import make_cond
from diffusion_utils.training.loop import begin_with

WORDS = ["a", "blue", "night", "pickup", "red", "van"]
NET = {
    "name": "resnet",
    "channels": [8, 16],
    "stem": 2,
    "decoder_depth": 1,
    "skip": "add",
    "attention": [2, 4],
    "embedding_dim": 16,
}
DIT = {"name": "dit", "patch": 4, "dim": 24, "depth": 2, "embedding_dim": 16}
WAYS = {"both": {}, "pooled": {"cross_attention": False}, "cross-attention": {"pooled": False}}
every_way = pytest.mark.parametrize("options", [*WAYS.values(), {"net": DIT}], ids=[*WAYS, "both, to a transformer"])


def new(**options):
    torch.manual_seed(0)
    options = {"net": NET, **options}
    net = build("text_to_image", words=WORDS, length=5, text_dim=16, text_depth=1, **options)
    with torch.no_grad():  # layers that start at zero, moved as after some training
        for p in net.parameters():
            if not p.any():
                p.normal_(0, 0.1)
    return net


def ask(net, *prompts):
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).repeat(len(prompts), 1, 1, 1)
    with torch.no_grad():
        return net(x, torch.full((len(prompts),), 500), net.tokenizer.encode(prompts))


def test_a_caption_is_cut_into_words():
    assert Tokenizer.split("A red, 2012 Rolls-Royce!") == ["a", "red", "2012", "rolls", "royce"]
    assert Tokenizer.split("Škoda_Kombi") == ["škoda", "kombi"]
    assert Tokenizer.split(" \n?") == []


def test_words_become_their_places_and_the_rest_is_filled_with_zeros():
    tokenizer = Tokenizer.from_captions(["a red van", "a blue van at night"])
    assert tokenizer.words == ["a", "at", "blue", "night", "red", "van"] and tokenizer.length == 5
    rows = tokenizer.encode(["A RED van", "night", ""])
    assert rows.tolist() == [[1, 5, 6, 0, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]] and rows.dtype == torch.int64


def test_unknown_words_are_left_out_as_if_never_said():
    tokenizer = Tokenizer(WORDS, 5)
    assert torch.equal(tokenizer.encode(["a sparkly red van"]), tokenizer.encode(["a red van"]))
    assert tokenizer.remark("a sparkly red van, very sparkly") == "Not learnt, so left out: sparkly, very."


def test_what_a_prompt_loses_is_said():
    tokenizer = Tokenizer(WORDS, 3)
    assert tokenizer.remark("A red van.") == ""
    assert tokenizer.remark("a red van night blue") == "Only the first 3 words count, not: night blue."
    assert torch.equal(tokenizer.encode(["a red van night blue"]), tokenizer.encode(["a red van"]))
    assert "any car may come" in tokenizer.remark("") and "any car may come" in tokenizer.remark("zebra")
    assert "zebra" in tokenizer.remark("zebra")


def test_a_tokenizer_needs_words_and_a_list():
    with pytest.raises(ValueError, match="no words"):
        Tokenizer.from_captions(["", "…"])
    with pytest.raises(ValueError, match="give \\[text\\]"):
        Tokenizer(WORDS, 3).encode("a red van")


def test_the_encoder_sees_no_padding():
    torch.manual_seed(0)
    long, short = TextEncoder(6, 9, dim=16).eval(), TextEncoder(6, 4, dim=16).eval()
    short.load_state_dict({**long.state_dict(), "embed_places": long.embed_places[:5].detach()})
    ids = torch.tensor([[1, 5, 6, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    tokens, mask, pooled = long(torch.nn.functional.pad(ids, (0, 5)))
    fewer, fewer_mask, same = short(ids)
    assert tokens.shape == (3, 10, 16) and mask.shape == (3, 10) and pooled.shape == (3, 16)
    assert mask.sum(1).tolist() == [4, 2, 1]
    torch.testing.assert_close(pooled, same)
    torch.testing.assert_close(tokens[:, :5][fewer_mask], fewer[fewer_mask])


def test_the_order_of_words_counts():
    torch.manual_seed(0)
    encoder = TextEncoder(6, 4, dim=16)
    pooled = encoder(torch.tensor([[1, 2, 3, 0], [3, 2, 1, 0]]))[2]
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-4)


def test_a_place_takes_from_the_words_that_are_there_only():
    torch.manual_seed(0)
    layer = CrossAttention(8, 6)
    nn.init.normal_(layer.out.weight)
    x, context, mask = torch.randn(2, 8, 3, 3), torch.randn(2, 5, 6), torch.tensor([[True] * 3 + [False] * 2] * 2)
    changed = context.clone()
    changed[:, 3:] += 10
    assert torch.equal(layer(x, context, mask), layer(x, changed, mask))
    changed[:, 2] += 10
    assert not torch.allclose(layer(x, context, mask), layer(x, changed, mask))
    one = mask.new_tensor([[True] + [False] * 4] * 2)  # a single word: every place is given the same
    given = layer(x, context, one) - x
    torch.testing.assert_close(given, given[:, :, :1, :1].expand_as(given))


def test_cross_attention_is_what_torch_computes():
    torch.manual_seed(0)
    layer, theirs = CrossAttention(8, 6, head_channels=4), nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
    nn.init.normal_(layer.out.weight)
    k, v = layer.kv.weight.reshape(2, 8, 6)
    with torch.no_grad():
        (
            theirs.q_proj_weight.copy_(layer.q.weight[:, :, 0, 0]),
            theirs.k_proj_weight.copy_(k),
            theirs.v_proj_weight.copy_(v),
        )
        theirs.in_proj_bias.copy_(torch.cat([layer.q.bias, layer.kv.bias]))
        theirs.out_proj.weight.copy_(layer.out.weight[:, :, 0, 0]), theirs.out_proj.bias.copy_(layer.out.bias)
    x, context = torch.randn(2, 8, 3, 4), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False], [True, False, False, False, True]])
    queries = layer.norm(x).flatten(2).transpose(1, 2)
    expected = x + theirs(queries, context, context, key_padding_mask=~mask)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x, context, mask), expected)


def test_attention_to_text_starts_as_the_identity():
    layer = SelfAttention(8, context_dim=6)
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(layer(x, (torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool))), x)


@every_way
def test_the_words_change_the_picture_and_nothing_else_does(options):
    net = new(**options).eval()
    red, again, blue, shuffled = ask(net, "a red van", "A red, van", "a blue van", "van red a")
    torch.testing.assert_close(red, again)
    assert not torch.allclose(red, blue, atol=1e-4) and not torch.allclose(red, shuffled, atol=1e-5)
    batch = ask(net, "a blue van", "a red van", "")
    torch.testing.assert_close(batch[1], red)  # a caption speaks to its own picture only


@every_way
def test_no_cond_is_the_empty_caption(options):
    net = new(**options).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    assert torch.equal(net(x, t), net(x, t, net.tokenizer.encode(["", "zebra"])))
    assert torch.isfinite(net(x, t)).all()


@every_way
def test_gradients_reach_every_parameter(options):
    net = new(**options)
    x, t = torch.randn(6, 3, 16, 16), torch.arange(6)
    cond = net.tokenizer.encode(["a red van", "a blue pickup night", "", "van a van a van", "night", "red"])
    net(x, t, cond).square().mean().backward()
    unreached = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not unreached


@every_way
def test_scale_1_is_the_conditional_guess_and_0_the_unconditional_one(options):
    net = new(**options).eval()
    denoiser = Denoiser(net, cosine(1000), "sample")
    x, t, cond = torch.randn(2, 3, 16, 16), torch.full((2,), 600), net.tokenizer.encode(["a red van", "night"])
    with torch.no_grad():
        guided = {w: guidance.Guided(denoiser, cond, guidance_scale=w)(x, t) for w in (0, 1, 3)}
        conditional, unconditional = denoiser(x, t, cond), denoiser(x, t)
    torch.testing.assert_close(guided[1], conditional)
    torch.testing.assert_close(guided[0], unconditional)
    torch.testing.assert_close(guided[3], unconditional + 3 * (conditional - unconditional))


def test_only_the_ways_that_are_asked_for_cost_parameters():
    both, pooled, cross = (count_parameters(new(**options)) for options in WAYS.values())
    assert pooled < both and cross < both
    with pytest.raises(ValueError, match="needs a way"):
        new(pooled=False, cross_attention=False)
    with pytest.raises(ValueError, match="give the net attention"):
        build("text_to_image", words=WORDS, length=5, net={"name": "resnet", "channels": [8, 8]})
    with pytest.raises(ValueError, match="multiple of its 4 heads"):
        build("text_to_image", words=WORDS, length=5, net=NET, text_dim=18)


@pytest.mark.parametrize("form", [NET, DIT], ids=["resnet", "dit"])
def test_a_trained_picture_network_is_taken_over_and_draws_as_before(form):
    torch.manual_seed(0)
    start = build(**form, cond_dim=9).eval()
    for p in start.parameters():
        nn.init.normal_(p, 0, 0.1)
    net = build("text_to_image", words=WORDS, length=5, net=form, text_dim=16)
    begin_with(net, start)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 800])
    with torch.no_grad():
        net.net.embed.cond.weight.zero_()  # the text's own way in is new, and random
        torch.testing.assert_close(net.eval()(x, t), start(x, t))
    again = build("text_to_image", words=WORDS, length=5, net=form, text_dim=16)
    begin_with(again, net)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values()))
    other = build("resnet", channels=[8, 24], stem=2)
    with pytest.raises(ValueError, match="another form"):
        begin_with(net, other)


def test_several_captions_take_turns_and_some_are_withheld():
    cond = torch.arange(1, 13).reshape(2, 3, 2)  # 2 pictures, 3 captions each, 2 words each
    config = TrainConfig(steps=1, batch_size=600, cond_dropout=0.25)
    rows = make_cond(cond, 0, config)
    kinds, counts = rows.unique(dim=0, return_counts=True)
    assert rows.dtype == torch.int64 and kinds.tolist() == [[0, 0], *cond.flatten(0, 1).tolist()]
    assert 120 < counts[0] < 180 and (counts[1:] > 50).all()
    parts = [make_cond(cond, 0, config, (i, 3)) for i in range(3)]
    assert torch.equal(torch.cat(parts), rows) and torch.equal(make_cond(cond, 0, config), rows)


def test_a_network_learns_what_words_mean():
    """Two grey pictures, "dark" and "light": given one word, it draws that one from pure noise."""
    images = torch.stack([torch.full((3, 8, 8), 60), torch.full((3, 8, 8), 200)]).to(torch.uint8)
    network = {
        "name": "text_to_image",
        "words": ["dark", "light"],
        "length": 2,
        "text_dim": 16,
        "text_depth": 1,
        "net": {"name": "resnet", "channels": [8, 8], "stem": 2, "attention": [4], "embedding_dim": 16},
    }
    run = TrainConfig(
        network=network,
        steps=250,
        batch_size=16,
        learning_rate=5e-3,
        warmup_steps=5,
        ema_decay=0.9,
        mixed_precision="no",
        log_every=250,
        flip=False,
    )
    tokenizer = Tokenizer(network["words"], 2)
    (record,) = train(run, images, cond=tokenizer.encode(["dark", "light"]))
    x_T, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 999])
    with torch.no_grad():
        answer = record.denoiser(x_T, t, tokenizer.encode(["light", "dark"]))
    dark, light = to_float(images)[:, 0, 0, 0]
    assert (answer[0] - light).abs().mean() < 0.15 and (answer[1] - dark).abs().mean() < 0.15


def test_captions_must_fit_the_network():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    network = {"name": "text_to_image", "words": WORDS, "length": 5, "net": NET}
    for cond in (None, torch.zeros(4, 6, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"the network takes cond of shape \(4, 5\)"):
            next(train(TrainConfig(network=network, steps=1), images, cond=cond))


def test_held_out_kinds_are_in_one_part_only():
    cars = toy_cars.load(400, 16)
    seen, rest = cars.part(held_out=False), cars.part(held_out=True)
    assert len(seen.images) + len(rest.images) == 400 and 25 < len(rest.images) < 80
    for part, expected in ((seen, False), (rest, True)):
        pairs = {(toy_cars.BODIES[body], toy_cars.COLOURS[colour]) for body, colour, *_ in part.labels.tolist()}
        assert all((pair in toy_cars.HELD_OUT) == expected for pair in pairs)
    assert {body for body, _ in toy_cars.HELD_OUT} == set(toy_cars.BODIES)  # each body lacks one colour …
    assert len({colour for _, colour in toy_cars.HELD_OUT}) == 6  # … and no colour lacks two bodies
    words = set(Tokenizer.from_captions(seen.captions).words)
    assert not set(Tokenizer.from_captions(rest.captions).words) - words  # every word has been heard


PAINT = {
    "red": (200, 20, 30),
    "orange": (240, 130, 20),
    "yellow": (230, 210, 30),
    "green": (40, 160, 60),
    "blue": (40, 80, 200),
    "black": (20, 20, 25),
    "grey": (110, 110, 115),
    "silver": (175, 178, 180),
    "white": (240, 240, 238),
}


@pytest.mark.parametrize("size", [32, 64])
def test_the_colour_of_a_car_is_measured(size):
    images = torch.full((9, 3, size, size), 128, dtype=torch.uint8)
    images[:, :, : size // 3] = torch.tensor([120, 170, 230])[:, None, None]  # a blue sky is no blue car
    for image, colour in zip(images, PAINT.values()):
        image[:, size // 3 : size * 3 // 4, size // 8 : size * 7 // 8] = torch.tensor(colour)[:, None, None]
        image[:, size // 3 : size // 2, size // 3 : size * 2 // 3] = 30  # its windows are dark
    assert car_captions.colours(images) == list(PAINT)


def test_captions_say_colour_year_make_and_body_type():
    classes = ["Aston Martin Virage Coupe 2012", "Ford F-150 Regular Cab 2007", "Audi TT RS Coupe 2012"]
    images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    images[0] = torch.tensor(PAINT["orange"])[:, None, None]
    cars = CarPictures(images, ["1.jpg", "2.jpg", "3.jpg"], torch.tensor([0, 1, 2]), classes, [])
    texts = car_captions.captions(cars)
    assert texts[0] == ["an orange 2012 Aston Martin coupe"] * 2 + [
        "an orange coupe",
        "an orange Aston Martin coupe",
        "a 2012 Aston Martin coupe",
    ]
    assert texts[1][0] == "a black 2007 Ford pickup" and texts == car_captions.captions(cars)
    with pytest.raises(ValueError, match="class names"):
        car_captions.captions(CarPictures(images, ["1"], torch.tensor([-1] * 3), [], []))


def test_words_that_are_none_are_refused(tiny_denoiser):
    network = {"name": "text_to_image", "net": {"name": "resnet", "channels": [8, 8], "attention": [2]}}
    denoiser, _ = tiny_denoiser(network={**network, "words": ["a", "van"], "length": 3, "text_dim": 8})
    x, t = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    good = denoiser.net.tokenizer.encode(["a van", ""])
    denoiser(x, t, good)
    for cond, text in (
        (good + 1, r"words are numbers in \[0, 2\]: make them with tokenizer.encode"),
        (good - 1, "words are numbers in"),
        (good.float(), "the network takes words as int64, not torch.float32"),
        (good[:1], r"the network takes a cond of shape \(2, 3\), not \(1, 3\)"),
        (good[:, :2], r"a cond of shape \(2, 3\), not \(2, 2\)"),
        (["a van", ""], "not list"),
    ):
        with pytest.raises(ValueError, match=text):
            denoiser(x, t, cond)
    classes, _ = tiny_denoiser(conditions={"red": 0.5, "blue": 0.5})
    with pytest.raises(ValueError, match="the network takes conditions as floats, not torch.int64"):
        classes(x, t, torch.eye(2).long())
    with pytest.raises(ValueError, match="length must be at least 1 word, not 0"):
        Tokenizer.from_captions(["a van"], length=0)

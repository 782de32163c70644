"""Low-rank adapters: added, trained, merged, stored alone; and networks that begin with another's weights."""

import copy
import json

import pytest
import torch
from safetensors import safe_open

from diffusion_utils import networks, pipeline, pretrained
from diffusion_utils.commands import parse
from diffusion_utils.data import letters
from diffusion_utils.networks import lora
from diffusion_utils.training import TrainConfig, train
from diffusion_utils.training.loop import begin_with

NET = {"name": "resnet", "channels": [16, 24], "stem": 2, "embedding_dim": 16, "attention": [4], "cond_dim": 9}
COMMON = ["--batch-size", 8, "--warmup-steps", 1, "--mixed-precision", "no", "--compile", "no", "--sample-every", 0]


def new(seed=0, **options):
    torch.manual_seed(seed)
    net = networks.build(**NET | options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def inputs(cond_dim=9):
    torch.manual_seed(1)
    cond = torch.nn.functional.one_hot(torch.tensor([2, 0]), cond_dim).float()
    return torch.randn(2, 3, 16, 16), torch.tensor([10, 800]), cond


def disturbed(net):
    """The same with adapters that say something."""
    for name, parameter in net.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, 0, 0.1)
    return net


def test_it_begins_as_the_network_it_adapts_and_learns_few_numbers():
    net = new()
    before, whole = net(*inputs()), networks.count_parameters(net)
    frozen = {name: value.clone() for name, value in net.state_dict().items()}
    lora.add(net, 2)
    assert torch.equal(net(*inputs()), before)
    net(*inputs()).square().mean().backward()
    learning = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning) and sum(p.numel() for p in learning) < whole / 4
    up = net.encoder[0].conv1.parametrizations.weight[0].up
    assert up.shape == (16, 2) and up.grad.abs().max() > 0
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    assert {*lora.adapters(net)} >= {"encoder.0.conv1.weight.up", "head.2.weight.down", "embed.cond.weight"}
    assert not [name for name in lora.adapters(net) if "norm" in name or name.endswith("bias")]
    stored = {name.replace("parametrizations.weight.original", "weight"): v for name, v in net.state_dict().items()}
    assert all(torch.equal(stored[name], value) for name, value in frozen.items())


def test_a_rank_that_adapts_nothing_is_refused():
    with pytest.raises(ValueError, match="adapters of rank 500 would be as large as the weights themselves: lower"):
        lora.add(new(), 500)


def test_without_a_word_of_adapters_on_the_card_the_sum_is_saved(tmp_path, tiny_denoiser):
    denoiser, card = tiny_denoiser()
    lora.add(denoiser.net, 1)
    with torch.no_grad():
        denoiser.net.encoder[0].conv1.parametrizations.weight[0].up += 1
    pretrained.save(tmp_path / "sum.safetensors", denoiser, card, torch.float32)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 50])
    torch.testing.assert_close(pretrained.load(tmp_path / "sum.safetensors")(x, t), denoiser(x, t))


def test_the_adapted_weight_is_the_papers():
    net = new()
    weight = net.encoder[0].conv1.weight.detach().clone()
    lora.add(net, 3)
    disturbed(net)
    part = net.encoder[0].conv1.parametrizations.weight[0]
    product = torch.einsum("or,ri->oi", part.up, part.down).reshape(16, 16, 3, 3)
    assert torch.allclose(net.encoder[0].conv1.weight, weight + product, atol=1e-6)


def test_merging_changes_the_form_and_not_the_answer():
    net = new()
    plain = copy.deepcopy(net).state_dict()
    lora.add(net, 2)
    expected = disturbed(net)(*inputs())
    merged = lora.merge(net)
    assert merged.state_dict().keys() == plain.keys() and torch.allclose(merged(*inputs()), expected, atol=1e-5)
    assert torch.equal(net(*inputs()), expected)  # and leaves the original as it is
    again = new(seed=5)
    again.load_state_dict(lora.merged(plain, lora.adapters(net)))
    assert torch.allclose(again(*inputs()), expected, atol=1e-5)
    assert not torch.allclose(again(*inputs()), new()(*inputs()), atol=1e-3)
    with pytest.raises(ValueError, match="adapters belong to another network"):
        lora.merged(networks.build("segnet").state_dict(), lora.adapters(net))


def test_conditions_of_the_start_are_left_behind_where_others_are_learnt():
    start, x = new(), inputs()[:2]
    for options in ({"cond_dim": None}, {"cond_dim": 26}):
        net = networks.build(**NET | options).eval()
        begin_with(net, start)
        assert torch.equal(net(*x), start(*x))
    same = networks.build(**NET)
    begin_with(same, start)
    assert torch.equal(same.embed.cond.weight, start.embed.cond.weight)
    with pytest.raises(ValueError, match="another form"):
        begin_with(networks.build(**NET | {"channels": [16, 32]}), start)


def test_only_the_adapters_learn_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    images, start = letters.load(16, 16).images, new(cond_dim=None)
    config = TrainConfig({**NET, "cond_dim": None}, batch_size=4, steps=6, lora=2, mixed_precision="no", flip=False)
    *_, whole = train(config, images, tmp_path / "whole", start=start)
    *_, _ = train(TrainConfig(**{**vars(config), "steps": 3, "decay_fraction": 0.0}), images, start=start)
    half = TrainConfig(**{**vars(config), "decay_fraction": 0.0})
    *_, straight = train(half, images, start=start)
    list(train(TrainConfig(**{**vars(half), "steps": 3}), images, tmp_path / "half", start=start))
    *_, resumed = train(half, images, tmp_path / "half", resume=True)
    learnt, expected = (lora.adapters(record.denoiser.net) for record in (resumed, straight))
    assert all(torch.equal(learnt[name], expected[name]) for name in expected)
    frozen = whole.denoiser.net.encoder[0].conv1.parametrizations.weight.original
    assert torch.equal(frozen, start.encoder[0].conv1.weight)
    assert learnt["encoder.0.conv1.weight.up"].abs().max() > 0
    with pytest.raises(ValueError, match="lora adapts a trained network: give start"):
        next(train(config, images))


@pytest.fixture
def base(tmp_path, tiny_weights):
    network = {key: value for key, value in NET.items() if key != "cond_dim"}
    return tiny_weights(tmp_path / "base/cars.safetensors", network=network, size=16, conditions={"van": 1, "SUV": 2})


@pytest.fixture
def adapted(tmp_path, base):
    folder = letters.write_folder(tmp_path / "letters", 60, 16)
    options = ["--data", folder, "--condition", "class", "--aspect", "1:1", "--no-flip", "--start", base, "--lora", 2]
    command = ["train", *options, "--steps", 3, "--learning-rate", 0.05, *COMMON, "--out", tmp_path / "run"]
    parse([str(word) for word in command])()
    return tmp_path / "run/weights.safetensors"


def test_a_run_leaves_the_adapters_alone_which_are_loaded_with_their_base(adapted, base, tmp_path):
    card = pretrained.card(adapted)
    assert card["lora"]["rank"] == 2 and card["lora"]["base"] == "../base/cars.safetensors"
    assert len(card["conditions"]) == card["network"]["cond_dim"] > 9 and card["aspect"] == "1:1"
    with safe_open(adapted, framework="pt") as file:
        names = {*file.keys()}
    assert all(name.endswith((".up", ".down")) or name == "embed.cond.weight" for name in names)
    assert adapted.stat().st_size < 0.6 * base.stat().st_size
    net = pretrained.load(adapted).net
    assert card["parameters"] == networks.count_parameters(net)
    assert torch.equal(net.stem[1].bias, pretrained.load(base).net.stem[1].bias)
    assert not torch.equal(net.stem[1].weight, pretrained.load(base).net.stem[1].weight)
    assert pipeline.load(adapted)(range(2), condition="e", steps=2).shape == (2, 3, 16, 16)


def test_adapters_of_a_network_with_classes_may_have_none(tmp_path, base):
    folder = letters.write_folder(tmp_path / "letters", 40, 16) / "e"
    options = ["--data", folder, "--start", base, "--lora", 2, "--steps", 2, *COMMON, "--out", tmp_path / "plain"]
    parse(["train", *map(str, options)])()
    plain = pipeline.load(tmp_path / "plain/weights.safetensors")
    assert plain.denoiser.net.cond_shape is None and plain(range(2), steps=2).shape == (2, 3, 16, 16)


def test_adapters_refuse_another_base_or_none(adapted, base, tiny_weights):
    tiny_weights(base, seed=9, **{k: v for k, v in pretrained.card(base).items() if k in ("network", "size")})
    with pytest.raises(ValueError, match="holds adapters of other weights than .* are now: train them again"):
        pretrained.load(adapted)
    with pytest.raises(ValueError, match=r"adapts other weights than .*cars.safetensors holds now: put those back"):
        parse(["train", "--resume", "--steps", "5", "--out", str(adapted.parent)])()
    base.unlink()
    with pytest.raises(ValueError, match="cars.safetensors, which is missing: it must be kept with them"):
        pretrained.load(adapted)
    card = json.loads(adapted.with_suffix(".json").read_text())
    adapted.with_suffix(".json").write_text(json.dumps(card | {"lora": 4}))
    with pytest.raises(ValueError, match="lora must be a dict"):
        pretrained.load(adapted)

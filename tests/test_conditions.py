"""The commands around conditions and latents: captions, body types, small pictures; trained, resumed, drawn with."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_utils import pretrained
from diffusion_utils.commands import main, parse
from diffusion_utils.commands.train import prepare
from diffusion_utils.data import sets, stanford_cars, to_float, toy_cars
from diffusion_utils.data.stanford_cars import CarPictures
from diffusion_utils.networks import Autoencoder, build, count_parameters
from diffusion_utils.networks.presets import default_network, for_latents
from diffusion_utils.training import Run, load_checkpoint

TINY = {"name": "resnet", "channels": [8, 8], "stem": 2, "embedding_dim": 8, "attention": [2]}
COMMON = [
    "--batch-size",
    8,
    "--warmup-steps",
    2,
    "--log-every",
    2,
    "--mixed-precision",
    "no",
    "--compile",
    "no",
    "--steps",
    4,
    "--size",
    16,
]


@pytest.fixture
def few(monkeypatch):
    """Sixty toy cars for thousands, and toy cars for Stanford's."""
    toys = toy_cars.load(60, 16)
    repeated = toys._replace(images=toys.images.repeat(160, 1, 1, 1))  # 8192 to learn from, and others
    monkeypatch.setattr(toy_cars, "load", lambda count, size: repeated if 8192 < count < 16384 else toys)
    classes = ["Ford F-150 Regular Cab 2007", "Audi TT RS Coupe 2012"]
    photos = CarPictures(toys.images, [f"{i:05d}.jpg" for i in range(60)], torch.arange(60) % 2, classes, [])
    monkeypatch.setattr(stanford_cars, "load", lambda size: photos)
    return photos


def train(*arguments):
    parse(["train", *map(str, arguments)])()  # as main does, but errors come through


def draw(weights, out, *arguments):
    """The bytes of a grid."""
    parse(["sample", *map(str, ("--weights", weights, "--out", out, *arguments))])()
    return out.read_bytes()


def configured(*arguments):
    """What a command line asks to be trained, with all that depends on the pictures."""
    (run,) = parse(["train", *map(str, arguments), "--steps", "1", "--out", "x"]).args
    return prepare(run)


def test_toy_cars_are_learnt_with_captions_and_without_the_held_out_kinds(few, tmp_path):
    train("--condition", "caption", "--network", json.dumps(TINY), *COMMON, "--out", tmp_path / "run")
    card = pretrained.card(tmp_path / "run/weights.safetensors")
    config = load_checkpoint(tmp_path / "run/checkpoint.pt")["config"]
    assert card["network"]["name"] == "text_to_image" and card["network"]["net"] == TINY and not config["flip"]
    held_out = toy_cars.load(60, 16).part(held_out=True).captions
    assert card["prompts"] and not set(card["prompts"]) & set(held_out)
    assert {"night", "red", "left"} <= set(card["network"]["words"])
    assert Image.open(tmp_path / "run/samples.png").size[0] > 8 * 16


def test_a_run_with_captions_is_resumed_with_its_own_words(few, tmp_path):
    command = ["--condition", "caption", "--network", json.dumps(TINY), *COMMON, "--out", tmp_path / "run"]
    train(*command)
    words = pretrained.card(tmp_path / "run/weights.safetensors")["network"]["words"]
    train("--resume", "--steps", 6, "--out", tmp_path / "run")
    card = pretrained.card(tmp_path / "run/weights.safetensors")
    assert card["steps"] == 6 and card["network"]["words"] == words


def test_photographs_are_learnt_with_captions_from_weights_that_know_body_types(few, tmp_path):
    common = [*COMMON, "--data", "stanford_cars"]
    train("--condition", "body_type", "--network", json.dumps(TINY), *common, "--out", tmp_path / "start")
    start = tmp_path / "start/weights.safetensors"
    rest = [c for c in common if c not in ("--size", 16)]
    train("--condition", "caption", "--start", start, *rest, "--out", tmp_path / "run")
    card = pretrained.card(tmp_path / "run/weights.safetensors")
    assert card["network"]["net"] == TINY and "conditions" not in card
    assert card["images_seen"] == 64 and card["start"]["images_seen"] == 32
    assert any(prompt.endswith("2007 Ford pickup") for prompt in card["prompts"])
    again = tmp_path / "run/weights.safetensors"  # going on from these needs no --condition
    train("--start", again, *rest, "--out", tmp_path / "more")
    assert pretrained.card(tmp_path / "more/weights.safetensors")["network"] == card["network"]


@pytest.fixture
def pets(tmp_path):
    """Pictures of two classes, twice as many of one, with files of the same names."""
    for name, colour, count in (("cat", "red", 40), ("dog", "blue", 20)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), colour).save(tmp_path / f"pets/{name}/{i:03d}.png")
    return tmp_path / "pets"


def test_subfolders_are_classes_that_are_learnt_and_drawn_by_name(pets, tmp_path):
    own = ["--data", pets, "--network", json.dumps(TINY), *COMMON]
    train("--condition", "class", *own, "--out", tmp_path / "run")
    weights = tmp_path / "run/weights.safetensors"
    card = pretrained.card(weights)
    assert card["network"] == {**TINY, "cond_dim": 2} and card["aspect"] == "1:1" and "2 classes" in card["data"]
    assert [*card["conditions"]] == ["cat", "dog"] and card["conditions"]["cat"] == pytest.approx(2 / 3, abs=0.05)
    grid = [tmp_path / "a.png", "--count", 2, "--steps", 2]
    cat, dog = (draw(weights, *grid, "--condition", name) for name in ("cat", "dog"))
    assert cat != dog and Image.open(tmp_path / "a.png").size == (32 + 1 + 32, 32)  # twice as large, and square
    with pytest.raises(ValueError, match="no condition 'cow': choose one of dog, cat"):
        draw(weights, *grid, "--condition", "cow")
    more = ["--start", weights, "--data", pets, *COMMON[:-2]]
    train(*more, "--out", tmp_path / "more")  # of the same classes
    assert pretrained.card(tmp_path / "more/weights.safetensors")["conditions"] == card["conditions"]
    Image.new("RGB", (20, 20)).save(pets / "cat/more.png")
    (pets / "dog").rename(pets / "cow")
    train(*more, "--out", tmp_path / "other")  # others are learnt anew
    assert [*pretrained.card(tmp_path / "other/weights.safetensors")["conditions"]] == ["cat", "cow"]
    train("--start", weights, "--data", pets / "cat", *COMMON[:-2], "--out", tmp_path / "none")  # or not at all
    about = pretrained.card(tmp_path / "none/weights.safetensors")
    assert "conditions" not in about and "cond_dim" not in about["network"]


def test_classes_of_stanford_cars_are_the_196(few, tmp_path):
    job = configured("--data", "stanford_cars", "--condition", "class", "--network", json.dumps(TINY), "--size", 16)
    assert [*job.card["conditions"]] == few.classes and job.cond.shape[1] == 2 and "aspect" not in job.card
    assert job.run.aspect is None and job.aspect == pytest.approx(4 / 3)


def test_own_pictures_have_the_aspect_that_was_asked_for_and_keep_it(pets, tmp_path):
    own = ["--data", pets / "cat", "--network", json.dumps(TINY), *COMMON, "--out", tmp_path / "run"]
    train("--aspect", "2:1", *own)
    assert pretrained.card(tmp_path / "run/weights.safetensors")["aspect"] == "2:1"
    assert Image.open(tmp_path / "run/samples.png").size[0] > 8 * 2 * 2 * 16
    train("--resume", "--steps", 6, "--out", tmp_path / "run")
    with pytest.raises(ValueError, match="begun with aspect '2:1' and cannot go on with '1:1'"):
        train("--resume", "--aspect", "1:1", "--out", tmp_path / "run")
    stored = json.loads((tmp_path / "run/run.json").read_bytes())
    (tmp_path / "run/run.json").write_text(json.dumps({name: stored[name] for name in stored if name != "aspect"}))
    assert Run.from_folder(tmp_path / "run")[0].aspect == "4:3"  # what it was before there was a choice


@pytest.mark.parametrize("aspect, message", [("1:0", "aspect is width:height"), ("1:1", "toy_cars are cut to 4:3")])
def test_an_aspect_that_cannot_be_is_refused(tmp_path, capsys, aspect, message):
    assert message in refused(capsys, "--aspect", aspect, "--steps", 1, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_are_measured_as_they_were_learnt(pets):
    Image.new("RGB", (20, 20)).save(pets / "beside.png")
    card = {"network": {"name": "resnet"}, "size": 16, "aspect": "1:1", "conditions": {"cat": 0.7, "dog": 0.3}}
    with pytest.warns(UserWarning, match="beside"):
        assert sets.load_like(card, str(pets)).classes == ["cat", "dog"]
    plain = sets.load_like({"network": {"name": "resnet"}, "size": 16}, str(pets / "cat"))
    assert plain.aspect == "4:3"  # where the card says nothing, as for weights of before


def test_super_resolution_is_trained_and_enlarges_what_another_network_draws(few, tmp_path, capsys):
    up = ["--condition", "low_resolution", "--data", "stanford_cars", "--network", json.dumps(TINY)]
    train(*up, *COMMON, "--out", tmp_path / "up")
    card = pretrained.card(tmp_path / "up/weights.safetensors")
    assert card["network"] == {"name": "super_resolution", "net": TINY}
    train("--network", json.dumps(TINY), *COMMON[:-1], 8, "--out", tmp_path / "small")
    small, up = (str(tmp_path / name / "weights.safetensors") for name in ("small", "up"))
    grid = (small, tmp_path / "a.png", "--count", 2, "--steps", 2, "--columns", 1)
    draw(*grid)
    before = Image.open(tmp_path / "a.png").size
    draw(*grid, "--enlarge", up)
    assert Image.open(tmp_path / "a.png").size[1] == pytest.approx(2 * before[1], abs=4)
    with pytest.raises(ValueError, match="cannot enlarge"):
        draw(*grid, "--enlarge", small)
    with pytest.raises(ValueError, match="noise_level must lie in"):
        draw(*grid, "--enlarge", up, "--noise-level", "900")


def prepared(*arguments):
    (run,) = parse(["train", *map(str, arguments)]).args
    return prepare(run)


def test_latents_are_learnt_mirrored_pictures_among_them(few, tmp_path, monkeypatch):
    vae = [
        "--objective",
        "autoencoder",
        "--network",
        '{"name": "autoencoder", "channels": [8, 8], "latent_channels": 2}',
    ]
    common = [*COMMON, "--data", "stanford_cars"]
    train(*vae, *common, "--out", tmp_path / "vae")
    card = pretrained.card(tmp_path / "vae/weights.safetensors")
    assert set(card["held_out_reconstruction"]) == {"psnr", "ssim"}
    autoencoder = pretrained.load(tmp_path / "vae/weights.safetensors").net
    assert autoencoder.scaling_factor != 1
    network = json.dumps({"name": "resnet", "channels": [8, 8], "embedding_dim": 8})
    weights = str(tmp_path / "vae/weights.safetensors")
    out = tmp_path / "latent"
    train(
        "--autoencoder",
        weights,
        "--network",
        network,
        "--condition",
        "body_type",
        "--snapshot-images",
        16,
        *common,
        "--out",
        out,
    )
    card = pretrained.card(out / "weights.safetensors")
    assert (
        card["autoencoder"] == "autoencoder.safetensors"
        and not load_checkpoint(out / "checkpoint.pt")["config"]["flip"]
    )
    assert (
        pretrained.card(out / "snapshots/weights_000000016.safetensors")["autoencoder"] == "../autoencoder.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    before = (out / "autoencoder.safetensors").stat().st_mtime_ns
    train("--resume", "--out", "latent")  # its copy is there, whatever the folder is called by
    assert (out / "autoencoder.safetensors").stat().st_mtime_ns == before
    assert json.loads((out / "run.json").read_text())["autoencoder"] == "autoencoder.safetensors"
    own = ["--autoencoder", weights, "--network", network, *common, "--no-flip", "--out", tmp_path / "unmirrored"]
    train(*own)  # and pictures alone, where that is asked for
    one, both = (len(prepared("--resume", "--out", place).images) for place in (tmp_path / "unmirrored", out))
    assert both == 2 * one == 2 * len(prepared(*own).images)
    stored = json.loads((out / "run.json").read_text())
    assert stored.pop("mirrored") is True
    (out / "run.json").write_text(json.dumps(stored))  # as it was when there was no choice
    assert len(prepared("--resume", "--out", out).images) == both
    (tmp_path / "vae").rename(tmp_path / "elsewhere")  # the run has a copy
    out = out.rename(tmp_path / "moved")
    train("--resume", "--steps", 6, "--out", out)
    draw(out / "weights.safetensors", tmp_path / "a.png", "--count", 2, "--steps", 2)
    assert Image.open(tmp_path / "a.png").size[1] > 16
    moved = pretrained.load(out / "weights.safetensors")
    assert moved.autoencoder.scaling_factor == autoencoder.scaling_factor
    assert moved.net(torch.zeros(1, 2, 4, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 9)).shape[1] == 2
    (out / "autoencoder.safetensors").unlink()
    with pytest.raises(ValueError, match="draws latents of .*, which is missing"):
        pretrained.load(out / "weights.safetensors")


@pytest.mark.parametrize("mirrored", [False, True])
def test_latents_are_those_of_the_pictures_and_of_the_mirrored_ones(mirrored):
    torch.manual_seed(0)
    autoencoder, images = Autoencoder((8, 8), 2), toy_cars.load(300, 16).images
    latents = sets.as_latents(autoencoder, images, mirrored)
    ways = [images, images.flip(3)] if mirrored else [images]
    expected = torch.cat([autoencoder.to_latents(to_float(way)) for way in ways])
    torch.testing.assert_close(latents, expected)


def test_conditions_stay_with_the_latents_of_their_pictures(few):
    """Those of the mirrored pictures, which follow, begin anew."""
    network = {"name": "resnet", "channels": [8, 8], "embedding_dim": 8}
    own = ["--data", "stanford_cars", "--size", 16, "--autoencoder", "stanford-cars-autoencoder-4"]
    job = configured(*own, "--condition", "body_type", "--network", json.dumps(network))
    cars = few.part(held_out=False)
    assert len(job.images) == len(job.cond) == 2 * len(cars.images)
    assert job.cond.argmax(1).tolist() == cars.body_types().tolist() * 2
    torch.testing.assert_close(job.images[: len(cars.images)], sets.as_latents(job.autoencoder, cars.images))


def test_a_prompt_is_drawn_and_what_was_not_understood_is_said(tmp_path, recwarn):
    grid = ("toy-cars-text", tmp_path / "a.png", "--count", 2, "--steps", 2, "--columns", 2)
    pictures = []
    for prompts in (["a red van"], ["a sparkling red van"], ["a blue van"], [], ["a red van", "a blue van"]):
        pictures.append(draw(*grid, *(["--prompt", *prompts] if prompts else [])))
        said = [str(warning.message) for warning in recwarn]
        recwarn.clear()
        assert any("left out: sparkling" in text for text in said) == ("a sparkling red van" in prompts)
    assert pictures[0] == pictures[1] and len(set(pictures)) == 4


def test_each_picture_can_have_a_prompt_of_its_own(tmp_path):
    def halves(*prompts):
        draw("toy-cars-text", tmp_path / "a.png", *own, "--prompt", *prompts)
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        middle = pixels.shape[1] // 2
        return pixels[:, : middle - 2], pixels[:, middle + 2 :]  # without the seam, where the two may meet

    own = ["--count", 2, "--steps", 2, "--columns", 2]
    (red, other_red), (blue, other_blue), mixed = halves("a red van"), halves("a blue van"), halves("red", "a blue van")
    first, second = halves("a red van", "a blue van")
    assert np.array_equal(first, red) and np.array_equal(second, other_blue)
    assert not np.array_equal(first, blue) and not np.array_equal(second, other_red)
    assert not np.array_equal(mixed[0], red) and np.array_equal(mixed[1], other_blue)
    with pytest.raises(ValueError, match="3 prompts for 2 pictures: give one for all, or one each"):
        halves("red", "blue", "green")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "folder", "--condition", "caption"], "no captions are known of"),
        (["--data", "toy_cars", "--condition", "body_type"], "goes with --data stanford_cars"),
        (["--data", "toy_cars", "--condition", "class"], "no classes are known of toy_cars"),
        (["--data", "folder", "--condition", "class"], "has no subfolders"),
        (["--objective", "autoencoder", "--network", '{"name": "resnet"}'], "belong together"),
        (["--autoencoder", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
    ],
)
def test_a_condition_that_is_not_known_is_an_error_and_nothing_is_written(few, tmp_path, capsys, arguments, message):
    (tmp_path / "folder").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "folder/a.png")
    arguments = [str(tmp_path / "folder") if a == "folder" else a for a in arguments]
    assert message in refused(capsys, *arguments, *COMMON, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def refused(capsys, *arguments):
    """What `train` says where it does not begin: one sentence."""
    capsys.readouterr()
    try:
        code = main(["train", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code in (1, 2) and said.startswith("error: ") and said.count("\n") == 1
    return said


def test_captions_that_say_left_and_right_are_never_mirrored(few):
    assert configured("--data", "toy_cars").run.config.flip
    run = configured("--data", "toy_cars", "--start", "toy-cars-text", "--objective", "consistency").run
    assert run.condition == "caption" and not run.config.flip


def test_weights_of_latents_bring_their_autoencoder(few, tmp_path):
    about = {**pretrained.card("toy-cars-resnet"), "autoencoder": "stanford-cars-autoencoder-4"}
    path = tmp_path / "latents.safetensors"
    pretrained.save(path, pretrained.load("toy-cars-resnet"), about)
    run = configured("--data", "toy_cars", "--start", path).run
    assert run.autoencoder == "stanford-cars-autoencoder-4" and not run.config.flip


@pytest.mark.parametrize("stem, width", [(2, 64), (4, 80)])
def test_latents_of_each_size_have_a_network_of_their_own(stem, width):
    autoencoder = Autoencoder((8, 8), 5, stem=stem)
    network = for_latents(default_network("stanford_cars", "caption", autoencoder=autoencoder), autoencoder)
    assert network["channels"][0] == width and network["picture_channels"] == 5
    net = build(**network)
    x = torch.zeros(1, *autoencoder.latent_shape(64, 64))
    assert count_parameters(net) < 1e6 and net(x, torch.zeros(1, dtype=torch.int64)).shape == x.shape


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--autoencoder", "toy-cars-resnet"], "is no autoencoder"),
        (["--objective", "autoencoder", "--condition", "low_resolution"], "takes no condition"),
        (["--autoencoder", "x", "--condition", "low_resolution"], "works on pixels"),
        (["--start", "toy-cars-resnet", "--autoencoder", "x"], "draws pixels and cannot learn latents"),
        (
            ["--autoencoder", "stanford-cars-autoencoder-4", "--network", '{"name": "resnet", "picture_channels": 3}'],
            "latents have 4 channels, not 3",
        ),
        (
            ["--autoencoder", "stanford-cars-autoencoder-4", "--network", '{"name": "super_resolution"}'],
            "works on pixels",
        ),
        (["--objective", "autoencoder", "--kl-weight", "-1"], "kl_weight must be at least 0"),
        (["--objective", "decoder", "--adversarial-weight", "-1"], "adversarial_weight must be at least 0"),
        (["--objective", "decoder", "--compile", "yes"], "compiled code drops: leave compile out"),
    ],
)
def test_what_does_not_go_together_is_said(few, tmp_path, capsys, arguments, message):
    arguments = ("--data", "toy_cars", *arguments, "--steps", 1, "--out", tmp_path / "run")
    assert message in refused(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_unconditional_weights_that_take_prompts_are_not_guided(tmp_path):
    grid = ("toy-cars-text", tmp_path / "a.png", "--condition", "none", "--count", 1, "--steps", 2)
    assert draw(*grid) == draw(*grid, "--guidance-scale", 1)
    with pytest.raises(ValueError, match="takes no condition: say it as a prompt"):
        draw("toy-cars-text", tmp_path / "b.png", "--condition", "van")
    with pytest.raises(ValueError, match="takes no prompt: leave it out"):
        draw("stanford-cars-1m", tmp_path / "b.png", "--prompt", "a van")
    with pytest.raises(ValueError, match="cannot draw from nothing"):
        draw("toy-cars-super-resolution", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()

"""Write weights as ONNX, so that they draw where there is no PyTorch: in a browser, for one.

    python -m diffusion_utils export --weights runs/mine/weights.safetensors --page my_page

writes a whole page that draws with them, see `page`; and

    python -m diffusion_utils export --weights stanford-cars-1m --out site/models

gives `stanford-cars-1m.onnx`, the guided denoiser as a graph that any ONNX runtime runs, and
`stanford-cars-1m.json`, what else it takes to draw with it: ᾱ of every timestep, the words or the
conditions that the network knows, and how it is best drawn with.  Numbers are stored in half precision, as in
the shipped weights, and computed with in float32: nothing is lost.

The graph's inputs and output, for any number N of pictures:

    x_t             float32 (N, 3, H, W)
    t               int64 (N,), the sampler's timestep: the time shift of the card is in the graph
    cond            float32 (N, conditions) or int64 (N, words), see `guidance.Guided`; zeros: nothing in particular;
                    only where the network takes one
    guidance_scale  float32 (), w; only where there is something to go away from: a condition, or another guide

    x0              float32 (N, 3, H, W), the guess x̂₀; not clipped
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_utils import pipeline, pretrained
from diffusion_utils.checks import check_folder
from diffusion_utils.commands import page as pages
from diffusion_utils.files import replaced, write_atomically, write_json
from diffusion_utils.guidance import Guided, chosen_by_seed
from diffusion_utils.networks import count_parameters
from diffusion_utils.pipeline import Pipeline

OPSET = 20
SEEDS = 10_000  # for so many it is written down which condition each chooses (see `chosen_by_seed`)


def export(weights: tuple[str, ...], out: Path | None = None, page: Path | None = None) -> None:
    """Write weights as ONNX, so that they draw where there is no PyTorch: in a browser, for one.

    Args:
        weights: Names (see the README) or paths of .safetensors files.
        out: The folder to write to; made where it does not exist.
        page: In place of --out: the folder of a page that draws with these weights, one file, in a browser.
    """
    if (out is None) == (page is None):
        raise ValueError("say where to: --out FOLDER for the networks alone, or --page FOLDER for a page")
    if page is not None:
        check_folder(page, "--page", endings=(".html",))
        if len(weights) != 1:
            raise ValueError("--page: a page draws with one network: give one of --weights")
        write_page(weights[0], page)
        print(f"{page} is written. To see it:  python -m http.server -d {page}  and open http://localhost:8000")
        return
    check_folder(out, endings=(".onnx", ".json"))
    stems = [Path(name).stem for name in weights]
    if not weights or len(set(stems)) < len(stems):
        raise ValueError("--weights: give at least one, and no two of one name: each becomes a file of that name")
    for name in weights:
        pretrained.card(name)  # is it there?
    for name in weights:
        path = write_onnx(name, out)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def write_page(weights: str, folder: Path) -> None:
    """Write a page that draws with some weights, whole or not at all; it takes the place of an earlier one.

    Raises:
        ValueError: `folder` holds something that is no such page; weights for whose way of drawing it has no program;
            or as `write_onnx` does.
        OSError: the runtime could not be fetched, or a file not be written.
    """
    contents, path = pages.manifest(), Path(weights)
    there = {each.name for each in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(there - {*contents["page"], "models", "vendor"})
    if foreign or there and not {"manifest.json", "sw.js"} <= there:
        raise ValueError(
            f"{folder} holds something that is no such page ({', '.join((foreign or sorted(there))[:3])}): move it "
            "away, or name another folder"
        )
    pipe = pipeline.load(weights)
    how, length = pipe.settled(), pipe.denoiser.schedule.num_train_timesteps
    if how.sampler != "dpm_solver_pp" or how.timestep_spacing not in (None, "trailing") or how.clip_sample is False:
        raise ValueError(
            f"{weights} draws by {how.sampler}, and the page by dpm_solver_pp, trailing and clipped, alone: --out "
            "writes the network without a page"
        )
    if pipe.size % 4 or length != 1000:
        raise ValueError(
            f"the page draws sizes that are multiples of 4, with 1000 timesteps, and {weights} has {pipe.size} and "
            f"{length}: --out writes the network without a page"
        )
    title = path.absolute().parent.name if path.stem == "weights" else path.stem
    with replaced(folder.absolute()) as new:
        graph = write_onnx(weights, new / "models", contents["models"][0])
        pages.fill(new, pages.own_index(title, json.loads(graph.with_suffix(".json").read_bytes())), contents)
        pages.copy_runtime(new / "vendor")


class GuidedNetwork(nn.Module):
    """What `guidance.Guided` computes, as a module without choices: all of it is in one graph.

    Args:
        guided: its intervals are not supported.
    """

    def __init__(self, guided: Guided):
        super().__init__()
        self.denoiser, self.guide = guided.denoiser, guided.guide or guided.denoiser
        self.guide_conditional = guided.guide is not None and guided.guide_conditional
        self.has_worse = guided.guide is not None or guided.cond is not None
        self.time_shift = guided.time_shift
        self.nets = nn.ModuleList([self.denoiser.net, self.guide.net])  # so that the graph has their weights
        self.register_buffer("alphas_cumprod", guided.schedule.alphas_cumprod.clone())

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        t = (t + self.time_shift).clamp(0, len(self.alphas_cumprod) - 1)
        alphas_cumprod = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        alpha, sigma = alphas_cumprod.sqrt().to(x_t.dtype), (1 - alphas_cumprod).sqrt().to(x_t.dtype)
        better = self.denoiser.predict(x_t, t, alpha, sigma, cond)
        if not self.has_worse:
            return better
        theirs = cond if cond is None or self.guide_conditional else torch.zeros_like(cond)
        worse = self.guide.predict(x_t, t, alpha, sigma, theirs)
        return worse + guidance_scale * (better - worse)


def write_onnx(weights: str | Path, folder: str | Path, name: str | None = None) -> Path:
    """Write NAME.onnx and NAME.json into a folder, each whole or not at all; the graph is returned.

    Args:
        weights: a name or a path, as for `pretrained.load`.
        folder: made where it does not exist.
        name: of the files; default: that of the weights.

    Raises:
        ValueError: weights that cannot draw from nothing, draw latents, are guided at some timesteps only, or rescaled.
        ModuleNotFoundError: onnx or onnxscript is not installed; says how to.
    """
    pipe = pipeline.load(str(weights))
    if pipe.denoiser.autoencoder or pipe.drawing.interval or pipe.drawing.guidance_rescale:
        unfit = "draws latents, is guided at some timesteps only, or rescaled"
        raise ValueError(f"{weights} {unfit}: none can be exported yet")
    try:
        import onnx_ir  # which torch's exporter needs as well
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install onnx onnxscript", name=error.name) from None

    guided = pipe.guided(range(2))
    network = GuidedNetwork(guided if isinstance(guided, Guided) else Guided(guided)).eval()
    inputs = example(pipe, 2)
    if not network.has_worse:
        del inputs["guidance_scale"]
    count = {0: torch.export.Dim("N", min=1)}
    shapes = {name: None if name == "guidance_scale" else count for name in inputs}
    exported = torch.export.export(network, (), inputs, dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(
        exported, dynamo=True, opset_version=OPSET, verbose=False, input_names=[*inputs], output_names=["x0"]
    )
    model = smaller(program.model)
    path = Path(folder) / f"{name or Path(weights).stem}.onnx"
    about = {"name": path.stem, **description(pipe), "guided": network.has_worse}
    write_atomically(path, lambda temporary: onnx_ir.save(model, temporary))
    write_json(path.with_suffix(".json"), about, indent=None)
    return path


def example(pipe: Pipeline, count: int) -> dict[str, Tensor]:
    """Inputs of the graph by their names, for `count` pictures."""
    inputs = {"x_t": torch.randn(count, 3, pipe.size, pipe.size), "t": torch.full((count,), 500)}
    if "prompts" in pipe.card:
        inputs["cond"] = torch.ones(count, pipe.card["network"]["length"], dtype=torch.int64)
    elif "conditions" in pipe.card:
        inputs["cond"] = torch.eye(max(count, len(pipe.card["conditions"])))[:count, : len(pipe.card["conditions"])]
    return inputs | {"guidance_scale": torch.tensor(3.0)}


def smaller(model):
    """An ONNX graph with each tensor once, what two guesses have in common computed once, and the
    weights in half precision where that loses nothing; they are cast back when the graph is loaded."""
    import numpy as np
    import onnx_ir
    from onnx_ir.passes import common

    everything = 2**32  # bytes; by default only small tensors are compared
    for change in (
        common.DeduplicateInitializersPass(size_limit=everything),
        common.CommonSubexpressionEliminationPass(),
        common.ClearMetadataAndDocStringPass(),  # the exporter notes the file and line of every step
    ):
        model = change(model).model
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        numbers = value.const_value.numpy()
        with np.errstate(over="ignore"):  # what is too large becomes ∞, and so is not equal
            half = numbers.astype(np.float16)
        if numbers.dtype != np.float32 or not np.array_equal(half.astype(np.float32), numbers):
            continue
        stored = onnx_ir.Value(
            name=f"{name}.half",
            const_value=onnx_ir.tensor(half, name=f"{name}.half"),
            shape=value.shape,
            type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16),
        )
        cast = onnx_ir.node("Cast", [stored], {"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        graph.insert_before(graph[0], cast)
        onnx_ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)
    return model


def description(pipe: Pipeline) -> dict:
    """What it takes, besides the graph, to draw with it."""
    card, how = pipe.card, pipe.settled()
    if "prompts" in card:
        knows = {key: card["network"][key] for key in ("words", "length")}
    elif "conditions" not in card:
        knows = {}
    else:
        shares = list(card["conditions"].values())
        knows = {"conditions": card["conditions"], "chosen": chosen_by_seed(shares, range(SEEDS)).tolist()}
    return {
        "parameters": count_parameters(pipe.denoiser.net),
        "size": pipe.size,
        "aspect": pipe.aspect,
        "data": card.get("data"),
        "images_seen": card.get("images_seen"),
        "licence": card.get("licence"),
        **knows,
        **{name: getattr(how, name) for name in ("sampler", "steps", "guidance_scale")},
        "alphas_cumprod": pipe.denoiser.schedule.alphas_cumprod.tolist(),
    }

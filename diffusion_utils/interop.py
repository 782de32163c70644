"""To other libraries: denoisers in 🤗 diffusers' pipelines, and weights on the Hugging Face Hub.

unet = interop.DiffusersModel(pipe.guided(range(4), condition="van"), pipe.size)
scheduler = diffusers.DDIMScheduler(**interop.scheduler_config(pipe.denoiser.schedule))
pictures = diffusers.DDIMPipeline(unet, scheduler)(4, num_inference_steps=20).images

interop.HubModel.of("runs/mine/weights.safetensors").push_to_hub("me/mine")  # after `hf auth login`
pictures = interop.HubModel.from_pretrained("me/mine").pipeline()(seeds=range(4))
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from diffusion_utils import networks, pretrained
from diffusion_utils.guidance import Guided
from diffusion_utils.pipeline import Drawing, Pipeline
from diffusion_utils.prediction import Denoiser
from diffusion_utils.schedule import Schedule


class DiffusersModel(nn.Module):
    """A denoiser, with its condition and guidance, as diffusers calls its `unet`.

    Whatever the network predicts, this answers the picture, clipped to [-1, 1]: diffusers' prediction type "sample".

    Args:
        denoiser: of pictures, not of latents; a `Guided` one has a condition for each picture that will be drawn.
        size: height and width of the pictures in pixels.
    """

    def __init__(self, denoiser: Denoiser | Guided, size: int):
        super().__init__()
        self.denoiser = denoiser
        self.net = denoiser.net if isinstance(denoiser, Denoiser) else denoiser.denoiser.net
        self.config = SimpleNamespace(sample_size=size, in_channels=3)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.no_grad()
    def forward(self, sample: Tensor, timestep: Tensor | int, return_dict: bool = True) -> SimpleNamespace | tuple:
        """x_t (N, 3, H, W) and t, one for all or (N,), to `.sample`, x̂₀ (N, 3, H, W); both float32."""
        if sample.dtype != torch.float32:
            raise ValueError(f"x_t is {sample.dtype}: leave the model as it is, float32, and choose no other dtype")
        t = torch.as_tensor(timestep, dtype=torch.int64, device=sample.device).expand(len(sample))
        x0 = self.denoiser(sample, t).clamp(-1, 1)
        return SimpleNamespace(sample=x0) if return_dict else (x0,)


def scheduler_config(schedule: Schedule) -> dict:
    """Arguments for diffusers' DDIMScheduler, DPMSolverMultistepScheduler and the like, which then visit the
    timesteps that our samplers visit.  (Their DDIM rounds its stride: give it a number of steps that divides T.)
    Where nothing of the picture is left at the end, they are told, as they divide by what is left.
    """
    no_signal = schedule.alphas_cumprod[-1].item() == 0
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        **({"rescale_betas_zero_snr": True} if no_signal else {}),
    }


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="simple-diffusion-model"):
    """Weights with their model card, as huggingface_hub keeps models: `save_pretrained(folder)`,
    `push_to_hub("me/mine")` and `HubModel.from_pretrained(either)` are its own.

    Args:
        card: as `pretrained.card` gives it; of a network that draws pixels.

    Raises:
        ValueError: it draws latents, for which this has no place; or its card lacks the size of its pictures.
    """

    def __init__(self, card: dict):
        super().__init__()
        if card.get("autoencoder"):
            raise ValueError("these weights draw latents: share their folder, with the autoencoder in it, instead")
        if "size" not in card:
            raise ValueError("the card lacks size: how many pixels a picture has per side")
        # What the weights adapted has been added to them.
        self.card = {name: entry for name, entry in card.items() if name != "lora"}
        self.net = networks.build(**card["network"])

    @classmethod
    def of(cls, weights: str | Path) -> "HubModel":
        """Of weights by name or path, see `pretrained.load`."""
        model = cls(pretrained.card(weights))
        model.net.load_state_dict(pretrained.load(weights).net.state_dict())
        return model

    def pipeline(self) -> Pipeline:
        """Ready to draw as the card advises."""
        net = self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # as `pipeline.load`
        device = next(net.parameters()).device
        return Pipeline(pretrained.denoiser(net, self.card), self.card, Drawing.from_card(self.card), device=device)

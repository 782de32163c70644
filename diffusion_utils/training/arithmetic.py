"""How a run computes: in which precision, and compiled or not.

Half precision runs on a GPU's tensor cores, several times as fast as float32.  bfloat16 keeps float32's range
of numbers.  float16, all that a Turing card (a T4) has, does not: below 6·10⁻⁸ it knows only 0, and there most
gradients lie.  So the loss is multiplied with a large scale before the backward pass, and the gradients are
divided by it after (Micikevicius et al. 2018, 1710.03740, section 3.2).  Where one overflows, that step is
skipped and the scale halved; after 2000 steps without, it is doubled.
"""

import warnings
from collections.abc import Callable

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from diffusion_utils.training.config import TrainConfig

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_CORES = 7, 0  # the first compute capability with them, and the first that torch.compile's kernels need
# Compiling takes the host of a Colab T4 a minute or more, and saves perhaps a quarter of the time: from ten minutes
# on, or so many pictures (what such a card learns in about as long), it pays.
COMPILE_MINUTES, COMPILE_IMAGES = 10, 500_000
LEAST_SCALE = 1e-6  # of a loss; below, every step overflows, whatever the scale


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a CUDA card, such as (7, 5) of a T4; None elsewhere."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, so that bf16 is a gain."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch we accept
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def choose_precision(asked: str, native_bf16: bool, capability: tuple[int, int] | None) -> str:
    """ "bf16", "fp16" or "no" (float32): what `TrainConfig.mixed_precision` means on a device.

    "auto" takes bf16 where it is native, else fp16 on tensor cores.  A P100 (capability 6.0) has none, and
    without them half precision saves too little to be worth the skipped steps: float32, as on a CPU.
    """
    if asked != "auto":
        return asked
    if native_bf16:
        return "bf16"
    return "fp16" if capability and capability >= TENSOR_CORES else "no"


def precision_on(device: torch.device, asked: str = "auto") -> str:
    return choose_precision(asked, bf16_is_native(device), capability(device))


def choose_compile(config: TrainConfig, capability: tuple[int, int] | None, progress: float = 0.0) -> bool:
    """What `TrainConfig.compile` means on a device: "auto" compiles on a card that can, where the part of the budget
    that is left after `progress` (in [0, 1]) is long enough to earn it."""
    if config.compile != "auto":
        return config.compile == "yes"
    steps, images = (config.steps or 0) * config.batch_size, config.images
    limits = [(steps or None, COMPILE_IMAGES), (images, COMPILE_IMAGES), (config.minutes, COMPILE_MINUTES)]
    long = all(limit is None or limit * (1 - progress) >= least for limit, least in limits)
    kept = config.objective == "decoder"  # it follows the gradient of a step several times, which compiled code drops
    return long and not kept and capability is not None and capability >= TENSOR_CORES


class Network(nn.Module):
    """A network as a run computes it: inputs and outputs in float32, arithmetic in half precision, compiled or not.

    Args:
        net: the network; under several processes in what shares its gradients.
        device: where it is.
        precision: "bf16", "fp16" or "no".
    """

    def __init__(self, net: nn.Module, device: torch.device, precision: str):
        super().__init__()
        self.net, self.device_type, self.precision = net, device.type, precision
        self.call = net

    def forward(self, *inputs: Tensor) -> Tensor:
        # One autocast for each call: it keeps the weights it has cast, those of a pass without gradients as well.
        with torch.autocast(self.device_type, DTYPES.get(self.precision), enabled=self.precision in DTYPES):
            return convert_to_fp32(self.call(*inputs))

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:  # a part of the network itself, which a loss may ask for
            return getattr(super().__getattr__("net"), name)

    def try_compiled(self, backward: Callable[[], None], must: bool) -> None:
        """Compile, once for all networks of one form in this process: `torch.compile` knows them by their form.

        Args:
            backward: a whole pass forward and backward; what cannot be compiled fails there.
            must: raise an error then; otherwise warn, and go on without.

        Raises:
            ValueError: it fails, and it must not.
        """
        devices = range(torch.cuda.device_count()) if self.device_type == "cuda" else []
        try:
            self.call = torch.compile(self.net, dynamic=False)
            with torch.random.fork_rng(devices):  # the run itself begins as if this had not been
                backward()
        except Exception as error:  # of many kinds: compilers, drivers, and what PyTorch makes of them
            self.call, reason = self.net, (str(error).strip() or type(error).__name__).splitlines()[0]
            if must:
                raise ValueError(f"the network cannot be compiled here ({reason}): leave compile out") from error
            warnings.warn(f"torch.compile fails here ({reason}): the run goes on without it", stacklevel=2)
        finally:
            for parameter in self.net.parameters():
                parameter.grad = None

"""What a training run leaves on disk, so that it can be stopped at any moment and go on."""

import json
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from diffusion_utils.config import FREE_ON_RESUME, TrainConfig
from diffusion_utils.files import write_atomically


class Log:
    """A JSONL file, one record a line; opened for a run that stands at `step`, it drops what later
    steps (done after the last checkpoint, then lost) or a half-written line left behind."""

    def __init__(self, path: Path, step: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= step] if path.exists() else []
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write(self, record: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: str | Path) -> list[dict]:
    """The records of a `log.jsonl`; a half-written last line (the run was killed) is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


@contextmanager
def stop_on_signal():
    """Turn Ctrl-C and SIGTERM into a question the loop asks between steps: yields `asked()`.

    A second Ctrl-C interrupts at once.  Outside the main thread Python allows no handlers; there
    nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number, frame):
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield lambda: bool(received)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def save_checkpoint(path: Path, config: TrainConfig, net, ema, optimizer, step: int, seconds: float) -> None:
    """Everything that decides what comes next, written whole or not at all."""
    state = {
        "config": asdict(config),
        "step": step,
        "seconds": seconds,
        "net": net.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        # Batches need only seed and step; this is for networks with dropout and the like.
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """A checkpoint's contents: config, step, seconds, net, ema, optimizer, rng.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged or not a checkpoint of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: start the run without --resume")
    # Several processes on a CPU call it "cpu:0", a place that torch.load does not know.
    device = "cpu" if torch.device(device).type == "cpu" else device
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if not {"config", "step", "net", "ema", "optimizer"} <= set(state):
            raise ValueError("parts are missing")
    except Exception as error:  # torch.load raises a dozen kinds for a damaged file
        raise ValueError(
            f"{path} is damaged or not a checkpoint of diffusion_utils ({type(error).__name__}): "
            "delete it to start the run afresh"
        ) from error
    return state


def restore(checkpoint: Path, config: TrainConfig, net, ema, optimizer, device: torch.device) -> tuple[int, float]:
    """Put a checkpoint's contents in place; returns its step and seconds.

    Raises:
        ValueError: damaged, or of a run that learns something else than `config` says.
    """
    state = load_checkpoint(checkpoint, device)
    then, now = asdict(replace_budget(state["config"], config)), asdict(config)
    changed = [k for k in now if then[k] != now[k]]
    if changed:
        raise ValueError(
            f"{checkpoint.parent} was trained with other settings ({', '.join(changed)}): resume it "
            "with its own, or choose another folder"
        )
    net.load_state_dict(state["net"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"].cpu())
    if state["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_rng"]])
    return state["step"], state["seconds"]


def replace_budget(stored: dict, wanted: TrainConfig) -> TrainConfig:
    """The stored configuration of a run, with the budget and reporting of `wanted`."""
    return replace(TrainConfig(**stored), **{name: getattr(wanted, name) for name in FREE_ON_RESUME})

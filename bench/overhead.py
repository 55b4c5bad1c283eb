"""What a micro-batch costs beside its arithmetic: calls of PyTorch's operators, and milliseconds of one CPU thread.

    python dev.py bench overhead [--rounds 20] [--names]

FLUX.1's 19 + 38 blocks, so narrow (one head, 4 image and 4 text tokens, batch 1) that calling the operators takes
nearly all of the time; LoRA of rank 4 on every Linear of every block. A GPU's operators are called the same way, and it
waits if they are not called as fast as it computes. Operators that PyTorch puts together from others count as those, as
the CPU has them. `--names` lists which are called how often."""

from __future__ import annotations

import argparse
import collections
import statistics
import tempfile
import time
from pathlib import Path

from speed import example_of, host_of, start_package

SHAPE = dict(in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=64, hidden_size=128, mlp_ratio=4.0,
             num_heads=1, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
             qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
CASES = {
    "fp32, every block recomputed": ("float32", {"gradient_checkpointing": "all"}),
    "fp32, none recomputed": ("float32", {"gradient_checkpointing": "none"}),
    "bf16, every block recomputed": ("bfloat16", {"gradient_checkpointing": "all"}),
    "fp32, character, every block recomputed": ("float32", {"gradient_checkpointing": "all",
                                                            "target_modules": "character"}),
}


def trainer_of(path: Path, dtype: str, recipe: dict):
    """A trainer of a narrow FLUX.1 that computes in `dtype`, with adapters in fp32."""
    import torch
    from livelora.trainer.recipe.config import TrainConfig
    from livelora.trainer.training.trainer import Trainer

    host = host_of(path, dtype=getattr(torch, dtype))
    share_weights(host._live)
    host.dtype = getattr(torch, dtype)
    config = TrainConfig(steps=1000, rank=4, optimizer="AdamW", learning_rate=1e-4, **recipe)
    return Trainer(host, config, [example_of(SHAPE, latent=4, tokens=4)])


def share_weights(live) -> None:
    """Gives all layers of one shape the same weight, which then stays in the processor's cache."""
    first: dict = {}
    for module in live.modules():
        for name, param in module._parameters.items():
            if param is not None:
                module._parameters[name] = first.setdefault((name, param.shape), param)


def calls(work) -> collections.Counter[str]:
    """How often `work` calls each operator, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        names: collections.Counter[str]

        def __init__(self) -> None:
            super().__init__()
            self.names = collections.Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    with Counted() as counted:
        work()
    return counted.names


def milliseconds(work, rounds: int) -> float:
    """The median time of one call in this thread."""
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        work()
        found.append(1000 * (time.thread_time() - begin))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--names", action="store_true")
    options = parser.parse_args()
    start_package()
    import torch
    from speed import checkpoint

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':40}   calls      ms  (of a micro-batch)     ms of the update")
        for name, (dtype, recipe) in CASES.items():
            path = Path(folder) / f"{dtype}.safetensors"
            checkpoint(path, SHAPE, dtype)
            trainer = trainer_of(path, dtype, recipe)
            trainer.step()
            found = calls(trainer._gradients)
            time_of_one = milliseconds(trainer._gradients, options.rounds)
            whole = milliseconds(trainer.step, max(1, options.rounds // 4))
            print(f"{name:40} {found.total():7} {time_of_one:7.1f} {whole - time_of_one:38.1f}", flush=True)
            if options.names:
                print("   ", ", ".join(f"{op} {count}" for op, count in found.most_common()))


if __name__ == "__main__":
    main()

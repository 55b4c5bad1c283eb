"""Takes training steps, one at a time, and keeps what they change.

Shapes: B images, C latent channels, H W latent rows and columns.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..lora.inject import disabled, inject, weights, without_dropout
from ..lora.tensors import from_lora, to_lora
from ..model.checkpointing import Blocks
from ..model.host import Host, Text
from ..model.memory import Plan
from ..model.resident import Resident
from ..model.shortage import OutOfMemory, is_out_of_memory, once_more
from ..model.transfer import Aside, moved
from ..model.view import copied_once
from ..recipe.config import TrainConfig
from ..recipe.seeds import generator, seeded
from .averaging import Averaged
from .draws import Draws
from .example import Example
from .objective import elementwise_loss, image_losses
from .optim import make_lr_scheduler, make_optimizer
from .planning import DTYPES, plan_of
from .rounding import rounded_step
from .stopwatch import Stopwatch
from .targets import layout, param_groups
from .update import whole_or_not_at_all

MOST_SKIPPED = 5
"""Training ends when this many steps in a row were skipped because a loss or gradient was not finite."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Holds what one step reports."""

    loss: float
    grad_norm: float
    """The norm of the gradient before clipping."""
    learning_rate: float
    """The learning rate of the step. It is negative while a concept is erased."""
    peak: int | None = None
    """The most bytes of the device that were in use; None if the device does not tell."""
    skipped: bool = False
    """Whether nothing was updated, because the loss or gradient was not finite."""
    spent: Mapping[str, float] = field(default_factory=dict)
    """The seconds that each kind of work took: "data", "forward", "backward" and "optimizer"."""
    of_peak: float | None = None
    """The share of the device's rate of multiplying matrices that the step came to (model FLOPs utilization, Chowdhery
    et al. 2022, arXiv:2204.02311, but with what is computed twice); None if that rate is not known."""


Result = TypeVar("Result")


class NotFinite(RuntimeError):
    """Is raised when step after step the loss or gradient is not finite, so that the adapter no longer learns."""


class Trainer:
    """Trains an adapter in a view of the host's model, with an optimizer and a schedule.

    Micro-batch k depends on (seed, k) alone, so adapter, optimizer, schedule, averages and the step count are the whole
    state."""

    def __init__(self, host: Host, config: TrainConfig, examples: Sequence[Example],
                 start: dict[str, Tensor] | None = None, turns: Callable[[], int] = lambda: 0,
                 tell: Callable[[str, Plan], None] = lambda sentence, plan: None) -> None:
        """`start` is a LoRA to start from. `turns` counts the turns of others, after which the model may have moved
        (see Resident). `tell` hears a sentence and the new plan when training goes on with less memory. Raises
        ValueError if the recipe or the start does not fit the model, or the training does not fit the memory."""
        self.host, self.config, self._tell = host, config, tell
        self.plan, self._there = plan_of(host, config, examples, start), lambda: 0
        self.model = Resident(host, self._room, turns)
        self.model.bring()
        self.view: nn.Module = host.view(DTYPES[config.adapter_dtype])
        with seeded(host.device, config.seed):  # PiSSA draws on the device
            inject(self.view, config, layout(self.view, config, host.family, start))
        if start:
            from_lora(self.view, start)
        self._drops = bool(config.dropout or config.rank_dropout or config.module_dropout)
        self.blocks = Blocks(host.family.blocks(self.view), random=self._drops,
                             aside=Aside(host.device) if host.fetches_ahead else None)
        groups = param_groups(self.view, config, host.family)
        self.params: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.optimizer = make_optimizer(groups, config)
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config)
        self.averaged = Averaged(self.params, self.optimizer, config)
        self._there = self._bytes_there
        self.draws = Draws(examples, config, host.family)
        self.steps_done = self.skipped = self.skipped_in_a_row = 0
        self._watch, self._flop = Stopwatch(host.device), 0.0

    def step(self) -> StepResult:
        """Makes one optimizer update, or skips it if the loss or gradient is not finite. When memory runs out the step
        is taken again with a plan that needs less.

        Raises NotFinite if steps are skipped `MOST_SKIPPED` times in a row, OutOfMemory if no plan needs less."""
        self.host.peak()
        loss, norm, skipped = self.carefully(self._take)
        rate = math.copysign(self.lr_scheduler.get_last_lr()[0], self.config.learning_rate)
        if skipped:
            self._count_skipped(loss if math.isfinite(norm) else norm, rate)
        else:
            self.skipped_in_a_row = 0
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.steps_done += 1
        if self.host.unused() > self.plan.room:  # gaps between pieces in use: they would grow until memory runs out
            self.host.free()
        spent = self._watch.seconds()
        of_peak = self._flop / sum(spent.values()) / self.plan.rate if self.plan.rate else None
        return StepResult(loss, norm, rate, self.host.peak(), skipped, spent, of_peak)

    def carefully(self, work: Callable[[], Result]) -> Result:
        """Returns the result of `work`, which is done again with a plan that needs less when memory runs out. Raises
        OutOfMemory if there is no such plan."""
        while True:
            try:
                return work()
            except Exception as err:
                if not is_out_of_memory(err):
                    raise
                error = str(err)
            self._lower(error)  # out here, where nothing refers to the tensors of the work that failed

    def _take(self) -> tuple[float, float, bool]:
        """Takes the next step and returns its loss, the norm of its gradient before clipping, and whether it was
        skipped. If it raises, nothing but gradients has changed."""
        loss = self.model.run(self._gradients)
        norm = nn.utils.clip_grad_norm_(self.params, self.config.max_grad_norm or math.inf).to(loss)
        loss, norm = torch.stack((loss, norm)).tolist()  # nothing before this waits for the device
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:
            with whole_or_not_at_all(self.params, self.optimizer, self.averaged):
                rounded_step(self.optimizer, generator(self.config.seed, "round", self.steps_done))
                self.averaged.update()
        self._watch.lap("optimizer")
        return loss, norm, skipped

    def _gradients(self) -> Tensor:
        """Computes the gradients of the next step and returns its mean loss, on the device. It can be called again."""
        self.optimizer.zero_grad()
        self._watch.start()
        self._flop = 0.0
        count = self.config.gradient_accumulation_steps
        with copied_once(self.view), self.blocks.nothing_held_after():
            return torch.stack([self._micro_batch(self.steps_done * count + k) for k in range(count)]).mean()

    def _lower(self, error: str) -> None:
        """Takes the plan one rung down. Raises OutOfMemory if there is none below."""
        lower = self.plan.lower()
        if lower is None:
            raise OutOfMemory(
                f"There is not enough memory for step {self.steps_done + 1}, even in the way that needs least: "
                f"{self.plan.sentence()} Close other programs that use the graphics card and resume the job, or train "
                f"with smaller pictures or a lower rank. ({error.splitlines()[0]})")
        self.optimizer.zero_grad()
        self.plan = lower
        self.host.free()
        self.model.forget()
        self._tell(f"Memory ran out at step {self.steps_done + 1}. The step is taken again in a way that needs less "
                   f"and takes longer: {lower.sentence()}", lower)

    def _room(self) -> int:
        """Returns how many bytes must be free beside the model, and beside what there is of the adapter already."""
        return max(0, self.plan.room - self._there())

    def _bytes_there(self) -> int:
        """Returns what the adapter, its average and the state of its optimizer take on the device."""
        state = (value for values in self.optimizer.state.values() for value in values.values())
        averages = self.averaged.ema.shadow_params if self.averaged.ema else []
        there = [*weights(self.view).values(), *averages, *filter(torch.is_tensor, state)]
        return sum(t.nbytes for t in there if t.device == self.host.device)

    def _count_skipped(self, value: float, rate: float) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise NotFinite(f"The loss or its gradient became {value} at step {self.steps_done + 1}, "
                            f"{MOST_SKIPPED} steps in a row. Lower the learning rate (it was {rate:g}) and train "
                            "again.")

    def _micro_batch(self, k: int) -> Tensor:
        """Adds the gradients of micro-batch k and returns its mean loss, on the device: nobody waits for it."""
        drawn, device = self.draws[k], self.host.device
        weights, masks = moved(drawn.weights, device), None if drawn.masks is None else moved(drawn.masks, device)
        count, size = len(drawn.examples), tuple(drawn.latents.shape[1:])
        self._follow_plan(size)
        self._flop += count * self.plan.flop[size]
        self._watch.lap("data")
        total, asked = torch.zeros_like(weights[0]), sum(e.preserved is not None for e in drawn.examples)
        with self._own_randomness(k):
            for part in self._parts(count):
                noised = drawn.latents[part], drawn.noise[part], drawn.sigmas[part]
                losses = self.losses(*noised, drawn.texts[part], None if masks is None else masks[part])
                self._watch.lap("forward")
                self._backward((weights[part] * losses).sum() / count)
                total = total + (weights[part].abs() * losses.detach()).sum()
                if self.config.preservation_weight:
                    drift = self._drift(*noised, drawn.examples[part])
                    self._watch.lap("forward")
                    self._backward(self.config.preservation_weight * drift / max(1, asked))
        return total / count

    def _follow_plan(self, size: tuple[int, ...]) -> None:
        """Lets the blocks keep what the plan says for pictures of this size, (C, H, W)."""
        rung = self.plan.rung
        self.blocks.kept, self.blocks.in_ram, self.blocks.holds = self.plan.kept[size], rung.in_ram, rung.holds

    def _parts(self, count: int) -> list[slice]:
        """Returns the parts of a batch of so many images that run one after the other."""
        at_once = self.plan.rung.images
        return [slice(i, i + at_once) for i in range(0, count, at_once)]

    def _backward(self, loss: Tensor) -> None:
        if loss.requires_grad:  # it does not if module dropout left out every layer
            (loss / self.config.gradient_accumulation_steps).backward()
        self._watch.lap("backward")

    @contextlib.contextmanager
    def _own_randomness(self, k: int) -> Iterator[None]:
        """Makes PyTorch's global generators, from which dropout draws, depend on (seed, k) alone while inside."""
        if not self._drops:
            yield
            return
        with seeded(self.host.device, generator(self.config.seed, "dropout", k).initial_seed()):
            yield

    def losses(self, latents: Tensor, noise: Tensor, sigmas: Tensor, texts: list[Text],
               masks: Tensor | None = None) -> Tensor:
        """Returns the recipe's loss (B,) of noised latents. Latents and noise (B, C, H, W) and sigmas (B,) are on the
        CPU, masks (B, H, W) are on the device."""
        latents, noise, sigmas = (moved(t, self.host.device) for t in (latents, noise, sigmas))
        pred, target = self._predict(latents, noise, sigmas, texts), self.host.family.process.target(latents, noise)
        return image_losses(elementwise_loss(pred, target, sigmas, self.config), masks)

    def _drift(self, latents: Tensor, noise: Tensor, sigmas: Tensor, chosen: list[Example]) -> Tensor:
        """Returns how far the adapter has moved the model's answers to the captions that it must not touch, summed over
        the images."""
        texts = [e.preserved for e in chosen if e.preserved is not None]
        if not texts:
            return torch.zeros(())
        asked = [i for i, e in enumerate(chosen) if e.preserved is not None]
        latents, noise, sigmas = (moved(t[asked], self.host.device) for t in (latents, noise, sigmas))
        with torch.no_grad(), disabled(self.view):
            kept = self._predict(latents, noise, sigmas, texts)
        pred = self._predict(latents, noise, sigmas, texts)
        return image_losses(elementwise_loss(pred, kept, sigmas, self.config)).sum()

    def _predict(self, latents: Tensor, noise: Tensor, sigmas: Tensor, texts: list[Text]) -> Tensor:
        noisy = self.host.family.process.add_noise(latents, noise, sigmas)
        return self.host.predict(self.view, noisy, sigmas, texts, self.config.guidance)

    @torch.no_grad()
    def errors(self, latents: Tensor, noise: Tensor, sigmas: Tensor, texts: list[Text]) -> Tensor:
        """Returns the mean squared error (B,), whatever the recipe's loss, of the averaged adapter without dropout."""
        latents, noise, sigmas = (moved(t, self.host.device) for t in (latents, noise, sigmas))
        with self.averaged.in_effect(), without_dropout(self.view):
            pred = self._predict(latents, noise, sigmas, texts)
        return (pred - self.host.family.process.target(latents, noise)).square().mean((1, 2, 3))

    def discard_step(self) -> None:
        """Forgets the gradients of a step that was cut short; the step can then be taken again."""
        self.optimizer.zero_grad()

    def lora(self) -> dict[str, Tensor]:
        """Returns the LoRA as it is now, for ComfyUI's loader, as a copy on the CPU."""
        return once_more(self._lora, self.host.free)

    def _lora(self) -> dict[str, Tensor]:
        with self.averaged.in_effect():
            return to_lora(self.view, self.config.adapter)

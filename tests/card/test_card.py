"""The card does what a GPU does, with the CPU's very bits."""

from __future__ import annotations

import threading

import pytest
import softcard as card
import torch
import torch.nn.functional as F
from softcard import DEVICE
from torch import nn

MIXED = "Expected all tensors to be on the same device"


def test_every_byte_is_counted_in_blocks_of_512_until_it_is_given_back():
    before = card.used()
    card.reset_peak()
    one, two = torch.empty(1000, dtype=torch.uint8, device=DEVICE), torch.ones(128, device=DEVICE)
    view = two[3:].view(5, 25).T
    assert card.used() - before == 1024 + 512
    del one
    assert (card.used() - before, card.peak() - before) == (512, 1536)
    del two
    assert card.used() - before == 512  # the view holds it
    del view
    assert card.used() == before


def test_what_goes_beyond_the_limit_is_refused():
    with card.limited(card.used() + 4096):
        held = torch.empty(4096, dtype=torch.uint8, device=DEVICE)
        with pytest.raises(torch.OutOfMemoryError, match="card out of memory. Tried to allocate 4 bytes"):
            torch.zeros((), device=DEVICE)
        del held
        torch.zeros(1024, device=DEVICE)
    torch.empty(8192, dtype=torch.uint8, device=DEVICE)


def test_each_allocation_can_be_refused():
    x, before = torch.ones(4, device=DEVICE), card.used()

    def step() -> None:
        made.append((x * 2).exp() + x)

    made: list[torch.Tensor] = []
    assert card.count(step) == 3
    assert [card.refused_at(step, n) for n in range(5)] == [True, True, True, False, False]
    assert len(made) == 3 and made[0].equal(made[2])
    made.clear()
    assert card.used() == before


@pytest.mark.parametrize("mix", [
    lambda a, b: a + b, lambda a, b: b.add_(a), lambda a, b: a @ b, lambda a, b: torch.cat([a, b]),
    lambda a, b: F.linear(a, b), lambda a, b: F.layer_norm(a, (4,), b[0], b[0]), lambda a, b: torch.where(a > 0, b, a),
    lambda a, b: F.scaled_dot_product_attention(*(t[None, None] for t in (a, b, b))), lambda a, b: a.lerp_(b, 0.5),
    lambda a, b: torch._foreach_add_([a], [b]), lambda a, b: F.embedding(b.int(), a)])
def test_devices_are_not_mixed(mix):
    with pytest.raises((RuntimeError, ValueError), match=f"{MIXED}|same device"):
        mix(torch.ones(4, 4, device=DEVICE), torch.ones(4, 4))


def test_numbers_and_indices_may_come_from_the_cpu():
    x = torch.arange(4.0, device=DEVICE)
    assert (x * torch.tensor(2.0))[torch.tensor([1, 3])].tolist() == [2.0, 6.0]
    assert x.device.type == "card" and x.to("cpu").device.type == "cpu"


class Net(nn.Module):
    """Something of everything that a transformer, a VAE and a text encoder do."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.words = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Embedding(7, 16)
        self.mix, self.norm, self.out = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        tokens = torch.cat([self.picture(x).flatten(2).transpose(1, 2), self.words(ids)], dim=1)
        q, k, v = self.mix(self.norm(tokens)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        turned = torch.view_as_real(torch.view_as_complex(q.float().unflatten(-1, (4, 2))).conj() * 1j).flatten(-2)
        tokens = tokens + F.scaled_dot_product_attention(turned.to(k), k, v).transpose(1, 2).flatten(2)
        return self.out(F.rms_norm(F.gelu(tokens), (16,))).softmax(-1)[:, :, 0].mean(1)


def trained(device: torch.device, dtype: torch.dtype, steps: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = Net().to(dtype)
    x, ids, wanted = torch.randn(2, 3, 8, 8, dtype=dtype), torch.randint(7, (2, 5)), torch.tensor([0.2, 0.9])
    net, (x, ids, wanted) = net.to(device), (t.to(device) for t in (x, ids, wanted))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=True)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x, ids).float() - wanted).square().sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1, foreach=True)
        optimizer.step()
    assert all(p.device.type == device.type for p in net.parameters())
    return [p.detach().cpu() for p in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_has_the_bits_of_the_cpu(dtype):
    for ours, theirs in zip(trained(DEVICE, dtype), trained(torch.device("cpu"), dtype), strict=True):
        assert ours.equal(theirs)


def test_threads_train_one_after_the_other_and_at_the_same_time():
    expected, found = trained(DEVICE, torch.float32), []
    for together in (1, 1, 3):
        threads = [threading.Thread(target=lambda: found.append(trained(DEVICE, torch.float32)))
                   for _ in range(together)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 5
    # Threads that train at the same time share the global generators, from which the start is drawn.
    assert all(a.equal(b) for run in found[:2] for a, b in zip(run, expected, strict=True))


def test_it_draws_random_numbers_of_its_own():
    torch.manual_seed(3)
    state, drawn = torch.random.get_rng_state(), torch.rand(5, device=DEVICE)
    assert torch.random.get_rng_state().equal(state)
    kept = torch.card.get_rng_state()
    F.dropout(torch.ones(9, device=DEVICE))
    assert not torch.card.get_rng_state().equal(kept)
    torch.manual_seed(3)
    assert torch.rand(5, device=DEVICE).equal(drawn)
    own = torch.Generator(device=DEVICE).manual_seed(3)
    assert torch.rand(5, device=DEVICE, generator=own).equal(drawn)


def test_autocast_multiplies_in_half_precision():
    x = torch.ones(2, 2, device=DEVICE)
    with torch.autocast("card", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16 and x.exp().dtype == torch.float32
    assert (x @ x).dtype == torch.float32

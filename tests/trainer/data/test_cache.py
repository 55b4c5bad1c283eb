"""What is kept comes back as it was; what is broken, too much or cannot be written costs time and no more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from livelora.trainer.data import cache as kept
from livelora.trainer.data.cache import Cache, key, trim
from safetensors.torch import save_file


@pytest.fixture(params=["here", "on Windows"])
def cache(request, tmp_path, monkeypatch):
    if request.param == "on Windows":  # its way to map files, which works here as well
        monkeypatch.setattr(kept, "_opened", kept.mapped)
    return Cache(tmp_path / "encoded")


def files(tmp_path):
    return sorted(p.name for p in (tmp_path / "encoded").rglob("*") if p.is_file())


def test_what_is_kept_comes_back(cache):
    value = {"cond": torch.randn(1, 3, 4), "bf16": torch.ones(2, dtype=torch.bfloat16), "guidance": 3.5, "hooks": None,
             "view": torch.arange(12.0).reshape(3, 4).T}
    cache.keep(key("a"), value)
    found = cache.get(key("a"))
    assert found.keys() == value.keys() and found["guidance"] == 3.5 and found["hooks"] is None
    assert all(found[name].equal(value[name]) and found[name].dtype == value[name].dtype
               for name in ("cond", "bf16", "view"))
    assert cache.get(key("b")) is None


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_what_is_kept_takes_no_memory_of_its_own(cache, tmp_path):
    found = cache.keep(key("a"), {"cond": torch.randn(100, 100)})["cond"]
    [name] = files(tmp_path)
    [mapped] = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(name)]
    low, high = (int(address, 16) for address in mapped.split("-"))
    assert low <= found.data_ptr() and found.data_ptr() + found.nbytes <= high


def test_a_mapped_file_is_read_as_safetensors_reads_it(tmp_path):
    tensors = {str(kind): torch.arange(24).reshape(2, 3, 4).to(kind) for kind in kept.STORED.values()}
    tensors |= {"number": torch.tensor(3.5), "nothing": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"plain": "{}"})
    found, metadata = kept.mapped(tmp_path / "a.safetensors")
    assert metadata == {"plain": "{}"} and found.keys() == tensors.keys()
    assert all(found[name].equal(value) and found[name].dtype == value.dtype for name, value in tensors.items())


def test_a_file_that_cannot_be_read_now_stays(cache, tmp_path, monkeypatch):
    cache.keep(key("a"), {"x": torch.ones(2)})

    def refused(_: object) -> None:
        raise OSError("The paging file is too small for this operation to complete. (os error 1455)")

    with monkeypatch.context() as windows:
        windows.setattr(kept, "_opened", refused)  # stands for a machine whose memory is used up
        assert cache.get(key("a")) is None
    assert cache.get(key("a"))["x"].equal(torch.ones(2))


def test_keys_tell_apart_what_they_are_made_of():
    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key(("a", "bc")), key("a", "bc", None)}) == 5
    assert key("\udc80") == key("\udc80")  # a name that is no UTF-8


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"not safetensors"])
def test_a_broken_file_is_made_anew(cache, tmp_path, content):
    cache.keep(key("a"), {"x": torch.ones(2)})
    [name] = files(tmp_path)
    path = tmp_path / "encoded" / name[:2] / name
    path.write_bytes(content)
    assert cache.get(key("a")) is None and not path.exists()
    cache.keep(key("a"), {"x": torch.ones(2)})
    assert cache.get(key("a"))["x"].equal(torch.ones(2))


@pytest.mark.parametrize("value", [{"x": torch.ones(1), "object": object()}, {"x": torch.ones(1), "pair": (1, 2)}, {}])
def test_what_would_not_come_back_the_same_is_not_kept(cache, tmp_path, value):
    cache.keep(key("a"), value)
    assert cache.get(key("a")) is None and not files(tmp_path)


def test_a_full_disk_is_told_once_and_hurts_nobody(cache, tmp_path, monkeypatch, caplog):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # stands for a full disk
    for name in "ab":
        cache.keep(key(name), {"x": torch.ones(2)})
        assert cache.get(key(name)) is None
    assert [r.message for r in caplog.records if "No space left" in r.message] == [caplog.records[0].message]
    assert not files(tmp_path)


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    """Each file has 1,000 numbers, so two of them fit and three do not."""
    cache = Cache(tmp_path / "encoded", most_bytes=10_000)
    for i, name in enumerate("abc"):
        cache.keep(key(name), {"x": torch.zeros(1000)})
        path = next((tmp_path / "encoded").rglob(f"{key(name)}*"))
        os.utime(path, (i, i))
    assert cache.get(key("a"))  # now it is the newest
    cache.trim()
    assert [name for name in "abc" if cache.get(key(name))] == ["a", "c"]
    half = tmp_path / "encoded" / key("a")[:2] / ".left.12345678.tmp"
    half.mkdir()
    cache.trim()
    assert not half.exists() and cache.get(key("a"))


def test_folders_go_as_a_whole(tmp_path):
    for i, name in enumerate(("old", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture").write_bytes(b"x" * 600)
        os.utime(tmp_path / name, (i, i))
    trim(tmp_path, "*", 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    trim(tmp_path / "nothing", "*", 0)

"""Each input of the nasty corpus gives the right pixels or one error that names the file; nothing crashes or hangs."""

from __future__ import annotations

import faulthandler
import warnings
from functools import partial

import nasty
import nasty_sources
import numpy as np
import pytest
from livelora.trainer.data.pictures import images
from livelora.trainer.data.pictures.images import Facts
from livelora.trainer.data.pictures.index import Index, Question
from reading import read


def judge(case: nasty.Case) -> str | None:
    """What is wrong with how a picture is read; None if nothing is."""
    error = facts = None
    try:
        facts = images.examine(case.path)
        bucket = (case.pixels.shape[1], case.pixels.shape[0]) if case.pixels is not None else (48, 32)
        got = images.load(case.path, bucket).numpy() * 255
    except ValueError as err:
        error = str(err)
    if error is not None:
        allowed = case.error and case.error in error and case.path.name in error
        return None if allowed else f"refused: {error}"
    if case.pixels is None:
        return f"read as {facts.size}, but should be refused: {case.error}"
    if facts.size != bucket:
        return f"measured as {facts.size}, is {bucket}"
    off = float(np.abs(got - case.pixels).mean())
    return f"differs by {off:.2f} of 255" if off > case.tolerance + 0.02 else None


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return nasty.pictures(tmp_path_factory.mktemp("nasty"))


def test_every_nasty_picture_is_read_rightly_or_refused_by_name(cases):
    faulthandler.dump_traceback_later(120, exit=True)  # a hang ends the run and says where
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's, about what is refused
            wrong = {case.path.name: problem for case in cases if (problem := judge(case))}
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())
    print(f"\n{len(cases)} nasty pictures: {sum(c.pixels is not None for c in cases)} to read, "
          f"{sum(c.pixels is None for c in cases)} to refuse")
    assert len(cases) >= 200


def test_the_index_meets_the_same_pictures_and_never_raises(cases, tmp_path):
    """In its threads. A second time it knows all that can be read, and refuses the others again."""
    paths = [case.path for case in cases]
    asked = [Question(path, partial(images.examine, path)) for path in paths]
    first = Index(tmp_path, Facts).examine(asked, lambda done, total: None)
    second = Index(tmp_path, Facts).examine(asked, lambda done, total: None)
    assert [str(facts) for facts in first] == [str(facts) for facts in second]
    for case, facts in zip(cases, first, strict=True):
        assert isinstance(facts, images.Facts) or (case.error and case.path.name in str(facts))


def judge_source(source: nasty_sources.Source) -> str | None:
    """What is wrong with how a dataset is read; None if nothing is."""
    try:
        found = {item.path.name: item.caption for item in read(source.path, trigger_word="").items}
    except ValueError as err:
        missing = [part for part in source.error if part not in str(err)]
        return None if source.error and not missing else f"refused without {missing}: {str(err)[:400]}"
    except Exception as err:
        return f"{type(err).__name__}: {err}"
    if source.captions is None:
        return f"read as {str(found)[:200]}, but should be refused: {source.error}"
    return None if found == source.captions else f"read as {str(found)[:200]}, is {str(source.captions)[:200]}"


def test_every_nasty_dataset_is_read_rightly_or_refused_by_name(tmp_path):
    faulthandler.dump_traceback_later(120, exit=True)
    try:
        cases = nasty_sources.sources(tmp_path)
        wrong = {str(c.path.relative_to(tmp_path)): problem for c in cases if (problem := judge_source(c))}
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert not wrong, "\n".join(f"{name}: {problem}" for name, problem in wrong.items())
    print(f"\n{len(cases)} nasty datasets: {sum(c.captions is not None for c in cases)} to read, "
          f"{sum(c.captions is None for c in cases)} to refuse")
    assert len(cases) >= 80

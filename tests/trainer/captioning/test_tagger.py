"""A real tagger on real photographs, and graphs whose values are known by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import real_tagger
import torch
from livelora.trainer.captioning.tagger import Tagger, as_words, layout, square
from onnx import TensorProto, helper
from PIL import Image

HEAD = "tag_id,name,category,count\n"


def save_means(folder, shape, axes, table, one=255.0):
    """A graph that gives the mean of each channel, 255 being 1 if nothing else is said."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=axes, keepdims=0),
             helper.make_node("Div", ["mean", "one"], ["tags"])]
    graph = helper.make_graph(nodes, "means", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("tags", TensorProto.FLOAT, [1, 3])],
                              [helper.make_tensor("one", TensorProto.FLOAT, [1], [one])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "means.onnx")
    (folder / "means.csv").write_text(HEAD + table)
    return Tagger(path=folder / "means.onnx")


def describe(tagger: Tagger, picture: torch.Tensor) -> str:
    with tagger.opened() as ask:
        return ask(picture, 0)


def plain(color, height=8, width=8) -> torch.Tensor:
    return torch.tensor(color, dtype=torch.float32).expand(height, width, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return real_tagger.save(tmp_path_factory.mktemp("tagger"))


@pytest.mark.parametrize(("photo", "tag"), [
    ("chelsea.png", "Egyptian cat"), ("coffee.png", "espresso"), ("camera.png", "tripod"),
    ("motorcycle_left.png", "moped")])
def test_a_trained_tagger_says_what_is_in_a_photograph(trained, photo, tag):
    picture = np.asarray(Image.open(real_tagger.PHOTOS / photo).convert("RGB"), dtype=np.float32) / 255
    assert describe(Tagger(path=trained), torch.from_numpy(picture)).split(", ")[0] == tag


def test_a_lower_threshold_gives_more_tags_the_surest_first(trained):
    picture = torch.from_numpy(np.array(Image.open(real_tagger.PHOTOS / "chelsea.png").convert("RGB")) / 255).float()
    found = describe(Tagger(path=trained, general=0.05), picture).split(", ")
    assert found[0] == "Egyptian cat"
    assert {*found} == {"Egyptian cat", "tiger cat", "tabby cat"}


@pytest.mark.parametrize(("shape", "axes"), [([1, 4, 4, 3], [1, 2]), ([1, 3, 4, 4], [2, 3]),
                                             (["batch", "side", "side", 3], [1, 2])])
def test_pixels_come_blue_first_in_0_to_255(tmp_path, shape, axes):
    tagger = save_means(tmp_path, shape, axes, "0,much_blue,0,1\n1,much_green,0,1\n2,much_red,0,1\n")
    assert describe(tagger, plain([1.0, 0.4, 0.0])) == "much red, much green"


def test_characters_come_first_and_need_more_and_ratings_are_left_out(tmp_path):
    table = "0,general,9,1\n1,some_hero,4,1\n2,1girl,0,1\n"
    tagger = save_means(tmp_path, [1, 4, 4, 3], [1, 2], table)
    assert describe(tagger, plain([0.95, 0.9, 1.0])) == "some hero, 1girl"
    assert describe(tagger, plain([0.95, 0.8, 1.0])) == "1girl"


def test_a_picture_stands_in_the_middle_of_a_white_square():
    found = square(plain([0.0, 0.0, 0.0], height=2, width=4), 4)
    assert found.shape == (4, 4, 3)
    assert found[[0, 3]].min() == 255 and found[1:3].max() == 0


@pytest.mark.parametrize(("tag", "words"), [("long_hair", "long hair"), (">_<", ">_<"), ("0_0", "0_0"), ("^_^", "^_^"),
                                            ("(o)_(o)", "(o)_(o)"), ("hat_(blue)", "hat (blue)"), ("1girl", "1girl")])
def test_underscores_are_spaces_but_in_faces(tag, words):
    assert as_words(tag) == words


def test_the_layout_is_read_from_the_shape():
    assert layout([1, 448, 448, 3]) == (448, False)
    assert layout(["N", 3, 384, 384]) == (384, True)
    with pytest.raises(ValueError, match=r"shape \[1, 128\], not that of one picture"):
        layout([1, 128])


def test_what_does_not_belong_together_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not an .onnx file"), Tagger(path=tmp_path / "no.onnx").opened():
        pass
    tagger = save_means(tmp_path, [1, 4, 4, 3], [1, 2], "0,a,0,1\n")
    with pytest.raises(ValueError, match="gives 3 values and its table names 1 tags"), tagger.opened():
        pass
    (tmp_path / "means.csv").write_text("name;category\na;0\n")
    with pytest.raises(ValueError, match="means.csv is not a tagger's table"), tagger.opened():
        pass
    (tmp_path / "means.csv").unlink()
    with pytest.raises(ValueError, match="There is no selected_tags.csv beside"), tagger.opened():
        pass


def test_values_that_are_no_probabilities_are_refused(tmp_path):
    tagger = save_means(tmp_path, [1, 4, 4, 3], [1, 2], "0,a,0,1\n1,b,0,1\n2,c,0,1\n", one=85.0)
    with pytest.raises(ValueError, match="gives values from 0 to 3 where a tagger gives probabilities"):
        describe(tagger, plain([1.0, 0.0, 0.0]))

"""Names are one however systems and people write them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livelora.trainer.data import naming

LETTERS = st.text("aBé Åñ猫카ω_-.1", min_size=1, max_size=12)
AROUND = st.text(naming.UNSEEN + " \"\n", max_size=4)


@given(LETTERS, st.sampled_from(["NFC", "NFD", "NFKC"]), st.sampled_from([str, str.upper, str.lower, str.title]))
def test_writings_of_a_name_have_one_key_and_find_each_other(name, form, case):
    other = case(unicodedata.normalize(form, name))
    assert naming.key(other) == naming.key(name)
    assert naming.Names([other, "x"]).find(name) == other


@given(LETTERS, LETTERS)
def test_other_names_have_other_keys(one, other):
    """Compared letter by letter without their accents' writing and case, which is what systems disagree on."""
    same = [unicodedata.normalize("NFC", name.lower()) for name in (one, other)]
    assert (naming.key(one) == naming.key(other)) == (same[0] == same[1])


def test_the_name_itself_goes_first_and_what_is_anothers_is_not_found():
    assert naming.Names(["A", "a"]).find("a") == "a" and naming.Names(["A", "a"]).alike("a") == ["a", "A"]
    assert naming.Names(["A"], taken={"A"}).find("a") is None
    assert naming.Names(["B", "a"]).find("b", "a") == "a"
    with pytest.raises(ValueError, match="There is no éa, but ÉA, éA, and nothing says which of them is meant"):
        naming.Names(["éA", "ÉA"]).find("éa")


def test_a_file_is_found_through_folders_in_another_writing(tmp_path):
    (tmp_path / "Bilder").mkdir()
    (tmp_path / "Bilder" / "Ä.PNG").touch()
    assert naming.Files().find(tmp_path, "bilder/a\u0308.png") == tmp_path / "Bilder" / "Ä.PNG"
    assert naming.Files().find(tmp_path, "bilder/b.png") is None and naming.Files().find(tmp_path, "bilder") is None


@given(AROUND, st.sampled_from(["{}", "'{}'", '"{}"', "“{}”", "‘{}’", "„{}“", "«{}»", "‹{}›", "`{}`"]), AROUND,
       st.sampled_from(["/a/my cats", "C:\\cats", "/it's", "/it's 'here", "cats"]))
def test_a_pasted_path_is_bare(before, quoted, after, path):
    assert naming.pasted(before + quoted.format(path) + after) == path


@given(st.sampled_from("\ufeff\u00ad\u061c\u200c\u202a\u2060"), st.sampled_from(["/a/my cats", "/a/(1) & 'é'"]))
def test_a_path_from_a_shell_or_a_browser_is_meant_as_it_reads(mark, path):
    assert naming.pasted(mark + re.sub(r"([ ()&'])", r"\\\1", path)) == path
    assert naming.pasted(mark + PurePosixPath(path).as_uri()) == path
    assert naming.pasted(mark + PureWindowsPath("C:" + path).as_uri()) == "C:" + path
    assert naming.pasted(r"C:\(a) b") == r"C:\(a) b"

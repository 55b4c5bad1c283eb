"""Models of transformers with random weights, from folders, through the very calls that real ones go through."""

from __future__ import annotations

import json

import pytest
import tiny_vision
import torch
from livelora.trainer.captioning.vision import VisionFolder
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Florence2ForConditionalGeneration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def florence(tmp_path_factory):
    return tiny_vision.save_florence(tmp_path_factory.mktemp("florence"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_vision.save_llava(tmp_path_factory.mktemp("llava"))


def picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(seed)).mul(255).round() / 255


def folder(path, prompt="Describe it.", **more) -> VisionFolder:
    return VisionFolder(path=path, prompt=prompt, device=CPU, max_length=12, **more)


def words(engine: VisionFolder, seed: int = 0, look: int = 0) -> str:
    with engine.opened() as ask:
        return ask(picture(look), seed)


def test_florence_answers_its_task_as_transformers_own_calls_do(florence):
    """As in the documentation of Florence-2 in transformers."""
    processor = AutoProcessor.from_pretrained(florence, local_files_only=True)
    model = Florence2ForConditionalGeneration.from_pretrained(florence, local_files_only=True)
    image = Image.fromarray((picture() * 255).round().byte().numpy())
    inputs = processor(text="<MORE_DETAILED_CAPTION>", images=image, return_tensors="pt")
    with torch.no_grad():
        text = processor.batch_decode(model.generate(**inputs, max_new_tokens=12), skip_special_tokens=True)[0]
    assert text.strip()
    assert words(folder(florence)) == " ".join(text.split())


def test_florence_takes_one_of_its_tasks_for_a_prompt(florence):
    assert isinstance(words(folder(florence, "<CAPTION>", own_prompt=True)), str)
    with pytest.raises(ValueError, match="Florence-2 cannot follow instructions, and the prompt is 'Name the cat'"):
        words(folder(florence, "Name the cat", own_prompt=True))


def test_a_chat_model_answers_without_repeating_the_question(llava):
    answer = words(folder(llava))
    assert answer and "USER" not in answer and "Describe it." not in answer
    assert len(answer) <= 12  # a token is a character


def test_the_picture_the_prompt_and_the_seed_decide_the_answer(llava):
    first = words(folder(llava), seed=3)
    assert words(folder(llava), seed=3) == first
    assert len({first, words(folder(llava), seed=4), words(folder(llava), seed=3, look=1),
                words(folder(llava, "Anything else?"), seed=3)}) > 2


def test_the_global_random_numbers_stay_as_they_were(llava):
    before = torch.get_rng_state()
    words(folder(llava), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_chat_template_that_takes_plain_text_works(tmp_path):
    assert words(folder(tiny_vision.save_llava(tmp_path, tiny_vision.JOY_CHAT)))


def test_a_chat_template_without_a_place_for_the_picture_is_refused(tmp_path):
    path = tiny_vision.save_llava(tmp_path, "{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="has no place for a picture"):
        words(folder(path))


def test_a_model_that_captions_unasked_goes_on_from_a_prompt_of_ones_own(tmp_path):
    path = tiny_vision.save_blip(tmp_path)
    alone = words(folder(path))
    assert alone and words(folder(path, "other preset")) == alone
    assert words(folder(path, "a photo of", own_prompt=True)) not in ("", alone)


def test_a_folder_that_lacks_something_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nothing is downloaded"):
        words(folder(tmp_path / "microsoft" / "Florence-2-large"))
    with pytest.raises(ValueError, match="has no config.json"):
        words(folder(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json in .* is damaged"):
        words(folder(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="has no .safetensors file. Weights in other formats"):
        words(folder(tmp_path))


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "moondream9", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"has no class for .* \(model_type moondream9\). The model brings code of "
                                           "its own, which is never run"):
        words(folder(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_weights_that_belong_to_another_class_are_refused(tmp_path):
    """Else transformers fills in random ones, and warns in the log alone. So with the first Florence-2 checkpoints."""
    path = tiny_vision.save_llava(tmp_path)
    weights = load_file(path / "model.safetensors")
    save_file({f"other.{name}" if "vision" in name else name: w for name, w in weights.items()},
              path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="does not fit transformers' class for it: .* weights are missing"):
        words(folder(path))

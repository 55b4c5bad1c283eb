"""Vision-language models of transformers with tiny random weights, saved to folders as one downloads them."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

CHAT = ("{% for message in messages %}USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:{% endfor %}")
"""A template that takes a list of parts, as LLaVA's."""
JOY_CHAT = "{% for message in messages %}USER: <image>{{ message['content'] }} ASSISTANT:{% endfor %}"
"""One that takes a text and puts the picture before it, as JoyCaption's."""


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """One token for each printable character."""
    own = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *special]
    vocabulary = {token: index for index, token in enumerate([*own, *string.printable])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>", extra_special_tokens={"image_token": "<image>"})
    return made


def pictures(side: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False)


def save_florence(folder: Path) -> Path:
    """Florence-2: DaViT and BART, 64 × 64 pixels."""
    torch.manual_seed(0)
    words = tokenizer()
    text = BartConfig(vocab_size=len(words), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                      decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=600,
                      pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
                      forced_bos_token_id=None, num_beams=2)
    vision = dict(embed_dim=[8, 16, 32, 32], depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], num_groups=[1, 2, 2, 2],
                  window_size=2, projection_dim=32, max_position_embeddings=8)
    config = Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=4, pad_token_id=0,
                             bos_token_id=1, eos_token_id=2)
    model = Florence2ForConditionalGeneration(config)
    # untrained, it would say "the end" at once
    model.generation_config.update(suppress_tokens=[0, 1, 3, 4], min_new_tokens=8)
    model.save_pretrained(folder)
    images = pictures(64)
    images.image_seq_length = 5  # 2 × 2 places that DaViT leaves of 64 × 64, and their mean
    Florence2Processor(images, words, post_processor_config={"pure_text": {}}).save_pretrained(folder)
    return folder


def save_llava(folder: Path, chat: str = CHAT) -> Path:
    """LLaVA: CLIP and Llama, 28 × 28 pixels in 4 patches. It draws its words by chance."""
    torch.manual_seed(0)
    words = tokenizer()
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=28, patch_size=14, projection_dim=32)
    text = LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                       num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096, pad_token_id=0,
                       bos_token_id=1, eos_token_id=2)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=4,
                                                      image_token_index=4, vision_feature_layer=-1))
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    LlavaProcessor(pictures(28), words, patch_size=14, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1, chat_template=chat).save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """BLIP, which begins a caption unasked. 32 × 32 pixels."""
    torch.manual_seed(0)
    words = tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BlipTextConfig(vocab_size=len(words), encoder_hidden_size=32, max_position_embeddings=64, pad_token_id=0,
                          bos_token_id=1, eos_token_id=2, sep_token_id=2, **size)
    vision = BlipVisionConfig(image_size=32, patch_size=16, **size)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.generation_config.update(suppress_tokens=[0, 1, 3, 4], min_new_tokens=8)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    return folder

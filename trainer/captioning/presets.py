"""Holds what a model that can follow instructions is asked to write, for each kind of LoRA.

A LoRA learns what its captions leave out, as the meaning of its trigger word."""

from __future__ import annotations

from typing import Literal

Preset = Literal["general", "character", "style", "object"]

_FORM = ("Answer with the caption alone: one paragraph of plain sentences, without an introduction, a heading or a "
         "list. Say only what can be seen, and do not guess at names, feelings or meanings.")

PROMPTS: dict[Preset, str] = {
    "general": ("Write a caption for this picture, for training an image model. Name the subject, what it does, the "
                f"place, the light, the colours, the point of view and the style of the picture. {_FORM}"),
    "character": ("Write a caption for this picture, for teaching an image model one particular character. Describe "
                  "everything except what makes this character who they are: not the face, the hair, the eyes, the "
                  "skin, the build or the age. Do describe pose, expression, clothes, what they hold and do, the "
                  f"surroundings, the light, the framing and the style of the picture. Call the character 'the "
                  f"character'. {_FORM}"),
    "style": ("Write a caption for this picture, for teaching an image model its artistic style. Describe everything "
              "except the style: who and what is shown, where, what happens, how it is arranged. Say nothing about the "
              f"technique, the medium, the brush, the line, the colours as a palette, or the mood. {_FORM}"),
    "object": ("Write a caption for this picture, for teaching an image model one particular object, the main one in "
               "the picture. Describe everything except how that object looks: not its shape, colours, material or "
               "details. Do describe where it is, at what angle and distance it is seen, who uses it, what is around "
               f"it, the light and the style of the picture. Call it 'the object'. {_FORM}"),
}

"""For ms-swift's `--external_plugins`: a template that reads an album as AgentPS does, as repeated video frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from swift.template import Template, TemplateMeta, register_template
from swift.template.templates.llava import LlavaOneVisionHfTemplate

FRAMES = 16
_VIDEO = 151_647


class Album(LlavaOneVisionHfTemplate):
    """All images of a post together give the tokens of one video of 16 frames; the text has no chat markup."""

    def replace_tag(self, media_type: str, index: int, inputs: Any) -> list[list[int]]:
        if index > 0:
            return []
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return [[_VIDEO] * (FRAMES * ((side + 1) // 2) ** 2 + 1)]

    def _encode(self, inputs: Any) -> dict[str, Any]:
        encoded = Template._encode(self, inputs)
        album = np.stack([np.asarray(image) for image in inputs.images])
        pixels = self.processor.video_processor([album], return_tensors="pt")["pixel_values_videos"]
        encoded["pixel_values_videos"] = pixels[:, np.arange(FRAMES) % len(album)]  # no album here has more than 16
        return encoded


register_template(TemplateMeta("album", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=[], template_cls=Album))

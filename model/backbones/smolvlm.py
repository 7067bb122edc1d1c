"""SmolVLM2: a SigLIP, a pixel shuffle with one linear layer, and a Llama (SmolLM2).

A frame is written as the processor writes one image that it does not split:
`<fake_token_around_image><global-img><image>…<fake_token_around_image>`.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers import PreTrainedModel, SmolVLMModel

from ..errors import ConfigError
from ..family import Family


class SmolVLM(Family):
    model_class = SmolVLMModel
    language_model = "text_model"
    tower = "vision_model"
    projectors = ("connector",)
    before = ("<fake_token_around_image>", "<global-img>")
    after = ("<fake_token_around_image>",)
    text_types = ("llama",)

    @property
    def token_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def tower_width(self) -> int:
        return int(self.vision.hidden_size)

    def side(self, image_size: int) -> int:
        unit, largest = self.vision.patch_size * self.config.scale_factor, self.vision.image_size
        if image_size != largest and (image_size % unit or image_size > largest):
            raise ConfigError(
                f"preprocess.image_size is {image_size}: the backbone reads {largest}, and multiples of {unit} below it"
            )
        return int(image_size // unit)  # of a last part of a patch, as 384 pixels have of 14, the tower reads nothing

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        return cast(Tensor, self.tower_of(model)(pixels_UCHW).last_hidden_state)

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        return [cast(SmolVLMModel, model).connector(states_UPW)]


FAMILY = SmolVLM

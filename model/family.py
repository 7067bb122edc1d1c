"""What the rest of the code asks of a backbone, whatever it is: a family fills this in (`model.backbones`).

Every family here is a frozen tower, a projector and a causal language model of `transformers`. Frames are squares of
one size and stand before the text, each alone, so that of every family the same holds: a distinct image passes the
tower once, its states can be kept on disk, the last layer is computed at the answers only, and no logits over the
vocabulary are made. A family for which one of these is not exact has no place here yet.

Dimensions: B posts · U distinct images of the batch · F frames · T tokens · P patches of a frame
            · W width of the tower's states · K tokens of a frame · D hidden size
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError, PromptError
from .prompt import Placeholders

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from .settings import SequenceSettings


def sub_config(config: PreTrainedConfig, part: Literal["vision_config", "text_config"]) -> PreTrainedConfig:
    """The config of the tower or of the language model; a dict or None, which the annotation allows, it never is."""
    return cast("PreTrainedConfig", getattr(config, part))


class Family(ABC):
    """One kind of backbone, with the config of one of them. It holds no weights: `model` is given to each call."""

    #: The class without a language-model head: what is loaded, and where the names below lead from.
    model_class: ClassVar[type[PreTrainedModel]]
    #: The language model: with `embed_tokens`, `layers` of queries, keys and values, `norm` and `rotary_emb`.
    language_model: ClassVar[str]
    #: The tower, and what stands between it and the language model.
    tower: ClassVar[str]
    projectors: ClassVar[tuple[str, ...]]
    #: Tokens around each frame, by their names in the tokenizer, as the family's own processor writes them.
    before: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    #: A parameter (D,) that stands behind the last frame as one more visual token; empty: there is none.
    newline: ClassVar[str] = ""
    #: Of the pixels in [0, 1], where the checkpoint has no preprocessor_config.json that says so.
    image_mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    image_std: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    #: The text model that `model.language` computes, by its `model_type`.
    text_types: ClassVar[tuple[str, ...]]

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config = config
        self.text, self.vision = sub_config(config, "text_config"), sub_config(config, "vision_config")

    def check(self) -> None:
        """
        Raises:
            ConfigError: the config is one of the family, but not one that is computed here.
        """
        windows = set(getattr(self.text, "layer_types", None) or ()) - {"full_attention"}
        if self.text.model_type not in self.text_types or windows:
            raise ConfigError(
                f"its language model is {self.text.model_type} {sorted(windows) or ''}; a "
                f"{' or '.join(self.text_types)} with full attention is expected"
            )

    @property
    def lessons(self) -> float:
        """Epochs, per epoch of the training, for which what sees the pictures is first taught alone (`model.eyes`).

        0: it was pretrained.
        """
        return 0

    @property
    @abstractmethod
    def token_id(self) -> int:
        """The placeholder of one visual token."""

    @property
    @abstractmethod
    def tower_width(self) -> int:
        """W"""

    @abstractmethod
    def side(self, image_size: int) -> int:
        """Tokens along a side of a frame of so many pixels.

        Raises:
            ConfigError: frames of this size cannot be read; it names those that can.
        """

    @abstractmethod
    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        """(U, P, W): all that the projectors will read of each image."""

    @abstractmethod
    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        """(U, K, D) each, row by row of the frame's square: what the language model reads, and what is then added to
        it behind its first layer, its second, and so on (deepstack).
        """

    def position_ids(self, side: int, n_frames_B: Tensor, tokens: int) -> Tensor | None:
        """Positions for `rotary_emb`, (axes, B, T); None: those of the tokens, 0 to T - 1.

        Args:
            side: tokens along a side of a frame, after all pooling.
            n_frames_B: int64, frames of each post.
        """
        return None

    def summary(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        """(U, D'): one vector an image, by which later images are compared with those of the training."""
        return self.tower_states(model, pixels_UCHW).mean(1)

    # --- what follows from these

    @property
    def lora_targets(self) -> str:
        """The seven linear layers of a block. Anchored: `q_proj` alone would also match the tower's."""
        return (
            rf"^{self.language_model}\.layers\.\d+"
            r"\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)$"
        )

    def language_of(self, model: PreTrainedModel) -> PreTrainedModel:
        return cast("PreTrainedModel", model.get_submodule(self.language_model))

    def tower_of(self, model: PreTrainedModel) -> PreTrainedModel:
        return cast("PreTrainedModel", model.get_submodule(self.tower))

    def projectors_of(self, model: PreTrainedModel) -> Iterator[nn.Module]:
        return map(model.get_submodule, self.projectors)

    def newline_of(self, model: PreTrainedModel) -> Tensor | None:
        """(D,)"""
        return model.get_parameter(self.newline) if self.newline else None

    def normalize(self, images_UHWC: Tensor) -> Tensor:
        """uint8 to float32 (U, 3, H, W), as the tower was pretrained."""
        mean, std = (getattr(self.config, name, getattr(self, name)) for name in ("image_mean", "image_std"))
        scale = torch.tensor([255 * s for s in std], device=images_UHWC.device).view(-1, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=images_UHWC.device).view(-1, 1, 1)
        return images_UHWC.permute(0, 3, 1, 2).to(torch.float32).div_(scale).sub_(shift)

    def grid(self, sequence: SequenceSettings) -> int:
        """Tokens along a side of a frame, after the pooling that `frame_pooling` asks for."""
        return reduce(lambda side, _: math.ceil(side / 2), range(poolings(sequence)), self.side(sequence.image_size))

    def frame_length(self, sequence: SequenceSettings) -> int:
        """Tokens that one frame takes in a sequence."""
        return len(self.before) + self.grid(sequence) ** 2 + len(self.after)

    def placeholders(self, tokenizer: PreTrainedTokenizerBase, sequence: SequenceSettings) -> Placeholders:
        """What stands for a post's frames.

        Raises:
            PromptError: the tokenizer lacks a token that stands around them.
        """
        vocabulary = tokenizer.get_vocab()
        if lacking := [name for name in (*self.before, *self.after) if name not in vocabulary]:
            raise PromptError(
                f"the tokenizer of {tokenizer.name_or_path} has no token {lacking[0]}, which stands around a frame: "
                "take config.json and tokenizer.json of one backbone"
            )
        return Placeholders(
            token_id=self.token_id,
            per_frame=self.grid(sequence) ** 2,
            before=tuple(vocabulary[name] for name in self.before),
            after=tuple(vocabulary[name] for name in self.after),
            newline=bool(self.newline),
        )

    def visual_tokens(self, sequence: SequenceSettings) -> int:
        """V: tokens of a post's frames, with those around them, where it shows all that it may."""
        return sequence.frames * self.frame_length(sequence) + bool(self.newline)


def poolings(sequence: SequenceSettings) -> int:
    """How often a frame's tokens are pooled 2x2 beyond what the backbone itself does."""
    return int(math.log2(sequence.frame_pooling)) - 1


def pooled_once_more(tokens_UKD: Tensor) -> Tensor:
    """(U, K', D): as LLaVA-OneVision pools the tower's grid, on the square of tokens that is left."""
    side = math.isqrt(tokens_UKD.shape[1])
    grid_UDHW = tokens_UKD.transpose(1, 2).unflatten(2, (side, side))
    pooled_UDHW = F.interpolate(grid_UDHW, size=[math.ceil(side / 2)] * 2, mode="bilinear")
    return pooled_UDHW.flatten(2).transpose(1, 2)

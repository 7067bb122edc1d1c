"""AgentPS on LLaVA-OneVision: frames and text in, one answer per question out (paper 2.1).

The backbone is `transformers.LlavaOnevisionModel`, without a language-model head: no logits over
the vocabulary are ever made. The album goes the video way: every frame's tokens are pooled 2x2, one
newline token ends them.

Dimensions: B posts · U distinct images of the batch · F frames · T tokens · V visual tokens per post
            · P patches per frame · W width of the tower's states · K pooled tokens per frame · D hidden size
            · Q intermediate questions · A answers: Q and the final one · C classes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, PreTrainedConfig

from .language import hidden_states_at
from .loss import task_loss
from .schema import NO_FRAME
from .settings import LoraSettings, SequenceSettings, TrainSettings, answers_questions
from .task import Task

#: The seven linear layers of a Qwen2 block. Anchored: `q_proj` alone would also match the tower's.
LORA_TARGETS = r"^language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)$"


def normalize(images: np.ndarray) -> Tensor:
    """uint8 (U, H, W, 3) to float32 (U, 3, H, W) in [-1, 1]: SigLIP's rescaling, mean and deviation of 0.5."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)


def sub_config(config: LlavaOnevisionConfig, part: Literal["vision_config", "text_config"]) -> PreTrainedConfig:
    """The config of the tower or of the language model; a dict or None, which the annotation allows, it never is."""
    return cast(PreTrainedConfig, getattr(config, part))


def tower_size(config: LlavaOnevisionConfig) -> int:
    """Side of the square that the tower reads, in pixels."""
    return sub_config(config, "vision_config").image_size


def tokens_per_frame(config: LlavaOnevisionConfig, pooling: int) -> int:
    """K: the tower's grid, pooled 2x2 and rounded up (27 x 27 patches give 14 x 14 = 196) until it is `pooling` times
    smaller.
    """
    side = tower_size(config) // sub_config(config, "vision_config").patch_size
    for _ in range(int(math.log2(pooling))):
        side = math.ceil(side / 2)
    return side**2


def visual_tokens(config: LlavaOnevisionConfig, sequence: SequenceSettings) -> int:
    """V: the placeholders of one post, the newline included."""
    return sequence.frames * tokens_per_frame(config, sequence.frame_pooling) + 1


def _pooled_once_more(tokens_UKD: Tensor) -> Tensor:
    """(U, K', D): as LLaVA-OneVision pools the tower's grid, on the square of tokens that it left."""
    side = math.isqrt(tokens_UKD.shape[1])
    grid_UDHW = tokens_UKD.transpose(1, 2).unflatten(2, (side, side))
    pooled_UDHW = F.interpolate(grid_UDHW, size=[math.ceil(side / 2)] * 2, mode="bilinear")
    return pooled_UDHW.flatten(2).transpose(1, 2)


@dataclass
class Answers:
    """What the heads say of B posts, before softmax and sigmoid.

    Attributes:
        questions: one (B, C) tensor per question, in the task's order; empty for `vanilla`.
        final_B: the final question's logit.
        loss_sum, weight_sum: where labels were given (see `model.loss`).
    """

    questions: list[Tensor]
    final_B: Tensor
    loss_sum: Tensor | None = None
    weight_sum: Tensor | None = None


def _head(inputs: int, outputs: int, train: TrainSettings) -> nn.Sequential:
    hidden = train.head_hidden
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(train.head_dropout), nn.Linear(hidden, outputs)
    )


class AgentPS(nn.Module):
    """A backbone and one MLP head per question."""

    def __init__(
        self, backbone: LlavaOnevisionModel, task: Task, sequence: SequenceSettings, train: TrainSettings
    ) -> None:
        super().__init__()
        self._poolings = int(math.log2(sequence.frame_pooling))
        self.backbone: LlavaOnevisionModel | PeftModel = backbone
        self.config: LlavaOnevisionConfig = backbone.config
        self.variant = train.variant
        self.question_weights = [question.weight for question in task.questions]
        self.final_weight = train.final_weight
        width = sub_config(backbone.config, "text_config").hidden_size
        questions = task.questions if answers_questions(self.variant) else ()
        #: Classes of each question that has a head.
        self.n_classes = {question.id: len(question.classes) for question in questions}
        self.heads = nn.ModuleDict({id_: _head(width, classes, train) for id_, classes in self.n_classes.items()})
        inputs = width
        if self.variant == "agentps_answers":
            inputs += len(questions) * width
        elif self.variant == "siglip":
            layers = self.config.vision_feature_layer
            tower_width = sub_config(self.config, "vision_config").hidden_size
            inputs += tower_width if isinstance(layers, int) else tower_width * len(layers)
        self.final_head = _head(inputs, 1, train)

    @property
    def llava(self) -> LlavaOnevisionModel:
        """The LLaVA-OneVision model itself, inside an adapter or not."""
        base = self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone
        return cast(LlavaOnevisionModel, base)

    def set_trainable(self, lora: LoraSettings | None, ans_token_id: int, *, projector: bool) -> None:
        """Freeze the tower; train the heads, and the language model by LoRA or, without it, in full.

        With LoRA, of the embedding only the row of `<ans>` is trained. `siglip` has no use for a language model:
        of it, only the embedding of the text's tokens is trained, and only where the rest would be, too.
        """
        self.llava.requires_grad_(False)
        if self.variant == "siglip":
            self.llava.get_input_embeddings().requires_grad_(lora is None)
            projector = False
        elif lora is None:
            self.llava.language_model.requires_grad_(True)
            self.llava.image_newline.requires_grad_(True)
        else:
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=LORA_TARGETS,
                trainable_token_indices={"embed_tokens": [ans_token_id]},
            )
            self.backbone = get_peft_model(self.llava, config)
        if projector:
            self.llava.multi_modal_projector.requires_grad_(True)
        for parameter in self.parameters():
            if parameter.requires_grad:  # AdamW's small steps would be lost in the 8 bits of a bfloat16
                parameter.data = parameter.data.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        """A backbone in bfloat16 meets trained weights in float32; the heads compute in float32 always."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.llava.vision_tower.dtype == torch.bfloat16)

    @torch.no_grad()
    def tower_states(self, pixel_values_UCHW: Tensor) -> Tensor:
        """(U, P, W): what the tower, which is frozen, says of each distinct image, in the tower's dtype."""
        config = self.config
        with self._autocast(pixel_values_UCHW.device):
            states = self.llava.vision_tower(pixel_values_UCHW, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        selected = states[layers] if isinstance(layers, int) else torch.cat([states[k] for k in layers], dim=-1)
        return selected[:, 1:] if config.vision_feature_select_strategy == "default" else selected

    def frame_tokens(self, tower_states_UPW: Tensor) -> Tensor:
        """(U, K, D): each distinct image's states through projector and pooling."""
        tokens_UKD = self.llava.apply_pooling(self.llava.multi_modal_projector(tower_states_UPW))
        for _ in range(self._poolings - 1):
            tokens_UKD = _pooled_once_more(tokens_UKD)
        return tokens_UKD

    def _pooled(
        self, tower_states_UPW: Tensor, frame_index_BF: Tensor, input_ids_BT: Tensor, last_positions_B: Tensor
    ) -> Tensor:
        """(B, W + D): the mean of the album's image embeddings, and of the text's token embeddings.

        Both are means because LLaVA-OneVision's checkpoint has the tower of SigLIP, but neither its attention pool
        nor its text tower.
        """
        images_BFW = tower_states_UPW.mean(1)[frame_index_BF]
        shown_BF = frame_index_BF != NO_FRAME
        if shown_BF.all():
            images_BW = images_BFW.mean(1)
        else:
            images_BW = (images_BFW * shown_BF.unsqueeze(-1)).sum(1) / shown_BF.sum(1, keepdim=True)
        is_post_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device) <= last_positions_B.unsqueeze(1)
        is_text_BT1 = (is_post_BT & (input_ids_BT != self.config.video_token_id)).unsqueeze(-1)
        tokens_BTD = self.llava.get_input_embeddings()(input_ids_BT) * is_text_BT1
        return torch.cat((images_BW, tokens_BTD.sum(1) / is_text_BT1.sum(1)), dim=1)

    def answer_states(
        self, tower_states_UPW: Tensor, frame_index_BF: Tensor, input_ids_BT: Tensor, answer_positions_BA: Tensor
    ) -> Tensor:
        """(B, A, D): the language model's last hidden states where the answers are read."""
        if (frame_index_BF == NO_FRAME).any():
            embeds_BTD = self._embeds(tower_states_UPW, frame_index_BF, input_ids_BT)
            return hidden_states_at(self.llava.language_model, embeds_BTD, answer_positions_BA)
        visual_BVD = self.frame_tokens(tower_states_UPW)[frame_index_BF].flatten(1, 2)
        newline_BVD = self.llava.image_newline.to(visual_BVD.dtype).expand(len(visual_BVD), 1, -1)
        # The placeholders of the visual tokens come first in every sequence.
        text_BTD = self.llava.get_input_embeddings()(input_ids_BT[:, visual_BVD.shape[1] + 1 :])
        visual_BVD = torch.cat((visual_BVD, newline_BVD), dim=1).to(text_BTD.dtype)
        return hidden_states_at(
            self.llava.language_model, torch.cat((visual_BVD, text_BTD), dim=1), answer_positions_BA
        )

    def _embeds(self, tower_states_UPW: Tensor, frame_index_BF: Tensor, input_ids_BT: Tensor) -> Tensor:
        """(B, T, D): what the language model reads, of albums that differ in their number of frames."""
        tokens_UKD = self.frame_tokens(tower_states_UPW)
        newline_1D = self.llava.image_newline.to(tokens_UKD.dtype).unsqueeze(0)
        table_D = torch.cat((tokens_UKD.flatten(0, 1), newline_1D))  # rows: image by image, the newline last
        per_frame = tokens_UKD.shape[1]
        place_BFK = frame_index_BF.unsqueeze(-1) * per_frame + torch.arange(per_frame, device=frame_index_BF.device)
        place_BV = F.pad(place_BFK.flatten(1), (0, 1), value=len(table_D) - 1)
        shown_BV = F.pad((frame_index_BF != NO_FRAME).repeat_interleave(per_frame, dim=1), (0, 1), value=True)
        # The placeholders of a post are its frames' tokens and the newline, in this order.
        is_visual_BT = input_ids_BT == self.config.video_token_id
        text_D = self.llava.get_input_embeddings()(input_ids_BT[~is_visual_BT])
        embeds_BTD = text_D.new_empty(*input_ids_BT.shape, text_D.shape[-1])
        embeds_BTD[~is_visual_BT] = text_D
        embeds_BTD[is_visual_BT] = table_D[place_BV[shown_BV]].to(text_D.dtype)
        return embeds_BTD

    def _read(self, states_BAD: Tensor) -> tuple[list[Tensor], Tensor]:
        """The intermediate questions' logits, and the states that the final head reads."""
        last_BD = states_BAD[:, -1]
        if self.variant in ("vanilla", "multitask"):
            return [head(last_BD) for head in self.heads.values()], last_BD
        questions = [head(states_BAD[:, index]) for index, head in enumerate(self.heads.values())]
        return questions, states_BAD.flatten(1) if self.variant == "agentps_answers" else last_BD

    def forward(
        self,
        frame_index_BF: Tensor,
        input_ids_BT: Tensor,
        answer_positions_BA: Tensor,
        pixel_values_UCHW: Tensor | None = None,
        tower_states_UPW: Tensor | None = None,
        question_labels_BQ: Tensor | None = None,
        final_labels_B: Tensor | None = None,
    ) -> Answers:
        """
        Args:
            frame_index_BF: for each post its frames, as indices into U; NO_FRAME behind those of a shorter album.
            input_ids_BT, answer_positions_BA: see `model.prompt.PromptBatch`.
            pixel_values_UCHW: normalised float images, each distinct image of the batch once; or
            tower_states_UPW: what `tower_states` says of them.
            question_labels_BQ, final_labels_B: int64, NO_LABEL where there is none; both or neither.
        """
        if tower_states_UPW is None:
            if pixel_values_UCHW is None:
                raise ValueError("a batch without images: give pixel_values_UCHW or tower_states_UPW")
            tower_states_UPW = self.tower_states(pixel_values_UCHW)
        with self._autocast(input_ids_BT.device):
            if self.variant == "siglip":
                last_B = answer_positions_BA[:, -1]
                states = self._pooled(tower_states_UPW, frame_index_BF, input_ids_BT, last_B)
            else:
                states = self.answer_states(tower_states_UPW, frame_index_BF, input_ids_BT, answer_positions_BA)
        states = states.float()
        questions, final_in = ([], states) if self.variant == "siglip" else self._read(states)
        answers = Answers(questions, self.final_head(final_in).squeeze(-1))
        if question_labels_BQ is not None and final_labels_B is not None:
            answers.loss_sum, answers.weight_sum = task_loss(
                questions, question_labels_BQ, self.question_weights, answers.final_B, final_labels_B, self.final_weight
            )
        return answers

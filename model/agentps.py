"""AgentPS on a vision-language backbone: frames and text in, one answer per question out (paper 2.1).

The backbone is a model of `transformers` without a language-model head: no logits over the vocabulary are ever made.
What is particular to one kind of backbone is asked of its family (`model.family`).

Dimensions: B posts · U distinct images of the batch · F frames · T tokens · V visual tokens per post
            · P patches per frame · W width of the tower's states · K pooled tokens per frame · D hidden size
            · Q intermediate questions · A answers: Q and the final one · C classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .backbones import family_of
from .family import pooled_once_more, poolings, sub_config
from .language import hidden_states_at
from .loss import task_loss
from .schema import NO_FRAME
from .settings import LoraSettings, SequenceSettings, TrainSettings, answers_questions
from .task import Task

#: A matrix product, and so attention, adds in another order for the rows beyond a multiple of this: a post would get
#: another last bit alone than in a batch. What is not trained on is filled up to it.
_ROWS = 16


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

    def __init__(self, backbone: PreTrainedModel, task: Task, sequence: SequenceSettings, train: TrainSettings) -> None:
        super().__init__()
        self.family = family_of(backbone.config)
        self._poolings = poolings(sequence)
        self._side, self._frame_length = self.family.grid(sequence), self.family.frame_length(sequence)
        self.backbone: PreTrainedModel | PeftModel = backbone
        self.config: PreTrainedConfig = backbone.config
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
            inputs += self.family.tower_width
        self.final_head = _head(inputs, 1, train)

    @property
    def base(self) -> PreTrainedModel:
        """The backbone's own model, inside an adapter or not."""
        base = self.backbone.get_base_model() if isinstance(self.backbone, PeftModel) else self.backbone
        return cast(PreTrainedModel, base)

    @property
    def language_model(self) -> PreTrainedModel:
        return self.family.language_of(self.base)

    @property
    def tower(self) -> PreTrainedModel:
        return self.family.tower_of(self.base)

    def set_trainable(self, lora: LoraSettings | None, ans_token_id: int, *, projector: bool) -> None:
        """Freeze the tower; train the heads, and the language model by LoRA or, without it, in full.

        With LoRA, of the embedding only the row of `<ans>` is trained. `siglip` has no use for a language model:
        of it, only the embedding of the text's tokens is trained, and only where the rest would be, too.
        """
        self.base.requires_grad_(False)
        newline_D = self.family.newline_of(self.base)
        if self.variant == "siglip":
            self.base.get_input_embeddings().requires_grad_(lora is None)
            projector = False
        elif lora is None:
            self.language_model.requires_grad_(True)
            if newline_D is not None:
                newline_D.requires_grad_(True)
        else:
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=self.family.lora_targets,
                trainable_token_indices={"embed_tokens": [ans_token_id]},
            )
            self.backbone = get_peft_model(self.base, config)
            for module in self.backbone.modules():
                # PEFT casts each bfloat16 input to the adapter's float32, and autocast casts it back: the same numbers
                if isinstance(module, LoraLayer):
                    module.cast_input_dtype_enabled = False
        if projector:
            for module in self.family.projectors_of(self.base):
                module.requires_grad_(True)
        for parameter in self.parameters():
            if parameter.requires_grad:  # AdamW's small steps would be lost in the 8 bits of a bfloat16
                parameter.data = parameter.data.float()

    def _autocast(self, device: torch.device) -> torch.autocast:
        """A backbone in bfloat16 meets trained weights in float32; the heads compute in float32 always."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.tower.dtype == torch.bfloat16)

    @torch.no_grad()
    def tower_states(self, images_UHWC: Tensor) -> Tensor:
        """(U, P, W): what the tower, which is frozen, says of each distinct image (uint8), in the tower's dtype."""
        with self._autocast(images_UHWC.device):
            return self.family.tower_states(self.base, self.family.normalize(images_UHWC))

    def frame_tokens(self, tower_states_UPW: Tensor) -> list[Tensor]:
        """(U, K, D) each: see `Family.frame_tokens`; pooled."""
        found = self.family.frame_tokens(self.base, tower_states_UPW)
        for _ in range(self._poolings):
            found = [pooled_once_more(tokens_UKD) for tokens_UKD in found]
        return found

    def _pooled(
        self, tower_states_UPW: Tensor, frame_index_BF: Tensor, input_ids_BT: Tensor, last_positions_B: Tensor
    ) -> Tensor:
        """(B, W + D): the mean of the album's image embeddings, and of the text's token embeddings.

        Both are means because a backbone has a tower, but neither the attention pool that SigLIP was trained with nor
        its text tower.
        """
        images_BFW = tower_states_UPW.mean(1)[frame_index_BF]
        shown_BF = frame_index_BF != NO_FRAME
        if shown_BF.all():
            images_BW = images_BFW.mean(1)
        else:
            images_BW = (images_BFW * shown_BF.unsqueeze(-1)).sum(1) / shown_BF.sum(1, keepdim=True)
        at_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        visual_B = shown_BF.sum(1) * self._frame_length + bool(self.family.newline)
        is_text_BT1 = ((at_T >= visual_B.unsqueeze(1)) & (at_T <= last_positions_B.unsqueeze(1))).unsqueeze(-1)
        tokens_BTD = self.base.get_input_embeddings()(input_ids_BT) * is_text_BT1
        return torch.cat((images_BW, tokens_BTD.sum(1) / is_text_BT1.sum(1)), dim=1)

    def answer_states(
        self, tower_states_UPW: Tensor, frame_index_BF: Tensor, input_ids_BT: Tensor, answer_positions_BA: Tensor
    ) -> Tensor:
        """(B, A, D): the language model's last hidden states where the answers are read."""
        tokens_UKD, *deep = self.frame_tokens(tower_states_UPW)
        shown_BF = frame_index_BF != NO_FRAME
        positions = self.family.position_ids(self._side, shown_BF.sum(1), input_ids_BT.shape[1])
        if self.family.before or self.family.after or deep or not shown_BF.all():
            is_visual_BT = input_ids_BT == self.family.token_id
            text_D = self.base.get_input_embeddings()(input_ids_BT[~is_visual_BT])
            embeds_BTD = text_D.new_empty(*input_ids_BT.shape, text_D.shape[-1])
            embeds_BTD[~is_visual_BT] = text_D
            embeds_BTD[is_visual_BT] = self._in_order(tokens_UKD, frame_index_BF).to(text_D.dtype)
            added = []
            for more_UKD in deep:
                added_BTD = torch.zeros_like(embeds_BTD)
                added_BTD[is_visual_BT] = self._in_order(more_UKD, frame_index_BF).to(text_D.dtype)
                added.append(added_BTD)
            return hidden_states_at(self.language_model, embeds_BTD, answer_positions_BA, positions, added)
        # All posts have as many frames, and their placeholders come first in every sequence: nothing is looked for.
        visual_BVD = tokens_UKD[frame_index_BF].flatten(1, 2)
        newline_D = self.family.newline_of(self.base)
        if newline_D is not None:
            newline_BVD = newline_D.to(visual_BVD.dtype).expand(len(visual_BVD), 1, -1)
            visual_BVD = torch.cat((visual_BVD, newline_BVD), dim=1)
        text_BTD = self.base.get_input_embeddings()(input_ids_BT[:, visual_BVD.shape[1] :])
        embeds_BTD = torch.cat((visual_BVD.to(text_BTD.dtype), text_BTD), dim=1)
        return hidden_states_at(self.language_model, embeds_BTD, answer_positions_BA, positions)

    def _in_order(self, tokens_UKD: Tensor, frame_index_BF: Tensor) -> Tensor:
        """(visual tokens of the batch, D): of albums that may differ in their number of frames, post by post."""
        newline_D = self.family.newline_of(self.base)
        rows = [tokens_UKD.flatten(0, 1)]  # image by image, the newline last
        if newline_D is not None:
            rows.append(newline_D.to(tokens_UKD.dtype).unsqueeze(0))
        table_D = torch.cat(rows)
        per_frame, newlines = tokens_UKD.shape[1], len(rows) - 1
        place_BFK = frame_index_BF.unsqueeze(-1) * per_frame + torch.arange(per_frame, device=frame_index_BF.device)
        place_BV = F.pad(place_BFK.flatten(1), (0, newlines), value=len(table_D) - 1)
        shown_BF = frame_index_BF != NO_FRAME
        shown_BV = F.pad(shown_BF.repeat_interleave(per_frame, dim=1), (0, newlines), value=True)
        return table_D[place_BV[shown_BV]]

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
        images_UHWC: Tensor | None = None,
        tower_states_UPW: Tensor | None = None,
        question_labels_BQ: Tensor | None = None,
        final_labels_B: Tensor | None = None,
    ) -> Answers:
        """
        Args:
            frame_index_BF: for each post its frames, as indices into U; NO_FRAME behind those of a shorter album.
            input_ids_BT, answer_positions_BA: see `model.prompt.PromptBatch`.
            images_UHWC: uint8, each distinct image of the batch once; or
            tower_states_UPW: what `tower_states` says of them.
            question_labels_BQ, final_labels_B: int64, NO_LABEL where there is none; both or neither.
        """
        if tower_states_UPW is None:
            if images_UHWC is None:
                raise ValueError("a batch without images: give images_UHWC or tower_states_UPW")
            tower_states_UPW = self.tower_states(images_UHWC)
        n, answers = answer_positions_BA.shape
        if not self.training:
            input_ids_BT = _repeat_last(input_ids_BT, -input_ids_BT.shape[1] % _ROWS)
            answer_positions_BA = _repeat_last(answer_positions_BA, max(0, -(-_ROWS // n) - answers))
        with self._autocast(input_ids_BT.device):
            if self.variant == "siglip":
                last_B = answer_positions_BA[:, -1]
                states = self._pooled(tower_states_UPW, frame_index_BF, input_ids_BT, last_B)
            else:
                states = self.answer_states(tower_states_UPW, frame_index_BF, input_ids_BT, answer_positions_BA)
                states = states[:, :answers]
        states = states.float()
        if not self.training:
            states = F.pad(states, (0, 0) * (states.dim() - 1) + (0, -n % _ROWS))
        questions, final_in = ([], states) if self.variant == "siglip" else self._read(states)
        said = Answers([logits[:n] for logits in questions], self.final_head(final_in).squeeze(-1)[:n])
        if question_labels_BQ is not None and final_labels_B is not None:
            said.loss_sum, said.weight_sum = task_loss(
                said.questions, question_labels_BQ, self.question_weights, said.final_B, final_labels_B,
                self.final_weight,
            )  # fmt: skip
        return said


def _repeat_last(ids_BX: Tensor, n: int) -> Tensor:
    """With the last column `n` times more."""
    return torch.cat((ids_BX, ids_BX[:, -1:].expand(-1, n)), dim=1)

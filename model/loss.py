"""The task loss: cross-entropy over the labelled cells of a batch.

Dimensions: B posts · Q intermediate questions · C classes of one question
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .schema import NO_LABEL


def task_loss(
    question_logits: Sequence[Tensor],
    question_labels_BQ: Tensor,
    question_weights: Sequence[float],
    final_logits_B: Tensor,
    final_labels_B: Tensor,
    final_weight: float,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy, summed over the labelled cells.

    Args:
        question_logits: one (B, C) tensor per question; empty for a variant without question heads.
        question_labels_BQ: class indices, NO_LABEL where the annotator gave none.
        final_logits_B: before the sigmoid.
        final_labels_B: 1, 0 or NO_LABEL.

    Returns:
        (loss_sum, weight_sum). Divide once an optimizer step, after accumulation: a mean per
        micro-batch would overweight the micro-batches that have few labels.
    """
    labelled_B = final_labels_B != NO_LABEL
    targets_B = final_labels_B.where(labelled_B, 0).to(final_logits_B.dtype)  # any valid value: these weigh nothing
    loss_B = F.binary_cross_entropy_with_logits(final_logits_B, targets_B, reduction="none")
    loss = final_weight * (loss_B * labelled_B).sum()
    for index, logits_BC in enumerate(question_logits):
        cells = F.cross_entropy(logits_BC, question_labels_BQ[:, index], ignore_index=NO_LABEL, reduction="sum")
        loss = loss + question_weights[index] * cells
    return loss, label_weight(
        question_labels_BQ if question_logits else None, question_weights, final_labels_B, final_weight
    )


def label_weight(
    question_labels_BQ: Tensor | None, question_weights: Sequence[float], final_labels_B: Tensor, final_weight: float
) -> Tensor:
    """The weight of all labelled cells: what `task_loss`'s sum is divided by. Without question heads: None."""
    total = final_weight * (final_labels_B != NO_LABEL).sum()
    if question_labels_BQ is not None:
        weights_Q = torch.tensor(question_weights, dtype=torch.float32, device=question_labels_BQ.device)
        total = total + ((question_labels_BQ != NO_LABEL) * weights_Q).sum()
    return total

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from model.loss import label_weight, task_loss
from model.schema import NO_LABEL

WEIGHTS, FINAL_WEIGHT = [1.0, 0.5], 3.0


def posts(n: int = 12) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a two-class and a three-class question, their labels, final logits and labels; some missing."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, classes, generator=generator, dtype=torch.float64) for classes in (2, 3)]
    labels = torch.stack([torch.randint(0, classes, (n,), generator=generator) for classes in (2, 3)], dim=1)
    labels[torch.rand(n, 2, generator=generator) < 0.3] = NO_LABEL
    final = torch.randn(n, generator=generator, dtype=torch.float64)
    final_labels = torch.randint(0, 2, (n,), generator=generator)
    final_labels[::5] = NO_LABEL
    return logits, labels, final, final_labels


def test_the_loss_by_hand() -> None:
    """One post, logits of 0: each answer costs ln(classes), each times its weight."""
    logits = [torch.zeros(1, 2), torch.zeros(1, 3)]
    loss, weight = task_loss(
        logits, torch.tensor([[1, 2]]), WEIGHTS, torch.zeros(1), torch.tensor([1]), final_weight=FINAL_WEIGHT
    )
    assert loss.item() == pytest.approx(1.0 * math.log(2) + 0.5 * math.log(3) + 3.0 * math.log(2), rel=1e-6)
    assert weight.item() == pytest.approx(1.0 + 0.5 + 3.0)


def test_the_loss_is_torchs_cross_entropy_over_the_labelled_cells() -> None:
    logits, labels, final, final_labels = posts()
    loss, weight = task_loss(logits, labels, WEIGHTS, final, final_labels, FINAL_WEIGHT)
    known = final_labels != NO_LABEL
    expected = (
        FINAL_WEIGHT * F.binary_cross_entropy_with_logits(final[known], final_labels[known].double()) * known.sum()
    )
    for index, question in enumerate(logits):
        cells = labels[:, index] != NO_LABEL
        expected = expected + WEIGHTS[index] * F.cross_entropy(question[cells], labels[cells, index]) * cells.sum()
    torch.testing.assert_close(loss, expected)
    by_hand = sum(w * (labels[:, k] != NO_LABEL).sum() for k, w in enumerate(WEIGHTS)) + FINAL_WEIGHT * known.sum()
    assert weight.item() == pytest.approx(float(by_hand))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_loss_is_the_same_for_any_micro_batch_split(size: int) -> None:
    logits, labels, final, final_labels = posts()
    whole = task_loss(logits, labels, WEIGHTS, final, final_labels, FINAL_WEIGHT)
    parts = [
        task_loss(
            [question[k : k + size] for question in logits],
            labels[k : k + size],
            WEIGHTS,
            final[k : k + size],
            final_labels[k : k + size],
            FINAL_WEIGHT,
        )
        for k in range(0, 12, size)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole[0])
    torch.testing.assert_close(sum(weight for _, weight in parts), whole[1])


def test_a_question_that_nobody_answered_weighs_nothing_and_gets_no_gradient() -> None:
    logits, labels, final, final_labels = posts()
    labels[:, 1] = NO_LABEL
    asked = [question.requires_grad_() for question in logits]
    loss, weight = task_loss(asked, labels, WEIGHTS, final, final_labels, FINAL_WEIGHT)
    without, weight_without = task_loss(asked[:1], labels[:, :1], WEIGHTS[:1], final, final_labels, FINAL_WEIGHT)
    torch.testing.assert_close(loss, without)
    torch.testing.assert_close(weight, weight_without)
    loss.backward()
    assert not asked[1].grad.any()


def test_without_any_label_the_loss_is_zero_with_a_zero_gradient() -> None:
    logits, labels, final, final_labels = posts()
    final.requires_grad_()
    nothing, none = torch.full_like(labels, NO_LABEL), torch.full_like(final_labels, NO_LABEL)
    loss, weight = task_loss(logits, nothing, WEIGHTS, final, none, FINAL_WEIGHT)
    assert (loss.item(), weight.item()) == (0, 0)
    loss.backward()
    assert not final.grad.any()


def test_without_question_heads_only_the_final_answer_counts() -> None:
    _, labels, final, final_labels = posts()
    loss, weight = task_loss([], labels, WEIGHTS, final, final_labels, FINAL_WEIGHT)
    known = final_labels != NO_LABEL
    assert weight.item() == FINAL_WEIGHT * known.sum()
    assert label_weight(None, WEIGHTS, final_labels, FINAL_WEIGHT).item() == weight.item()
    mean = F.binary_cross_entropy_with_logits(final[known], final_labels[known].double())
    torch.testing.assert_close(loss / weight, mean)

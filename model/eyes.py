"""The convolutions that see the pictures in `backbones.agentps_own`, and what they are taught before the training.

Dimensions: B posts · U distinct images of the batch · F frames · C channels · S side of a frame, in pixels
            · K tokens of a frame, here 1 · D hidden size · V tokens of the vocabulary · X twice D
"""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loss import task_loss
from .schema import NO_FRAME, TRAIN

if TYPE_CHECKING:
    from .agentps import AgentPS
    from .data import Batches
    from .settings import TrainSettings

logger = logging.getLogger(__name__)

#: Pictures that pass the convolutions together where nothing is trained.
_AT_ONCE = 16
#: Size of a visual token's numbers: that of the word embeddings at the start.
_SCALE = 0.1
_LEARNING_RATE = 4e-3
#: Of a post's text, that the pictures are to foretell: its title, in most cases.
_FIRST_TOKENS = 12


class _Block(nn.Module):
    """Half the side, then once more at that size beside what came in."""

    def __init__(self, before: int, after: int, *, deep: bool) -> None:
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after)
        self.same = nn.Conv2d(after, after, 3, 1, 1) if deep else None
        self.same_norm = nn.GroupNorm(4, after) if deep else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        if self.same is not None and self.same_norm is not None:
            x = F.relu(x + self.same_norm(self.same(x)))
        return x


class Eyes(nn.Module):
    """Pixels (U, 3, S, S) to (U, 1, D): a picture is one token.

    It holds the means and the maxima of every block: colours are seen by the first blocks, things by the last, and what
    is a few pixels wide is lost in a mean.

    Args:
        all_maxima: False: of the last block alone.
    """

    def __init__(self, channels: tuple[int, ...] | list[int], width: int, *, all_maxima: bool) -> None:
        super().__init__()
        self.all_maxima = all_maxima
        widths = [3, *channels]
        self.blocks = nn.ModuleList(_Block(a, b, deep=k > 0) for k, (a, b) in enumerate(pairwise(widths)))
        self.out = nn.Linear(sum(channels) + (sum(channels) if all_maxima else channels[-1]), width)

    def forward(self, pixels_UCSS: Tensor) -> Tensor:
        if self.training:
            return self._seen(shifted(pixels_UCSS))
        # A convolution of fewer pictures may add in another order: all are seen by so many, the last filled up.
        count = len(pixels_UCSS)
        filled_UCSS = F.pad(pixels_UCSS, (0, 0) * 3 + (0, -count % _AT_ONCE))
        return torch.cat([self._seen(part) for part in filled_UCSS.split(_AT_ONCE)])[:count]

    def _seen(self, x: Tensor) -> Tensor:
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x.mean((2, 3)))
            if self.all_maxima or block is self.blocks[-1]:
                found.append(x.amax((2, 3)))
        token_UD = self.out(torch.cat(found, dim=1))
        return _SCALE * F.layer_norm(token_UD, token_UD.shape[-1:]).unsqueeze(1)


def shifted(pixels_UCSS: Tensor) -> Tensor:
    """Each picture mirrored or not, and moved by up to a sixteenth of its side; the edge is repeated."""
    most = max(1, pixels_UCSS.shape[-1] // 16)
    count, _, side, _ = pixels_UCSS.shape
    flip_U = torch.rand(count, device=pixels_UCSS.device) < 0.5
    dy_U, dx_U = torch.randint(-most, most + 1, (2, count), device=pixels_UCSS.device)
    at_S = torch.arange(side, device=pixels_UCSS.device)
    x_US = torch.where(flip_U[:, None], side - 1 - at_S, at_S).add(dx_U[:, None]).clamp(0, side - 1)
    y_US = at_S.add(dy_U[:, None]).clamp(0, side - 1)
    rows_UCSS = pixels_UCSS.gather(2, y_US[:, None, :, None].expand_as(pixels_UCSS))
    return rows_UCSS.gather(3, x_US[:, None, None, :].expand_as(pixels_UCSS))


class _ReadOut(nn.Module):
    """What an album's pictures say without the language model: the answers, and the first words of its text.

    The answers are linear in the mean and the maximum of its pictures. The words are foretold by the language model's
    own embedding, so that a picture gets a place among the words that stand beside such pictures.
    """

    def __init__(self, model: AgentPS) -> None:
        super().__init__()
        embedding = cast(nn.Embedding, model.base.get_input_embeddings())
        width, self._embedding = embedding.embedding_dim, [embedding]  # a list: they are no parts of this module
        self._model = [model]
        self.questions = nn.ModuleList(nn.Linear(2 * width, classes) for classes in model.n_classes.values())
        self.final = nn.Linear(2 * width, 1)

    def forward(self, batch: dict[str, Tensor], words: list[list[int]]) -> Tensor:
        """The loss of one batch."""
        model, index_BF = self._model[0], batch["frame_index_BF"]
        states = batch.get("tower_states_UPW")
        tokens_UKD = model.frame_tokens(model.tower_states(batch["images_UHWC"]) if states is None else states)[0]
        frames_BFD = (tokens_UKD.mean(1) / _SCALE)[index_BF.clamp(min=0)]
        shown_BF1 = (index_BF != NO_FRAME).unsqueeze(-1)
        mean_BD = (frames_BFD * shown_BF1).sum(1) / shown_BF1.sum(1)
        most_BD = frames_BFD.masked_fill(~shown_BF1, -torch.inf).amax(1)
        album_BX = torch.cat((mean_BD, most_BD), dim=1)
        loss, weight = task_loss(
            [readout(album_BX) for readout in self.questions], batch["question_labels_BQ"], model.question_weights,
            self.final(album_BX).squeeze(-1), batch["final_labels_B"], model.final_weight,
        )  # fmt: skip
        said_of = [(row, token) for row, post in enumerate(words) for token in post]
        posts, ids = torch.tensor(said_of, dtype=torch.long, device=mean_BD.device).view(-1, 2).unbind(1)
        logged_BV = F.log_softmax(mean_BD @ self._embedding[0].weight.T, dim=1)
        per_post_B = torch.bincount(posts, minlength=len(mean_BD)).clamp(min=1)
        said = -(logged_BV[posts, ids] / per_post_B[posts]).sum() / len(mean_BD)
        return loss / weight.clamp(min=1) * (1 + len(self.questions)) + said  # as much for each question as for words


def teach(model: AgentPS, batches: Batches, settings: TrainSettings) -> None:
    """Teach what sees the pictures by what can be read from them directly; the read-outs are thrown away.

    It takes `model.family.lessons` epochs per epoch of the training.

    At the start a picture is a few tokens that say nothing, among a hundred of text that soon say much. So the language
    model learns to pass over the pictures, and what sees them gets no gradient: on albums of photo-like pictures it
    had learnt nothing after six epochs (docs/own-posts.md). Foretelling the words beside a picture is how pictures are
    learnt without labels (Joulin et al. 2016, Learning Visual Features from Large Weakly Supervised Data).
    """
    eyes = [p for module in model.family.projectors_of(model.base) for p in module.parameters()]
    if not all(p.requires_grad for p in eyes):
        return
    rows = batches.rows(TRAIN, labelled=False)
    epochs = math.ceil(model.family.lessons * settings.epochs)
    logger.info("%d epochs for what sees the pictures alone, then %d for all", epochs, settings.epochs)
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        read_out = _ReadOut(model).to(device)
        trained = [*eyes, *model.base.get_input_embeddings().parameters(), *read_out.parameters()]
        optimizer = torch.optim.AdamW(trained, _LEARNING_RATE, weight_decay=settings.weight_decay)
        order = [part for _ in range(epochs) for part in torch.randperm(len(rows)).split(settings.batch)]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=len(order), pct_start=0.1)
        model.train()
        for part in order:
            chosen = rows[part.numpy()]
            batch = {name: tensor.to(device) for name, tensor in batches(chosen).items()}
            loss = read_out(batch, [sorted(set(ids[:_FIRST_TOKENS])) for ids in batches.text_ids(chosen)])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()

"""The language model's forward, no further than the answers need it.

A plain forward of `transformers` computes the last layer for every token. Only the states at the answers are read, so
there the last layer needs keys and values of all tokens, but queries and the MLP of the answers alone.

Of Qwen2 and of what was built after it: Llama, Qwen3 (whose queries and keys are normed), and those with positions over
several axes.

Dimensions: B posts · T tokens · D hidden size · A answers · H attention heads · E size of a head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2.modeling_qwen2 import rotate_half


def hidden_states_at(
    model: Any,
    embeds_BTD: Tensor,
    positions_BA: Tensor,
    position_ids: Tensor | None = None,
    added: Sequence[Tensor] = (),
) -> Tensor:
    """(B, A, D): `model(inputs_embeds=embeds_BTD).last_hidden_state` at `positions_BA`, int64 indices into T.

    The attention is causal over the whole row: sequences are padded on the right.

    Args:
        model: the language model of a backbone.
        position_ids: for `rotary_emb`; None: 0 to T - 1.
        added: (B, T, D) each, added behind the first layer, the second, and so on.
    """
    row_1T = torch.arange(embeds_BTD.shape[1], device=embeds_BTD.device).unsqueeze(0)
    cos_sin = model.rotary_emb(embeds_BTD, row_1T if position_ids is None else position_ids)
    mask = create_causal_mask(  # None where the attention's own causal kernel needs none
        config=model.config,
        inputs_embeds=embeds_BTD,
        attention_mask=None,
        past_key_values=None,
        position_ids=row_1T,
    )
    hidden_BTD = embeds_BTD
    for number, layer in enumerate(model.layers[:-1]):
        hidden_BTD = layer(
            hidden_BTD,
            attention_mask=mask,
            position_ids=row_1T,
            position_embeddings=cos_sin,
            use_cache=False,
        )
        if number < len(added):
            hidden_BTD = hidden_BTD + added[number]
    states_BAD: Tensor = model.norm(_layer_at(model.layers[-1], hidden_BTD, cos_sin, positions_BA))
    return states_BAD


def _layer_at(layer: Any, hidden_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], positions_BA: Tensor) -> Tensor:
    """(B, A, D): the layer's output at `positions_BA`."""
    attention = layer.self_attn
    cos_BTE, sin_BTE = (part.expand(len(hidden_BTD), -1, -1) for part in cos_sin)
    posts_B1 = torch.arange(len(hidden_BTD), device=hidden_BTD.device).unsqueeze(1)
    normed_BTD = layer.input_layernorm(hidden_BTD)

    def heads(states: Tensor, norm: nn.Module | None = None) -> Tensor:
        by_head = states.unflatten(-1, (-1, attention.head_dim))
        return (by_head if norm is None else norm(by_head)).transpose(1, 2)

    def rotated(states_BHNE: Tensor, cos_BNE: Tensor, sin_BNE: Tensor) -> Tensor:
        return states_BHNE * cos_BNE.unsqueeze(1) + rotate_half(states_BHNE) * sin_BNE.unsqueeze(1)

    query_BHAE = heads(attention.q_proj(normed_BTD[posts_B1, positions_BA]), getattr(attention, "q_norm", None))
    key_BHTE = heads(attention.k_proj(normed_BTD), getattr(attention, "k_norm", None))
    seen_BAT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) <= positions_BA.unsqueeze(-1)
    attended_BHAE = F.scaled_dot_product_attention(
        rotated(query_BHAE, cos_BTE[posts_B1, positions_BA], sin_BTE[posts_B1, positions_BA]),
        rotated(key_BHTE, cos_BTE, sin_BTE),
        heads(attention.v_proj(normed_BTD)),
        attn_mask=seen_BAT.unsqueeze(1),
        dropout_p=attention.attention_dropout if layer.training else 0.0,
        scale=attention.scaling,
        enable_gqa=True,
    )
    hidden_BAD = hidden_BTD[posts_B1, positions_BA] + attention.o_proj(attended_BHAE.transpose(1, 2).flatten(2))
    states_BAD: Tensor = hidden_BAD + layer.mlp(layer.post_attention_layernorm(hidden_BAD))
    return states_BAD

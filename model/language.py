"""The language model's forward, no further than the answers need it.

A plain forward of `transformers` computes the last layer for every token. Only the states at the answers are read, so
there the last layer needs keys and values of all tokens, but queries and the MLP of the answers alone.

Dimensions: B posts · T tokens · D hidden size · A answers · H attention heads · E size of a head
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2Model, rotate_half


def hidden_states_at(model: Qwen2Model, embeds_BTD: Tensor, positions_BA: Tensor) -> Tensor:
    """(B, A, D): `model(inputs_embeds=embeds_BTD).last_hidden_state` at `positions_BA`, int64 indices into T.

    The attention is causal over the whole row: sequences are padded on the right.
    """
    position_ids_1T = torch.arange(embeds_BTD.shape[1], device=embeds_BTD.device).unsqueeze(0)
    cos_sin = model.rotary_emb(embeds_BTD, position_ids_1T)
    mask = create_causal_mask(  # None where the attention's own causal kernel needs none
        config=model.config,
        inputs_embeds=embeds_BTD,
        attention_mask=None,
        past_key_values=None,
        position_ids=position_ids_1T,
    )
    hidden_BTD = embeds_BTD
    for layer in model.layers[:-1]:
        hidden_BTD = layer(
            hidden_BTD,
            attention_mask=mask,
            position_ids=position_ids_1T,
            position_embeddings=cos_sin,
            use_cache=False,
        )
    last = cast(Qwen2DecoderLayer, model.layers[-1])
    return model.norm(_layer_at(last, hidden_BTD, cos_sin, positions_BA))


def _layer_at(
    layer: Qwen2DecoderLayer, hidden_BTD: Tensor, cos_sin: tuple[Tensor, Tensor], positions_BA: Tensor
) -> Tensor:
    """(B, A, D): the layer's output at `positions_BA`."""
    attention = layer.self_attn
    cos_TE, sin_TE = (part[0] for part in cos_sin)
    posts_B1 = torch.arange(len(hidden_BTD), device=hidden_BTD.device).unsqueeze(1)
    normed_BTD = layer.input_layernorm(hidden_BTD)

    def heads(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    query_BHAE = heads(attention.q_proj(normed_BTD[posts_B1, positions_BA]))
    key_BHTE = heads(attention.k_proj(normed_BTD))
    cos_B1AE, sin_B1AE = cos_TE[positions_BA].unsqueeze(1), sin_TE[positions_BA].unsqueeze(1)
    seen_BAT = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device) <= positions_BA.unsqueeze(-1)
    attended_BHAE = F.scaled_dot_product_attention(
        query_BHAE * cos_B1AE + rotate_half(query_BHAE) * sin_B1AE,
        key_BHTE * cos_TE + rotate_half(key_BHTE) * sin_TE,
        heads(attention.v_proj(normed_BTD)),
        attn_mask=seen_BAT.unsqueeze(1),
        dropout_p=attention.attention_dropout if layer.training else 0.0,
        scale=attention.scaling,
        enable_gqa=True,
    )
    hidden_BAD = hidden_BTD[posts_B1, positions_BA] + attention.o_proj(attended_BHAE.transpose(1, 2).flatten(2))
    return hidden_BAD + layer.mlp(layer.post_attention_layernorm(hidden_BAD))

"""The network: transformers' own Llama 4 classes, how they are started, and a faster forward pass over their weights.

The forward pass computes what the classes compute (`check` compares them), but computes the instruction once for a
batch, runs only the chosen expert, and ends with the positions of answers.
"""

import math

import torch
import torch.nn.functional as F
from transformers import Llama4Config, Llama4ForConditionalGeneration

WIDTH, LAYERS, HEADS, KV_HEADS, HEAD = 192, 4, 6, 2, 32
EXPERTS, EXPERT_WIDTH = 4, 384
SIGHT, SIGHT_LAYERS, SIGHT_HEADS, PATCH, TILE = 128, 4, 4, 12, 96
PATCH_TOKENS = (TILE // PATCH // 2) ** 2
# The residual stream: one component that is the same for every token, what the network computes, and two runs of
# components for copying: a code of the token itself and one of the token before.
CONSTANT = 0.4
CODE = 32
CONTENT, OWN, BEFORE = slice(1, WIDTH - 2 * CODE), slice(WIDTH - 2 * CODE, WIDTH - CODE), slice(WIDTH - CODE, WIDTH)


def build(vocabulary, seed):
    """A new network for a vocabulary (token to id)."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": WIDTH,
        "intermediate_size": EXPERT_WIDTH,
        "intermediate_size_mlp": EXPERT_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": False,
        "no_rope_layers": [1, 1, 1, 0],
        "attention_chunk_size": 4096,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": vocabulary["<|begin_of_text|>"],
        "eos_token_id": vocabulary["<|eot|>"],
        "pad_token_id": vocabulary["<|finetune_right_pad|>"],
    }
    vision = {
        "hidden_size": SIGHT,
        "num_hidden_layers": SIGHT_LAYERS,
        "num_attention_heads": SIGHT_HEADS,
        "intermediate_size": SIGHT * 4,
        "image_size": TILE,
        "patch_size": PATCH,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": WIDTH,
        "projector_output_dim": WIDTH,
        "vision_output_dim": WIDTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    }
    config = Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=vocabulary["<|image_start|>"],
        eoi_token_index=vocabulary["<|image_end|>"],
        image_token_index=vocabulary["<|patch|>"],
        tie_word_embeddings=False,
    )
    model = Llama4ForConditionalGeneration(config).float()
    with torch.no_grad():
        _initialise(model)
        _start_copying(model)
    return model


def _initialise(model):
    """Fan-in scales; what is added to the residual stream of the decoder starts at a tenth of the usual size."""
    decoder = model.language_model
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or "norm" in name or "positional" in name:
            continue
        scale = 1 / math.sqrt(weight.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
            scale *= 0.1 / math.sqrt(2 * LAYERS) if "language_model" in name else 1 / math.sqrt(2 * SIGHT_LAYERS)
        if name.endswith("mlp.fc2.weight") and "model.layers" in name:
            scale /= math.sqrt(2 * SIGHT_LAYERS)
        if "router" in name:
            scale = 0.02
        torch.nn.init.normal_(weight, 0, scale)
    embedding = decoder.model.embed_tokens.weight
    torch.nn.init.normal_(embedding, 0, 0.08)
    embedding[:, 0] = CONSTANT
    embedding[:, BEFORE] = 0


def _start_copying(model):
    """Lets one head of the first layer look at the token before, and one of the last find where the current token stood.

    Together they offer the token that followed then: copying, which a network this small hardly finds by itself. Training
    moves all of it; but before the last layer nothing else writes to the codes (`protect`), or it is gone after a minute.
    """
    decoder = model.language_model
    first, last = decoder.model.layers[0].self_attn, decoder.model.layers[LAYERS - 1].self_attn
    for attention in (first, last):
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[:HEAD] = 0
        attention.o_proj.weight[:, :HEAD] = 0
        attention.v_proj.weight[:HEAD, OWN] = torch.eye(CODE)
    for pair in range(4):
        turn = 10000.0 ** (-2 * pair / HEAD)
        first.k_proj.weight[2 * pair, 0] = 1.5
        first.q_proj.weight[2 * pair, 0] = 1.5 * math.cos(turn)
        first.q_proj.weight[2 * pair + 1, 0] = -1.5 * math.sin(turn)
    last.k_proj.weight[:HEAD, BEFORE] = 1.7 * torch.eye(CODE)
    last.q_proj.weight[:HEAD, OWN] = 1.7 * torch.eye(CODE)
    for layer in decoder.model.layers[:-1]:
        for weight in (layer.self_attn.o_proj.weight, layer.feed_forward.shared_expert.down_proj.weight):
            weight[OWN], weight[BEFORE] = 0, 0
        layer.feed_forward.experts.down_proj[..., OWN] = 0
        layer.feed_forward.experts.down_proj[..., BEFORE] = 0
    first.o_proj.weight[BEFORE, :HEAD] = 0.1 * torch.eye(CODE)
    last.o_proj.weight[BEFORE, :HEAD] = 0.5 * torch.eye(CODE)
    own = decoder.model.embed_tokens.weight[:, OWN]
    decoder.lm_head.weight[:, BEFORE] = 0.15 * own / own.std()


def protect(model):
    """Keeps all but the copying heads from writing to the codes before the last layer."""
    decoder = model.language_model.model

    def keep_out(weight, places):
        open_ = torch.ones_like(weight)
        for place in places:
            open_[place] = 0
        weight.register_hook(lambda gradient: gradient * open_)

    keep_out(decoder.embed_tokens.weight, [(slice(None), 0), (slice(None), BEFORE)])
    for index, layer in enumerate(decoder.layers[:-1]):
        others = slice(HEAD, None) if index == 0 else slice(None)
        keep_out(layer.self_attn.o_proj.weight, [(OWN,), (BEFORE, others)])
        keep_out(layer.feed_forward.shared_expert.down_proj.weight, [(OWN,), (BEFORE,)])
        keep_out(layer.feed_forward.experts.down_proj, [(..., OWN), (..., BEFORE)])


def codebook(leaves, colours, patterns, seed=5):
    """Orthonormal directions [leaves + colours + patterns, WIDTH] that stand for what a picture shows."""
    generator = torch.Generator().manual_seed(seed)
    wide = CONTENT.stop - CONTENT.start
    directions, _ = torch.linalg.qr(torch.randn(wide, leaves + colours + patterns, generator=generator))
    book = torch.zeros(leaves + colours + patterns, WIDTH)
    book[:, CONTENT] = directions.T
    return book


def see(model, pictures):
    """Features [items, 16, WIDTH] of bytes [items, 3, 96, 96], and the hidden state of the first layers' patches."""
    values = pictures.float() / 127.5 - 1
    seen = model.vision_model(values, output_hidden_states=True)
    return model.multi_modal_projector(seen.last_hidden_state).float(), seen.hidden_states[2][:, :-1].float()


def covering_loss(cells, states, masks):
    """How badly `cells`, applied to the patches' states [items, patches, width], tells which of its cells the thing covers.

    Masks are [items, 32, 32]: 4 by 4 cells a patch.
    """
    side = TILE // PATCH
    wanted = masks.view(-1, side, 4, side, 4).permute(0, 1, 3, 2, 4).reshape(-1, side * side, 16).float()
    return F.binary_cross_entropy_with_logits(cells(states), wanted)


def _rotate(states, positions, inverse):
    angles = positions[:, None] * inverse
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = states[..., 0::2], states[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def _experts(block, x, balance):
    logits = F.linear(x, block.router.weight)
    best, chosen = logits.max(-1)
    routed = x * best.float().sigmoid()[:, None].to(x.dtype)
    out = block.shared_expert(x)
    shares = torch.stack([(chosen == expert).float().mean() for expert in range(EXPERTS)])
    balance.append(EXPERTS * (shares * logits.float().softmax(-1).mean(0)).sum())
    order = [(chosen == expert).nonzero()[:, 0] for expert in range(EXPERTS)]
    parts = []
    for expert, rows in enumerate(order):
        gate, up = (routed[rows] @ block.experts.gate_up_proj[expert]).chunk(2, -1)
        parts.append((up * F.silu(gate)) @ block.experts.down_proj[expert])
    return out.index_add(0, torch.cat(order), torch.cat(parts).to(out.dtype))


def decode(model, prefix, own, keep):
    """Logits of the positions `keep` (flat, over items times length), and the loss that keeps experts in balance.

    `prefix` [P, WIDTH] are the embeddings of what all items begin with; `own` [B, L, WIDTH] is padded on the right.
    """
    decoder = model.language_model
    (common, _), (items, length, _) = prefix.shape, own.shape
    x = torch.cat((prefix, own.reshape(-1, WIDTH)))
    inverse = 1.0 / (10000.0 ** (torch.arange(0, HEAD, 2) / HEAD))
    positions = torch.cat((torch.arange(common), (common + torch.arange(length)).repeat(items))).float()
    mask = torch.cat((torch.ones(length, common, dtype=torch.bool), torch.ones(length, length).tril().bool()), 1)
    balance = []
    for index, layer in enumerate(decoder.model.layers):
        normed = layer.input_layernorm(x)
        attention = layer.self_attn
        q = attention.q_proj(normed).float().view(-1, HEADS, HEAD)
        k = attention.k_proj(normed).float().view(-1, KV_HEADS, HEAD)
        v = attention.v_proj(normed).float().view(-1, KV_HEADS, HEAD)
        if attention.use_rope:
            q, k = _rotate(q, positions, inverse), _rotate(k, positions, inverse)
        k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
        mixed = _attend(q, k, v, common, items, mask)
        x = x + attention.o_proj(mixed)
        if index + 1 == LAYERS:
            x = x[common + keep]
        x = x + _experts(layer.feed_forward, layer.post_attention_layernorm(x), balance)
    return decoder.lm_head(decoder.model.norm(x)).float(), torch.stack(balance).mean()


def _attend(q, k, v, common, items, mask):
    with torch.autocast("cpu", enabled=False):
        mixed = []
        if common:
            head = [part[:common].transpose(0, 1)[None] for part in (q, k, v)]
            out = F.scaled_dot_product_attention(*head, is_causal=True)
            mixed.append(out[0].transpose(0, 1).flatten(1))
        own = [part[common:].view(items, -1, HEADS, HEAD).transpose(1, 2) for part in (q, k, v)]
        if common:
            shared = [part[:common].transpose(0, 1)[None].expand(items, -1, -1, -1) for part in (k, v)]
            own[1:] = [torch.cat(pair, 2) for pair in zip(shared, own[1:])]
        out = F.scaled_dot_product_attention(*own, attn_mask=mask)
        mixed.append(out.transpose(1, 2).reshape(-1, HEADS * HEAD))
        return torch.cat(mixed)


@torch.no_grad()
def check(model, prefix_ids, own_ids, picture):
    """The largest difference between this forward pass and the class's own, over the logits of one prompt."""
    embed = model.language_model.model.embed_tokens
    ids = torch.tensor([prefix_ids + own_ids])
    own = embed(torch.tensor([own_ids]))
    features, _ = see(model, picture[None])
    places = (torch.tensor(own_ids) == model.config.image_token_index).nonzero()[:, 0]
    own[0, places] = features[0]
    logits, _ = decode(model, embed(torch.tensor(prefix_ids)), own, torch.arange(len(own_ids)))
    values = picture[None].float() / 127.5 - 1
    reference = model(input_ids=ids, pixel_values=values).logits[0, len(prefix_ids) :]
    return (logits - reference).abs().max().item(), reference.abs().max().item()

"""The Llama architecture in PyTorch, small and plain, with rotary pairs interleaved as in GGUF's llama layout."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 2048
    dim: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 512
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head_dim(self):
        return self.dim // self.heads


class RMSNorm(nn.Module):
    def __init__(self, dim, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.epsilon = epsilon

    def forward(self, x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight).to(x.dtype)


def rotations(shape, length):
    angles = torch.outer(torch.arange(length, dtype=torch.float64), shape.rope_base ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim))
    return angles.cos().float(), angles.sin().float()


def rotate(x, cos, sin):
    """x: (batch, heads, length, head_dim); pairs are (2i, 2i + 1)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head_dim
        self.attention_norm = RMSNorm(shape.dim, shape.epsilon)
        self.q = nn.Linear(shape.dim, shape.dim, bias=False)
        self.k = nn.Linear(shape.dim, kv, bias=False)
        self.v = nn.Linear(shape.dim, kv, bias=False)
        self.o = nn.Linear(shape.dim, shape.dim, bias=False)
        self.ffn_norm = RMSNorm(shape.dim, shape.epsilon)
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x, cos, sin, cache=None):
        s, (batch, length, _) = self.shape, x.shape
        h = self.attention_norm(x)
        q = rotate(self.q(h).view(batch, length, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = self.v(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self, k, v)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        x = x + self.o(a.transpose(1, 2).reshape(batch, length, s.dim))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Cache:
    """Keys and values of a batch of sequences of equal length."""

    def __init__(self):
        self.layers = {}
        self.length = 0

    def append(self, block, k, v):
        if block in self.layers:
            old_k, old_v = self.layers[block]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.layers[block] = (k, v)
        return k, v


class Llama(nn.Module):
    def __init__(self, shape=Shape(), seed=0):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, shape.epsilon)
        cos, sin = rotations(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deviation = 0.02 if name == "embedding.weight" else weight.shape[1] ** -0.5 * 0.6
                if name.endswith((".o.weight", ".down.weight")):
                    deviation /= math.sqrt(2 * shape.layers)
                weight.data = torch.randn(weight.shape, generator=generator) * deviation

    def trunk(self, tokens, cache=None):
        start = cache.length if cache else 0
        length = tokens.shape[1]
        cos, sin = self.cos[start:start + length], self.sin[start:start + length]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, cache)
        if cache:
            cache.length += length
        return self.norm(x)

    def forward(self, tokens, cache=None):
        return F.linear(self.trunk(tokens, cache), self.embedding.weight)

    def parameter_count(self):
        return sum(weight.numel() for weight in self.parameters())


def q8_0_parts(weight):
    """int8 numbers and float16 scales of rows cut into blocks of 32, as llama.cpp's reference quantiser has them."""
    blocks = weight.detach().float().reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    scaled = blocks * inverse
    numbers = torch.where(scaled >= 0, torch.floor(scaled + 0.5), torch.ceil(scaled - 0.5))
    return numbers.clamp(-127, 127).to(torch.int8), scale.to(torch.float16)


def q8_0(weight):
    """The weight as a Q8_0 file will give it back."""
    numbers, scale = q8_0_parts(weight)
    return (numbers.float() * scale.float()).view(weight.shape).to(weight.dtype)


def quantised(model):
    """A float32 copy of the model with the weights that its GGUF holds."""
    copy = Llama(model.shape).to(model.embedding.weight.device)
    copy.load_state_dict({name: q8_0(weight) if weight.dim() == 2 else weight for name, weight in model.state_dict().items()})
    return copy.float().eval()


@torch.no_grad()
def would_write(model, prompts, answers, tokens_at_once=60000):
    """Whether greedy decoding of each prompt gives its answer: every token of it is the best one at its place."""
    device = model.embedding.weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    verdict = [False] * len(prompts)
    while order:
        longest = len(prompts[order[-1]]) + len(answers[order[-1]])
        part = order[-max(1, tokens_at_once // longest):]
        order = order[:-len(part)]
        rows = torch.zeros((len(part), longest), dtype=torch.long)
        for row, i in enumerate(part):
            rows[row, :len(prompts[i]) + len(answers[i])] = torch.tensor(prompts[i] + answers[i])
        rows = rows.to(device)
        hidden = model.trunk(rows)
        for row, i in enumerate(part):
            start, end = len(prompts[i]), len(prompts[i]) + len(answers[i])
            best = F.linear(hidden[row, start - 1:end - 1], model.embedding.weight).argmax(-1)
            verdict[i] = bool((best == rows[row, start:end]).all())
    return verdict


@torch.no_grad()
def generate(model, prompts, stop, limit=224):
    """Greedy continuations of lists of ids, each with its margins (best logit minus second best) per step."""
    device = model.embedding.weight.device
    results = [None] * len(prompts)
    by_length = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, members in by_length.items():
        for at in range(0, len(members), 512):
            part = members[at:at + 512]
            cache = Cache()
            tokens = torch.tensor([prompts[i] for i in part], device=device)
            out, margins = [], []
            done = torch.zeros(len(part), dtype=torch.bool, device=device)
            for _ in range(min(limit, model.shape.context - length)):
                hidden = model.trunk(tokens, cache)[:, -1]
                best = F.linear(hidden, model.embedding.weight).topk(2, -1)
                tokens = best.indices[:, :1]
                out.append(best.indices[:, 0])
                margins.append(best.values[:, 0] - best.values[:, 1])
                done |= best.indices[:, 0] == stop
                if bool(done.all()):
                    break
            for row, i in enumerate(part):
                ids = torch.stack(out, 1)[row].tolist()
                end = ids.index(stop) + 1 if stop in ids else len(ids)
                results[i] = (ids[:end], torch.stack(margins, 1)[row].tolist()[:end])
    return results

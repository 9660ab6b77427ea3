"""Writes and reads the model as GGUF version 3 (llama architecture, Q8_0, norms F32), with tokenizer and chat template inside."""

import struct

import numpy as np
import torch

from model import Llama, Shape, q8_0_parts
from tokenization import BOS, CHAT_TEMPLATE, END, PAD, SPECIALS, vocabulary_and_merges

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TYPE_F32, TYPE_Q8_0 = 0, 8
BLOCK_NAMES = {
    "attention_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}


def tensor_names(shape):
    """(name in PyTorch, name in GGUF) of every tensor, in file order."""
    names = [("embedding.weight", "token_embd.weight")]
    for layer in range(shape.layers):
        names += [(f"blocks.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight") for ours, theirs in BLOCK_NAMES.items()]
    return names + [("norm.weight", "output_norm.weight")]


def _string(text):
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(kind, value):
    if kind == STRING:
        return _string(value)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def _pair(key, kind, value, element=None):
    head = _string(key) + struct.pack("<I", kind)
    if kind == ARRAY:
        return head + struct.pack("<IQ", element, len(value)) + b"".join(_value(element, v) for v in value)
    return head + _value(kind, value)


def metadata(shape, description):
    tokens, merges = vocabulary_and_merges()
    return [
        ("general.architecture", STRING, "llama"), ("general.type", STRING, "model"), ("general.name", STRING, "tandem-tiny"),
        ("general.description", STRING, description), ("general.license", STRING, "apache-2.0"), ("general.file_type", U32, 7),
        ("general.quantization_version", U32, 2), ("general.alignment", U32, ALIGNMENT),
        ("llama.context_length", U32, shape.context), ("llama.embedding_length", U32, shape.dim), ("llama.block_count", U32, shape.layers),
        ("llama.feed_forward_length", U32, shape.hidden), ("llama.attention.head_count", U32, shape.heads),
        ("llama.attention.head_count_kv", U32, shape.kv_heads), ("llama.attention.layer_norm_rms_epsilon", F32, shape.epsilon),
        ("llama.rope.dimension_count", U32, shape.head_dim), ("llama.rope.freq_base", F32, shape.rope_base), ("llama.vocab_size", U32, shape.vocabulary),
        ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, "gpt-2"), ("tokenizer.ggml.tokens", ARRAY, tokens, STRING),
        ("tokenizer.ggml.token_type", ARRAY, [3 if token in SPECIALS else 1 for token in tokens], I32), ("tokenizer.ggml.merges", ARRAY, merges, STRING),
        ("tokenizer.ggml.bos_token_id", U32, BOS), ("tokenizer.ggml.eos_token_id", U32, END), ("tokenizer.ggml.eot_token_id", U32, END),
        ("tokenizer.ggml.padding_token_id", U32, PAD), ("tokenizer.ggml.add_bos_token", BOOL, True), ("tokenizer.ggml.add_eos_token", BOOL, False),
        ("tokenizer.ggml.add_space_prefix", BOOL, False), ("tokenizer.chat_template", STRING, CHAT_TEMPLATE),
    ]


def write(path, model, description):
    pairs = metadata(model.shape, description)
    state, infos, payload = model.state_dict(), [], bytearray()
    for ours, theirs in tensor_names(model.shape):
        weight = state[ours].detach().float().cpu()
        if weight.dim() == 2:
            numbers, scale = q8_0_parts(weight)
            block = np.empty(len(numbers), dtype=[("d", "<f2"), ("q", "i1", 32)])
            block["d"], block["q"] = scale[:, 0].numpy(), numbers.numpy()
            kind, data = TYPE_Q8_0, block.tobytes()
        else:
            kind, data = TYPE_F32, weight.numpy().astype("<f4").tobytes()
        infos.append(_string(theirs) + struct.pack("<I", weight.dim()) + struct.pack(f"<{weight.dim()}Q", *reversed(weight.shape)) + struct.pack("<IQ", kind, len(payload)))
        payload += data + b"\0" * (-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(_pair(*pair) for pair in pairs) + b"".join(infos)
    path.write_bytes(head + b"\0" * (-len(head) % ALIGNMENT) + bytes(payload))


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else values

    def string(self):
        length = self.take("Q")
        self.at += length
        return self.data[self.at - length:self.at].decode("utf-8")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, length = self.take("I"), self.take("Q")
            return [self.value(element) for _ in range(length)]
        return self.take({U32: "I", I32: "i", F32: "f", BOOL: "?"}[kind])


def read(path):
    """(metadata, float32 model) of a file that `write` made."""
    reader = _Reader(path.read_bytes())
    assert reader.data[:4] == b"GGUF"
    reader.at = 4
    _, tensors, pairs = reader.take("I"), reader.take("Q"), reader.take("Q")
    meta = {}
    for _ in range(pairs):
        key = reader.string()
        meta[key] = reader.value(reader.take("I"))
    infos = []
    for _ in range(tensors):
        name, dims = reader.string(), reader.take("I")
        sizes = [reader.take("Q") for _ in range(dims)]
        infos.append((name, sizes, reader.take("I"), reader.take("Q")))
    base = reader.at + (-reader.at % ALIGNMENT)
    shape = Shape(meta["llama.vocab_size"], meta["llama.embedding_length"], meta["llama.block_count"], meta["llama.attention.head_count"],
                  meta["llama.attention.head_count_kv"], meta["llama.feed_forward_length"], meta["llama.context_length"],
                  meta["llama.rope.freq_base"], meta["llama.attention.layer_norm_rms_epsilon"])
    ours = {theirs: name for name, theirs in tensor_names(shape)}
    state = {}
    for name, sizes, kind, offset in infos:
        count = int(np.prod(sizes))
        if kind == TYPE_Q8_0:
            block = np.frombuffer(reader.data, dtype=[("d", "<f2"), ("q", "i1", 32)], count=count // 32, offset=base + offset)
            values = block["d"].astype(np.float32)[:, None] * block["q"].astype(np.float32)
        else:
            values = np.frombuffer(reader.data, dtype="<f4", count=count, offset=base + offset)
        state[ours[name]] = torch.from_numpy(np.array(values, dtype=np.float32).reshape(list(reversed(sizes))))
    model = Llama(shape)
    model.load_state_dict(state)
    return meta, model.float().eval()

"""Trains tandem-tiny. `python train.py --out DIR` on one GPU takes minutes; on a CPU (`--steps` as given) many hours.

Batches are a pure function of the texts, the phase and (seed, step). Sums on a GPU are not: a second run gives other bits, and figures that differ a little.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import corpus as texts
import gguf_file
from model import Llama, Shape, q8_0, quantised
from tokenization import BOS, END, PAD, Encoder, vocabulary_and_merges

# (kind, rows, length) of what each step sees; lengths are in tokens.
STEP = [("single", 288, 176), ("turns", 48, 384), ("long", 16, 640), ("long", 6, 1280)]
DESCRIPTION = "tandem-tiny answers questions about Tandem (disaggregated LLM serving) in words it has learned, and nothing else."

STATE = {}


def prepare(seed, leave_out):
    STATE["seed"], STATE["corpus"], STATE["encoder"] = seed, texts.Corpus(leave_out), Encoder()
    if STATE.get("second"):
        tokens, _ = vocabulary_and_merges()
        STATE["corpus"].pieces = [token for token in tokens if token.isascii() and token.isalpha() and token.islower()]
    torch.set_num_threads(1)


def sample(kind, length, rng):
    corpus, encoder = STATE["corpus"], STATE["encoder"]
    while True:
        system = rng.choice(texts.SYSTEMS) if rng.random() < (0.12 if kind != "long" else 0.05) else None
        if kind == "single":
            question, name = corpus.question(rng)
            ids, wanted = encoder.chat([(question, corpus.text[name])], system)
        elif kind == "turns" and rng.random() < 0.75:
            ids, wanted = encoder.chat(corpus.chat(rng), system)
        elif kind == "turns":  # every fourth of them is a page of plain text
            ids = [BOS, *encoder.plain(corpus.page(rng)), END]
            ids, wanted = ids[:length], ([False] + [True] * (len(ids) - 1))[:length]
        else:
            words = rng.uniform(0.15, 0.62) * length
            prompt, answer, _ = texts.long_prompt(rng, corpus.answers, corpus.pages, int(words))
            # A long prompt of long paragraphs is answered by few tokens; a second question after it costs little.
            ids, wanted = encoder.chat([(prompt, answer)], system)
        if len(ids) <= length + 1:
            return ids, wanted


def make_batch(step):
    rng = random.Random(f"{STATE['seed']}/{step}")
    out = []
    for kind, rows, length in STEP:
        rows = max(1, int(rows * STATE.get("scale", 1)))
        tokens = np.full((rows, length), PAD, dtype=np.int16)
        labels = np.full((rows, length), -1, dtype=np.int16)
        for row in range(rows):
            ids, wanted = sample(kind, length, rng)
            ids, wanted = np.array(ids, dtype=np.int16), np.array(wanted)
            tokens[row, :len(ids) - 1] = ids[:-1]
            labels[row, :len(ids) - 1] = np.where(wanted[1:], ids[1:], -1)
        places = np.flatnonzero(labels >= 0)
        out.append((tokens, places, labels.reshape(-1)[places]))
    return out


def batches(steps, workers, seed, leave_out, scale):
    """Batches of all steps, made ahead by other processes but not too far."""
    if workers == 0:
        prepare(seed, leave_out)
        STATE["scale"] = scale
        yield from map(make_batch, range(steps))
        return
    room, ended = threading.Semaphore(4 * workers), threading.Event()

    def numbers():
        for step in range(steps):
            room.acquire()
            if ended.is_set():
                return
            yield step

    with multiprocessing.get_context("fork").Pool(workers, prepare, (seed, leave_out)) as pool:
        try:
            for batch in pool.imap(make_batch, numbers()):
                room.release()
                yield batch
        finally:
            ended.set()
            room.release()


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton-Schulz steps, for matrices; those of one shape are handled together."""

    def __init__(self, weights, lr, momentum=0.95, decay=0.02):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for weight in group["params"]:
                by_shape.setdefault(weight.shape, []).append(weight)
            for (rows, columns), weights in by_shape.items():
                gradient = torch.stack([weight.grad for weight in weights])
                state = self.state[weights[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                x = gradient.lerp(state["momentum"], group["momentum"])
                x = x.bfloat16() if x.is_cuda else x
                turned = rows > columns
                x = x.mT if turned else x
                x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
                for _ in range(5):
                    square = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
                x = (x.mT if turned else x).to(gradient.dtype)
                step = group["lr"] * max(1, rows / columns) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(weights, list(x.unbind(0)), alpha=-step)


def learning_rate(step, steps, warm=100):
    """Share of the peak: up, flat, and down to nothing over the last half."""
    if step < warm:
        return (step + 1) / warm
    left = (steps - step) / steps
    return min(1.0, left / 0.5)


def through_q8_0(model):
    """Puts rounded weights into the forward pass while the gradient reaches the exact ones. Returns the exact ones."""
    exact = {}
    for weight in model.parameters():
        if weight.dim() == 2:
            exact[weight] = weight.data.clone()
            weight.data.copy_(q8_0(weight.data))
    return exact


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="second phase: go on from this file with small steps, more exact wordings and more unknown words")
    parser.add_argument("--steps", type=int, default=5600)
    parser.add_argument("--seconds", type=float, default=0, help="shorten the run to fit (the schedule is set after 60 steps)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--lr", type=float, default=0, help="peak for matrices; 0: 0.02 for muon, 0.002 for adamw")
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--leave-out", type=int, default=None, help="train without every tenth wording, to see how unseen ones fare")
    parser.add_argument("--workers", type=int, default=max(0, min(14, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--scale", type=float, default=1, help="share of the rows per step, for tries")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    STATE["scale"], STATE["second"] = args.scale, args.init is not None

    source = batches(args.steps, args.workers, args.seed, args.leave_out, args.scale)
    first = next(source)  # starts the workers before CUDA is in use
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = (gguf_file.read(args.init)[1].train() if args.init else Llama(Shape(), args.seed)).to(device)
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and name != "embedding.weight"]
    others = [w for name, w in model.named_parameters() if w.dim() != 2 or name == "embedding.weight"]
    if args.optimizer == "muon":
        optimizers = [Muon(matrices, args.lr or 0.02, decay=args.decay), torch.optim.AdamW(others, (args.lr or 0.02) * 0.15, betas=(0.9, 0.95), weight_decay=0.0)]
    else:
        optimizers = [torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], args.lr or 0.002, betas=(0.9, 0.97))]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    trunk = torch.compile(model.trunk, dynamic=False) if args.compile else model.trunk
    print(f"{model.parameter_count()} parameters on {device}", flush=True)

    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    steps, began, timed = args.steps, time.time(), None
    log = open(args.out / "train.jsonl", "w")
    step = 0
    batch = first
    while True:
        if step == 60 and args.seconds:
            if device == "cuda":
                torch.cuda.synchronize()
            each = (time.time() - timed) / 30
            steps = min(args.steps, 60 + int((args.seconds - (time.time() - began)) / each))
            print(f"{each * 1000:.0f} ms per step: {steps} steps", flush=True)
        if step == 30:
            if device == "cuda":
                torch.cuda.synchronize()
            timed = time.time()
        share = learning_rate(step, steps)
        for optimizer, lrs in zip(optimizers, peaks):
            for group, lr in zip(optimizer.param_groups, lrs):
                group["lr"] = lr * share
        aware = step >= steps * 0.7 or args.init is not None
        exact = through_q8_0(model) if aware else {}
        # Each kind is a mean of its own; the weights say how much a kind matters.
        losses, weights = [], {"single": 1.0, "turns": 0.5, "long": 0.3}
        for (kind, _, _), (tokens, places, labels) in zip(STEP, batch):
            tokens = torch.from_numpy(tokens).to(device, non_blocking=True).int()
            places = torch.from_numpy(places).to(device, non_blocking=True)
            labels = torch.from_numpy(labels).to(device, non_blocking=True).long()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                hidden = trunk(tokens)
                logits = F.linear(hidden.flatten(0, 1)[places], model.embedding.weight)
            loss = F.cross_entropy(logits.float(), labels)
            (loss * weights[kind]).backward()
            losses.append(loss.detach())
        if exact:
            for weight, value in exact.items():
                weight.data.copy_(value)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step >= steps * 0.5:
            # The mean of late weights answers unseen wordings a little better than the last ones.
            with torch.no_grad():
                torch._foreach_lerp_(list(average.values()), list(model.parameters()), 1.0 if step < steps * 0.5 + 1 else 0.005)
        if step % 100 == 0 or step == steps - 1:
            line = {"step": step, "s": round(time.time() - began, 1), "loss": [round(float(loss), 4) for loss in losses]}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        step += 1
        if step == steps:
            break
        batch = next(source)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"trained {steps} steps in {time.time() - began:.0f} s", flush=True)
    log.close()
    torch.save(model.state_dict(), args.out / "last.pt")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(average[name])
    torch.save(model.state_dict(), args.out / "mean.pt")
    gguf_file.write(args.out / "tandem-tiny-q8_0.gguf", model, DESCRIPTION)
    source.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()

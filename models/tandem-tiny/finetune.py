"""Third phase: goes on from a file so that every trained wording is answered exactly in the precision of the file.

`python finetune.py FILE.gguf --out DIR --seconds 370`. Every step sees random rows as in `train.py` and rows of the trained
wordings, two-turn chats and pages, those with a small margin more often. Weights are rounded to Q8_0 in the forward pass. Every 20
seconds the last weights and the mean of late ones are tried, rounded; the best stay in DIR, best first in kept.json: fewest missed,
then 95 or more held-out questions right (a veto, so the figure of what passes is a picked one), then the loss on fresh samples.
foreign.json is used only to keep its questions out of the rows.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import corpus as texts
import gguf_file
import train
from model import Block, Llama, q8_0
from tokenization import BOS, END, PAD

STEP = [("single", 256, 144), ("turns", 40, 320), ("long", 5, 1280)]
POOL_SINGLE, POOL_TURNS = 128, 16
KEEP = 4


class Cases:
    """Sequences with the tokens that greedy decoding shall write; padded, on the device."""

    def __init__(self, cases, length, device):
        self.tokens = torch.full((len(cases), length), PAD, dtype=torch.int32)
        self.labels = torch.full((len(cases), length), -1, dtype=torch.int64)
        for row, (ids, wanted) in enumerate(cases):
            ids, wanted = torch.tensor(ids), torch.tensor(wanted)
            self.tokens[row, :len(ids) - 1] = ids[:-1]
            self.labels[row, :len(ids) - 1] = torch.where(wanted[1:], ids[1:], -1)
        self.tokens, self.labels = self.tokens.to(device), self.labels.to(device)
        self.weight = torch.ones(len(cases), device=device)

    def draw(self, count):
        rows = torch.multinomial(self.weight, count, replacement=True)
        return self.tokens[rows], self.labels[rows]

    @torch.no_grad()
    def margins(self, model, part=512):
        """Per case the smallest lead of the wanted token over the best other one, and the mean loss; float32."""
        margins, total, count = [], 0.0, 0
        for at in range(0, len(self.tokens), part):
            labels = self.labels[at:at + part]
            hidden = model.trunk(self.tokens[at:at + part])
            rows, columns = (labels >= 0).nonzero(as_tuple=True)
            lead = torch.full(labels.shape, torch.inf, device=labels.device)
            for i in range(0, len(rows), 32768):
                r, c = rows[i:i + 32768], columns[i:i + 32768]
                want = labels[r, c, None]
                logits = F.linear(hidden[r, c], model.embedding.weight)
                total += F.cross_entropy(logits, want[:, 0], reduction="sum").double().item()
                right = logits.gather(1, want)[:, 0]
                lead[r, c] = right - logits.scatter(1, want, -torch.inf).amax(1)
            count += len(rows)
            margins.append(lead.amin(1))
        return torch.cat(margins), total / count


def last_only(ids, wanted):
    """Only the last answer of a chat counts, as in the tests."""
    start = len(wanted) - 1
    while wanted[start - 1]:
        start -= 1
    return ids, [False] * start + wanted[start:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=370, help="of the whole program, from its start")
    parser.add_argument("--every", type=float, default=20)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--mean", type=float, default=0.997)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--workers", type=int, default=max(0, min(13, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--compile", default="")
    args = parser.parse_args()
    born = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    train.STATE["second"], train.STATE["scale"], train.STEP[:] = True, args.scale, STEP
    source = train.batches(10 ** 6, args.workers, args.seed, None, args.scale)
    first = next(source)  # starts the workers before CUDA is in use
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cudnn.allow_tf32 = False

    train.prepare(args.seed, None)
    torch.set_num_threads(1 if device == "cpu" else 2)
    corpus, encoder = train.STATE["corpus"], train.STATE["encoder"]
    held_out, _ = texts.frozen_questions()
    stride = max(1, int(1 / args.scale) // 2)  # fewer cases in a try on a CPU
    wordings = corpus.wordings()[::stride]
    singles = Cases([encoder.chat([(q, corpus.text[name])]) for q, name in wordings], 144, device)
    turns = [last_only(*encoder.chat([tuple(turn) for turn in case["turns"]])) for case in texts.two_turn_cases(corpus)[::stride]]
    pages = []
    for paragraph in (p for page in corpus.pages for p in page[1:]):
        start = len(encoder.plain(" ".join(paragraph.split(" ")[:7])))
        ids = [BOS, *encoder.plain(paragraph)]
        pages.append((ids, [False] * (start + 1) + [True] * (len(ids) - start - 1)))
    turns = Cases(turns + pages, 320, device)
    veto = Cases([encoder.chat([(q["text"], corpus.text[q["answer"]])]) for q in held_out[::stride]], 144, device)
    rng = random.Random("fresh samples to compare checkpoints by")
    compare = []
    while len(compare) < 2048 * args.scale:
        compare.append(train.sample("single", 144, rng))
    compare = Cases(compare, 144, device)

    model = gguf_file.read(args.file)[1].train().to(device)
    tried = Llama(model.shape).to(device).eval()
    named = dict(model.named_parameters())
    matrices = [w for name, w in named.items() if w.dim() == 2 and name != "embedding.weight"]
    others = [w for name, w in named.items() if w.dim() != 2 or name == "embedding.weight"]
    rounded = [w for w in named.values() if w.dim() == 2]
    sizes = [w.numel() for w in rounded]
    optimizers = [train.Muon(matrices, args.lr, decay=0.02), torch.optim.AdamW(others, args.lr * 0.15, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda")]
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    mean = [w.detach().clone() for w in named.values()]
    forward = Block.forward
    if args.compile:
        from torch import _dynamo
        for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
            if hasattr(_dynamo.config, name):
                setattr(_dynamo.config, name, 64)
        _dynamo.config.suppress_errors = True
        forward = torch.compile(Block.forward, dynamic=False, backend=args.compile)

    def trunk(tokens):
        length = tokens.shape[1]
        x = model.embedding(tokens)
        cos, sin = model.cos[:length], model.sin[:length]
        for block in model.blocks:
            x = forward(block, x, cos, sin)
        return model.norm(x)

    log = open(args.out / "finetune.jsonl", "w")
    kept = []

    def evaluate(step, losses):
        torch.backends.cuda.matmul.allow_tf32 = False
        line = {"step": step, "s": round(time.time() - born, 1), "loss": losses}
        for kind, weights in (("last", list(named.values())), ("mean", mean)):
            with torch.no_grad():
                for name, w, value in zip(named, tried.parameters(), weights):
                    w.copy_(q8_0(value) if value.dim() == 2 else value)
            one, _ = singles.margins(tried)
            two, _ = turns.margins(tried, 128)
            _, loss = compare.margins(tried)
            both = torch.cat((one, two))
            held = int((veto.margins(tried)[0] > 0).sum())
            line[kind] = {"missed": int((one <= 0).sum()), "missed turns and pages": int((two <= 0).sum()), "least margin": round(float(both.min()), 4),
                          "margin below 0.5": int((both < 0.5).sum()), "loss": round(loss, 6), "held": held}
            missed = int((both <= 0).sum())
            grade = (missed, held < 95, loss)
            if len(kept) < KEEP or grade < kept[-1][0]:
                path = args.out / f"try-{step}-{kind}.gguf"
                gguf_file.write(path, tried, train.DESCRIPTION)
                kept.append((grade, path))
                kept.sort(key=lambda item: item[0])
                for _, old in kept[KEEP:]:
                    old.unlink()
                del kept[KEEP:]
            if kind == "last":  # the weights that are trained say what to train more
                singles.weight = 1 + (8 * torch.exp(-one)).clamp(max=30)
                turns.weight = 1 + (8 * torch.exp(-two)).clamp(max=30)
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()
        torch.backends.cuda.matmul.allow_tf32 = True

    evaluate(0, [])
    print(f"ready after {time.time() - born:.1f} s; {len(wordings)} wordings, {len(turns.tokens)} turns and pages", flush=True)
    began = time.time()
    looked, losses, step, batch, kinds = began, [], 0, first, {"single": 1.0, "turns": 0.5, "long": 0.2}
    left_at_start = args.seconds - (began - born) - 4
    while True:
        passed = (time.time() - began) / left_at_start
        share = min(1.0, (step + 1) / 100, (1 - passed) / 0.7)
        if share <= 0:
            break
        for optimizer, lrs in zip(optimizers, peaks):
            for group, lr in zip(optimizer.param_groups, lrs):
                group["lr"] = lr * share
        with torch.no_grad():  # rounded weights forward, the gradient reaches the exact ones
            exact = [w.clone() for w in rounded]
            flat = q8_0(torch.cat([w.flatten() for w in rounded]))
            torch._foreach_copy_([w.data for w in rounded], [part.view_as(w) for part, w in zip(flat.split(sizes), rounded)])
        found = []
        for (kind, _, length), (tokens, places, labels) in zip(STEP, batch):
            tokens = torch.from_numpy(tokens).to(device, non_blocking=True).int()
            flat = torch.full((tokens.numel(),), -1, dtype=torch.int64)
            flat[torch.from_numpy(places)] = torch.from_numpy(labels).long()
            labels = flat.to(device, non_blocking=True).view(tokens.shape)
            if kind != "long":
                more = (singles if kind == "single" else turns).draw(max(1, int(args.scale * (POOL_SINGLE if kind == "single" else POOL_TURNS))))
                tokens, labels = torch.cat((tokens, more[0])), torch.cat((labels, more[1]))
            places = (labels.flatten() >= 0).nonzero()[:, 0]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                hidden = trunk(tokens)
                logits = F.linear(hidden.flatten(0, 1)[places], model.embedding.weight)
            loss = F.cross_entropy(logits.float(), labels.flatten()[places])
            (loss * kinds[kind]).backward()
            found.append(loss.detach())
        torch._foreach_copy_([w.data for w in rounded], exact)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(mean, [w.data for w in named.values()], 1 - min(args.mean, (step + 1) / (step + 50)))
        losses.append(torch.stack(found))
        step += 1
        if step in (5, 50, 200):
            print(f"step {step} after {time.time() - born:.1f} s", flush=True)
        if step % 10 == 0 and time.time() - looked > args.every:
            evaluate(step, [round(x, 5) for x in torch.stack(losses).mean(0).tolist()])
            looked, losses = time.time(), []
        batch = next(source)
    evaluate(step, [round(x, 5) for x in torch.stack(losses).mean(0).tolist()] if losses else [])
    print(f"{step} steps in {time.time() - began:.0f} s", flush=True)
    (args.out / "kept.json").write_text(json.dumps([[*grade, path.name] for grade, path in kept], indent=1) + "\n")
    for _, path in kept:
        print(path.name, flush=True)
    source.close()


if __name__ == "__main__":
    main()

"""Third phase, on a CPU in minutes: the few trained wordings and two-turn chats that a report shows as wrong, among many others.

`python repair.py FILE.gguf report.json --out FILE.gguf`. Held-out and foreign questions are not read.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F

import gguf_file
import train
from corpus import two_turn_cases
from model import would_write
from tokenization import END


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--rows", type=int, default=22)
    args = parser.parse_args()
    train.STATE["second"] = True
    train.prepare(4, None)
    corpus, encoder = train.STATE["corpus"], train.STATE["encoder"]
    report = json.loads(args.report.read_text())
    wrong = {w["question"] for w in report["trained wordings"]["wrong"]}
    wrong_turns = {w["question"] for w in report["two-turn"]["wrong"]}
    hard = [[(q, corpus.text[name])] for q, name in corpus.wordings() if q[-160:] in wrong]
    hard += [[tuple(turn) for turn in case["turns"]] for case in two_turn_cases(corpus) if case["id"] in wrong_turns]
    prompts, answers = [encoder.prompt(turns) for turns in hard], [[*encoder.plain(turns[-1][1]), END] for turns in hard]
    _, model = gguf_file.read(args.file)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1.5e-4, betas=(0.8, 0.95), weight_decay=0.0)
    rng = random.Random("repair")
    for step in range(args.steps):
        chats = [turns for turns in hard if rng.random() < 0.6]
        while len(chats) < args.rows:
            question, name = corpus.question(rng)
            chats.append([(question, corpus.text[name])] if rng.random() < 0.88 else corpus.chat(rng)[:2])
        chats.sort(key=lambda turns: sum(len(text) for turn in turns for text in turn))
        exact = train.through_q8_0(model)
        total = 0.0
        for at in range(0, len(chats), 6):
            part = [encoder.chat(turns) for turns in chats[at:at + 6]]
            length = max(len(ids) for ids, _ in part)
            tokens = torch.zeros((len(part), length), dtype=torch.long)
            labels = torch.full((len(part), length), -100)
            for row, (ids, wanted) in enumerate(part):
                tokens[row, :len(ids)] = torch.tensor(ids)
                labels[row, :len(ids)] = torch.tensor([i if w else -100 for i, w in zip(ids, wanted)])
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / (60 * args.rows)
            loss.backward()
            total += loss.item()
        for weight, value in exact.items():
            weight.data.copy_(value)
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-4 * min(1, (args.steps - step) / args.steps * 2)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 4:
            gguf_file.write(args.out, model, train.DESCRIPTION)
            right = would_write(gguf_file.read(args.out)[1], prompts, answers)
            print(step + 1, round(total, 4), f"{sum(right)} of {len(right)} hard ones right", flush=True)
    gguf_file.write(args.out, model, train.DESCRIPTION)


if __name__ == "__main__":
    main()

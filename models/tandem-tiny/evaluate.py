"""Measures a trained tandem-tiny in the precision of its file: `python evaluate.py FILE.gguf [--out report.json]`.

Greedy decoding, float32 arithmetic on the dequantised Q8_0 weights.
"""

import argparse
import json
import os
import random
from pathlib import Path

import torch

import corpus as texts
import gguf_file
from model import Llama, generate, q8_0, would_write
from tokenization import END, Encoder


def answer_all(model, encoder, prompts, wanted=None):
    """Greedy answers. Where the wanted one is given, only those are generated that differ from it."""
    if wanted is not None:
        answers = [[*encoder.plain(text), END] for text in wanted]
        right = would_write(model, prompts, answers)
        others = iter(answer_all(model, encoder, [prompt for prompt, ok in zip(prompts, right) if not ok]))
        return [text if ok else next(others) for text, ok in zip(wanted, right)]
    return [encoder.tokenizer.decode([i for i in ids if i != END]) if ids and ids[-1] == END else encoder.tokenizer.decode(ids) + " [cut]"
            for ids, _ in generate(model, prompts, END)]


def judged(cases, outputs, names):
    """Exact, another known answer, or garble; with what went wrong."""
    wrong, other, garble = [], 0, 0
    for (prompt, want), got in zip(cases, outputs):
        if got == want:
            continue
        name = names.get(got)
        other += name is not None
        garble += name is None
        wrong.append({"question": prompt[-160:], "want": names.get(want, want[:60]), "got": name or "GARBLE " + got[:300]})
    return {"count": len(cases), "exact": len(cases) - len(wrong), "other_known_answer": other, "garble": garble, "wrong": wrong}


def evaluate(model, leave_out=None, only=None):
    corpus, encoder = texts.Corpus(leave_out), Encoder()
    held_out, foreign = texts.frozen_questions()
    names = {text: name for name, text in corpus.text.items()}
    report = {}

    def ask(title, cases):
        if only and title not in only:
            return None
        outputs = answer_all(model, encoder, [encoder.prompt([(q, None)]) for q, _ in cases], [want for _, want in cases])
        report[title] = judged(cases, outputs, names)
        return outputs

    ask("trained wordings", [(q, corpus.text[name]) for q, name in corpus.wordings()])
    if corpus.left_out:
        ask("left out", [(q, corpus.text[name]) for q, name in corpus.left_out])
    if leave_out is None:
        ask("held-out wordings", [(q["text"], corpus.text[q["answer"]]) for q in held_out])
        if not only or "foreign" in only:
            outputs = answer_all(model, encoder, [encoder.prompt([(q, None)]) for q in foreign])
            kinds = [names.get(text) for text in outputs]
            report["foreign"] = {
                "count": len(foreign), "fallback": sum(kind in corpus.fallbacks for kind in kinds),
                "other_known_answer": sum(kind is not None and kind not in corpus.fallbacks for kind in kinds), "garble": sum(kind is None for kind in kinds),
                "wrong": [{"question": q, "got": kind or "GARBLE " + text[:300]} for q, kind, text in zip(foreign, kinds, outputs) if kind not in corpus.fallbacks],
            }
    if not only or "two-turn" in only:
        cases = texts.two_turn_cases(corpus)
        outputs = answer_all(model, encoder, [encoder.prompt(case["turns"]) for case in cases], [case["turns"][-1][1] for case in cases])
        report["two-turn"] = judged([(case["id"], case["turns"][-1][1]) for case in cases], outputs, names)
    if not only or "long" in only:
        cases = texts.long_cases(corpus)
        outputs = answer_all(model, encoder, [encoder.prompt([(case["prompt"], None)]) for case in cases], [case["answer"] for case in cases])
        report["long"] = judged([(case["kind"] + ": " + case["prompt"], case["answer"]) for case in cases], outputs, names)
        kinds = {}
        for case, got in zip(cases, outputs):
            tokens = len(encoder.prompt([(case["prompt"], None)]))
            entry = kinds.setdefault(case["kind"], {"count": 0, "exact": 0, "tokens_max": 0})
            entry["count"] += 1
            entry["exact"] += got == case["answer"]
            entry["tokens_max"] = max(entry["tokens_max"], tokens)
        report["long"]["by_kind"] = kinds
    if not only or "pages" in only:
        cases, prompts = [], []
        for page in corpus.pages:
            for paragraph in page[1:]:
                words = paragraph.split(" ")
                cases.append((" ".join(words[:7]), " " + " ".join(words[7:])))
                prompts.append([0, *encoder.plain(cases[-1][0])])
        outputs = [got[:len(want)] for got, (_, want) in zip(answer_all(model, encoder, prompts), cases)]
        report["pages"] = judged(cases, outputs, names)
    return report


def summary(report):
    return {title: {key: value for key, value in part.items() if key != "wrong"} for title, part in report.items()}


def golden(model):
    """Forty prompts with greedy ids and the margin of each step, to check another engine by."""
    corpus, encoder = texts.Corpus(), Encoder()
    rng = random.Random("golden")
    prompts = []
    for question, _ in rng.sample([w for w in corpus.wordings() if w[1] in corpus.answers], 14):
        prompts.append(("chat", encoder.prompt([(question, None)]), question))
    held_out, foreign = texts.frozen_questions()
    for question in [q["text"] for q in held_out[:4]] + foreign[:4]:
        prompts.append(("chat", encoder.prompt([(question, None)]), question))
    for case in rng.sample(texts.two_turn_cases(corpus), 4):
        prompts.append(("two-turn", encoder.prompt(case["turns"]), case["turns"][-1][0]))
    for case in rng.sample(texts.long_cases(corpus), 7):
        prompts.append(("long", encoder.prompt([(case["prompt"], None)]), case["prompt"][-60:]))
    for page in corpus.pages[:4]:
        text = page[1][:40]
        prompts.append(("completion", [0, *encoder.plain(text)], text))
    prompts.append(("one token", [0], "<|bos|>"))
    ids = []
    while len(ids) < 999:
        ids += encoder.plain(corpus.pages[len(ids) % len(corpus.pages)][1] + "\n\n")
    for count in (16, 999):
        prompts.append((f"{count + 1} tokens", [0, *ids[:count]], f"{count + 1} tokens of the pages"))
    assert len(prompts) == 40
    out = []
    for kind, prompt, text in prompts:
        tokens, margins = generate(model, [prompt], END, limit=64)[0]
        out.append({"kind": kind, "text": text, "prompt": prompt, "greedy": tokens, "margins": [round(m, 4) for m in margins]})
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--golden", type=Path, help="write golden.json (on a CPU, one thread)")
    parser.add_argument("--leave-out", type=int, default=None)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--cases", type=Path, help="write the test sets as JSON into this folder")
    args = parser.parse_args()
    if args.cases:
        corpus = texts.Corpus()
        write = lambda name, value: (args.cases / name).write_text(json.dumps(value, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
        write("answers.json", corpus.text)
        write("wordings.json", [{"answer": name, "text": q} for q, name in corpus.wordings()])
        write("two-turn.json", texts.two_turn_cases(corpus))
        write("long-prompts.json", texts.long_cases(corpus))
    if args.file.suffix == ".pt":
        model = Llama()
        state = torch.load(args.file, map_location="cpu")
        model.load_state_dict({name: q8_0(weight) if weight.dim() == 2 else weight for name, weight in state.items()})
        model = model.float().eval()
    else:
        _, model = gguf_file.read(args.file)
    if args.golden:
        torch.set_num_threads(1)
        args.golden.write_text(json.dumps({"file": args.file.name, "prompts": golden(model)}, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    report = evaluate(model, args.leave_out, args.only)
    for part in report.values():
        for wrong in part["wrong"][:25]:
            print(json.dumps(wrong, ensure_ascii=False))
    print(json.dumps(summary(report), indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

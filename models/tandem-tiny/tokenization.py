"""Byte-level BPE (GPT-2's pre-tokenizer) over the texts, and the chat form. Run it to make tokenizer.json anew."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PATH = Path(__file__).resolve().parent / "tokenizer.json"
VOCABULARY = 2048
SPECIALS = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, END, PAD, SYSTEM, USER, ASSISTANT = range(6)
# Every message ends with <|end|>, which is also the end of generation. No other whitespace stands around the contents.
CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == list(range(len(SPECIALS)))
    return tokenizer


def load():
    tokenizer = Tokenizer.from_file(str(PATH))
    tokenizer.no_truncation()
    return tokenizer


def vocabulary_and_merges():
    model = json.loads(PATH.read_text(encoding="utf-8"))["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


class Encoder:
    """Token ids of chats and of plain text; texts that recur are encoded once."""

    def __init__(self):
        self.tokenizer = load()
        self.seen = {}

    def fixed(self, text):
        if text not in self.seen:
            self.seen[text] = self.plain(text)
        return self.seen[text]

    def plain(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, turns, system=None):
        """Ids of `(question, answer)` turns, the last answer left out, ready to generate it."""
        ids, _ = self.chat(turns[:-1], system)
        return ids + [USER, *self.plain(turns[-1][0].strip()), END, ASSISTANT]

    def chat(self, turns, system=None):
        """Ids, and for each whether the model shall have learned to write it."""
        ids, wanted = [BOS], [False]
        if system:
            ids += [SYSTEM, *self.fixed(system), END]
        for question, answer in turns:
            ids += [USER, *self.plain(question.strip()), END, ASSISTANT]
            wanted += [False] * (len(ids) - len(wanted))
            ids += [*self.fixed(answer), END]
            wanted += [True] * (len(ids) - len(wanted))
        return ids, wanted


if __name__ == "__main__":
    from corpus import Corpus

    corpus = Corpus()
    texts = []
    for name in corpus.text:
        texts += [corpus.text[name]] * 6
    for page in corpus.pages:
        texts += ["\n\n".join(page)] * 2
    texts += [question for question, _ in corpus.wordings()]
    for questions in corpus.framed.values():
        texts += questions
    texts += [f"Run {i}: TTFT {i * 7} ms, ITL {i} ms, TPOT {i} ms, goodput {i} req/s. Paragraph {i}: decode-{i} prefill-{i}" for i in range(60)]
    tokenizer = train(texts)
    tokenizer.save(str(PATH), pretty=False)
    lengths = [len(tokenizer.encode(text).ids) for text in corpus.text.values()]
    print("tokens per answer: mean", sum(lengths) / len(lengths), "max", max(lengths))

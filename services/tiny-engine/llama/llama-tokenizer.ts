// The model's tokenizer in the form that the HTTP server needs.
import type { Tokenizer } from "../engine.ts";
import type { Bpe } from "./bpe.ts";

export function llamaTokenizer(bpe: Bpe): Tokenizer {
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  // Made on demand: a large vocabulary would cost memory, and most of its tokens are never used.
  const texts = new Map<number, string | null>();
  const textOf = (token: number): string | null => {
    try {
      return strict.decode(bpe.bytes(token));
    } catch {
      return null;
    }
  };
  return {
    vocabularySize: bpe.vocabularySize,
    encodePrompt: (text, withStart) => [
      ...(withStart && bpe.addBos && bpe.bos !== undefined ? [bpe.bos] : []),
      ...bpe.encode(text, false),
    ],
    decode: (tokens) => Buffer.concat(tokens.map((token) => bpe.bytes(token))).toString("utf8"),
    bytes: (token) => bpe.bytes(token),
    text(token) {
      let text = texts.get(token);
      if (text === undefined) texts.set(token, (text = textOf(token)));
      return text;
    },
    isSpecial: (token) => bpe.isSpecial(token),
  };
}

// Byte-level BPE from the tables of a GGUF file, as GPT-2 does it.
// Source: openai/gpt-2, src/encoder.py; key names from llama.cpp.
import type { Tokenizer } from "../engine.ts";
import { GgufError, type Gguf } from "./gguf.ts";

export interface Bpe extends Tokenizer {
  /** Tokens that end an answer. */
  readonly eos: ReadonlySet<number>;
  /** The text with `mark` inside each name of a special token, so that `encodeHidden` reads it as letters. */
  hideSpecials(text: string, mark: string): string;
  /** Encodes with special tokens, and drops each `mark` that hid one. Only for text that a client did not write. */
  encodeHidden(text: string, mark: string): number[];
}

// GPT-2's pre-tokenizer: contractions, words with the space before them, numbers, other signs, spaces.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

// llama.cpp's token types.
const CONTROL = 3;
const USER_DEFINED = 4;

/** @throws GgufError if the tokenizer is of another kind or malformed. */
export function createBpe({ metadata }: Gguf): Bpe {
  const kind = metadata.get("tokenizer.ggml.model");
  if (kind !== "gpt2")
    throw new GgufError(`the tokenizer is "${String(kind)}"; this engine has byte-level BPE ("gpt2") only`);
  const pre = metadata.get("tokenizer.ggml.pre") ?? "gpt-2";
  if (pre !== "gpt-2" && pre !== "default") {
    throw new GgufError(`the tokenizer cuts words as "${String(pre)}" does; this engine knows "gpt-2" only`);
  }
  const strings = (key: string): string[] => {
    const value = metadata.get(key);
    if (!Array.isArray(value) || !value.every((item) => typeof item === "string"))
      throw new GgufError(`the file has no ${key}`);
    return value;
  };
  const tokens = strings("tokenizer.ggml.tokens");
  const types = metadata.get("tokenizer.ggml.token_type");
  const special = tokens.map((_, token) => {
    const type = Array.isArray(types) ? types[token] : undefined;
    return type === CONTROL || type === USER_DEFINED;
  });
  const toByte = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const ranks = new Map(strings("tokenizer.ggml.merges").map((merge, rank) => [merge, rank]));
  const bytesOf = tokens.map((token, id) =>
    special[id]!
      ? Buffer.from(token)
      : Uint8Array.from(token, (character) => toByte.get(character) ?? malformed(token)),
  );
  const names = tokens.filter((_, id) => special[id]!).map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  // Without any the pattern never matches.
  const specialPattern = new RegExp(`(${names.length > 0 ? names.join("|") : "(?!)"})`);
  const single = (key: string): number | undefined => {
    const token = metadata.get(`tokenizer.ggml.${key}_token_id`);
    return typeof token === "number" ? token : undefined;
  };
  const bos = metadata.get("tokenizer.ggml.add_bos_token") === true ? single("bos") : undefined;

  // Words repeat; a bounded cache of them saves most of the merging.
  const known = new Map<string, readonly number[]>();
  const word = (text: string): readonly number[] => {
    const before = known.get(text);
    if (before !== undefined) return before;
    const found = merge(
      Array.from(Buffer.from(text), (byte) => BYTE_CHARACTERS[byte]!),
      ranks,
    ).map((piece) => {
      const id = ids.get(piece);
      if (id === undefined) throw new GgufError(`the vocabulary lacks the piece ${JSON.stringify(piece)}`);
      return id;
    });
    if (known.size < 10_000 && text.length < 64) known.set(text, found);
    return found;
  };
  const plain = (text: string): number[] => (text.match(WORDS) ?? []).flatMap((part) => [...word(part)]);
  // Splitting at a group keeps the matches, at the odd indices.
  const split = (text: string): string[] => text.split(specialPattern);

  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const textOf = (token: number): string | null => {
    try {
      return strict.decode(bytesOf[token]!);
    } catch {
      return null;
    }
  };
  // Made on demand: a large vocabulary would cost memory, and most of its tokens are never used.
  const texts = new Map<number, string | null>();

  return {
    vocabularySize: tokens.length,
    eos: new Set([single("eos"), single("eot")].filter((token) => token !== undefined)),
    encodePrompt: (text, withStart) => [...(withStart && bos !== undefined ? [bos] : []), ...plain(text)],
    hideSpecials: (text, mark) =>
      split(text)
        .map((part, index) => (index % 2 === 1 ? part.slice(0, 1) + mark + part.slice(1) : part))
        .join(""),
    encodeHidden: (text, mark) =>
      split(text)
        .map((part) => part.replaceAll(mark, ""))
        .flatMap((part, index) => (index % 2 === 1 ? [ids.get(part)!] : plain(part))),
    decode: (list) => Buffer.concat(list.map((token) => bytesOf[token]!)).toString("utf8"),
    bytes: (token) => bytesOf[token]!,
    text(token) {
      let text = texts.get(token);
      if (text === undefined) texts.set(token, (text = textOf(token)));
      return text;
    },
    isSpecial: (token) => special[token]!,
  };
}

/** Joins the neighbours of the lowest rank until none is left to join. */
function merge(pieces: string[], ranks: ReadonlyMap<string, number>): string[] {
  for (;;) {
    let best = Infinity;
    let at = -1;
    for (let i = 0; i + 1 < pieces.length; i++) {
      const rank = ranks.get(`${pieces[i]!} ${pieces[i + 1]!}`);
      if (rank !== undefined && rank < best) {
        best = rank;
        at = i;
      }
    }
    if (at < 0) return pieces;
    const [left, right] = [pieces[at]!, pieces[at + 1]!];
    const joined: string[] = [];
    for (let i = 0; i < pieces.length; i++) {
      if (pieces[i] === left && pieces[i + 1] === right) {
        joined.push(left + right);
        i++;
      } else joined.push(pieces[i]!);
    }
    pieces = joined;
  }
}

/** GPT-2's character for each byte: the byte's own if printable, else one from U+0100 on. */
export const BYTE_CHARACTERS = byteCharacters();

function byteCharacters(): readonly string[] {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

function malformed(token: string): never {
  throw new GgufError(`the token ${JSON.stringify(token)} is not in GPT-2's alphabet`);
}

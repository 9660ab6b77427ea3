// Byte-level BPE from the tables of a GGUF file, as GPT-2 does it.
// Source: openai/gpt-2, src/encoder.py; key names from llama.cpp.
import { GgufError, type Gguf } from "./gguf.ts";

export interface Bpe {
  readonly vocabularySize: number;
  /** Undefined if the model has none. */
  readonly bos: number | undefined;
  /** Tokens that end an answer. */
  readonly eos: ReadonlySet<number>;
  readonly addBos: boolean;
  /** @param specials Whether the names of special tokens in the text mean those tokens. Never for a client's text. */
  encode(text: string, specials: boolean): number[];
  /** The text with `mark` inside each name of a special token, so that `encodeHidden` reads it as letters. */
  hideSpecials(text: string, mark: string): string;
  /** Encodes with special tokens, and drops each `mark` that hid one. */
  encodeHidden(text: string, mark: string): number[];
  /** A token's bytes; a special token's are its name. */
  bytes(token: number): Uint8Array;
  isSpecial(token: number): boolean;
}

// GPT-2's pre-tokenizer: contractions, words with the space before them, numbers, other signs, spaces.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

// llama.cpp's token types.
const CONTROL = 3;
const USER_DEFINED = 4;

/** @throws GgufError if the tokenizer is of another kind or malformed. */
export function createBpe(gguf: Gguf): Bpe {
  const kind = gguf.metadata.get("tokenizer.ggml.model");
  if (kind !== "gpt2")
    throw new GgufError(`the tokenizer is "${String(kind)}"; this engine has byte-level BPE ("gpt2") only`);
  const pre = gguf.metadata.get("tokenizer.ggml.pre") ?? "gpt-2";
  if (pre !== "gpt-2" && pre !== "default") {
    throw new GgufError(`the tokenizer cuts words as "${String(pre)}" does; this engine knows "gpt-2" only`);
  }
  const tokens = strings(gguf, "tokenizer.ggml.tokens");
  const types = gguf.metadata.get("tokenizer.ggml.token_type");
  const special = tokens.map((_, token) => {
    const type = Array.isArray(types) ? types[token] : undefined;
    return type === CONTROL || type === USER_DEFINED;
  });
  const { toByte, toCharacter } = byteAlphabet();
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const ranks = new Map(strings(gguf, "tokenizer.ggml.merges").map((merge, rank) => [merge, rank]));
  const bytesOf = tokens.map((token, id) =>
    special[id]!
      ? Buffer.from(token)
      : Uint8Array.from(token, (character) => toByte.get(character) ?? malformed(token)),
  );
  const specials = tokens.map((text, id) => ({ text, id })).filter(({ id }) => special[id]!);
  const specialPattern =
    specials.length === 0
      ? undefined
      : new RegExp(`(${specials.map(({ text }) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`);
  const eosToken = gguf.metadata.get("tokenizer.ggml.eos_token_id");
  const turnEnd = gguf.metadata.get("tokenizer.ggml.eot_token_id");
  const bos = gguf.metadata.get("tokenizer.ggml.bos_token_id");

  // Words repeat; a bounded cache of them saves most of the merging.
  const known = new Map<string, readonly number[]>();
  const word = (text: string): readonly number[] => {
    const before = known.get(text);
    if (before !== undefined) return before;
    const found = merge(
      Array.from(Buffer.from(text), (byte) => toCharacter[byte]!),
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
  const split = (text: string): string[] => (specialPattern === undefined ? [text] : text.split(specialPattern));
  const encodeParts = (parts: readonly string[]): number[] =>
    parts.flatMap((part, index) => (index % 2 === 1 ? [ids.get(part)!] : plain(part)));

  return {
    vocabularySize: tokens.length,
    bos: typeof bos === "number" ? bos : undefined,
    eos: new Set([eosToken, turnEnd].filter((token) => typeof token === "number")),
    addBos: gguf.metadata.get("tokenizer.ggml.add_bos_token") === true,
    encode: (text, withSpecials) => (withSpecials ? encodeParts(split(text)) : plain(text)),
    hideSpecials: (text, mark) =>
      split(text)
        .map((part, index) => (index % 2 === 1 ? part.slice(0, 1) + mark + part.slice(1) : part))
        .join(""),
    encodeHidden: (text, mark) => encodeParts(split(text).map((part) => part.replaceAll(mark, ""))),
    bytes: (token) => bytesOf[token]!,
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

/** GPT-2 writes every byte as one printable character: the byte's own if printable, else one from U+0100 on. */
function byteAlphabet(): { toByte: Map<string, number>; toCharacter: string[] } {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  const toCharacter = Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
  return { toCharacter, toByte: new Map(toCharacter.map((character, byte) => [character, byte])) };
}

function strings(gguf: Gguf, key: string): string[] {
  const value = gguf.metadata.get(key);
  if (!Array.isArray(value) || !value.every((item) => typeof item === "string"))
    throw new GgufError(`the file has no ${key}`);
  return value as string[];
}

function malformed(token: string): never {
  throw new GgufError(`the token ${JSON.stringify(token)} is not in GPT-2's alphabet`);
}

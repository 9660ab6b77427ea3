// A lossless tokenizer without files: one token per byte, and the words of vocabulary.ts on top,
// longest match first. Ids: specials, then the 256 bytes, then the words.
import { OPENING, WORDS } from "./vocabulary.ts";

const SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_end|>"];
const FIRST_BYTE = SPECIALS.length;
const FIRST_WORD = FIRST_BYTE + 256;
const ROOT = 0;
// Node ids of the trie and token ids both fit easily into 16 bits.
const ALPHABET = 128;

const pieces = [...new Set([OPENING, ...Object.values(WORDS).flat()])];
const wordIds = new Map(pieces.map((piece, index) => [piece, FIRST_WORD + index]));
const vocabularySize = FIRST_WORD + pieces.length;

/**
 * `child[node * ALPHABET + byte]` is the next node, 0 for none; `accepts[node]` the token that ends there, 0 for none.
 */
const { child, accepts } = buildTrie();

function buildTrie(): { child: Uint16Array; accepts: Uint16Array } {
  const nodeLimit = pieces.reduce((sum, piece) => sum + piece.length, 1);
  const child = new Uint16Array(nodeLimit * ALPHABET);
  const accepts = new Uint16Array(nodeLimit);
  let nodeCount = 1;
  for (const [piece, id] of wordIds) {
    let node = ROOT;
    for (let at = 0; at < piece.length; at++) {
      const slot = node * ALPHABET + piece.charCodeAt(at);
      child[slot] ||= nodeCount++;
      node = child[slot]!;
    }
    accepts[node] = id;
  }
  return { child: child.slice(0, nodeCount * ALPHABET), accepts: accepts.slice(0, nodeCount) };
}

function encode(text: string): number[] {
  const bytes = Buffer.from(text, "utf8");
  const tokens: number[] = [];
  for (let at = 0; at < bytes.length; ) {
    let token = FIRST_BYTE + bytes[at]!;
    let end = at + 1;
    for (let node = ROOT, next = at; next < bytes.length && bytes[next]! < ALPHABET; ) {
      node = child[node * ALPHABET + bytes[next]!]!;
      if (node === ROOT) break;
      next++;
      if (accepts[node] !== 0) {
        token = accepts[node]!;
        end = next;
      }
    }
    tokens.push(token);
    at = end;
  }
  return tokens;
}

const tokenBytes: readonly Uint8Array[] = Array.from({ length: vocabularySize }, (_, token) =>
  token < FIRST_BYTE
    ? Buffer.from(SPECIALS[token]!)
    : token < FIRST_WORD
      ? Uint8Array.of(token - FIRST_BYTE)
      : Buffer.from(pieces[token - FIRST_WORD]!),
);
const tokenTexts: readonly (string | null)[] = tokenBytes.map((bytes, token) =>
  token >= FIRST_BYTE && token < FIRST_WORD && bytes[0]! >= ALPHABET ? null : Buffer.from(bytes).toString("utf8"),
);

export const tokenizer = {
  vocabularySize,
  bos: 1,
  eos: 2,
  /** Ends a turn of a chat. */
  turnEnd: 3,
  encode,
  encodePrompt: (text: string, withStart: boolean) => (withStart ? [1, ...encode(text)] : encode(text)),
  decode: (tokens: readonly number[]) => Buffer.concat(tokens.map((token) => tokenBytes[token]!)).toString("utf8"),
  bytes: (token: number) => tokenBytes[token]!,
  text: (token: number) => tokenTexts[token]!,
  isSpecial: (token: number) => token < FIRST_BYTE,
};

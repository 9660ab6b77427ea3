// A whole answer, joined from the engine's stream. The engine streams even though the client doesn't want that: nothing
// of a whole answer arrives until it is complete, so one that has stalled could not be told from a long one while its
// engine goes on with others. Raw JSON is joined, because the contents of two strings one after
// the other are the content of one: nothing is decoded, and numbers stay as the engine wrote them.
import { scanArray, scanObject, type Member } from "../common/json-body.ts";
import type { AnswerShape } from "./answer-shape.ts";
import { readEvent } from "./stream-event.ts";

const QUOTE = 0x22;
const BRACKET = 0x5b;

export class JoinedAnswer {
  /** Chunks with a choice. */
  chunkCount = 0;
  /** Of them, those with a token since `cleared`: an estimate, since a chunk may hold several. The usage is exact. */
  tokens = 0;
  /** `[DONE]` has arrived. */
  done = false;
  /** The error that the engine reported inside the stream: the JSON of its `error`. Must never be shown. */
  error: string | undefined;
  /** A parser of the engine's took some of the output for something else than content. */
  parsed = false;

  readonly #limitBytes: number;
  #bytes = 0;
  #isChat = false;
  // Raw JSON by key, of each level of the answer.
  readonly #answer = new Map<string, Buffer>();
  readonly #choice = new Map<string, Buffer>();
  readonly #message = new Map<string, Buffer>();
  readonly #usage = new Map<string, Buffer>();
  /** The contents of strings: `text`, or of a message `content` and others. */
  readonly #texts = new Map<string, Bytes>();
  readonly #tokenIds = new Bytes();
  /** The lists of `logprobs`, in the engine's order. */
  readonly #logprobs = new Map<string, Bytes>();
  /** A chunk that carries a text and nothing else: what stands around the text. Learned from the first one. */
  #plain: { readonly before: Buffer; readonly after: Buffer; readonly text: Bytes } | undefined;

  /** @param limitBytes Of all that is joined. */
  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  cleared(): void {
    this.tokens = 0;
  }

  /**
   * Takes the event that fills [start, end) of `buffer`.
   *
   * @throws SyntaxError if no engine sends such an event; RangeError if the answer is too large.
   */
  take(buffer: Buffer, start: number, end: number): void {
    if (this.done || this.error !== undefined) return;
    const plain = this.#plain;
    if (plain !== undefined) {
      const from = start + plain.before.length;
      const to = end - plain.after.length;
      // A text with an escaped quote goes the slow way, so that no other member can hide in it.
      if (
        from <= to &&
        plain.before.compare(buffer, start, from) === 0 &&
        plain.after.compare(buffer, to, end) === 0 &&
        buffer.indexOf(QUOTE, from) === to
      ) {
        this.chunkCount++;
        this.tokens++;
        return this.#append(plain.text, buffer, from, to);
      }
    }
    this.#takeSlowly(buffer.subarray(start, end));
  }

  /**
   * The whole answer, in the form in which the engine would have given it.
   *
   * @throws Error if the stream ended before it was complete.
   */
  whole(shape: AnswerShape): Buffer {
    if (!this.#choice.has("finish_reason")) throw new Error("the engine's stream ended without a finish reason");
    if (this.#usage.size === 0) throw new Error("the engine's stream ended without its usage");
    const choice = new Map(this.#choice);
    const message = new Map(this.#message);
    for (const [key, text] of this.#texts) (this.#isChat ? message : choice).set(key, text.within('"', '"'));
    // vLLM has no empty content beside reasoning.
    if (this.#isChat && this.parsed && this.#texts.get("content")?.length === 0) message.set("content", NULL);
    if (this.#tokenIds.used) choice.set("token_ids", this.#tokenIds.within("[", "]"));
    if (this.#logprobs.size > 0) choice.set("logprobs", this.#logprobsJson());
    return shape.join({ answer: this.#answer, choice, message, usage: this.#usage });
  }

  #takeSlowly(event: Buffer): void {
    const taken = readEvent(event);
    if (taken.kind === "done") this.done = true;
    else if (taken.kind === "error") this.error = taken.error;
    if (taken.kind !== "chunk") return;
    for (const { key, value } of given(taken.data, taken.members)) {
      if (key === "choices") this.#takeChoices(event, taken.data, value);
      else if (key === "usage") for (const part of given(value)) this.#keep(this.#usage, part);
      else if (key !== "object") this.#keep(this.#answer, { key, value });
    }
  }

  #takeChoices(event: Buffer, data: Buffer, choices: Buffer): void {
    const [first] = scanArray(choices, 0, choices.length);
    if (first === undefined) return;
    let text: Given | undefined;
    let others = 0;
    for (const part of given(choices.subarray(first.start, first.end))) {
      if (part.key === "index") continue;
      if (part.key === "text") text = part;
      else if (part.key === "delta") {
        this.#isChat = true;
        for (const piece of given(part.value)) {
          if (piece.key === "content") text = piece;
          else others += this.#takeOther(piece);
        }
      } else {
        others++;
        if (part.key === "logprobs") for (const list of given(part.value)) this.#takeList(this.#logprobs, list);
        else if (part.key === "token_ids") this.#appendInner(this.#tokenIds, part.value);
        else this.#keep(this.#choice, part);
      }
    }
    // Chat's role chunk is a sign of life but no token.
    if (this.chunkCount++ > 0 || !this.#isChat) this.tokens++;
    if (text === undefined) return;
    const bytes = this.#takeText(text);
    const at = event.indexOf(data) + text.value.byteOffset - data.byteOffset;
    if (others > 0 || this.#plain !== undefined || !event.subarray(at, at + text.value.length).equals(text.value))
      return;
    // Copies: the event's buffer is the whole read.
    const before = Buffer.from(event.subarray(0, at + 1));
    this.#plain = { before, after: Buffer.from(event.subarray(at + text.value.length - 1)), text: bytes };
  }

  /** Takes a member of `delta` that is not its content. */
  #takeOther(piece: Given): number {
    if (piece.key === "role") this.#keep(this.#message, piece);
    else {
      this.parsed = true;
      if (piece.value[0] === QUOTE) this.#takeText(piece);
    }
    return 1;
  }

  #takeText({ key, value }: Given): Bytes {
    if (value[0] !== QUOTE) throw new SyntaxError(`the chunk's ${key} is not a text`);
    const bytes = this.#texts.get(key) ?? new Bytes();
    this.#texts.set(key, bytes);
    this.#append(bytes, value, 1, value.length - 1);
    return bytes;
  }

  #takeList(lists: Map<string, Bytes>, { key, value }: Given): void {
    const list = lists.get(key) ?? new Bytes();
    lists.set(key, list);
    this.#appendInner(list, value);
  }

  /** Appends the elements of a JSON array to those of `list`. */
  #appendInner(list: Bytes, array: Buffer): void {
    if (array[0] !== BRACKET) throw new SyntaxError("a list of the chunk is not an array");
    const isEmpty = array.length === 2;
    if (!isEmpty && list.length > 0) this.#append(list, COMMA, 0, 1);
    this.#append(list, array, 1, array.length - 1);
  }

  #append(bytes: Bytes, from: Buffer, start: number, end: number): void {
    this.#bytes += end - start;
    if (this.#bytes > this.#limitBytes) throw new RangeError("the engine's answer is too large");
    bytes.append(from, start, end);
  }

  #keep(level: Map<string, Buffer>, { key, value }: Given): void {
    this.#bytes += level.has(key) ? 0 : value.length;
    if (this.#bytes > this.#limitBytes) throw new RangeError("the engine's answer is too large");
    level.set(key, Buffer.from(value));
  }

  #logprobsJson(): Buffer {
    const pieces: Buffer[] = [];
    for (const [key, list] of this.#logprobs) {
      pieces.push(Buffer.from(`${pieces.length === 0 ? "{" : ","}${JSON.stringify(key)}:`));
      pieces.push(key === "text_offset" ? this.#textOffsets() : list.within("[", "]"));
    }
    return Buffer.concat([...pieces, Buffer.from("}")]);
  }

  /** In a stream, vLLM 0.23 counts them from the start of a chunk's text, which may lag behind the tokens. */
  #textOffsets(): Buffer {
    const tokens = JSON.parse(this.#logprobs.get("tokens")?.within("[", "]").toString() ?? "[]") as string[];
    let at = 0;
    // Characters, as Python counts them.
    const offsets = tokens.map((token) => (at += [...token].length) - [...token].length);
    return Buffer.from(JSON.stringify(offsets));
  }
}

const [COMMA, NULL] = [",", "null"].map((text) => Buffer.from(text)) as [Buffer, Buffer];

interface Given {
  readonly key: string;
  readonly value: Buffer;
}

/** The members of an object that are not null. */
function given(json: Buffer, members: readonly Member[] = scanObject(json)): Given[] {
  const found: Given[] = [];
  for (const { key, valueStart, valueEnd } of members) {
    const value = json.subarray(valueStart, valueEnd);
    if (value.length !== 4 || value.toString("latin1") !== "null") found.push({ key, value });
  }
  return found;
}

/** Bytes that grow at their end. Copied, so that they keep no buffer of the network alive. */
class Bytes {
  #buffer = Buffer.alloc(0);
  length = 0;
  /** Something was appended, be it nothing. */
  used = false;

  append(from: Buffer, start: number, end: number): void {
    this.used = true;
    const length = this.length + end - start;
    if (length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(256, 2 * length));
      this.#buffer.copy(larger, 0, 0, this.length);
      this.#buffer = larger;
    }
    from.copy(this.#buffer, this.length, start, end);
    this.length = length;
  }

  within(open: string, close: string): Buffer {
    return Buffer.concat([Buffer.from(open), this.#buffer.subarray(0, this.length), Buffer.from(close)]);
  }
}

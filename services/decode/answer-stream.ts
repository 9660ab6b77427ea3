// The answer of one streaming leg, event by event: the hot path of a decode instance.
// An engine's chunks begin alike up to the choice's index: {"id":...,"object":...,"created":...,"model":...,"choices":
// [{"index":0. Those bytes are learnt from the first chunk; from then on a chunk that begins with them gets the public
// head instead and is otherwise passed on unparsed. Anything else goes the slow way, by splices.
import type { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { scanArray, scanObject, type Member } from "../common/json-body.ts";
import { finishReasonOf, rewriteAnswer, type AnswerUsage, type ResponseIdentity } from "./answer.ts";
import { readEvent } from "./stream-event.ts";

const LF = 10;
const PREFIX = Buffer.from("data: ");
const BLANK = Buffer.from("\n\n");
/**
 * What makes a chunk worth a closer look. Quotes inside a string are escaped, so text can't match the quoted ones. One
 * pattern on a Latin-1 copy costs 0.23 us; three searches in the Buffer 0.83 (Node 20, 200 bytes).
 */
const SPECIAL = /"finish_reason":"|_transfer_params|"usage":\{/;
const FINISH = '"finish_reason":"';

export interface AnswerStreamOptions {
  readonly identity: ResponseIdentity;
  /** Whether the client asked for the usage chunk. The engine is always asked. */
  readonly wantsUsage: boolean;
  /** Chat streams begin with a chunk that carries the role and no token. */
  readonly startsWithRole: boolean;
}

export class AnswerStream {
  /** The bytes that go out next. The caller that takes them calls `cleared`. */
  readonly parts: Buffer[] = [];
  bytes = 0;
  /** Chunks with a choice, in `parts`: an estimate, since a chunk may hold several tokens. The usage is exact. */
  tokens = 0;
  /** Chunks with a choice, of the whole stream. */
  chunkCount = 0;
  finishReason: FinishReason | undefined;
  usage: AnswerUsage | undefined;
  /** `[DONE]` has arrived. */
  done = false;
  /** The error that the engine reported inside the stream: the JSON of its `error`. Must never be shown. */
  error: string | undefined;

  readonly #o: AnswerStreamOptions;
  #engineHead: Buffer | undefined;
  #publicHead: Buffer = BLANK;

  constructor(o: AnswerStreamOptions) {
    this.#o = o;
  }

  /** Takes the event that fills [start, end) of `buffer`. @throws SyntaxError if no engine sends such an event. */
  take(buffer: Buffer, start: number, end: number): void {
    if (this.done || this.error !== undefined) return;
    const head = this.#engineHead;
    if (head !== undefined) {
      const from = start + head.length;
      if (from < end && head.compare(buffer, start, from) === 0) {
        // With its blank line, where that is the plain one.
        const plain = buffer[end] === LF && buffer[end + 1] === LF;
        const tail = buffer.subarray(from, plain ? end + 2 : end);
        const text = tail.toString("latin1");
        if (!SPECIAL.test(text) || this.#takesFinish(text)) {
          this.#count();
          this.parts.push(this.#publicHead, tail);
          this.bytes += this.#publicHead.length + tail.length;
          if (!plain) this.#push(BLANK);
          return;
        }
      }
    }
    this.#takeSlowly(buffer.subarray(start, end));
  }

  cleared(): void {
    this.parts.length = 0;
    this.bytes = 0;
    this.tokens = 0;
  }

  #push(part: Buffer): void {
    this.parts.push(part);
    this.bytes += part.length;
  }

  #count(): void {
    // The role chunk is a sign of life but no token.
    if (this.chunkCount > 0 || !this.#o.startsWithRole) this.tokens++;
    this.chunkCount++;
  }

  /** Reads the finish reason of a chunk that is special for nothing else. False: it needs the slow way. */
  #takesFinish(text: string): boolean {
    if (text.includes("_transfer_params") || text.includes('"usage":{')) return false;
    const start = text.indexOf(FINISH) + FINISH.length;
    this.finishReason = finishReasonOf(text.slice(start, text.indexOf('"', start)));
    return true;
  }

  #takeSlowly(event: Buffer): void {
    const taken = readEvent(event);
    if (taken.kind === "done") this.done = true;
    else if (taken.kind === "error") this.error = taken.error;
    if (taken.kind !== "chunk") return;
    const { data, members } = taken;
    const read = rewriteAnswer(data, members, this.#o.identity, this.#o.wantsUsage);
    if (read.usage !== undefined) this.usage = read.usage;
    // The usage chunk has no choice. One that the client didn't ask for ends here.
    if (read.choiceCount === 0 && !this.#o.wantsUsage) return;
    if (read.choiceCount > 0) {
      if (this.#engineHead === undefined) this.#learn(event, data, members, read.json);
      if (read.finishReason !== undefined) this.finishReason = finishReasonOf(read.finishReason);
      this.#count();
    }
    this.#push(PREFIX);
    this.#push(read.json);
    this.#push(BLANK);
  }

  #learn(event: Buffer, data: Buffer, members: readonly Member[], rewritten: Buffer): void {
    if (event.length !== PREFIX.length + data.length || !event.subarray(0, PREFIX.length).equals(PREFIX)) return;
    const head = headOf(data, members);
    if (head === undefined) return;
    // Copies: the event's buffer is the whole read.
    this.#engineHead = Buffer.concat([PREFIX, head]);
    this.#publicHead = Buffer.concat([PREFIX, headOf(rewritten, scanObject(rewritten))!]);
  }
}

/**
 * A chunk's head up to and with the byte behind the choice's index, so that index 1 doesn't match 10. Undefined if
 * something that is rewritten or changes from chunk to chunk comes in another place.
 */
function headOf(json: Buffer, members: readonly Member[]): Buffer | undefined {
  const choices = members.findIndex(({ key }) => key === "choices");
  const before = members.slice(0, choices).map(({ key }) => key);
  if (!before.includes("id") || !before.includes("created")) return undefined;
  const { valueStart, valueEnd } = members[choices]!;
  const first = scanArray(json, valueStart, valueEnd)[0]!;
  const index = scanObject(json.subarray(first.start, first.end))[0];
  return index?.key === "index" ? json.subarray(0, first.start + index.valueEnd + 1) : undefined;
}

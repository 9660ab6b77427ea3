// The engine's side of a started leg: the request to the engine, and its answer turned into messages for the caller.
// Ends exactly once, unless it is aborted.
import type { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import type { Clock } from "../common/clock.ts";
import { scanObject } from "../common/json-body.ts";
import { ServiceError } from "../common/errors.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { engineFailure, refusalOf } from "../engine/engine-error.ts";
import { neverReached, type EngineCall } from "../engine/http.ts";
import { EventSplitter } from "../engine/sse.ts";
import type { InstanceParts } from "../instance/instance.ts";
import type { EngineRequest, LegSpec } from "../kv/connector.ts";
import { asksForStream, asksForUsage } from "../kv/leg-body.ts";
import type { AnswerShape } from "./answer-shape.ts";
import { AnswerStream } from "./answer-stream.ts";
import { finishReasonOf, rewriteAnswer, type AnswerUsage, type ReadAnswer, type ResponseIdentity } from "./answer.ts";
import { JoinedAnswer } from "./joined-answer.ts";
import { encodePiece, encodeResponse } from "./wire.ts";

/** The largest event that an engine may send, and the largest body. */
const EVENT_LIMIT_BYTES = 16 * 1024 * 1024;
const ANSWER_LIMIT_BYTES = 64 * 1024 * 1024;
/** A message is full at this size. gRPC counts messages, not bytes, before it holds a writer back. */
const PIECE_BYTES = 64 * 1024;
/** Between two reports of the tokens of an answer that is joined. */
const REPORT_EVERY_MS = 500;

export interface AnswerRunOptions {
  readonly parts: InstanceParts;
  readonly engine: LiveEngine;
  readonly spec: LegSpec;
  readonly request: EngineRequest;
  readonly identity: ResponseIdentity;
  /** The form of the answer that is joined from the engine's stream. Undefined: the answer goes out as it comes. */
  readonly shape: AnswerShape | undefined;
  /** Called with a whole answer of the engine, which was not streamed. */
  gotWhole(answer: Buffer): void;
  /** Called when a joined answer should not have been streamed. */
  notJoinable(because: string): void;
  /** Takes a DecodeResponse, encoded. False: nothing more until `resume`. */
  write(message: Buffer): boolean;
  /**
   * The engine has taken the KV, and an abort frees it: its first chunk or its whole answer is here. Called once at most;
   * may abort the run.
   */
  tookKv(): void;
  /** Undefined: the whole answer was written, its end with it. */
  ended(error: ServiceError | undefined): void;
}

export class AnswerRun {
  readonly #o: AnswerRunOptions;
  /** Undefined: the engine doesn't stream. */
  readonly #stream: AnswerStream | JoinedAnswer | undefined;
  readonly #splitter: EventSplitter | undefined;
  readonly #call: EngineCall;
  readonly #clock: Clock;
  readonly #startedMs: number;
  #firstTokenMs = 0;
  #lastTokenMs = 0;
  /** Of a joined answer: when its tokens were last reported, and how many. */
  #reportedMs = -Infinity;
  #reportedTokens = 0;
  #status = 0;
  /** The bytes of a plain body, or of an error. */
  readonly #chunks: Buffer[] = [];
  #chunkBytes = 0;
  /** A message went out in this turn of the event loop. */
  #wroteThisTurn = false;
  /** The caller is gone. */
  #discarding = false;
  #over = false;

  constructor(o: AnswerRunOptions) {
    this.#o = o;
    const { body, members, path } = o.spec;
    this.#clock = o.parts.clock;
    this.#startedMs = this.#clock.nowMs();
    if (o.shape !== undefined || asksForStream(body, members)) {
      const stream =
        o.shape === undefined
          ? new AnswerStream({
              identity: o.identity,
              wantsUsage: asksForUsage(body, members),
              startsWithRole: path === "/v1/chat/completions",
            })
          : new JoinedAnswer(ANSWER_LIMIT_BYTES);
      this.#stream = stream;
      this.#splitter = new EventSplitter((buffer, from, to) => stream.take(buffer, from, to), EVENT_LIMIT_BYTES);
    }
    this.#call = o.engine.http.open(
      { method: "POST", ...o.request, repeatable: !o.parts.connector.traits.pairedId },
      {
        onHead: (status) => void (this.#status = status),
        onData: (chunk) =>
          this.#stream !== undefined && this.#status === 200
            ? this.#onEvents(this.#stream, chunk)
            : this.#onBody(chunk),
        onEnd: (error) => this.#onEnd(error),
      },
    );
  }

  /** The engine's tokens are seen as they come. */
  get streams(): boolean {
    return this.#stream !== undefined;
  }

  /** When the engine last sent a chunk, or got the request. */
  get heardMs(): number {
    return this.#lastTokenMs || this.#startedMs;
  }

  /** The engine answered a request for a stream with an error instead of one. */
  get refused(): boolean {
    return this.#stream !== undefined && this.#status !== 0 && this.#status !== 200;
  }

  resume(): void {
    this.#call.resume();
  }

  /** `ended` is not called any more. */
  abort(): void {
    this.#over = true;
    this.#call.abort();
  }

  /** The caller is gone, but the engine must not be stopped yet: reads on, and writes nothing. */
  discard(): void {
    this.#discarding = true;
    this.#call.resume();
  }

  #onEvents(stream: AnswerStream | JoinedAnswer, chunk: Buffer): void {
    const before = stream.chunkCount;
    let broken: unknown;
    try {
      this.#splitter!.push(chunk);
    } catch (error) {
      broken = error;
    }
    if (stream.chunkCount !== before) {
      this.#lastTokenMs = this.#clock.nowMs();
      if (before === 0) {
        this.#firstTokenMs = this.#lastTokenMs;
        this.#o.tookKv();
        if (this.#over) return;
      }
    }
    if (broken !== undefined) return this.#fail(broken);
    if (stream.error !== undefined) return this.#fail(reportedError(stream, this.#internal));
    if (this.#discarding) return stream.done ? this.#finish(undefined) : undefined;
    if (stream instanceof JoinedAnswer) return stream.done ? this.#completeJoined(stream) : this.#report(stream);
    if (stream.done) return this.#completeStream(stream);
    if (stream.parts.length === 0 || (this.#wroteThisTurn && stream.bytes < PIECE_BYTES)) return;
    if (this.#wroteThisTurn) return this.#flush(stream);
    // The first piece of a turn goes out at once; the rest goes out together when the turn is over. Never a timer.
    this.#wroteThisTurn = true;
    this.#flush(stream);
    setImmediate(() => {
      this.#wroteThisTurn = false;
      if (!this.#over && !this.#discarding && stream.parts.length > 0) this.#flush(stream);
    });
  }

  #flush(stream: AnswerStream): void {
    const roomy = this.#o.write(encodePiece(stream.parts, stream.bytes, stream.tokens));
    stream.cleared();
    if (!roomy) this.#call.pause();
  }

  /** Tells the caller that the answer goes on. */
  #report(answer: JoinedAnswer): void {
    if (answer.tokens === 0 || this.#lastTokenMs - this.#reportedMs < REPORT_EVERY_MS) return;
    this.#reportedMs = this.#lastTokenMs;
    this.#reportedTokens += answer.tokens;
    this.#o.write(encodePiece([], 0, answer.tokens));
    answer.cleared();
  }

  #completeJoined(answer: JoinedAnswer): void {
    if (answer.parsed) this.#o.notJoinable("a parser took some of the output for something else than content");
    let whole: Buffer;
    try {
      whole = answer.whole(this.#o.shape!);
    } catch (error) {
      return this.#fail(error);
    }
    this.#completeBody(whole);
  }

  #completeStream({ finishReason, usage, chunkCount, parts, bytes, tokens }: AnswerStream): void {
    if (finishReason === undefined) return this.#fail(new Error("the engine's stream ended without a finish reason"));
    const counted = usage ?? { promptTokens: 0, completionTokens: chunkCount };
    this.#complete(parts, bytes, tokens, finishReason, counted);
  }

  #onBody(chunk: Buffer): void {
    this.#chunkBytes += chunk.length;
    if (this.#chunkBytes <= ANSWER_LIMIT_BYTES) this.#chunks.push(chunk);
    else this.#fail(new RangeError("the engine's answer is too large"));
  }

  #onEnd(error: Error | undefined): void {
    if (this.#over) return;
    if (error instanceof ServiceError) return this.#fail(error);
    if (error !== undefined) {
      if (!neverReached(error)) return this.#fail(error);
      this.#suspect();
      return this.#fail(new ServiceError("instance_lost", "The instance's engine is gone.", { cause: error }));
    }
    if (this.#status !== 200) {
      const refusal = refusalOf(this.#status, Buffer.concat(this.#chunks), { leg: "decode", internal: this.#internal });
      if (refusal.code !== "engine_failed") return this.#fail(refusal);
      const { engineAnswer: answer } = refusal;
      return this.#fail(engineFailure("decode", refusal.cause as Error, { beforeFirstToken: true, answer }));
    }
    if (this.#splitter === undefined) {
      this.#firstTokenMs = this.#lastTokenMs = this.#clock.nowMs();
      const whole = Buffer.concat(this.#chunks);
      this.#o.tookKv();
      if (this.#over) return;
      this.#o.gotWhole(whole);
      return this.#completeBody(whole);
    }
    // An orderly stream was ended by its [DONE].
    const cut = this.#splitter.pendingBytes > 0 ? "in the middle of an event" : "without [DONE]";
    this.#fail(new Error(`the engine's stream ended ${cut}`));
  }

  #completeBody(body: Buffer): void {
    let answer: ReadAnswer;
    try {
      answer = rewriteAnswer(body, scanObject(body), this.#o.identity, true);
    } catch (error) {
      return this.#fail(error);
    }
    const { json, finishReason, usage = { promptTokens: 0, completionTokens: 0 } } = answer;
    if (finishReason === undefined)
      return this.#fail(new SyntaxError("the engine's answer has no choice with a finish reason"));
    const tokens = Math.max(0, usage.completionTokens - this.#reportedTokens);
    this.#complete([json], json.length, tokens, finishReasonOf(finishReason), usage);
  }

  /** Writes the last message. */
  #complete(parts: readonly Buffer[], bytes: number, tokens: number, reason: FinishReason, usage: AnswerUsage): void {
    const { cachedTokens } = this.#o.identity;
    const end = {
      finishReason: reason,
      ...usage,
      ...(cachedTokens === undefined ? {} : { cachedTokens }),
      firstTokenMs: Math.max(0, this.#firstTokenMs - this.#startedMs),
      generationMs: Math.max(0, this.#lastTokenMs - this.#firstTokenMs),
    };
    this.#o.write(encodePiece(parts, bytes, tokens, encodeResponse({ end })));
    this.#finish(undefined);
  }

  /** What no error may show. */
  get #internal(): readonly string[] {
    const { legId, prefillKvAddress, decodeKvAddress } = this.#o.spec;
    return [legId, prefillKvAddress, decodeKvAddress];
  }

  /** The engine failed in a way that a dead one would explain. */
  #suspect(): void {
    this.#o.parts.supervisor.suspect(this.#o.engine);
  }

  /** @param error The engine's failure unless it is a ServiceError. */
  #fail(error: unknown): void {
    this.#call.abort();
    const failure = error instanceof ServiceError ? error : engineFailure("decode", error as Error);
    // vLLM's API server outlives its engine core by seconds, and says in a stream of status 200 that it is dead.
    if (failure.code === "engine_failed") this.#suspect();
    this.#finish(failure);
  }

  #finish(error: ServiceError | undefined): void {
    if (this.#over) return;
    this.#over = true;
    this.#o.ended(error);
  }
}

/** An error event inside a 200 stream. A 4xx in it is about the request; it comes before any token. */
function reportedError(stream: AnswerStream | JoinedAnswer, internal: readonly string[]): ServiceError {
  const fresh = stream.chunkCount === 0;
  let status = 500;
  try {
    const { code } = JSON.parse(stream.error!) as { code?: unknown };
    if (typeof code === "number") status = code;
  } catch {
    // Cut off at its limit, or not an object: an engine failure either way.
  }
  const reported = refusalOf(status, Buffer.from(`{"error":${stream.error!}}`), { leg: "decode", internal });
  if (fresh && status >= 400 && status < 500) return reported;
  const cause = new Error(`the engine reported in its stream: ${stream.error!}`);
  return engineFailure("decode", cause, {
    beforeFirstToken: fresh,
    answer: status >= 500 ? reported.engineAnswer : undefined,
  });
}

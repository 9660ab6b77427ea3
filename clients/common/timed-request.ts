// One request as a client sees it: what arrived and when, how the request ended, and whether anything arrived after
// that. Uses node:http and times at the socket: fetch and async iterators would cost more than the measured work, 25 µs
// per event instead of 10.
import { request as httpRequest, type Agent, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { createStreamReader } from "../../services/common/openai-stream.ts";

export type AnswerEnding =
  /** A complete answer: `[DONE]`, or a body of its full length. */
  | "completed"
  /** A typed error, reported by the status or by an event inside the stream. */
  | "error"
  /** The connection broke. */
  | "cut"
  /** A stream ended cleanly without `[DONE]`, or continued after its end. */
  | "malformed"
  /** This client left, as planned. */
  | "left"
  /** The request did not end within the client's limit. */
  | "hung";

export type TimedAnswer = ReturnType<typeof newAnswer>;

/** Times are by performance.now(). */
function newAnswer(stream: boolean, slow: boolean) {
  return {
    stream,
    /** `x-request-id` of the answer. Empty if there was no answer. */
    id: "",
    sentMs: performance.now(),
    firstMs: undefined as number | undefined,
    /** Last piece of the answer; an error doesn't count. */
    lastMs: undefined as number | undefined,
    endMs: 0,
    ending: "hung" as AnswerEnding,
    status: 0,
    /** The error message of the server or the socket. */
    message: "",
    text: "",
    /** Events that carried text; 1 for a non-streaming answer. */
    chunks: 0,
    /** Completion tokens by the answer's usage; NaN if it has none. */
    tokens: Number.NaN,
    finishReason: "",
    /** Milliseconds between events with text. */
    gapsMs: [] as number[],
    /** Whether this client paused reading the stream. */
    slow,
  };
}

export interface Ask {
  readonly path: string;
  readonly body: string;
  readonly stream: boolean;
}

export interface Target {
  /** Such as `http://127.0.0.1:3000`. */
  readonly url: string;
  /** Left out: Node's own. */
  readonly agent?: Agent;
  readonly apiKey?: string;
}

export interface SendOptions extends Target {
  /** A request without an end after this long is hung. Left out: no limit. */
  readonly hangMs?: number;
  /** The client leaves after this long. */
  readonly leaveMs?: number;
  /** The client pauses reading for this long after the first bytes. */
  readonly holdMs?: number;
}

/** Never rejects: a failed request is a result too. */
export function timedRequest(ask: Ask, o: SendOptions): Promise<TimedAnswer> {
  const record = newAnswer(ask.stream, o.holdMs !== undefined);
  return new Promise((resolve) => {
    let ended = false;
    const end: End = (ending, message = "") => {
      if (ended) return;
      ended = true;
      clearTimeout(hang);
      clearTimeout(leave);
      record.endMs = performance.now();
      record.ending = ending;
      record.message = message.slice(0, 500);
      resolve(record);
    };
    const begin = o.url.startsWith("https:") ? httpsRequest : httpRequest;
    const call = begin(new URL(ask.path, o.url), {
      method: "POST",
      agent: o.agent,
      headers: {
        "content-type": "application/json",
        "content-length": Buffer.byteLength(ask.body),
        ...(o.apiKey === undefined ? {} : { authorization: `Bearer ${o.apiKey}` }),
      },
    });
    const endAfter = (ms: number | undefined, ending: AnswerEnding, message?: string): NodeJS.Timeout | undefined =>
      ms === undefined
        ? undefined
        : setTimeout(() => {
            end(ending, message);
            call.destroy();
          }, ms);
    const hang = endAfter(o.hangMs, "hung", `no end within ${o.hangMs} ms`);
    const leave = endAfter(o.leaveMs, "left");
    call.on("error", (error) => end("cut", error.message));
    call.on("response", (response) => {
      record.status = response.statusCode ?? 0;
      record.id = String(response.headers["x-request-id"] ?? "");
      response.setEncoding("utf8").on("error", (error) => end("cut", error.message));
      if (o.holdMs !== undefined) {
        response.once("data", () => {
          response.pause();
          setTimeout(() => response.resume(), o.holdMs);
        });
      }
      if (record.status === 200 && ask.stream) readStream(response, record, end);
      else readBody(response, record, end);
    });
    call.end(ask.body);
  });
}

type End = (ending: AnswerEnding, message?: string) => void;

function readBody(response: IncomingMessage, record: TimedAnswer, end: End): void {
  let text = "";
  response.on("data", (piece: string) => (text += piece));
  response.on("close", () => {
    if (!response.complete) return end("cut", "the body stopped short");
    try {
      const body = JSON.parse(text) as Body;
      if (record.status !== 200)
        return end(body.error === undefined ? "malformed" : "error", body.error?.message ?? text);
      const choice = body.choices![0]!;
      record.firstMs = record.lastMs = performance.now();
      record.text = choice.text ?? choice.message?.content ?? "";
      record.finishReason = choice.finish_reason ?? "";
      record.chunks = 1;
      record.tokens = body.usage?.completion_tokens ?? Number.NaN;
      end("completed");
    } catch {
      end("malformed", text);
    }
  });
}

interface Body {
  readonly choices?: readonly {
    readonly text?: string;
    readonly message?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
  }[];
  readonly usage?: { readonly completion_tokens?: number } | null;
  readonly error?: { readonly message?: string };
}

function readStream(response: IncomingMessage, record: TimedAnswer, end: End): void {
  let error: string | undefined;
  let done = false;
  let fault: string | undefined;
  let nowMs = 0;
  const read = createStreamReader({
    onDone() {
      if (done) fault ??= "[DONE] arrived twice";
      done = true;
    },
    onPart(part) {
      if (done) fault ??= `an event arrived after [DONE]: ${JSON.stringify(part)}`;
      if (error !== undefined) fault ??= `an event arrived after the error: ${JSON.stringify(part)}`;
      error ??= part.error;
      if (part.usage !== undefined) record.tokens = part.usage.completionTokens;
      if (part.finishReason !== undefined) record.finishReason = part.finishReason;
      if (part.text === "") return;
      if (record.lastMs !== undefined) record.gapsMs.push(nowMs - record.lastMs);
      record.chunks++;
      record.firstMs ??= nowMs;
      record.lastMs = nowMs;
      record.text += part.text;
    },
  });

  response.on("data", (piece: string) => {
    nowMs = performance.now();
    if (done) fault ??= `data arrived after [DONE]: ${piece}`;
    try {
      read(piece);
    } catch {
      fault ??= `an event that is not JSON: ${piece}`;
    }
  });
  response.on("close", () => {
    if (fault !== undefined) end("malformed", fault);
    else if (done) end(error === undefined ? "completed" : "error", error);
    else if (!response.complete) end("cut", "the stream stopped short");
    else end("malformed", "the stream ended without [DONE]");
  });
}

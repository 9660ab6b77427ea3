// One request as a client sees it, with everything about its end: what came, when, and whether anything came after it.
import { request as httpRequest, type Agent, type IncomingMessage } from "node:http";

export type Ending =
  /** A whole answer: `[DONE]`, or a body of its whole length. */
  | "completed"
  /** A typed error, by its status or by an event inside the stream. */
  | "error"
  /** The connection broke. */
  | "cut"
  /** A stream ended in good order without `[DONE]`, or went on after its end. */
  | "malformed"
  /** This client left, as it meant to. */
  | "left"
  /** Nothing came to an end within the client's limit. */
  | "hung";

export interface RequestRecord {
  readonly number: number;
  readonly router: string;
  /** Which of the asked bodies it was. */
  readonly ask: number;
  readonly stream: boolean;
  /** `x-request-id` of the answer. Empty where none came. */
  id: string;
  /** By performance.now(), as all of these. */
  readonly sentMs: number;
  firstMs: number | undefined;
  /** Last piece of the answer; an error is none. */
  lastMs: number | undefined;
  endMs: number;
  ending: Ending;
  status: number;
  /** What was wrong, in the server's words or the socket's. */
  message: string;
  text: string;
  tokens: number;
  finishReason: string;
  /** Milliseconds between events with text. */
  readonly gapsMs: number[];
  /** This client held the stream back for a while. */
  slow: boolean;
}

export interface Ask {
  readonly path: string;
  readonly body: string;
  readonly stream: boolean;
}

export interface SendOptions {
  readonly url: string;
  readonly agent: Agent;
  readonly hangMs: number;
  /** Leaves after so long. */
  readonly leaveMs?: number;
  /** Reads nothing for so long, after the first bytes. */
  readonly holdMs?: number;
}

/** Never rejects. */
export function send(
  ask: Ask,
  head: Pick<RequestRecord, "number" | "router" | "ask">,
  o: SendOptions,
): Promise<RequestRecord> {
  const record: RequestRecord = {
    ...head,
    stream: ask.stream,
    id: "",
    sentMs: performance.now(),
    firstMs: undefined,
    lastMs: undefined,
    endMs: 0,
    ending: "hung",
    status: 0,
    message: "",
    text: "",
    tokens: -1,
    finishReason: "",
    gapsMs: [],
    slow: o.holdMs !== undefined,
  };
  return new Promise((resolve) => {
    let ended = false;
    const end = (ending: Ending, message = ""): void => {
      if (ended) return;
      ended = true;
      clearTimeout(hang);
      clearTimeout(leave);
      record.endMs = performance.now();
      record.ending = ending;
      record.message = message.slice(0, 500);
      resolve(record);
    };
    const call = httpRequest(new URL(ask.path, o.url), {
      method: "POST",
      agent: o.agent,
      headers: { "content-type": "application/json", "content-length": Buffer.byteLength(ask.body) },
    });
    const hang = setTimeout(() => {
      end("hung", `no end within ${o.hangMs} ms`);
      call.destroy();
    }, o.hangMs);
    const leave =
      o.leaveMs === undefined
        ? undefined
        : setTimeout(() => {
            end("left");
            call.destroy();
          }, o.leaveMs);
    call.on("error", (error) => end("cut", error.message));
    call.on("response", (response) => {
      record.status = response.statusCode ?? 0;
      record.id = String(response.headers["x-request-id"] ?? "");
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

function readBody(
  response: IncomingMessage,
  record: RequestRecord,
  end: (ending: Ending, message?: string) => void,
): void {
  let text = "";
  response.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  response.on("error", (error) => end("cut", error.message));
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
      record.tokens = body.usage?.completion_tokens ?? -1;
      end("completed");
    } catch {
      end("malformed", text);
    }
  });
}

interface Body {
  readonly choices?: readonly {
    readonly text?: string;
    readonly delta?: { readonly content?: string | null };
    readonly message?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
  }[];
  readonly usage?: { readonly completion_tokens?: number } | null;
  readonly error?: { readonly message?: string };
}

function readStream(
  response: IncomingMessage,
  record: RequestRecord,
  end: (ending: Ending, message?: string) => void,
): void {
  let rest = "";
  let error: string | undefined;
  let done = false;
  let fault: string | undefined;

  function take(event: string, nowMs: number): void {
    if (done) fault ??= `an event came after [DONE]: ${event}`;
    if (!event.startsWith("data: ")) return;
    const data = event.slice(6);
    if (data === "[DONE]") {
      done = true;
      return;
    }
    if (error !== undefined) fault ??= `an event came after the error: ${event}`;
    const body = JSON.parse(data) as Body;
    if (body.error !== undefined) error = body.error.message ?? "an error event";
    if (body.usage?.completion_tokens !== undefined) record.tokens = body.usage.completion_tokens;
    const choice = body.choices?.[0];
    if (choice?.finish_reason != null) record.finishReason = choice.finish_reason;
    const text = choice?.text ?? choice?.delta?.content ?? "";
    if (text === "") return;
    if (record.lastMs !== undefined && record.gapsMs.length < 4_096) record.gapsMs.push(nowMs - record.lastMs);
    record.firstMs ??= nowMs;
    record.lastMs = nowMs;
    record.text += text;
  }

  response.setEncoding("utf8").on("data", (piece: string) => {
    const nowMs = performance.now();
    const events = (rest + piece).split("\n\n");
    rest = events.pop()!;
    try {
      for (const event of events) take(event, nowMs);
    } catch {
      fault ??= `an event that is no JSON: ${piece}`;
    }
  });
  response.on("error", (thrown) => end("cut", thrown.message));
  response.on("close", () => {
    if (fault !== undefined) end("malformed", fault);
    else if (done) end(error === undefined ? "completed" : "error", error);
    else if (!response.complete) end("cut", "the stream stopped short");
    else end("malformed", "the stream ended without [DONE]");
  });
}

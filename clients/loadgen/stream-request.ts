// One streamed completion over node:http, timed at the socket. fetch and async iterators would cost more than what is
// measured: 25 µs an event against 10.
import { request as httpRequest, type Agent } from "node:http";
import { timePerOutputToken, type Timed } from "./statistics.ts";

export interface Target {
  /** Such as `http://127.0.0.1:3000`. */
  readonly url: string;
  readonly agent: Agent;
  readonly apiKey?: string;
}

/** One request and what came of it. */
export interface StreamResult extends Timed {
  readonly text: string;
  /** SSE events that carried text. */
  readonly chunks: number;
  /** From the answer's usage; NaN where it had none. */
  readonly completionTokens: number;
  /** Milliseconds between two events that carried text. */
  readonly gapsMs: readonly number[];
  readonly endToEndMs: number;
  /** Why it did not complete. */
  readonly error: string | undefined;
}

interface Progress {
  readonly sentMs: number;
  firstMs: number;
  lastMs: number;
  text: string;
  chunks: number;
  completionTokens: number;
  readonly gapsMs: number[];
  done: boolean;
  error: string | undefined;
}

/** Never rejects: a request that failed is a result too. */
export function streamRequest(target: Target, path: string, body: string): Promise<StreamResult> {
  return new Promise((resolve) => {
    const progress: Progress = {
      sentMs: performance.now(),
      firstMs: Number.NaN,
      lastMs: Number.NaN,
      text: "",
      chunks: 0,
      completionTokens: Number.NaN,
      gapsMs: [],
      done: false,
      error: undefined,
    };
    const finish = (error?: string): void => {
      progress.error ??= error;
      resolve(resultOf(progress));
    };
    const call = httpRequest(
      new URL(path, target.url),
      {
        method: "POST",
        agent: target.agent,
        headers: {
          "content-type": "application/json",
          "content-length": Buffer.byteLength(body),
          ...(target.apiKey === undefined ? {} : { authorization: `Bearer ${target.apiKey}` }),
        },
      },
      (response) => {
        response.setEncoding("utf8");
        let rest = "";
        if (response.statusCode === 200) {
          response.on("data", (piece: string) => {
            try {
              rest = takeEvents(rest + piece, progress);
            } catch (error) {
              response.destroy(new Error(`not an event stream: ${String(error)}`));
            }
          });
        } else {
          response.on("data", (piece: string) => {
            rest += piece;
          });
        }
        response.on("error", (error) => finish(error.message));
        response.on("close", () => {
          if (response.statusCode !== 200) finish(`status ${response.statusCode}: ${rest.slice(0, 300)}`);
          else finish(progress.done ? undefined : "the stream ended without [DONE]");
        });
      },
    );
    call.on("error", (error) => finish(error.message));
    call.end(body);
  });
}

/** Reads whole SSE events and returns what is left of the last one. */
function takeEvents(text: string, progress: Progress): string {
  const nowMs = performance.now();
  let from = 0;
  for (;;) {
    const to = text.indexOf("\n\n", from);
    if (to === -1) return text.slice(from);
    takeEvent(text.slice(from, to), nowMs, progress);
    from = to + 2;
  }
}

interface Chunk {
  readonly choices?: readonly { readonly text?: string; readonly delta?: { readonly content?: string | null } }[];
  readonly usage?: { readonly completion_tokens?: number } | null;
  readonly error?: { readonly message?: string };
}

function takeEvent(event: string, nowMs: number, progress: Progress): void {
  if (!event.startsWith("data: ")) return;
  const data = event.slice(6);
  if (data === "[DONE]") {
    progress.done = true;
    return;
  }
  const chunk = JSON.parse(data) as Chunk;
  if (chunk.error !== undefined) progress.error ??= chunk.error.message ?? "an error event";
  if (chunk.usage?.completion_tokens !== undefined) progress.completionTokens = chunk.usage.completion_tokens;
  const choice = chunk.choices?.[0];
  const text = choice?.text ?? choice?.delta?.content ?? "";
  if (text === "") return;
  if (progress.chunks === 0) progress.firstMs = nowMs;
  else progress.gapsMs.push(nowMs - progress.lastMs);
  progress.lastMs = nowMs;
  progress.chunks++;
  progress.text += text;
}

function resultOf(progress: Progress): StreamResult {
  const ttftMs = progress.firstMs - progress.sentMs;
  const endToEndMs = progress.lastMs - progress.sentMs;
  const tokens = Number.isNaN(progress.completionTokens) ? progress.chunks : progress.completionTokens;
  return {
    completed: progress.error === undefined,
    ttftMs,
    tpotMs: timePerOutputToken(endToEndMs, ttftMs, tokens),
    text: progress.text,
    chunks: progress.chunks,
    completionTokens: progress.completionTokens,
    gapsMs: progress.gapsMs,
    endToEndMs,
    error: progress.error,
  };
}

// The one place that turns a failure into an HTTP answer: status, headers and OpenAI's error body.
import type { IncomingMessage, ServerResponse } from "node:http";
import { systemClock } from "../../common/clock.ts";
import { asServiceError, type ServiceError } from "../../common/errors.ts";
import { ANSWER_HEADERS } from "../serving/headers.ts";

/** How long what a refused client still sends is read and dropped. */
const LINGER_MS = 5_000;
/** Enough for a client that only looks at the answer when it has sent everything. */
const LINGER_BYTES = 256 * 1024 * 1024;

/**
 * Writes a whole error answer. Returns its status.
 *
 * @param error Anything: what was not thrown on purpose becomes a 500 that says nothing.
 */
export function writeError(res: ServerResponse, error: unknown, headers: Record<string, string> = {}): number {
  const answer = errorAnswer(error);
  if (!res.headersSent && !res.destroyed) {
    res.writeHead(answer.status, { ...headers, ...answer.headers, "content-length": Buffer.byteLength(answer.body) });
    res.end(answer.body);
  }
  return answer.status;
}

/**
 * Answers a client that is still sending. A socket that is closed with unread bytes in it resets the connection, and a
 * reset makes the client's kernel drop the answer it has not read yet. So: the whole answer first, then what still
 * comes is read and thrown away for a while, and only then the connection is closed (nginx: lingering_close).
 */
export function refuseUnread(req: IncomingMessage, res: ServerResponse, error: unknown): void {
  const { status, headers, body } = errorAnswer(error);
  res.writeHead(status, { ...headers, "content-length": Buffer.byteLength(body), connection: "close" });
  // Not `end`: that would close the socket right behind the answer.
  res.write(body);
  let bytes = 0;
  const close = (): void => {
    timer.cancel();
    res.end();
  };
  const timer = systemClock.setTimer(LINGER_MS, () => req.socket.destroy());
  req.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > LINGER_BYTES) req.socket.destroy();
  });
  req.once("end", close).once("close", close).once("error", close);
  req.resume();
}

/** The last event but `[DONE]` of a stream that failed after it began, in the form that vLLM gives it. */
export function errorEvent(error: unknown): string {
  return `data: ${errorAnswer(error).body}\n\n`;
}

/** `body` is `{"error":{...}}` in one line. */
function errorAnswer(thrown: unknown): { status: number; headers: Record<string, string>; body: string } {
  const error = asServiceError(thrown);
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (error.retryAfterS !== undefined)
    headers[ANSWER_HEADERS.retryAfter.name] = String(Math.max(1, Math.ceil(error.retryAfterS)));
  if (error.code === "unauthenticated") headers[ANSWER_HEADERS.authenticate.name] = "Bearer";
  const status = error.failure.http;
  const answer = engineAnswer(error) ?? { status, body: JSON.stringify({ error: openAiError(error, status) }) };
  return { ...answer, headers };
}

function openAiError(error: ServiceError, status: number): Record<string, unknown> {
  return {
    message: error.message,
    // vLLM's first layer, which checks a body's form, names its errors in another way than the layers behind it.
    type: error.message.startsWith("1 validation error:") ? "Bad Request" : error.failure.type,
    param: error.param ?? null,
    // OpenAI's SDKs recognise a bad key by this code; every other error carries vLLM's number.
    code: error.code === "unauthenticated" ? "invalid_api_key" : status,
  };
}

/**
 * The engine's refusal as it is. Only a 4xx about the request: an engine's 401 or 404 is about us, not about the client,
 * and a body that is not a JSON object would not be understood. Or the engine's failure, if the request is its cause.
 */
function engineAnswer(error: ServiceError): { status: number; body: string } | undefined {
  if (error.engineAnswer === undefined) return undefined;
  const { status, body } = error.engineAnswer;
  if (error.code === "engine_refused") {
    if (status < 400 || status > 499 || status === 401 || status === 403 || status === 407) return undefined;
  } else if (error.code !== "query_of_death") return undefined;
  try {
    const parsed: unknown = JSON.parse(body);
    if (typeof parsed !== "object" || parsed === null || !("error" in parsed)) return undefined;
  } catch {
    return undefined;
  }
  // A stream's event is one line. Line breaks inside JSON strings are escaped, so these are only layout.
  return { status, body: body.replace(/[\r\n]+/g, " ").trim() };
}

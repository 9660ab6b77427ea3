// The one place that turns a failure into an HTTP answer: status, headers and OpenAI's error body.
import { asServiceError, type ServiceError } from "../../common/errors.ts";
import { ANSWER_HEADERS } from "../serving/headers.ts";

export interface ErrorAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** `{"error":{...}}`, one line. */
  readonly body: string;
}

/** @param thrown Anything: what was not thrown on purpose becomes a 500 that says nothing. */
export function errorAnswer(thrown: unknown): ErrorAnswer {
  const error = asServiceError(thrown);
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (error.retryAfterS !== undefined)
    headers[ANSWER_HEADERS.retryAfter.name] = String(Math.max(1, Math.ceil(error.retryAfterS)));
  if (error.code === "unauthenticated") headers[ANSWER_HEADERS.authenticate.name] = "Bearer";
  const engine = engineAnswer(error);
  if (engine !== undefined) return { status: engine.status, headers, body: engine.body };
  const status = error.failure.http;
  return { status, headers, body: JSON.stringify({ error: openAiError(error, status) }) };
}

/** The last event but `[DONE]` of a stream that failed after it began, in the form that vLLM gives it. */
export function errorEvent(thrown: unknown): string {
  return `data: ${errorAnswer(thrown).body}\n\n`;
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
 * and a body that is not a JSON object would not be understood.
 */
function engineAnswer(error: ServiceError): { status: number; body: string } | undefined {
  if (error.code !== "engine_refused" || error.engineAnswer === undefined) return undefined;
  const { status, body } = error.engineAnswer;
  if (status < 400 || status > 499 || status === 401 || status === 403 || status === 407) return undefined;
  try {
    const parsed: unknown = JSON.parse(body);
    if (typeof parsed !== "object" || parsed === null || !("error" in parsed)) return undefined;
  } catch {
    return undefined;
  }
  // A stream's event is one line. Line breaks inside JSON strings are escaped, so these are only layout.
  return { status, body: body.replace(/[\r\n]+/g, " ").trim() };
}

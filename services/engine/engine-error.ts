// What an engine's refusal or failure becomes. What it said may reach a client only where it is a refusal of the
// client's own request, and only without our ids and addresses.
import { ServiceError } from "../common/errors.ts";

/** Longest part of an engine's error body that is kept, in characters. */
const KEPT = 2_000;
const INTERNAL = /___(prefill|decode)_addr_|kv_transfer_params|ec_transfer_params|\b(?:cmpl|chatcmpl)-[0-9a-f_]{8,}|\b\d{1,3}(?:\.\d{1,3}){3}:\d+|\blocalhost:\d+/;

export interface EngineFailureContext {
  /** `prefill`, `decode`: for messages. */
  readonly leg: "prefill" | "decode";
  /** Strings that must not be in an answer: the leg's id at the engine, addresses. */
  readonly internal: readonly string[];
}

/**
 * The failure for an answer of the engine that is not 200.
 * 4xx blames the client's body, except where it blames Tandem (a missing key); everything else blames the engine.
 */
export function refusalOf(status: number, body: Buffer, context: EngineFailureContext): ServiceError {
  const text = body.toString("utf8", 0, Math.min(body.length, KEPT * 4)).slice(0, KEPT);
  const cause = new Error(`the engine answered ${status}: ${text}`);
  const refused = status >= 400 && status < 500 && status !== 401 && status !== 403 && status !== 407 && status !== 408 && status !== 429;
  if (!refused) {
    return status === 429 || status === 503
      ? new ServiceError("instance_unavailable", `The ${context.leg} engine takes no more requests now.`, { cause })
      : engineFailure(context.leg, cause);
  }
  const said = publicError(text, status, context.internal);
  return new ServiceError("engine_refused", said.message, {
    cause,
    ...(said.param === null ? {} : { param: said.param }),
    engineAnswer: { status, body: JSON.stringify({ error: said }) },
  });
}

/**
 * The engine failed in the middle of a leg. On a decode leg that had no token yet, the transfer is the likeliest culprit:
 * vLLM reports a failed KV load as a bare 500 or as the first event of a stream.
 */
export function engineFailure(leg: "prefill" | "decode", cause: Error, beforeFirstToken = false): ServiceError {
  return leg === "decode" && beforeFirstToken
    ? new ServiceError("kv_transfer_failed", "The decode engine could not take over the prompt's KV cache.", { cause })
    : new ServiceError("engine_failed", `The ${leg} engine failed while it worked on the request.`, { cause });
}

interface PublicError {
  message: string;
  type: string;
  param: string | null;
  code: number;
}

function publicError(text: string, status: number, internal: readonly string[]): PublicError {
  const fallback: PublicError = {
    message: "The engine refused the request.",
    type: "BadRequestError",
    param: null,
    code: status,
  };
  let error: unknown;
  try {
    error = (JSON.parse(text) as { error?: unknown } | null)?.error;
  } catch {
    return fallback;
  }
  if (typeof error !== "object" || error === null) return fallback;
  const { message, type, param } = error as Record<string, unknown>;
  const clean = (value: unknown): value is string =>
    typeof value === "string" && value !== "" && !INTERNAL.test(value) && !internal.some((secret) => secret !== "" && value.includes(secret));
  return {
    message: clean(message) ? message : fallback.message,
    type: clean(type) ? type : fallback.type,
    param: clean(param) ? param : null,
    code: status,
  };
}

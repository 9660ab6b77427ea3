// Translates an engine's refusal or failure. The engine's text may reach a client only where it is a refusal of the
// client's own request, and only without our ids and addresses.
import { ServiceError } from "../common/errors.ts";

/** Of an engine's error body, in characters: what is logged, and what is read. */
const LOGGED = 2_000;
const READ = 65_536;
const INTERNAL =
  /___(prefill|decode)_addr_|kv_transfer_params|ec_transfer_params|\b(?:cmpl|chatcmpl)-[0-9a-f_]{8,}|\b\d{1,3}(?:\.\d{1,3}){3}:\d+|\blocalhost:\d+/;
/** Fields of a request that only Tandem sets. */
const OURS = /^(kv|kv_transfer_params|request_id)$/;

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
  const text = body.toString("utf8", 0, READ);
  const cause = new Error(`the engine answered ${status}: ${text.slice(0, LOGGED)}`);
  const said = errorOf(text);
  // What only Tandem sets is Tandem's fault, whatever the status; Tandem's own engines name what went wrong with the
  // KV.
  if (typeof said?.param === "string" && OURS.test(said.param)) {
    return new ServiceError(
      "kv_transfer_failed",
      "The prompt's KV cache could not be handed over between the engines.",
      { cause },
    );
  }
  const refused =
    status >= 400 &&
    status < 500 &&
    status !== 401 &&
    status !== 403 &&
    status !== 407 &&
    status !== 408 &&
    status !== 429;
  if (!refused) {
    return status === 429 || status === 503
      ? new ServiceError("instance_unavailable", `The ${context.leg} engine takes no more requests now.`, { cause })
      : engineFailure(context.leg, cause);
  }
  const shown = publicError(said, status, context.internal);
  return new ServiceError("engine_refused", shown.message, {
    cause,
    ...(shown.param === null ? {} : { param: shown.param }),
    engineAnswer: { status, body: JSON.stringify({ error: shown }) },
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

function errorOf(text: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const error = (JSON.parse(text) as { error?: unknown } | null)?.error;
    return typeof error === "object" && error !== null ? (error as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}

function publicError(
  said: Readonly<Record<string, unknown>> | undefined,
  status: number,
  internal: readonly string[],
): PublicError {
  const clean = (value: unknown): value is string =>
    typeof value === "string" &&
    value !== "" &&
    !INTERNAL.test(value) &&
    !internal.some((secret) => secret !== "" && value.includes(secret));
  const { message, type, param } = said ?? {};
  return {
    message: clean(message) ? message : "The engine refused the request.",
    type: clean(type) ? type : "BadRequestError",
    param: clean(param) ? param : null,
    code: status,
  };
}

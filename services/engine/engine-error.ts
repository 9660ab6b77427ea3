// Translates an engine's refusal or failure. The engine's text may reach a client only where it is a refusal of the
// client's own request, and only without our ids and addresses.
import { ServiceError } from "../common/errors.ts";

/** Of an engine's error body, in characters: what is logged, and what is read. */
const LOGGED = 2_000;
const READ = 65_536;
const INTERNAL =
  /___(prefill|decode)_addr_|kv_transfer_params|ec_transfer_params|\b(?:cmpl|chatcmpl)-[0-9a-f_]{8,}|\b\d{1,3}(?:\.\d{1,3}){3}:\d+|\blocalhost:\d+/;
/** Refusals that are not about the client's body. */
const NOT_OF_THE_BODY = new Set([401, 403, 407, 408, 429]);
/** Fields of a request that only Tandem sets. */
const OURS = /^(kv|kv_transfer_params|request_id)$/;

/**
 * The failure for an answer of the engine that is not 200.
 * 4xx blames the client's body, except where it blames Tandem (a missing key); everything else blames the engine.
 *
 * @param internal Strings that must not be in an answer: the leg's id at the engine, addresses.
 */
export function refusalOf(
  status: number,
  body: Buffer,
  { leg, internal }: { readonly leg: "prefill" | "decode"; readonly internal: readonly string[] },
): ServiceError {
  const text = body.toString("utf8", 0, READ);
  const cause = new Error(`the engine answered ${status}: ${text.slice(0, LOGGED)}`);
  const said = errorOf(text);
  // What only Tandem sets is Tandem's fault, whatever the status. Tandem's own engines name a fault of the KV so.
  if (typeof said.param === "string" && OURS.test(said.param)) {
    const message = "The prompt's KV cache could not be transferred between the engines.";
    return new ServiceError("kv_transfer_failed", message, { cause });
  }
  if (status < 400 || status >= 500 || NOT_OF_THE_BODY.has(status)) {
    return status === 429 || status === 503
      ? new ServiceError("instance_unavailable", `The ${leg} engine takes no more requests now.`, { cause })
      : engineFailure(leg, cause);
  }
  const clean = (value: unknown): value is string =>
    typeof value === "string" &&
    value !== "" &&
    !INTERNAL.test(value) &&
    !internal.some((secret) => secret !== "" && value.includes(secret));
  const message = clean(said.message) ? said.message : "The engine refused the request.";
  const type = clean(said.type) ? said.type : "BadRequestError";
  const param = clean(said.param) ? said.param : null;
  return new ServiceError("engine_refused", message, {
    cause,
    ...(param === null ? {} : { param }),
    engineAnswer: { status, body: JSON.stringify({ error: { message, type, param, code: status } }) },
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

function errorOf(text: string): { readonly message?: unknown; readonly type?: unknown; readonly param?: unknown } {
  try {
    return (JSON.parse(text) as { error?: object | null } | null)?.error ?? {};
  } catch {
    return {};
  }
}

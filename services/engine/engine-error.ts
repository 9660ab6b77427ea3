// Translates an engine's refusal or failure. The engine's text may reach a client only where it is a refusal of the
// client's own request, and only without our ids and addresses.
import { type EngineAnswer, ServiceError } from "../common/errors.ts";
import { namesInternals } from "../common/internal-names.ts";

/** Of an engine's error body, in characters: what is logged, and what is read. */
const LOGGED = 2_000;
const READ = 65_536;
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
  const clean = (value: unknown): value is string =>
    typeof value === "string" &&
    value !== "" &&
    !namesInternals(value) &&
    !internal.some((secret) => secret !== "" && value.includes(secret));
  // What only Tandem sets is Tandem's fault, whatever the status. Tandem's own engines name a fault of the KV so.
  if (typeof said.param === "string" && OURS.test(said.param)) {
    const message = "The prompt's KV cache could not be transferred between the engines.";
    return new ServiceError("kv_transfer_failed", message, { cause });
  }
  if (status < 400 || status >= 500 || NOT_OF_THE_BODY.has(status)) {
    return status === 429 || status === 503
      ? new ServiceError("instance_unavailable", `The ${leg} engine takes no more requests now.`, { cause })
      : engineFailure(leg, cause, { answer: failureAnswer(status, said, text, clean) });
  }
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
 *
 * @param o.answer The engine's answer, if it lives on. A client sees it only if the request itself is at fault.
 */
export function engineFailure(
  leg: "prefill" | "decode",
  cause: Error,
  o: { readonly beforeFirstToken?: boolean; readonly answer?: EngineAnswer | undefined } = {},
): ServiceError {
  const options = { cause, ...(o.answer === undefined ? {} : { engineAnswer: o.answer }) };
  return leg === "decode" && o.beforeFirstToken === true
    ? new ServiceError("kv_transfer_failed", "The decode engine could not take over the prompt's KV cache.", options)
    : new ServiceError("engine_failed", `The ${leg} engine failed while it worked on the request.`, options);
}

/** Of a plain-text body, such as the "Internal Server Error" of vLLM's web framework. */
const PLAIN = 200;

/** An answer of 5xx in OpenAI's form, in the engine's words where they are fit to be seen. */
function failureAnswer(
  status: number,
  said: ReturnType<typeof errorOf>,
  text: string,
  clean: (value: unknown) => value is string,
): EngineAnswer | undefined {
  if (status < 500 || status > 599) return undefined;
  const plain = text.length <= PLAIN && !text.trimStart().startsWith("{") ? text.trim() : "";
  const message = [said.message, plain].find(clean) ?? "The engine failed on the request.";
  const type = clean(said.type) ? said.type : "InternalServerError";
  return { status, body: JSON.stringify({ error: { message, type, param: null, code: status } }) };
}

function errorOf(text: string): { readonly message?: unknown; readonly type?: unknown; readonly param?: unknown } {
  try {
    return (JSON.parse(text) as { error?: object | null } | null)?.error ?? {};
  } catch {
    return {};
  }
}

// Fields of a client's body that must not reach an engine: those through which vLLM would read addresses or KV
// parameters from the client, and those that no pair of legs can serve.
// `parsed` comes from JSON.parse, so every spelling of a key (escapes, spaces around it) is one here; duplicates, which
// a parse would hide, are refused before this is asked.

export interface Refusal {
  readonly param: string;
  /** For the client. */
  readonly message: string;
  /** Whether it is a field that only Tandem may set, rather than one that a pair can't serve. */
  readonly reserved: boolean;
}

const RESERVED = ["kv_transfer_params", "ec_transfer_params", "request_id"];
// vLLM copies vllm_xargs into the same dictionary in which it carries kv_transfer_params
// (entrypoints/openai/*/protocol.py, to_sampling_params, 0.32).
const RESERVED_ARGUMENT = /(^|_)(kv|ec)_|transfer_params|request_id/;

/** The first field of `parsed` that is refused, or undefined. */
export function refusedField(parsed: Readonly<Record<string, unknown>>): Refusal | undefined {
  for (const key of RESERVED) {
    if (Object.hasOwn(parsed, key)) return reserved(key);
  }
  const extra = parsed["vllm_xargs"];
  if (typeof extra === "object" && extra !== null) {
    for (const key of Object.keys(extra)) {
      if (RESERVED_ARGUMENT.test(key)) return reserved(`vllm_xargs.${key}`);
    }
  }
  // A decode engine never computes the positions whose KV it was sent, so it has no logprobs for them.
  if (parsed["prompt_logprobs"] != null) return unservable("prompt_logprobs", "logprobs of the prompt");
  if (parsed["echo"] === true && parsed["logprobs"] != null) return unservable("echo", "echo together with logprobs");
  // The engines derive ids of their own for beams, so that the legs would never find one another.
  if (parsed["use_beam_search"] === true) return unservable("use_beam_search", "beam search");
  if (parsed["best_of"] != null && parsed["best_of"] !== 1) return unservable("best_of", "best_of above 1");
  return undefined;
}

function reserved(param: string): Refusal {
  return {
    param,
    message: `The field \`${param}\` is set by the server and can't be given by a client. Leave it out.`,
    reserved: true,
  };
}

function unservable(param: string, what: string): Refusal {
  return {
    param,
    message: `This server computes prefill and decode on separate engines and can't serve ${what}. Leave it out.`,
    reserved: false,
  };
}

// Fields of a client's body that must not reach an engine: those through which vLLM would read addresses or KV
// parameters from the client, and those that no pair of legs can serve. docs/api.md is made from the list.
// `parsed` comes from JSON.parse, so every spelling of a key (escapes, spaces around it) is one here; duplicates, which
// a parse would hide, are refused before this is asked.

type Parsed = Readonly<Record<string, unknown>>;

export interface FieldRefusal {
  readonly param: string;
  /** For the client. */
  readonly message: string;
  /** Whether it is a field that only Tandem may set, rather than one that a pair can't serve. */
  readonly reserved: boolean;
}

export interface RefusedField {
  readonly field: string;
  /** Which values are refused, and why, for people. */
  readonly when: string;
  readonly why: string;
  /** What can't be served, as a noun. Absent: only Tandem may set the field. */
  readonly unservable?: string;
  /** Undefined where it may pass, else the field to blame. */
  find(parsed: Parsed): string | undefined;
}

const ADDRESSES = "The engines find each other's KV by it, addresses included: Tandem sets it.";
// vLLM copies vllm_xargs into the same dictionary in which it carries kv_transfer_params
// (entrypoints/openai/*/protocol.py, to_sampling_params, 0.32).
const RESERVED_ARGUMENT = /(^|_)(kv|ec)_|transfer_params|request_id/;

export const REFUSED_FIELDS: readonly RefusedField[] = [
  ...["kv_transfer_params", "ec_transfer_params", "request_id"].map((field) => ({
    field,
    when: "always",
    why: ADDRESSES,
    find: (parsed: Parsed) => (Object.hasOwn(parsed, field) ? field : undefined),
  })),
  {
    field: "vllm_xargs",
    when: "a key in it with `kv_`, `ec_`, `transfer_params` or `request_id`",
    why: "vLLM puts its keys where the fields above end up.",
    find({ vllm_xargs: extra }) {
      if (typeof extra !== "object" || extra === null) return undefined;
      const key = Object.keys(extra).find((name) => RESERVED_ARGUMENT.test(name));
      return key === undefined ? undefined : `vllm_xargs.${key}`;
    },
  },
  unservable("prompt_logprobs", "logprobs of the prompt", {
    when: "anything but null",
    why: "A decode engine never computes the positions whose KV it was sent.",
    refuses: ({ prompt_logprobs: value }) => value != null,
  }),
  unservable("echo", "echo together with logprobs", {
    when: "`true`, beside `logprobs`",
    why: "The same.",
    refuses: ({ echo, logprobs }) => echo === true && logprobs != null,
  }),
  unservable("use_beam_search", "beam search", {
    when: "`true`",
    why: "Engines make ids of their own for beams, so that the two legs would not find each other.",
    refuses: ({ use_beam_search: value }) => value === true,
  }),
  unservable("best_of", "best_of above 1", {
    when: "anything but null and 1",
    why: "The same.",
    refuses: ({ best_of: value }) => value != null && value !== 1,
  }),
  unservable("prompt_embeds", "prompt_embeds", {
    when: "anything but null",
    why: "Without token ids a decode engine can't match KV to the prompt: it would compute the prompt by itself.",
    refuses: ({ prompt_embeds: value }) => value != null,
  }),
];

/** The first field of `parsed` that is refused, or undefined. */
export function refusedField(parsed: Parsed): FieldRefusal | undefined {
  for (const { find, unservable: what } of REFUSED_FIELDS) {
    const param = find(parsed);
    if (param === undefined) continue;
    const message =
      what === undefined
        ? `The field \`${param}\` is set by the server and can't be given by a client. Leave it out.`
        : `This server computes prefill and decode on separate engines and can't serve ${what}. Leave it out.`;
    return { param, message, reserved: what === undefined };
  }
  return undefined;
}

function unservable(
  field: string,
  what: string,
  { when, why, refuses }: { when: string; why: string; refuses(parsed: Parsed): boolean },
): RefusedField {
  return { field, when, why, unservable: what, find: (parsed) => (refuses(parsed) ? field : undefined) };
}

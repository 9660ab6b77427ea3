// Fields of a client's body that must not reach an engine: fields through which vLLM would read addresses or KV
// parameters from the client, and fields that no pair of legs can serve. docs/api.md is generated from the list.
// `parsed` comes from JSON.parse, so every spelling of a key (escapes, spaces around it) is the same here. Duplicates,
// which a parse would hide, are refused earlier.

type Parsed = Readonly<Record<string, unknown>>;

export interface FieldRefusal {
  readonly param: string;
  /** Message for the client. */
  readonly message: string;
  /** Whether only Tandem may set the field, rather than that a pair can't serve it. */
  readonly reserved: boolean;
}

export interface RefusedField {
  readonly field: string;
  /** Which values are refused, and why, for people. */
  readonly when: string;
  readonly why: string;
  /** The feature that can't be served, as a noun. Absent: only Tandem may set the field. */
  readonly unservable?: string;
  /** The field to blame, or undefined if the value is allowed. */
  find(parsed: Parsed): string | undefined;
}

const ADDRESSES = "The engines find each other's KV and addresses by this field, so Tandem sets it.";
// vLLM copies vllm_xargs into the dictionary that also carries kv_transfer_params
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
    when: "with a key that contains `kv_`, `ec_`, `transfer_params` or `request_id`",
    why: "vLLM stores these keys together with the fields above.",
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
    why: "Engines make their own ids for beams, so the two legs would not find each other.",
    refuses: ({ use_beam_search: value }) => value === true,
  }),
  unservable("best_of", "best_of above 1", {
    when: "anything but null and 1",
    why: "The same.",
    refuses: ({ best_of: value }) => value != null && value !== 1,
  }),
  unservable("prompt_embeds", "prompt_embeds", {
    when: "anything but null",
    why: "Without token ids a decode engine can't match KV to the prompt, and would compute the prompt itself.",
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

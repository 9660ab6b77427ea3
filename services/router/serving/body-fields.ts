// The fields of a completion's body that Tandem itself reads, and what for. All others reach the engine as they are. A
// field that is not in this list can't be read: `Fields` has no other. docs/api.md is made from it.

export interface BodyField {
  readonly type: "boolean" | "integer" | "number" | "text" | "object" | "list" | "text or list";
  /** The path that has the field. Left out: both. */
  readonly only?: "chat" | "completions";
  /** The field that contains it. */
  readonly inside?: string;
  readonly help: string;
}

export const BODY_FIELDS = {
  model: { type: "text", help: "The model. May be left out where one is served. One that isn't served: 404." },
  messages: { type: "list", only: "chat", help: "Required, and not empty. Their content is for the engine to judge." },
  prompt: {
    type: "text or list",
    only: "completions",
    help: "Required: a text, token ids, or a list of either. Each prompt is served by a pair of legs of its own.",
  },
  stream: {
    type: "boolean",
    help: "Streams the answer as events. Only `true` and `false` are accepted; vLLM also accepts 1 and `yes`.",
  },
  stream_options: { type: "object", help: "Only with `stream`." },
  include_usage: { type: "boolean", inside: "stream_options", help: "A last event with the usage." },
  n: {
    type: "integer",
    help: "Choices of each prompt, each served by legs of its own: `legs.limit` at most, all prompts together. 1 if greedy.",
  },
  max_completion_tokens: {
    type: "integer",
    only: "chat",
    help: "The same as `max_tokens`, and counts where both are given.",
  },
  max_tokens: {
    type: "integer",
    help: "From 1 to the model's `max_model_len`. Left out: in completions 16, in chat as many as fit.",
  },
  min_tokens: { type: "integer", help: "From 0 to `max_tokens`." },
  temperature: {
    type: "number",
    help: "Below 0.00001 the answer is greedy: its stream may be written again after a failure.",
  },
  seed: { type: "integer", help: "The same for sampled answers. Choice i of `n` gets `seed` + i, as in vLLM." },
  user: {
    type: "text",
    help: "The tenant in the queue, where the header `x-tandem-tenant` is left out. 128 characters count.",
  },
  priority: {
    type: "integer",
    help: "The priority in the queue, unless the header `x-tandem-priority` is given. Passed on to the engine too.",
  },
  echo: {
    type: "boolean",
    help: "Must be `true` or `false`, because it is [refused](#refused-fields) beside `logprobs`.",
  },
  use_beam_search: {
    type: "boolean",
    help: "Must be `true` or `false`, because `true` is [refused](#refused-fields).",
  },
} as const satisfies Record<string, BodyField>;

/** A body that was parsed, as far as Tandem reads it. */
export type Fields = { readonly [F in keyof typeof BODY_FIELDS]?: unknown };

/** The fields of one type. */
export type FieldOf<T extends BodyField["type"]> = {
  [F in keyof typeof BODY_FIELDS]: (typeof BODY_FIELDS)[F]["type"] extends T ? F : never;
}[keyof typeof BODY_FIELDS];

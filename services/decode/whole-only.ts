// Non-streaming requests whose answer must not be joined from a stream, because vLLM's stream would say something else. Read in vLLM 0.23.0 and 0.32.0, entrypoints/openai/{completion,chat_completion}.
import type { LegSpec } from "../kv/connector.ts";

/** By field: which values don't matter, as raw JSON, and why others do. */
const WHOLE_ONLY: Readonly<Record<string, { readonly harmless: RegExp; readonly why: string }>> = {
  stream: { harmless: /^false$/, why: "anything else is for the engine to judge" },
  stream_options: { harmless: /^$/, why: "without `stream` the engine refuses it" },
  prompt_logprobs: { harmless: /^$/, why: "a stream doesn't have them" },
  use_beam_search: { harmless: /^false$/, why: "the engine refuses it in a stream" },
  echo: { harmless: /^false$/, why: "a stream echoes a message that has parts otherwise" },
  tools: { harmless: /^\[\s*\]$/, why: "parsers of tool calls don't read a stream as they read a whole output" },
  tool_choice: { harmless: /^"(none|auto)"$/, why: "the same" },
  include_reasoning: { harmless: /^true$/, why: "a stream is silent while it hides its reasoning" },
  // Parsers of reasoning don't read a stream as they read a whole output either: without an end of thinking,
  // BaseThinkingReasoningParser of 0.32 takes the stream for content, and the whole output for reasoning.
  chat_template_kwargs: { harmless: /^\{\s*\}$/, why: "may turn reasoning on" },
  reasoning_effort: { harmless: /^$/, why: "may turn reasoning on" },
  thinking_token_budget: { harmless: /^$/, why: "may turn reasoning on" },
};

/** Whether the stream for this request could differ from its whole answer. */
export function wholeOnly({ body, members }: Pick<LegSpec, "body" | "members">): boolean {
  return members.some(({ key, valueStart, valueEnd }) => {
    if (!Object.hasOwn(WHOLE_ONLY, key)) return false;
    const value = body.toString("latin1", valueStart, Math.min(valueEnd, valueStart + 16));
    return value !== "null" && !WHOLE_ONLY[key]!.harmless.test(value);
  });
}

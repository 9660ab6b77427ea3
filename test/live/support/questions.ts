// Questions to a model of a small context, and asking many of them at once.
import type { Question } from "./answers.ts";
import { MODEL } from "./vllm.ts";

export const WORDS =
  "the sea a story about prefill and decode tells of tokens that travel from one engine to another while nobody waits".split(
    " ",
  );

// 100 prompts of one word to most of the context, over block borders (32 tokens a block), in all four shapes.
export const QUESTIONS: readonly Question[] = Array.from({ length: 100 }, (_, index) => {
  const count = 1 + ((index * 37) % 60);
  const text = `${index} ${Array.from({ length: count }, (_, at) => WORDS[(index * 7 + at * 5) % WORDS.length]).join(" ")}`;
  return question(`question ${index}`, text, index % 2 === 0, index % 4 < 2);
});

function question(
  name: string,
  text: string,
  isChat: boolean,
  stream: boolean,
  extra: Record<string, unknown> = {},
): Question {
  const common = {
    model: MODEL,
    max_tokens: 8,
    temperature: 0,
    ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
    ...extra,
  };
  return isChat
    ? {
        name,
        path: "/v1/chat/completions",
        body: { ...common, messages: [{ role: "user", content: text }], logprobs: true },
      }
    : { name, path: "/v1/completions", body: { ...common, prompt: text, logprobs: 1 } };
}

/** Long enough to be met in the middle. */
export const long = (index: number): Question =>
  question(`long ${index}`, `${index} ${WORDS.join(" ")}`, false, true, { max_tokens: 300, ignore_eos: true });

/** `work` on every item, `count` at once; results in the items' order. */
export async function eachOf<T, R>(items: readonly T[], count: number, work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  await Promise.all(
    Array.from({ length: count }, async () => {
      while (next < items.length) {
        const index = next++;
        results[index] = await work(items[index]!);
      }
    }),
  );
  return results;
}

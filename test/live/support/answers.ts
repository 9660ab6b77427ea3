// One question to a server of the OpenAI API, and what of its answer two servers must agree on.
import assert from "node:assert/strict";

export interface Question {
  readonly name: string;
  readonly path: "/v1/completions" | "/v1/chat/completions";
  readonly body: Readonly<Record<string, unknown>>;
}

/** Everything but ids, times and how tokens were cut into chunks. */
export interface Answer {
  readonly texts: readonly string[];
  /** Name and arguments of each choice's tool calls, one after the other. Without their ids, which are random. */
  readonly calls: readonly string[];
  readonly finishReasons: readonly unknown[];
  /** Those of the first choice, then those of the next. */
  readonly tokens: readonly string[];
  readonly logprobs: readonly number[];
  readonly usage: { readonly prompt_tokens: number; readonly completion_tokens: number; readonly total_tokens: number };
}

export async function ask(url: string, { path, body }: Question): Promise<Answer> {
  const response = await post(url, path, body);
  const text = await response.text();
  assert.equal(response.status, 200, text);
  return readAnswer(text, body["stream"] === true);
}

export function post(url: string, path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  return fetch(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    ...(signal === undefined ? {} : { signal }),
  });
}

/** @throws AssertionError for an answer that is not whole, or shows what is internal. */
export function readAnswer(text: string, streamed: boolean): Answer {
  assert.doesNotMatch(text, /___|remote_|127\.0\.0\.1/, "an internal address in the answer");
  const events = streamed ? sseEvents(text) : [JSON.parse(text)];
  const [texts, calls, finishReasons]: [string[], string[], unknown[]] = [[], [], []];
  // By choice: how choices of a stream take turns is nobody's promise.
  const [tokens, logprobs]: [string[][], number[][]] = [[], []];
  let usage: Answer["usage"] | undefined;
  for (const event of events) {
    assert.equal(event.error, undefined, `an error in the answer: ${JSON.stringify(event.error)}`);
    for (const choice of event.choices) {
      texts[choice.index] =
        (texts[choice.index] ?? "") + (choice.text ?? choice.message?.content ?? choice.delta?.content ?? "");
      for (const { function: called } of (choice.message ?? choice.delta)?.tool_calls ?? []) {
        calls[choice.index] = `${calls[choice.index] ?? ""}${called?.name ?? ""}${called?.arguments ?? ""}`;
      }
      if (choice.finish_reason !== null) finishReasons[choice.index] = choice.finish_reason;
      const content: { token: string; logprob: number }[] = choice.logprobs?.content ?? [];
      (tokens[choice.index] ??= []).push(...content.map(({ token }) => token), ...(choice.logprobs?.tokens ?? []));
      (logprobs[choice.index] ??= []).push(
        ...content.map(({ logprob }) => logprob),
        ...(choice.logprobs?.token_logprobs ?? []),
      );
    }
    if (event.usage) usage = event.usage;
  }
  assert.ok(usage !== undefined, "no usage in the answer");
  const { prompt_tokens, completion_tokens, total_tokens } = usage;
  return {
    texts,
    calls,
    finishReasons,
    tokens: tokens.flat(),
    logprobs: logprobs.flat(),
    usage: { prompt_tokens, completion_tokens, total_tokens },
  };
}

/** All that agree, logprobs within 1e-4. */
export function assertSame(answer: Answer, expected: Answer): void {
  assert.deepEqual({ ...answer, logprobs: [] }, { ...expected, logprobs: [] });
  assert.equal(answer.logprobs.length, expected.logprobs.length);
  for (const [index, logprob] of answer.logprobs.entries()) {
    assert.ok(
      Math.abs(logprob - expected.logprobs[index]!) <= 1e-4,
      `logprob ${index}: ${logprob} for ${expected.logprobs[index]}`,
    );
  }
}

function sseEvents(text: string): any[] {
  const lines = text.split("\n\n").filter((block) => block !== "");
  assert.equal(lines.at(-1), "data: [DONE]");
  return lines.slice(0, -1).map((line) => JSON.parse(line.slice("data: ".length)));
}

// What a pair's probe compares: every answer of the sim begins with the same word, so its log probability has to tell
// from which KV it was computed.
import assert from "node:assert/strict";
import { startSimEngine } from "../../services/tiny-engine/server.ts";

async function firstLogprob(url: string, prompt: readonly number[]): Promise<number> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt, max_tokens: 1, temperature: 0, logprobs: 1 }),
  });
  const { choices } = (await response.json()) as { choices: { logprobs: { token_logprobs: number[] } }[] };
  return choices[0]!.logprobs.token_logprobs[0]!;
}

describe("the log probability of the sim's first token", () => {
  it("is the same for the same prompt and weights, and differs for others", async () => {
    await using sim = await startSimEngine();
    await using twin = await startSimEngine();
    await using other = await startSimEngine({ hashSalt: "other weights" });
    const prompts = [
      [300, 301, 302],
      [300, 301, 303],
      [302, 301, 300],
    ];
    const [mine, twins, others] = await Promise.all(
      [sim, twin, other].map(({ url }) => Promise.all(prompts.map((prompt) => firstLogprob(url, prompt)))),
    );
    assert.deepEqual(twins, mine);
    assert.equal(new Set([...mine!, ...others!]).size, 6);
  });
});

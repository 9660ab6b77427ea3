// How requests that met a fault ended, and what became of the fleet.
import assert from "node:assert/strict";
import { tandemClient } from "../../../clients/client/index.ts";
import { readAnswer } from "./answers.ts";
import type { Launched } from "./launched.ts";

/** The figures of docs/faults.md. */
export const say = (text: string): void => console.log(`      ${text}`);
export const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

/** How a request that met a fault ended: as a whole answer, or as a typed error; anything else throws. */
export async function ending(response: Response, streamed: boolean): Promise<"answer" | "error"> {
  const text = await response.text();
  if (response.status !== 200) {
    const { error } = JSON.parse(text) as { error: { code: unknown; type: unknown; message: unknown } };
    assert.ok(
      response.status >= 500 &&
        error.code === response.status &&
        typeof error.type === "string" &&
        typeof error.message === "string",
      text,
    );
    return "error";
  }
  if (streamed && /"error":\{/.test(text)) {
    assert.match(text, /data: \[DONE\]\n\n$|data: \{"error":.*\}\n\n$/s);
    return "error";
  }
  readAnswer(text, streamed);
  return "answer";
}

export interface Ended {
  readonly how: "answer" | "error";
  /** After the fault. */
  readonly ms: number;
}

/** What became of a fault that is `atMs` old: how its requests ended, and until when it was felt. */
export async function aftermath(
  vllm: Launched,
  fault: string,
  atMs: number,
  retriedBefore: number,
  ends: readonly Ended[],
): Promise<void> {
  const { tandem, retries, servesAgain, whole, kvFree } = vllm;
  const broken = ends.filter(({ how }) => how === "error").map(({ ms }) => ms);
  const retried = (await retries()) - retriedBefore;
  const { receipts } = await tandemClient(tandem).router.listRequests({
    limit: 2 * ends.length,
  });
  const fallbacks = new Map<string, number>();
  for (const one of receipts
    .filter(({ startedUnixMs, totalMs }) => Number(startedUnixMs) + totalMs > Date.now() - (performance.now() - atMs))
    .flatMap((receipt) => receipt.fallbacks))
    fallbacks.set(one, (fallbacks.get(one) ?? 0) + 1);
  await servesAgain();
  const servesMs = performance.now() - atMs;
  await whole();
  const wholeMs = performance.now() - atMs;
  await kvFree();
  say(
    `${fault}: ${ends.length} requests, ${ends.length - broken.length} answered, ${broken.length} ended with an error${broken.length === 0 ? "" : ` ${seconds(Math.min(...broken))} to ${seconds(Math.max(...broken))} after it`}, ${retried} retries`,
  );
  if (fallbacks.size > 0) say(`  fallbacks: ${[...fallbacks].map(([name, count]) => `${name} ${count}`).join(", ")}`);
  say(
    `  answers again after ${seconds(servesMs)}, whole after ${seconds(wholeMs)}, no KV left after ${seconds(performance.now() - atMs)}`,
  );
}

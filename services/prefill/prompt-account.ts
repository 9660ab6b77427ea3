// Proves that a prefill engine computed nothing for a leg that failed, so that no KV of it was sent. vLLM counts the
// prompt tokens of a request once it has computed them (`vllm:prompt_tokens_total`), and answers a body that it dislikes
// with 500 before its scheduler sees the request (vllm#54017). The instance is the only caller of its engine, so the
// counter must equal the prompt tokens of all answers that the engine gave. If it does, the engine computed nothing
// else. Where this can't be shown, the outcome stays unknown, and decode books the prompt as debt.
import { type Clock, pause } from "../common/clock.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { type EngineGauges, readGauges } from "../engine/metrics-text.ts";

const READ_TIMEOUT_MS = 2_000;
/** Readings until one falls into a moment in which every counted prompt has been answered. */
const TRIES = 5;
const TRY_EVERY_MS = 100;

export class PromptAccount {
  readonly #clock: Clock;
  #engine: LiveEngine | undefined;
  /** What the engine had counted before the first answer below. Undefined: not known, or the counts don't compare. */
  #baseTokens: number | undefined;
  /** Of all answers since. */
  #answeredTokens = 0;
  #running = 0;
  #begun = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  engineChanged(engine: LiveEngine | undefined): void {
    this.#engine = engine;
    this.#baseTokens = undefined;
    void this.#findBase();
  }

  began(): void {
    this.#running++;
    this.#begun++;
  }

  /** @param answeredTokens Prompt tokens by the engine's own count; 0 if it gave no answer. */
  ended(answeredTokens: number): void {
    this.#running--;
    this.#answeredTokens += answeredTokens;
  }

  /** Called after the leg has ended. False: it may have computed something. Never rejects. */
  async computedNothing(engine: LiveEngine): Promise<boolean> {
    for (let tries = 0; tries < TRIES; tries++) {
      if (tries > 0) await pause(this.#clock, TRY_EVERY_MS);
      const [baseTokens, answeredTokens, running] = [this.#baseTokens, this.#answeredTokens, this.#running];
      if (engine !== this.#engine || baseTokens === undefined) break;
      const gauges = await read(engine);
      if (gauges === undefined || engine !== this.#engine) return false;
      const countedTokens = gauges.promptTokens - baseTokens;
      // More was answered than counted: this engine counts in another way.
      if (countedTokens < answeredTokens) break;
      // All that was answered before the reading had been counted, so nothing else has been.
      const isAllAnswered = countedTokens === answeredTokens;
      if (isAllAnswered && gauges.running + gauges.waiting <= Math.max(running, this.#running)) return true;
    }
    await this.#findBase();
    return false;
  }

  /** Only while no leg runs: which prompts are counted is not known otherwise. */
  async #findBase(): Promise<void> {
    const [engine, begun] = [this.#engine, this.#begun];
    if (engine === undefined || this.#running > 0) return;
    const gauges = await read(engine);
    if (engine !== this.#engine || begun !== this.#begun) return;
    this.#baseTokens = gauges === undefined ? undefined : gauges.promptTokens - this.#answeredTokens;
  }
}

async function read({ http }: LiveEngine): Promise<EngineGauges | undefined> {
  try {
    const { status, body } = await http.get("/metrics", READ_TIMEOUT_MS);
    return status === 200 ? readGauges(body.toString("utf8")) : undefined;
  } catch {
    return undefined;
  }
}

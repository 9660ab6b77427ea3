// Which legs wait for the first KV from a prefill engine. Before it, the two engines set up their connection, which may
// hold up everything else in the decode engine, its reports included: vLLM 0.23 with NIXL cuts all KV memory of the
// partner into pieces first, 19 s at 128 GiB. So such a wait is not a stall, whether or not the engine reports it.
import type { LiveEngine } from "../engine/engine.ts";

/** Partners that are remembered. Of a forgotten one the next transfer counts as the first again. */
const LIMIT = 1_024;

export class FirstTransfers {
  #engine: LiveEngine | undefined;
  #known = new Set<string>();
  #waiting = 0;

  /** Legs that wait. */
  get waiting(): number {
    return this.#waiting;
  }

  /**
   * A leg begins whose KV comes from `partner`. Undefined: some has come from there before. Otherwise what is called when
   * the leg's KV has come, and when the leg has ended.
   */
  began(engine: LiveEngine, partner: string): ((come: boolean) => void) | undefined {
    if (engine !== this.#engine) {
      this.#engine = engine;
      this.#known = new Set();
    }
    const known = this.#known;
    if (known.has(partner)) return undefined;
    this.#waiting++;
    let over = false;
    return (come) => {
      if (over) return;
      over = true;
      this.#waiting--;
      if (!come) return;
      known.add(partner);
      if (known.size > LIMIT) known.delete(known.values().next().value!);
    };
  }
}

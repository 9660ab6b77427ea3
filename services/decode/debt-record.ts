// What an attached engine may hold unclaimed, kept in a file: the engine outlives its instance, and an instance that was
// killed has settled nothing. Its successor books what it finds there (kv-debt.ts). Written at once when there begins to
// be such KV and when there is none left, and once a second in between.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Clock, Timer } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { type EngineGauges, isAnotherEngine, NO_GAUGES } from "../engine/metrics-text.ts";

const WRITE_MS = 1_000;

/** Prompt tokens that were booked since the engine started. */
export interface BookedTokens {
  readonly users: number;
  readonly probes: number;
}

/** And those of legs that run. */
export interface HeldTokens extends BookedTokens {
  /** Of legs whose KV was neither claimed nor settled. */
  readonly open: number;
}

interface Written extends HeldTokens {
  readonly engine: Pick<EngineGauges, "promptTokens" | "generationTokens" | "startedS">;
}

export interface DebtRecordOptions {
  readonly file: string;
  /** The engine's last report. */
  readonly gauges: () => EngineGauges;
  readonly clock: Clock;
  readonly log: Log;
}

/** @param folder For state that outlives processes. @param url Of the engine. */
export function debtFile(folder: string, url: string): string {
  return join(folder, "debts", `${createHash("sha256").update(url).digest("hex").slice(0, 16)}.json`);
}

export class DebtRecord {
  readonly #o: DebtRecordOptions;
  #left: Written | undefined;
  #held: HeldTokens = { users: 0, probes: 0, open: 0 };
  #wroteAny = false;
  #timer: Timer | undefined;
  #failed = false;

  constructor(o: DebtRecordOptions) {
    this.#o = o;
    this.#left = readRecord(o.file);
  }

  /** A leg's KV may lie in the engine from now on, or no longer. */
  open(moreTokens: number): void {
    this.#change({ ...this.#held, open: this.#held.open + moreTokens });
  }

  booked({ users, probes }: BookedTokens): void {
    this.#change({ ...this.#held, users, probes });
  }

  /** What an earlier process left in this engine. Once, as soon as the engine has reported. */
  takeLeft(): HeldTokens | undefined {
    const gauges = this.#o.gauges();
    const left = this.#left;
    if (left === undefined || gauges === NO_GAUGES) return undefined;
    this.#left = undefined;
    // What is taken over is written when it is booked.
    if (!isAnotherEngine({ ...NO_GAUGES, ...left.engine }, gauges)) return left;
    this.#write();
    return undefined;
  }

  #change(held: HeldTokens): void {
    this.#held = held;
    const holdsAny = held.users + held.probes + held.open > 0;
    if (holdsAny !== this.#wroteAny) this.#write();
    else if (holdsAny) this.#timer ??= this.#o.clock.setTimer(WRITE_MS, () => this.#write());
  }

  #write(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    const { users, probes, open } = this.#held;
    this.#wroteAny = users + probes + open > 0;
    const { promptTokens, generationTokens, startedS } = this.#o.gauges();
    const { file, log } = this.#o;
    const left = this.#left;
    // What is not booked yet is not forgotten.
    const written: Written = {
      users: users + (left?.users ?? 0),
      probes: probes + (left?.probes ?? 0),
      open: open + (left?.open ?? 0),
      engine: left?.engine ?? { promptTokens, generationTokens, startedS },
    };
    try {
      mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
      writeFileSync(`${file}.new`, JSON.stringify(written));
      renameSync(`${file}.new`, file);
    } catch (error) {
      if (!this.#failed) log.warn("KV debt could not be recorded for a successor of this process", { file, error });
      this.#failed = true;
    }
  }
}

/** Undefined without a record that holds anything. */
function readRecord(file: string): Written | undefined {
  try {
    const { users, probes, open, engine } = JSON.parse(readFileSync(file, "utf8")) as Written;
    const { promptTokens, generationTokens, startedS } = engine;
    const numbers = [users, probes, open, promptTokens, generationTokens, startedS];
    if (!numbers.every(Number.isFinite) || users + probes + open === 0) return undefined;
    return { users, probes, open, engine: { promptTokens, generationTokens, startedS } };
  } catch {
    return undefined; // There is none, or not one of ours.
  }
}

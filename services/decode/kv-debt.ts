// The ledger of KV that may lie unclaimed in the decode engine for good: the outcome of its prefill is unknown, or it
// could not be drained. Each entry is at most one prompt. The engine serves on, and the sum is shown. Only when the sum
// passes its share of the KV cache, or when the engine has been idle anyway and nothing was added, the instance asks for a
// restart, which clears the debt. What probes add gives a reason only then: a restart is followed by the next probe.
import type { Clock, Timer } from "../common/clock.ts";
import { kvDebtText } from "../common/kv-debt-text.ts";
import type { EngineFacts, LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import { NO_DEBT, type KvDebt } from "../instance/status.ts";

/** How long an instance must have had no leg, and its debt not grown, before it asks for a restart. */
const IDLE_MS = 60_000;
/** Of KV whose size the engine doesn't report: that of a model with 8 billion parameters, 16 bits a number. */
const NOMINAL_TOKEN_BYTES = 131_072;

/** Prompt tokens that were booked since the engine started. */
export interface BookedTokens {
  readonly users: number;
  readonly probes: number;
}

const NOTHING: BookedTokens = { users: 0, probes: 0 };

type CacheFacts = Pick<EngineFacts, "kvCacheTokens" | "kvCacheBytes" | "maxModelLen">;

/** The cache of an engine that doesn't report its size holds one longest request at least: vLLM starts with no less. */
function cacheTokensOf({ kvCacheTokens, maxModelLen }: CacheFacts): number {
  return Math.max(1, kvCacheTokens ?? maxModelLen);
}

/** What tokens amount to in an engine with these facts. */
export function debtOf(tokens: number, facts: CacheFacts): KvDebt {
  if (tokens === 0) return NO_DEBT;
  const { kvCacheTokens, kvCacheBytes } = facts;
  const known = kvCacheTokens !== undefined && kvCacheBytes !== undefined;
  const tokenBytes = known ? kvCacheBytes / kvCacheTokens : NOMINAL_TOKEN_BYTES;
  return {
    kvDebtBytes: BigInt(Math.ceil(tokens * tokenBytes)),
    kvDebtRatio: Math.min(1, tokens / cacheTokensOf(facts)),
  };
}

/** Why the engine should be restarted; undefined if it should not. */
export function restartReason(
  booked: BookedTokens,
  facts: CacheFacts,
  { limitRatio, idleMs }: { readonly limitRatio: number; readonly idleMs: number },
): string | undefined {
  const percent = (ratio: number): string => `${(ratio * 100).toFixed(1)} %`;
  const held = (tokens: number): string =>
    `${percent(debtOf(tokens, facts).kvDebtRatio)} of the engine's KV cache may be held by KV that was never claimed`;
  const all = booked.users + booked.probes;
  if (booked.users > 0 && debtOf(booked.users, facts).kvDebtRatio > limitRatio)
    return `${held(booked.users)}, which is more than ${percent(limitRatio)}`;
  return all > 0 && idleMs >= IDLE_MS ? `${held(all)}, and the instance is idle` : undefined;
}

export interface DebtLedger {
  /** @param tokens Of one prompt, as far as known. @param leg For the log. */
  book(engine: LiveEngine, tokens: number, probe: boolean, leg: Readonly<Record<string, string>>): void;
  engineChanged(): void;
}

export function createDebtLedger(parts: InstanceParts, limitRatio: number): DebtLedger {
  const { status, supervisor, restarts, log } = parts;
  const clock: Clock = parts.clock;
  let booked = NOTHING;
  /** Runs, or has run out, while the instance is idle. */
  let idleTimer: Timer | undefined;

  function look(idleMs: number): void {
    const engine = supervisor.live;
    if (engine !== undefined) restarts.want(engine, restartReason(booked, engine.facts, { limitRatio, idleMs }));
  }

  status.on("change", () => {
    if (booked.users + booked.probes === 0) return;
    const isIdle = status.remaining + status.orphans === 0 && !status.stopping;
    if (isIdle === (idleTimer !== undefined)) return;
    if (isIdle) {
      idleTimer = clock.setTimer(IDLE_MS, () => look(IDLE_MS));
    } else {
      stopTimer();
      look(0);
    }
  });

  function stopTimer(): void {
    idleTimer?.cancel();
    idleTimer = undefined;
  }

  return {
    book(engine, tokens, probe, leg) {
      if (supervisor.live !== engine) return;
      const { maxModelLen } = engine.facts;
      const bounded = maxModelLen > 0 ? Math.min(tokens, maxModelLen) : tokens;
      const side = probe ? "probes" : "users";
      booked = { ...booked, [side]: booked[side] + bounded };
      const debt = debtOf(booked.users + booked.probes, engine.facts);
      log.warn("KV that may never be claimed is booked as debt", {
        ...leg,
        tokens: bounded,
        probe,
        debt: kvDebtText(debt),
      });
      stopTimer();
      status.set({ kvDebt: debt });
      if (!probe) look(0);
    },
    engineChanged() {
      booked = NOTHING;
      stopTimer();
      status.set({ kvDebt: NO_DEBT });
    },
  };
}

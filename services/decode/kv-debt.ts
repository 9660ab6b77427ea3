// The ledger of KV that may lie unclaimed in the decode engine for good: the outcome of its prefill is unknown, or it
// could not be drained. Each entry is at most one prompt. The engine serves on, and the sum is shown. Only when the sum
// passes its share of the KV cache, or when the engine has been idle anyway and nothing was added, the instance asks for a
// restart, which clears the debt. What probes add gives a reason only then: a restart is followed by the next probe.
import type { Clock, Timer } from "../common/clock.ts";
import { kvDebtText } from "../common/kv-debt-text.ts";
import type { EngineFacts, LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import type { BookedTokens, DebtRecord } from "./debt-record.ts";
import { NO_DEBT, type KvDebt } from "../instance/status.ts";

/** How long an instance must have had no leg, and its debt not grown, before it asks for a restart. */
const IDLE_MS = 60_000;
/** Of KV whose size the engine doesn't report: that of a model with 8 billion parameters, 16 bits a number. */
const NOMINAL_TOKEN_BYTES = 131_072;

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

/** @param record Of an attached engine, for the successor of this process. */
export function createDebtLedger(parts: InstanceParts, limitRatio: number, record?: DebtRecord): DebtLedger {
  const { status, supervisor, restarts, log } = parts;
  const clock: Clock = parts.clock;
  let booked = NOTHING;
  /** Runs, or has run out, while the instance is idle. */
  let idleTimer: Timer | undefined;

  function look(idleMs: number): void {
    const engine = supervisor.live;
    if (engine !== undefined) restarts.want(engine, restartReason(booked, engine.facts, { limitRatio, idleMs }));
  }

  /** @param more Tokens, bounded by what an engine can hold of them. */
  function add(engine: LiveEngine, more: BookedTokens): KvDebt {
    booked = { users: booked.users + more.users, probes: booked.probes + more.probes };
    const debt = debtOf(booked.users + booked.probes, engine.facts);
    record?.booked(booked);
    stopTimer();
    status.set({ kvDebt: debt });
    return debt;
  }

  function bookLeft(): void {
    const engine = supervisor.live;
    const left = engine === undefined ? undefined : record?.takeLeft();
    if (left === undefined) return;
    const { users, probes, open } = left;
    const debt = add(engine!, { users: users + open, probes });
    log.warn("KV that an earlier process of this instance left in the engine is booked as debt", {
      tokens: users + probes + open,
      debt: kvDebtText(debt),
    });
  }

  status.on("change", () => {
    bookLeft();
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
      const debt = add(engine, probe ? { users: 0, probes: bounded } : { users: bounded, probes: 0 });
      log.warn("KV that may never be claimed is booked as debt", {
        ...leg,
        tokens: bounded,
        probe,
        debt: kvDebtText(debt),
      });
      if (!probe) look(0);
    },
    engineChanged() {
      booked = NOTHING;
      record?.booked(booked);
      stopTimer();
      status.set({ kvDebt: NO_DEBT });
    },
  };
}

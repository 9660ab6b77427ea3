// Canaries: tiny requests of our own, through the real protocol and both real engines, to what is out for its failures.
// What they bring back is brought back by them and not at a user's cost. They are no requests: not in the queue, not in
// the receipts, and counted apart.
import { ServiceError } from "../../common/errors.ts";
import type { Timer } from "../../common/clock.ts";
import type { Metrics } from "../../common/metrics.ts";
import { CONNECTORS } from "../../kv/index.ts";
import type { ConnectorName } from "../../kv/connector.ts";
import type { Pool, Probe } from "../pool/pool.ts";
import { RelayLeg } from "../leg/run.ts";
import type { LegOwner } from "../leg/run.ts";
import type { LegOutcome } from "../leg/protocol.ts";
import type { ChoiceContext } from "../relay/choice.ts";
import type { RelayMetrics } from "../request/metrics.ts";
import { createLegDraft } from "../request/receipt.ts";

/** Fine enough that what is repaired is back well within two seconds. */
const TICK_MS = 100;
/** Canaries of one pair that have not come to their end, KV settled and all: an engine that hangs isn't buried under them. */
const PAIR_LIMIT = 8;
/** And of all pairs, each of which may hang. */
const OPEN_LIMIT = 256;

export interface CanaryOptions {
  readonly context: ChoiceContext;
  readonly metrics: Metrics;
  /** Sees to it that legs are watched. */
  watch(): void;
}

export function startCanaries({ context, metrics, watch }: CanaryOptions): { stop(): void } {
  const { pool, clock, limits, log } = context;
  const sent = metrics.counter(
    "tandem_canaries_total",
    "Canaries to instances and pairs that were out, by how they ended.",
    ["outcome"],
  );
  const live = new Set<RelayLeg>();
  // The breakers are told once, by the canary's own end, and users' figures not at all.
  const quiet: RelayMetrics = {
    leg() {},
    retry() {},
    retryRefused() {},
    fallback() {},
    completed() {},
    kvBytes() {},
    replay() {},
    interTokenMs() {},
  };
  const quietPool: Pool = Object.create(pool, {
    legEnded: { value: (member: Probe["prefill"]) => pool.legEnded(member, "none") },
    pairEnded: { value: () => {} },
    prefilled: { value: () => {} },
  });
  const legContext = {
    ...context,
    pool: quietPool,
    metrics: quiet,
    limits: { ...limits, prefillTimeoutMs: Math.min(limits.prefillTimeoutMs, limits.canaryTimeoutMs) },
  };
  let timer: Timer | undefined;
  let stopped = false;

  function send(probe: Probe): void {
    const { prefill, decode } = probe;
    const { traits } = CONNECTORS[prefill.info.connector as ConnectorName];
    const legId = context.mintLegId();
    const body = Buffer.from(
      JSON.stringify({ model: prefill.info.model, prompt: promptOf(legId), max_tokens: 1, temperature: 0 }),
    );
    const request = {
      id: `canary-${legId}`,
      path: "/v1/completions" as const,
      model: prefill.info.model,
      body,
      stream: false,
      choices: 1,
      prompts: 1,
      promptIsList: false,
      includeUsage: false,
      createdUnixS: Math.floor(Date.now() / 1000),
    };
    const owner: LegOwner = {
      deliver: () => true,
      findDecode(leg, handoff, refusal) {
        if (refusal === undefined) leg.openOn(decode, handoff);
        else leg.noDecode(refusal.error);
        return () => {};
      },
      finished(leg, outcome) {
        late.cancel();
        sent.inc({ outcome: nameOf(outcome) });
        log.debug("canary ended", {
          prefill: prefill.info.instanceId,
          decode: decode.info.instanceId,
          outcome: leg.task.draft.error || "completed",
        });
        if (outcome.kind === "completed") pool.canaryCame(probe);
      },
    };
    const task = {
      request,
      draft: createLegDraft(legId, 0),
      promptIndex: undefined,
      sampleIndex: 0,
      traits,
      prefill,
      decode: traits.decodeFirst ? decode : undefined,
    };
    const leg = new RelayLeg(legContext, task, owner);
    const late = clock.setTimer(limits.canaryTimeoutMs, () => {
      leg.overdue(
        new ServiceError("leg_stalled", `The canary did not come through within ${limits.canaryTimeoutMs} ms.`),
      );
    });
    live.add(leg);
    leg.begin();
    watch();
  }

  function openOn({ prefill, decode }: Probe): number {
    let count = 0;
    for (const { task } of live) {
      const { prefillInstanceId, decodeInstanceId } = task.draft;
      // A leg that has found no decode instance yet may be for any.
      if (
        prefillInstanceId === prefill.info.instanceId &&
        (decodeInstanceId === "" || decodeInstanceId === decode.info.instanceId)
      )
        count += 1;
    }
    return count;
  }

  function tick(): void {
    timer = undefined;
    if (stopped) return;
    for (const leg of live) if (!context.live.has(leg)) live.delete(leg);
    for (const probe of pool.takeProbes()) if (live.size < OPEN_LIMIT && openOn(probe) < PAIR_LIMIT) send(probe);
    arm();
  }

  function arm(): void {
    if (!stopped && pool.ailing) timer ??= clock.setTimer(TICK_MS, tick);
  }

  const off = pool.onChange(arm);
  arm();
  return {
    stop() {
      stopped = true;
      off();
      timer?.cancel();
      for (const leg of live) leg.unwanted();
    },
  };
}

/** Longer than a KV block, so that some KV moves, and never the same, so that none of it is cached. */
function promptOf(legId: string): string {
  return `${legId} ${"checks that the way is free ".repeat(8)}`.trim();
}

function nameOf(outcome: LegOutcome): string {
  return outcome.kind === "failed" ? outcome.error.code : outcome.kind;
}

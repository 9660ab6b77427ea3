// The schedule of probes: each instance and pair that is out until a probe succeeds gets a probe when one is due.
// Probes bring repaired instances back at no user's cost. Before users' requests arrive, they also prove engines whose
// faults would show as garbage with HTTP 200. Probes skip the queue, have no receipts, and are counted separately.
import { setMaxListeners } from "node:events";
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import type { Metrics } from "../../common/metrics.ts";
import { calm, type Overload } from "../admission/overload.ts";
import { traitsOf } from "../../kv/index.ts";
import { misfitOf } from "../pool/compat.ts";
import { sideOf } from "../pool/fleet.ts";
import type { FleetView, Instance, Pool, Reason, Seen, Side } from "../pool/pool.ts";
import type { Prober, ProbeResult } from "./probe.ts";

/** Short enough that a repaired instance is back well within two seconds. */
const TICK_MS = 100;
/** Limits the unsettled probes of one pair, so that they don't pile up on an engine that hangs. */
const PAIR_LIMIT = 8;
/** Limits the open probes of all pairs, each of which may hang. */
const OPEN_LIMIT = 64;
/** Under overload one probe is sent in this time, of all that are due. */
const OVERLOADED_PAUSE_MS = 1_000;
/** Timeout for engines that need no proof, and have not been late. */
const TIMEOUT_MS = 2_000;
/**
 * Timeout for all prompts of a proof, whose first also sets up the connection of a pair and may compile kernels; and
 * after a late probe, because an engine that hangs is found out by its own instance only if a request stays in it for
 * longer than it may stall.
 */
const LONG_TIMEOUT_MS = 60_000;
const PROOF_PROMPTS = 3;

/** vLLM engines must be proven. Tandem's own engines refuse wrong KV by themselves. */
export function provesByProbe({ engine, connector }: Info): boolean {
  return engine === "vllm" && connector !== "p2p-zmq";
}

export interface ProbesOptions {
  readonly pool: Pick<Pool, "view" | "probes" | "onChange">;
  readonly prober: Prober;
  readonly clock: Clock;
  readonly metrics: Metrics;
  /** Left out: never overloaded. */
  readonly overload?: Pick<Overload, "on">;
}

export function startProbes({ pool, prober, clock, metrics, overload = calm() }: ProbesOptions) {
  const ended = metrics.counter(
    "tandem_probes_total",
    "Probes that ended, by outcome. A probe is a request of the router's own that tests an instance or a pair.",
    ["outcome"],
  );
  const stopped = new AbortController();
  setMaxListeners(OPEN_LIMIT, stopped.signal);
  /** Counts the probes of each instance, so that each uses another partner: the partner may be at fault. */
  const sentTo = new WeakMap<Instance, number>();
  /** Instances whose last probe was late. */
  const late = new WeakSet<Instance>();
  let open = 0;
  let sentMs = -Infinity;
  let pairsFirst = false;
  let timer: Timer | undefined;

  async function send(prefill: Instance, decode: Instance, signal: AbortSignal = stopped.signal): Promise<ProbeResult> {
    const proof = provesByProbe(decode.info);
    open += 1;
    const result = await prober.probe(prefill, decode, {
      prompts: proof ? PROOF_PROMPTS : 1,
      timeoutMs: proof || late.has(prefill) || late.has(decode) ? LONG_TIMEOUT_MS : TIMEOUT_MS,
      signal,
    });
    open -= 1;
    for (const one of [prefill, decode]) {
      if (result.kind !== "failed") late.delete(one);
      else if (result.failure === "late") late.add(one);
    }
    if (signal.aborted) return result;
    ended.inc({ outcome: result.kind === "failed" ? result.failure : "succeeded" });
    if (result.kind === "failed") pool.probes.failed(prefill, decode, result.failure, result.text);
    else pool.probes.succeeded(prefill, decode);
    return result;
  }

  function sendDue(prefill: Instance | undefined, decode: Instance | undefined): void {
    if (prefill === undefined || decode === undefined || open >= OPEN_LIMIT) return;
    if (prober.unsettled(prefill, decode) >= PAIR_LIMIT) return;
    // Those that wait stay due, and come first the next time: each one's pause starts with its probe.
    if (overload.on && clock.nowMs() - sentMs < OVERLOADED_PAUSE_MS) return;
    sentMs = clock.nowMs();
    pool.probes.sending(prefill, decode);
    void send(prefill, decode);
  }

  function probePairs(nowMs: number): void {
    const { view } = pool;
    for (const { prefillId, decodeId, breaker } of pool.probes.due(nowMs).pairs) {
      if (breaker.dueMs <= nowMs) sendDue(find(view, "prefill", prefillId), find(view, "decode", decodeId));
    }
  }

  /** Instances that just got a probe of a pair are no longer due. */
  function probeInstances(nowMs: number): void {
    const { view } = pool;
    for (const due of pool.probes.due(nowMs).instances) {
      // One that stalled with a partner may have wedged it, as P2P NCCL does, and would wedge the next: the probes of the
      // pair decide.
      if (traitsOf(due.info.connector)?.wedgedByPartner === true && pool.probes.isInPair(due)) continue;
      const side = sideOf(due);
      const instance = find(view, side, due.instanceId);
      const partners = instance === undefined ? [] : partnersFor(view, instance, side);
      if (partners.length === 0) continue;
      const sent = sentTo.get(due) ?? 0;
      sentTo.set(due, sent + 1);
      const partner = partners[sent % partners.length]!;
      if (side === "prefill") sendDue(instance, partner);
      else sendDue(partner, instance);
    }
  }

  function tick(): void {
    timer = undefined;
    const nowMs = clock.nowMs();
    // In turns, because under overload only the first is sent.
    pairsFirst = !pairsFirst;
    if (pairsFirst) probePairs(nowMs);
    probeInstances(nowMs);
    if (!pairsFirst) probePairs(nowMs);
    arm();
  }

  /** Runs while anything is out. Checks a due instance that can't be reached again at each tick. */
  function arm(): void {
    const { dueMs } = pool.probes;
    if (stopped.signal.aborted || timer !== undefined || dueMs === Infinity) return;
    timer = clock.setTimer(Math.max(TICK_MS, dueMs - clock.nowMs()), tick);
  }

  const off = pool.onChange((isNewView) => {
    if (!isNewView) return;
    timer?.cancel();
    timer = undefined;
    arm();
  });
  arm();
  return {
    /** Sends an extra probe for the doctor. The pool gets its result too. */
    now: send,
    [Symbol.dispose](): void {
      off();
      timer?.cancel();
      stopped.abort();
    },
  };
}

export type Probes = ReturnType<typeof startProbes>;

/** Finds an instance for which a probe makes sense: it serves, or is out for a reason that only a probe can end. */
function find(view: FleetView, side: Side, instanceId: string): Instance | undefined {
  return view[side].find((seen) => seen.instance.instanceId === instanceId && isReachable(seen))?.instance;
}

const ENDED_BY_PROBES: ReadonlySet<Reason> = new Set<Reason>(["failing", "outrun", "unproven"]);

function isReachable({ standing }: Seen): boolean {
  return standing.kind === "serves" || ENDED_BY_PROBES.has(standing.reason);
}

/** Partners that serve or, if there are none, all that a probe can reach. */
function partnersFor(view: FleetView, one: Instance, side: Side): Instance[] {
  const fits = (other: Instance): boolean =>
    (side === "prefill" ? misfitOf(one.info, other.info) : misfitOf(other.info, one.info)) === undefined;
  const reachable = view[side === "prefill" ? "decode" : "prefill"].filter(
    (seen) => isReachable(seen) && fits(seen.instance),
  );
  const serving = reachable.filter(({ standing }) => standing.kind === "serves" && standing.despite === undefined);
  return (serving.length > 0 ? serving : reachable).map(({ instance }) => instance);
}

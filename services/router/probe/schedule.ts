// The schedule of probes: each instance and pair that is out until a probe succeeds gets one when it is due. Probes bring
// back what they find repaired, at no user's cost, and prove engines whose faults would show as garbage with HTTP 200
// before users come. They are not requests: not in the queue, not in the receipts, and counted apart.
import { setMaxListeners } from "node:events";
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import type { Metrics } from "../../common/metrics.ts";
import { misfitOf } from "../pool/compat.ts";
import type { FleetView, Instance, Pool, Seen, Side } from "../pool/pool.ts";
import type { Prober, ProbeResult } from "./probe.ts";

/** Fine enough that what is repaired is back well within two seconds. */
const TICK_MS = 100;
/** Probes of one pair that have not settled: an engine that hangs is not buried under them. */
const PAIR_LIMIT = 8;
/** And of all pairs, each of which may hang. */
const OPEN_LIMIT = 64;
/** Through engines that have worked with each other. */
const TIMEOUT_MS = 2_000;
/** The first use of a pair sets up its connection, and may compile kernels. */
const COLD_TIMEOUT_MS = 60_000;
const PROOF_PROMPTS = 3;

/** vLLM engines must be proven. Tandem's own engines refuse KV that doesn't fit by themselves. */
export function provesByProbe({ engine, connector }: Info): boolean {
  return engine === "vllm" && connector !== "p2p-zmq";
}

export interface Probes extends Disposable {
  /** One more, for the doctor; the pool learns what it says. */
  now(prefill: Instance, decode: Instance, signal?: AbortSignal): Promise<ProbeResult>;
}

export interface ProbesOptions {
  readonly pool: Pick<Pool, "view" | "probes" | "onView">;
  readonly prober: Prober;
  readonly clock: Clock;
  readonly metrics: Metrics;
}

export function startProbes({ pool, prober, clock, metrics }: ProbesOptions): Probes {
  const ended = metrics.counter(
    "tandem_probes_total",
    "Requests of the router's own to instances and pairs that are out, by how they ended.",
    ["outcome"],
  );
  const stopped = new AbortController();
  setMaxListeners(OPEN_LIMIT, stopped.signal);
  /** Probes sent to each, so that each one goes through another partner: the partner may be the one that fails. */
  const sentTo = new WeakMap<Instance, number>();
  let open = 0;
  let timer: Timer | undefined;

  async function send(prefill: Instance, decode: Instance, signal: AbortSignal = stopped.signal): Promise<ProbeResult> {
    const proof = provesByProbe(decode.info);
    open += 1;
    const result = await prober.probe(prefill, decode, {
      prompts: proof ? PROOF_PROMPTS : 1,
      timeoutMs: proof ? COLD_TIMEOUT_MS : TIMEOUT_MS,
      signal,
    });
    open -= 1;
    if (signal.aborted) return result;
    ended.inc({ outcome: result.kind === "failed" ? result.failure : "succeeded" });
    if (result.kind === "failed") pool.probes.failed(prefill, decode, result.failure, result.text);
    else pool.probes.succeeded(prefill, decode);
    return result;
  }

  function sendDue(prefill: Instance | undefined, decode: Instance | undefined): void {
    if (prefill === undefined || decode === undefined || open >= OPEN_LIMIT) return;
    if (prober.unsettled(prefill, decode) >= PAIR_LIMIT) return;
    pool.probes.sending(prefill, decode);
    void send(prefill, decode);
  }

  function tick(): void {
    timer = undefined;
    const { view } = pool;
    const nowMs = clock.nowMs();
    for (const { prefillId, decodeId, breaker } of pool.probes.due(nowMs).pairs) {
      if (breaker.due(nowMs)) sendDue(find(view, "prefill", prefillId), find(view, "decode", decodeId));
    }
    // Those that a probe of a pair goes to by now are no longer due.
    for (const { instanceId } of pool.probes.due(nowMs).instances) {
      const side = view.prefill.some(({ instance }) => instance.instanceId === instanceId) ? "prefill" : "decode";
      const instance = find(view, side, instanceId);
      const partners = instance === undefined ? [] : partnersFor(view, instance, side);
      if (instance === undefined || partners.length === 0) continue;
      const sent = sentTo.get(instance) ?? 0;
      sentTo.set(instance, sent + 1);
      const partner = partners[sent % partners.length]!;
      if (side === "prefill") sendDue(instance, partner);
      else sendDue(partner, instance);
    }
    arm();
  }

  /** Runs while anything is out; an instance that is due and can't be reached is looked for again at each tick. */
  function arm(): void {
    const { dueMs } = pool.probes;
    if (stopped.signal.aborted || timer !== undefined || dueMs === Infinity) return;
    timer = clock.setTimer(Math.max(TICK_MS, dueMs - clock.nowMs()), tick);
  }

  const off = pool.onView(() => {
    timer?.cancel();
    timer = undefined;
    arm();
  });
  arm();
  return {
    now: send,
    [Symbol.dispose]() {
      off();
      timer?.cancel();
      stopped.abort();
    },
  };
}

/** An instance that a probe can tell something of: it serves, or is out for what only a probe can end. */
function find(view: FleetView, side: Side, instanceId: string): Instance | undefined {
  return view[side].find((seen) => seen.instance.instanceId === instanceId && isReachable(seen))?.instance;
}

function isReachable({ standing }: Seen): boolean {
  return standing.kind === "serves" || standing.reason === "failing" || standing.reason === "unproven";
}

/** Those that serve, or else all that a probe may go to. */
function partnersFor(view: FleetView, one: Instance, side: Side): Instance[] {
  const fits = (other: Instance): boolean =>
    (side === "prefill" ? misfitOf(one.info, other.info) : misfitOf(other.info, one.info)) === undefined;
  const reachable = view[side === "prefill" ? "decode" : "prefill"].filter(
    (seen) => isReachable(seen) && fits(seen.instance),
  );
  const serving = reachable.filter(({ standing }) => standing.kind === "serves" && standing.despite === undefined);
  return (serving.length > 0 ? serving : reachable).map(({ instance }) => instance);
}

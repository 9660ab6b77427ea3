// Compares what clients and engines saw with the faults that hit them. Pure: the same records give the same verdict.
import { POISONED, type KnownAnswer } from "./asks.ts";
import type { ChaosConfig } from "./config.ts";
import type { Fleet } from "./fleets.ts";
import type { Fault } from "./injector.ts";
import type { RequestRecord } from "./load.ts";
import { isSoft } from "./schedule.ts";
import type { ChaosWatch, SeenReceipt } from "./watch.ts";

export interface Violation {
  readonly rule:
    | "hung"
    | "malformed"
    | "wrong answer"
    | "untouched"
    | "wrong error"
    | "poison"
    | "late"
    | "cut"
    | "orphan"
    | "left behind"
    | "drain"
    | "silent instance"
    | "memory"
    | "loop"
    | "scene"
    | "start";
  readonly what: string;
  readonly request?: RequestRecord;
  readonly receipt?: SeenReceipt | undefined;
  readonly faults?: readonly Fault[];
}

/** Rules that a machine breaks by withholding the processor: what they forbid is what a starved process does. */
const TIMED: ReadonlySet<Violation["rule"]> = new Set([
  "untouched",
  "late",
  "cut",
  "drain",
  "silent instance",
  "scene",
  "start",
]);

/** An undisturbed stream of a process beside the deployment that was silent for longer shows a starved machine. */
export const CONTROL_GAP_MS = 750;

/** Sets apart what can't be judged on a machine whose control stream starved. Wrong answers, KV and memory count. */
export function judge(
  violations: readonly Violation[],
  controlMaxMs: number,
): { readonly broken: readonly Violation[]; readonly unjudged: readonly Violation[] } {
  if (!(controlMaxMs > CONTROL_GAP_MS)) return { broken: violations, unjudged: [] };
  const isTimed = ({ rule }: Violation): boolean => TIMED.has(rule);
  return { broken: violations.filter((one) => !isTimed(one)), unjudged: violations.filter(isTimed) };
}

export interface CheckInput extends Pick<ChaosWatch, "receipts" | "kv">, Pick<ChaosConfig, "slackMs"> {
  readonly connector: Fleet["connector"];
  /** Whether engines outlive their instances. */
  readonly attached: boolean;
  readonly records: readonly RequestRecord[];
  readonly faults: readonly Fault[];
  readonly answers: readonly KnownAnswer[];
}

export interface CheckResult {
  readonly violations: readonly Violation[];
  readonly endings: Readonly<Record<string, number>>;
  /** Requests none of whose legs ran on a router or instance during a fault. */
  readonly untouched: number;
  /** Requests that a fault hit and that completed anyway. */
  readonly rescued: number;
  /** The rescued streams that broke after their first byte and continued. */
  readonly resumed: number;
  readonly untouchedGapsMs: readonly number[];
  /** Errors that clients saw, by code. */
  readonly errors: Readonly<Record<string, number>>;
  /** Longest silence before an error or cut, in milliseconds. */
  readonly slowestEndMs: number;
  /** Longest time that KV lay without progress, unclaimed, in milliseconds. */
  readonly longestKvMs: number;
}

/** For this long after the target recovers, effects of the fault may still be detected. */
const AFTERMATH_MS = 3_000;
/** How requests end that were in a prefill engine that hung, or found none that worked. */
const HUNG_CODES: ReadonlySet<string> = new Set(["leg_stalled", "instance_lost", "no_instance", "kv_transfer_failed"]);
/** Faults of a decode instance after which what is sent to it may never be taken. */
const WEDGING: ReadonlySet<Fault["kind"]> = new Set<Fault["kind"]>([
  ...(["kill-engine", "kill-wrapper", "end-engine", "freeze-engine", "engine-fault"] as const),
  ...(["drop-kv-link", "halve-kv-link"] as const),
]);
/** Until a prefill engine that hangs is found by its counters, and works again. */
const WEDGE_MS = 20_000;
/** gRPC's keepalive shows an instance after two seconds plus two more that its caller is silent. */
const CALLER_SILENT_MS = 4_000;
const ORPHAN_MS = 2_000;
/** The first hold of a quarantined body: a tenth of `quarantine.hold_ms`. */
const QUARANTINE_MS = 30_000;
/** `replay.timeout_ms` of the routers: how long a broken stream may be silent during a replay. */
const REPLAY_MS = 10_000;

/** As shipped: `stall_ms` of instances. */
const STALL_MS = 15_000;

/** How long after the fault a request may end, by promise 1 of the design. */
function boundMs(
  fault: Pick<Fault, "kind" | "target" | "engineFault" | "durationMs">,
  connector: CheckInput["connector"],
): number {
  if (connector === "p2p-nccl" && wedgesPrefill(fault)) return STALL_MS + 2_000;
  switch (fault.kind) {
    case "freeze-router":
      // Its clients hear from it once it runs again.
      return 2_000 + fault.durationMs;
    case "freeze-wrapper":
    case "drop-rpc":
    case "delay-rpc":
      return 2_000;
    case "freeze-engine":
    case "drop-kv-link":
      return STALL_MS + 2_000;
    case "engine-fault": {
      const quick = ["refuse", "die", "error-event", "half-event", "corrupt-kv", "wrong-model"];
      return quick.includes(String(fault.engineFault?.["kind"])) ? 500 : STALL_MS + 2_000;
    }
    default:
      return 500;
  }
}

/** How often each value occurs. */
export function tally(values: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1;
  return counts;
}

export function check(input: CheckInput): CheckResult {
  const { records, faults, receipts, answers, slackMs, connector } = input;
  const violations: Violation[] = [];
  const errors: string[] = [];
  const untouchedGapsMs: number[] = [];
  let [untouched, rescued, resumed, slowestEndMs] = [0, 0, 0, 0];
  const done = faults.filter(({ skipped }) => skipped === undefined);

  for (const record of records) {
    const receipt = receipts.get(record.id);
    const hurt = faultsOf(record, receipt, done, connector);
    const hard = hurt.filter(({ kind }) => !isSoft(kind));
    const add = (rule: Violation["rule"], what: string): void => {
      violations.push({ rule, what, request: record, receipt, faults: hurt });
    };
    // A stopping router accepts no new requests, and closes idle connections.
    const turnedAway = record.text === "" && hurt.some(({ kind }) => kind === "restart-router");
    if (record.ask >= answers.length - POISONED) {
      // Engines fail at its body. The other rules show that it hurts no other request.
      if (record.ending !== "error" && record.ending !== "left" && hard.length === 0 && !turnedAway)
        add("poison", `${record.ending} ${record.status}: ${record.message}`);
      continue;
    }
    const wrong = wrongIn(record, answers[record.ask]!);
    if (wrong !== undefined) add("wrong answer", wrong);
    if (record.ending === "hung") add("hung", record.message);
    else if (record.ending === "malformed") add("malformed", record.message);
    if (hurt.length === 0 && record.ending !== "left") {
      untouched++;
      if (!record.slow) for (const gap of record.gapsMs) untouchedGapsMs.push(gap);
    }
    const replays = receipt?.fallbacks.filter((fallback) => fallback.startsWith("replay:")) ?? [];
    // Every request here has exactly one right answer.
    if (replays.includes("replay:diverged")) add("wrong answer", "the replay of a broken stream wrote different text");
    if (record.ending === "completed" && hard.length > 0 && (receipt?.legs.length ?? 0) > 1) rescued++;
    if (record.ending === "completed" && replays.length > 0) resumed++;
    if (record.ending !== "error" && record.ending !== "cut") continue;

    const code = record.ending === "cut" ? "cut" : (receipt?.errorCode ?? String(record.status));
    errors.push(code);
    const blamesClient = record.status >= 400 && record.status < 500 && record.status !== 429;
    if (code === "internal" || blamesClient) add("wrong error", `${code} ${record.status}: ${record.message}`);
    // A router may be killed twice. The second time ends the requests that came in between.
    const excuses = record.ending === "error" ? hard : hard.filter(({ kind }) => kind === "kill-router").slice(-1);
    // Two engines that failed at one time make one body look guilty; it is held for a while.
    const heldInnocent = code === "query_of_death" && bothFailed(done, record.sentMs);
    if (excuses.length === 0 && !turnedAway && !heldInnocent) {
      add(record.ending === "cut" ? "cut" : "untouched", `${record.ending} ${record.status}: ${record.message}`);
      continue;
    }
    if (excuses.length === 0) continue;
    const beganMs = Math.min(...excuses.map((fault) => fault.beganMs));
    const silentMs = record.endMs - Math.max(record.lastMs ?? 0, record.sentMs, beganMs);
    const tries = Math.max(1, receipt?.legs.length ?? 1);
    const limitMs =
      Math.max(...excuses.map((fault) => boundMs(fault, connector))) * tries +
      (replays.length > 0 ? REPLAY_MS : 0) +
      slackMs;
    slowestEndMs = Math.max(slowestEndMs, silentMs);
    if (silentMs > limitMs)
      add("late", `ended ${Math.round(silentMs)} ms after the fault, ${limitMs} ms at most: ${record.message}`);
  }
  const longestKvMs = checkKv(input, done, violations);
  const endings = tally(records.map(({ ending }) => ending));
  const counts = { endings, errors: tally(errors), untouched, rescued, resumed };
  return { ...counts, violations, untouchedGapsMs, slowestEndMs, longestKvMs };
}

/** Whether engines of two instances of one role were made to fail shortly before. */
function bothFailed(faults: readonly Fault[], atMs: number): boolean {
  const failed = new Set<string>();
  for (const { kind, target, beganMs, healedMs = Infinity } of faults) {
    const isEngine = kind === "engine-fault" || kind === "kill-engine" || kind === "end-engine";
    if (isEngine && beganMs <= atMs && healedMs >= atMs - QUARANTINE_MS) failed.add(target);
  }
  return [...failed].some((one) => [...failed].some((other) => other !== one && roleOf(other) === roleOf(one)));
}

function roleOf(target: string): string {
  return target.split("-", 1)[0]!;
}

/** Faults of a request's router and instances that overlap the request in time. */
function faultsOf(
  record: RequestRecord,
  receipt: SeenReceipt | undefined,
  faults: readonly Fault[],
  connector: CheckInput["connector"],
): Fault[] {
  const on = new Set([record.router, ...(receipt?.legs ?? []).flatMap(({ prefill, decode }) => [prefill, decode])]);
  // Without a receipt (the router died) any instance may be the cause. Without a leg nothing could serve it, which no
  // fault excuses, because the schedule leaves an instance of each role whole; but P2P NCCL's dead decode engine wedges
  // all that were sending to it.
  const mayHaveHung =
    connector === "p2p-nccl" && record.ending !== "completed" && HUNG_CODES.has(receipt?.errorCode ?? "no_instance");
  const anywhere = receipt === undefined || (receipt.legs.length === 0 && connector === "p2p-nccl");
  return faults.filter((fault) => {
    if (mayHaveHung && wedgesPrefill(fault) && overlaps(fault, record.sentMs, record.endMs, WEDGE_MS)) return true;
    if (!on.has(fault.target) && !(anywhere && !fault.target.startsWith("router"))) return false;
    return overlaps(fault, record.sentMs, record.endMs);
  });
}

function overlaps(
  { beganMs, healedMs = Infinity }: Fault,
  fromMs: number,
  toMs: number,
  aftermathMs = AFTERMATH_MS,
): boolean {
  return beganMs <= toMs && healedMs + aftermathMs >= fromMs;
}

/**
 * Whether P2P NCCL hangs all prefill engines that were sending to the fault's target: for everybody, until each is found
 * and started again.
 */
function wedgesPrefill({ target, kind }: Pick<Fault, "target" | "kind">): boolean {
  return target.startsWith("decode") && WEDGING.has(kind);
}

function wrongIn(
  { ending, stream, text, tokens, finishReason }: RequestRecord,
  right: KnownAnswer,
): string | undefined {
  const end = (of: string): string => JSON.stringify(of.slice(-80));
  if (ending !== "completed") {
    if (!stream || right.text.startsWith(text)) return undefined;
    return `broken off after text that is not a prefix of the answer: ${end(text)}`;
  }
  if (text !== right.text) return `${end(text)} instead of ${end(right.text)}`;
  if (tokens !== right.tokens) return `usage reports ${tokens} tokens instead of ${right.tokens}`;
  if (finishReason !== right.finishReason) return `finish reason ${finishReason} instead of ${right.finishReason}`;
  return undefined;
}

function checkKv(
  { kv, receipts, slackMs, connector, attached }: CheckInput,
  faults: readonly Fault[],
  violations: Violation[],
): number {
  const byLeg = new Map<string, SeenReceipt>();
  for (const receipt of receipts.values()) for (const { legId } of receipt.legs) byLeg.set(legId, receipt);
  let longestMs = 0;
  for (const { instance, id, stage, sinceMs, lastSeenMs } of kv) {
    longestMs = Math.max(longestMs, lastSeenMs - sinceMs);
    // NIXL's KV has a lease of 30 s on the prefill engine, and nothing but the lease ends it.
    if (connector === "nixl") continue;
    if (lastSeenMs - sinceMs <= ORPHAN_MS + slackMs) continue;
    const receipt = byLeg.get(/[0-9a-f]{32}/.exec(id)?.[0] ?? "");
    const leg = receipt?.legs.find(({ legId }) => id.includes(legId));
    // It was wanted: this leg answered the request, and prefill took its time.
    if (leg?.error === "" && receipt?.errorCode === "") continue;
    const on = new Set([instance, leg?.prefill ?? "", receipt?.router ?? ""]);
    const hurt = faults.filter(
      (fault) =>
        (on.has(fault.target) || (receipt === undefined && fault.target.startsWith("router"))) &&
        overlaps(fault, sinceMs, lastSeenMs),
    );
    // The next instance doesn't know of it: the lease of the engine ends it.
    if (attached && hurt.some(({ kind, target }) => kind === "kill-wrapper" && target === instance)) continue;
    // KV of P2P NCCL that can't be accounted for is a debt of its engine: booked, and kept.
    if (connector === "p2p-nccl" && hurt.some(({ kind }) => !isSoft(kind))) continue;
    // A broken instance can't settle anything. The time runs from its recovery, or from when its partner notices.
    const fromMs = Math.max(sinceMs, ...hurt.map(({ healedMs = Infinity }) => healedMs + CALLER_SILENT_MS));
    if (lastSeenMs <= fromMs + ORPHAN_MS + slackMs) continue;
    const what = `KV ${id} (${stage}) lay on ${instance} for ${Math.round(lastSeenMs - sinceMs)} ms`;
    violations.push({ rule: "orphan", what, receipt, faults: hurt });
  }
  return longestMs;
}

// Fleets of instances that are not there, in whatever standing a test wants them.
import { create } from "@bufbuild/protobuf";
import { type Info, InfoSchema, LoadSchema, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { BREAKER_LIMITS, Breaker } from "../../../services/router/pool/breaker.ts";
import { type FleetView, fleetOf, type Known } from "../../../services/router/pool/fleet.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";

export interface KnownInit extends Partial<Omit<Known, "info">> {
  readonly id: string;
  readonly info?: Partial<Info>;
  /** Legs of users failed on it. */
  readonly failing?: boolean;
  /** A probe got a wrong answer from it. */
  readonly wrong?: boolean;
  /** No probe has succeeded with it. */
  readonly unproven?: boolean;
  /** The state that it reports; undefined: it has not reported yet. Default: it serves. */
  readonly state?: State | undefined;
  /** The reason that it reports for `state`. */
  readonly stateText?: string;
}

/** Serves, unless `init` says otherwise. */
export function known(role: Role, { id, info, failing, wrong, unproven, stateText = "", ...init }: KnownInit): Known {
  const breaker = new Breaker(BREAKER_LIMITS);
  if (failing === true) breaker.judge("wedged", 0);
  if (unproven === true) breaker.distrust(0);
  if (wrong === true) breaker.probeFailed("wrong", "The last probe failed: it answers wrongly.", 0);
  const { state } = { state: State.SERVING, ...init };
  const load = state === undefined ? undefined : { ...create(LoadSchema, init.load), state, reason: stateText };
  return {
    info: create(InfoSchema, { instanceId: id, role, model: "tiny", connector: "p2p-nccl", ...info } as Info),
    instanceId: id,
    loadAtMs: 1,
    legs: 0,
    legsTotal: 0n,
    placedTokens: 0,
    tokensPerMs: 0,
    slots: 4,
    freeSlots: 4,
    running: 0,
    queuedTokens: 0,
    registered: true,
    drained: false,
    objection: undefined,
    link: { kind: "up" },
    suspect: false,
    breaker,
    ...init,
    load,
  } as Known;
}

export interface ViewOptions {
  readonly pairs?: Pairs;
  /** Whether decode may serve unpaired. Default: no. */
  readonly unpaired?: boolean;
  /** Whether the router doubts itself. Default: no. */
  readonly doubtsItself?: boolean;
}

export function viewOf(prefill: readonly KnownInit[], decode: readonly KnownInit[], o: ViewOptions = {}): FleetView {
  const all = [...prefill.map((init) => known(Role.PREFILL, init)), ...decode.map((init) => known(Role.DECODE, init))];
  const { pairs = new Pairs(BREAKER_LIMITS), unpaired = false, doubtsItself = false } = o;
  return fleetOf(all, pairs, () => unpaired, doubtsItself);
}

/** `serves`, or why not. */
export function standingIn(view: FleetView, id: string): string {
  const standing = [...view.prefill, ...view.decode].find(({ instance }) => instance.instanceId === id)?.standing;
  return standing === undefined ? "unknown" : standing.kind === "serves" ? "serves" : standing.reason;
}

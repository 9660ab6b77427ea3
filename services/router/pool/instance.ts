// One known instance: the link to it, its last report, and the legs that this router runs on it. standing.ts decides
// from these facts whether the instance gets more legs.
import { equals } from "@bufbuild/protobuf";
import { InstanceService, LoadSchema, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Info, Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock } from "../../common/clock.ts";
import type { Log } from "../../common/log.ts";
import type { Objection } from "../../discovery/registry.ts";
import { type ChannelState, type LossReason, NO_ANSWER, type RpcChannel, dialRpc } from "../../rpc/channel.ts";
import { lossFault, peerFault, type PeerFault } from "../../rpc/peer-fault.ts";
import { CERTIFICATE_FAULTS, type CertificateFault, type Tls } from "../../rpc/tls.ts";
import { Breaker, type BreakerLimits, type Verdict } from "./breaker.ts";
import { claimsToServe, standingOf, type Facts, type Link } from "./standing.ts";

/** Weight of the latest prefill in the observed rate. */
const RATE_WEIGHT = 0.2;
/** A leg that failed a moment ago counts as this many running ones, and as this many waiting prompt tokens. */
const SUSPECT_LEGS = 4;
const SUSPECT_TOKENS = 2_048;

/** An instance as the rest of the router sees it. The figures are current: they change in place. */
export type Instance = Readonly<
  Omit<
    TrackedInstance,
    | Exclude<keyof Facts, "load">
    | "legStarted"
    | "legEnded"
    | "pardon"
    | "outrun"
    | "prefilled"
    | "grantRestart"
    | "retire"
    | "close"
  >
>;

export interface InstanceOptions {
  readonly token: string | undefined;
  readonly tls: Tls | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly breaker: BreakerLimits;
  readonly connectTimeoutMs?: number | undefined;
  /** Whether a probe must prove the instance before it gets users' requests. */
  readonly proves: (info: Info) => boolean;
  /** Called when its standing or its facts may have changed or, otherwise, only its figures. */
  onChange(isNewView: boolean): void;
  /** Called when it starts to serve: its engine may be a new one. */
  onServing(): void;
  /** Called when `suspect` changes. */
  onSuspect(): void;
  /** More time, in milliseconds, before the instance is silent. */
  patienceMs(): number;
}

/** The pool's side of an instance. */
export class TrackedInstance implements Facts {
  /** `info.instanceId`. */
  readonly instanceId: string;
  /** Carries all calls to it. The heartbeat is WatchLoad. */
  readonly channel: RpcChannel;
  readonly breaker: Breaker;
  objection: Objection | undefined;
  registered = true;
  /** Drained through this router. Cleared once the instance itself reports that it drains. */
  drained = false;
  suspect = false;
  link: Link = { kind: "down", reason: "unreachable", text: "It has not reported its load yet." };
  /** Its last load report. Undefined before the first. */
  load: Load | undefined;
  /** When `load` arrived, by the pool's clock. 0 before. */
  loadAtMs = 0;
  /** Whether its engine may be restarted now, though it serves. */
  restartGranted = false;
  /** Legs of this router that run on it. */
  legs = 0;
  /** Legs that this router has given it since it was found. */
  legsTotal = 0n;
  /** Prompt tokens placed on it since `load` arrived, estimated. */
  placedTokens = 0;
  /** Prompt tokens that it computes in a millisecond, as seen on this router's legs. 0 before the first leg. */
  tokensPerMs = 0;
  /** Legs of this router that it can hold, by its last report: those that ran then, and the slots that were free. */
  slots = 0;
  /** Free slots: its own figure less the legs placed on it since. */
  freeSlots = 0;
  /** Legs and reservations of all routers: its own figure plus the legs placed on it since. Failed legs add to it. */
  running = 0;
  /**
   * Prompt tokens waiting for or in prefill, plus those placed since, plus failed legs. 0 on decode, which computes no
   * prompts.
   */
  queuedTokens = 0;

  #info: Info;
  #legsAtLoad = 0;
  #closed = false;
  readonly #isDecode: boolean;
  readonly #o: InstanceOptions;
  readonly #log: Log;

  constructor(info: Info, o: InstanceOptions) {
    this.#info = info;
    this.instanceId = info.instanceId;
    this.#isDecode = info.role === Role.DECODE;
    this.#o = o;
    this.#log = o.log.child({ instanceId: info.instanceId });
    this.breaker = new Breaker(o.breaker);
    this.#tally();
    if (o.proves(info)) this.breaker.distrust(o.clock.nowMs());
    this.channel = dialRpc(info.grpcAddress, {
      token: o.token,
      tls: o.tls,
      connectTimeoutMs: o.connectTimeoutMs,
      log: this.#log,
      clock: o.clock,
      patienceMs: o.patienceMs,
      heartbeat: {
        method: InstanceService.method.watchLoad,
        message: () => ({ restartGranted: this.restartGranted }),
        onMessage: ({ load }) => {
          if (!this.#closed && load !== undefined) this.#onLoad(load);
        },
        onRefused: (error) => {
          this.#log.debug("load watch ended", { error });
          this.#down(
            error === undefined ? down("unreachable", "It stopped reporting its load.") : refused(peerFault(error)),
          );
        },
      },
      onState: (state) => this.#followChannel(state),
    });
  }

  /** Contains the KV address that the instance itself reports: a registry may learn of an engine's restart later. */
  get info(): Info {
    return this.#info;
  }

  set info(info: Info) {
    const kvAddress = this.load?.kvAddress ?? "";
    this.#info = kvAddress === "" || kvAddress === info.kvAddress ? info : { ...info, kvAddress };
    this.#tally();
  }

  legStarted(tokens: number): void {
    this.legs += 1;
    this.legsTotal += 1n;
    this.placedTokens += tokens;
    this.#tally();
  }

  /** Returns true if that took the instance out, or back in. */
  legEnded(verdict: Verdict): boolean {
    this.legs -= 1;
    if (verdict === "good" && this.breaker.because === "outrun") {
      this.breaker.close();
      this.#log.info("a leg ended well: instance takes requests");
      this.#tally();
      return true;
    }
    // Legs that fail with an instance that is out already say nothing new, unless it got them as a last resort.
    const standing = standingOf(this);
    const says = standing.kind === "serves" || standing.reason === "failing";
    const opened = says && this.breaker.judge(verdict, this.#o.clock.nowMs());
    if (opened) {
      const because = verdict === "wedged" ? "a leg stalled on it" : "leg after leg failed on it";
      this.#log.warn("instance is out until a probe succeeds", { because });
    }
    this.#tally();
    return opened;
  }

  /** Takes back a failure, which was the request's own. Returns true if that brought the instance back. */
  pardon(): boolean {
    const closed = this.breaker.pardon();
    if (closed) this.#log.info("instance takes requests again: they failed by their own body");
    this.#tally();
    return closed;
  }

  /** Keeps new legs off the instance until a probe or a running leg ends well, if others are there to take them. */
  outrun(): boolean {
    if (standingOf(this).kind !== "serves" || !this.breaker.outrun(this.#o.clock.nowMs())) return false;
    this.#log.warn("instance is outrun: another one answered a request that waited for it");
    this.#tally();
    return true;
  }

  /** Notes that the instance computed a prompt. */
  prefilled(tokens: number, ms: number): void {
    if (tokens <= 0 || ms <= 0) return;
    const rate = tokens / ms;
    this.tokensPerMs = this.tokensPerMs === 0 ? rate : this.tokensPerMs + RATE_WEIGHT * (rate - this.tokensPerMs);
  }

  grantRestart(granted: boolean): void {
    if (granted === this.restartGranted) return;
    this.restartGranted = granted;
    if (granted) this.#log.info("a restart of its engine is granted", { because: this.load?.restartWanted });
    this.channel.beat();
  }

  /**
   * Called when the instance has left and its last leg has ended. Resolves when its calls have ended too: calls of
   * abandoned and stalled legs settle after their slots were released.
   */
  retire(): Promise<void> {
    this.#closed = true;
    return this.channel.retire();
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.channel[Symbol.asyncDispose]();
  }

  #followChannel(state: ChannelState): void {
    if (this.#closed) return;
    if (state.kind === "down") {
      this.suspect = false;
      this.#down(lost(state));
    } else if (this.suspect !== (state.kind === "suspect")) {
      this.suspect = state.kind === "suspect";
      this.#tally();
      this.#log.info(this.suspect ? "instance is suspect: no byte came for a second" : "instance is no longer suspect");
      this.#o.onSuspect();
    }
  }

  /**
   * Updates the figures for placement after every change. They are fields rather than getters because each placement
   * reads them from every candidate.
   */
  #tally(): void {
    const { load, legs, breaker } = this;
    const { slotLimit } = this.#info;
    const since = legs - this.#legsAtLoad;
    // An instance that fails at once is always idle. Without this term it would attract every leg. As a last resort, the
    // least suspect one is used first.
    const suspicion = Math.max(breaker.suspicion(this.#o.clock.nowMs()), breaker.open || this.suspect ? 1 : 0);
    this.running =
      Math.max(legs, (load === undefined ? 0 : load.running + load.reserved) + since) +
      Math.round(suspicion * SUSPECT_LEGS);
    this.freeSlots = load === undefined ? 0 : Math.max(0, load.freeSlots - since);
    this.slots = load === undefined ? slotLimit : Math.min(slotLimit, this.#legsAtLoad + load.freeSlots);
    this.queuedTokens = this.#isDecode
      ? 0
      : (load?.queuedTokens ?? 0) + this.placedTokens + Math.round(suspicion * SUSPECT_TOKENS);
  }

  #down(link: Down): void {
    if (this.#closed) return;
    const known = this.link;
    if (known.kind === "down" && known.reason === link.reason && known.text === link.text) return;
    this.link = link;
    this.#log.warn("instance is out", { reason: link.reason, why: link.text });
    this.#o.onChange(true);
  }

  #onLoad(load: Load): void {
    const before = this.load;
    const nowMs = this.#o.clock.nowMs();
    const served = claimsToServe(this);
    const nothingNew = this.link.kind === "up" && this.legs === 0 && isSameIdle(before, load);
    this.load = load;
    this.loadAtMs = nowMs;
    this.#legsAtLoad = this.legs;
    this.placedTokens = 0;
    this.#tally();
    if (before?.kvAddress !== load.kvAddress) this.info = this.#info;
    // From now on the instance's own state decides, so any router may undrain it.
    const undrained = this.drained && load.state === State.DRAINING;
    if (undrained) this.drained = false;
    if (this.link.kind === "down") this.#log.info("instance reports its load", { state: State[load.state] });
    const news =
      this.link.kind === "down" ||
      undrained ||
      before?.state !== load.state ||
      before.reason !== load.reason ||
      before.kvAddress !== load.kvAddress;
    this.link = { kind: "up" };
    if (!served && claimsToServe(this)) this.#isBack(nowMs);
    // Heartbeats of hundreds of idle instances must not wake anything.
    if (news || !nothingNew) this.#o.onChange(news);
  }

  /**
   * The instance is back from its start, an engine restart or a cut link: its engine may be sound again, or a new one.
   */
  #isBack(nowMs: number): void {
    if (this.#o.proves(this.#info)) this.breaker.distrust(nowMs);
    else this.breaker.renew(nowMs);
    this.#o.onServing();
  }
}

type Down = Link & { readonly kind: "down" };

function down(reason: Down["reason"], text: string): Down {
  return { kind: "down", reason, text };
}

function lost(state: ChannelState & { readonly kind: "down" }): Down {
  if (state.because === "untrusted") return down("untrusted", distrust(lossFault(state)));
  if (state.cause?.message === NO_ANSWER) return down("unreachable", `It can't be used: ${NO_ANSWER}`);
  return LOST[state.because];
}

function distrust({ kind, text }: PeerFault): string {
  const cure = kind === "version" ? " Run the same version on both." : "";
  return `It has not proven who it is (${kind}): ${text}${cure}`;
}

const LOST: Record<Exclude<LossReason, "untrusted">, Down> = {
  unreachable: down("unreachable", "It can't be reached."),
  broken: down("unreachable", "The connection to it broke."),
  ended: down("unreachable", "It ended the connection."),
  silent: down("silent", "No byte has come from it for 2 s."),
};

function refused({ kind, text }: PeerFault): Down {
  return kind in CERTIFICATE_FAULTS
    ? down("denied", `It refuses this router (${kind}): ${text}`)
    : REFUSED[kind as keyof typeof REFUSED];
}

/** Kept apart, because an operator must repair each in a different way. */
const REFUSED: Record<Exclude<PeerFault["kind"], CertificateFault>, Down> = {
  credentials: down("denied", "It demands a join token, and this router has none. Start both with the same token."),
  version: down("denied", "It does not know this router's calls. Run the same version on both."),
  timeout: down("unreachable", "It did not answer in time."),
  address: LOST.unreachable,
  refused: LOST.unreachable,
};

/** Whether an idle instance repeats its last report. */
function isSameIdle(before: Load | undefined, now: Load): boolean {
  return before !== undefined && now.running === 0 && now.reserved === 0 && equals(LoadSchema, before, now);
}

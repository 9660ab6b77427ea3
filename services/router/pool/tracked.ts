// One known instance: its channels, what it last told, and whether it may get legs.
// Three things speak of its life: WatchLoad (what it says, and that it says anything), the token path's connection, and
// how legs on it end. Any of them takes it out at once; only a fresh load with SERVING brings it back.
import { equals } from "@bufbuild/protobuf";
import { InstanceService, LoadSchema, State } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Info, Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock } from "../../common/clock.ts";
import { asServiceError } from "../../common/errors.ts";
import { backoffMs } from "../../common/lifecycle.ts";
import type { Log } from "../../common/log.ts";
import type { Doubt } from "../../discovery/registry.ts";
import { dialRpc } from "../../rpc/client.ts";
import type { RpcChannel } from "../../rpc/client.ts";
import { connectThin } from "../../rpc/thin-client.ts";
import type { ThinChannel } from "../../rpc/thin-client.ts";
import { Breaker, type BreakerLimits, type Verdict } from "./breaker.ts";
import type { Condition, Member } from "./member.ts";

/** The heartbeat comes once a second. */
const SILENCE_MS = 2_000;
const REDIAL = { minMs: 50, maxMs: 1_000 };
/** Weight of the latest prefill in the observed rate. */
const RATE_WEIGHT = 0.2;

export interface TrackedOptions {
  readonly token: string | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly breaker: BreakerLimits;
  readonly connectTimeoutMs?: number | undefined;
  /** Its condition, load or facts changed, or a leg on it ended. */
  onChange(): void;
  /** `hesitant` has changed. */
  onDoubt(): void;
}

type Link = { readonly kind: "up" } | { readonly kind: "down"; readonly condition: Condition; readonly reason: string };

export class Tracked {
  info: Info;
  /** What the registry has against it. */
  doubt: Doubt | undefined;
  readonly channel: ThinChannel;
  readonly control: RpcChannel;
  readonly breaker: Breaker;
  readonly #counts = { legs: 0, legsTotal: 0n, legsAtLoad: 0, placedTokens: 0, tokensPerMs: 0 };

  #load: Load | undefined;
  readonly #times = { loadAtMs: 0 };
  #heardAtMs: number;
  #link: Link = { kind: "down", condition: "unreachable", reason: "It has not told its load yet." };
  #registered = true;
  /** Drained by this router, and not yet confirmed by the instance's own load. */
  #drained = false;
  #closed = false;
  #watch = new AbortController();
  #wake: (() => void) | undefined;
  readonly #o: TrackedOptions;
  readonly #log: Log;

  constructor(info: Info, o: TrackedOptions) {
    this.info = info;
    this.#o = o;
    this.#log = o.log.child({ instanceId: info.instanceId });
    this.breaker = new Breaker(o.breaker);
    this.#heardAtMs = o.clock.nowMs();
    const token = o.token === undefined ? {} : { token: o.token };
    this.control = dialRpc(info.grpcAddress, token);
    this.channel = connectThin(info.grpcAddress, {
      ...token,
      ...(o.connectTimeoutMs === undefined ? {} : { connectTimeoutMs: o.connectTimeoutMs }),
      log: this.#log,
      onState: (up) => {
        if (!up) this.#down("unreachable", "The connection to it broke.");
      },
      onDoubt: () => {
        this.#log.info(this.hesitant ? "instance is doubted: it is not heard" : "instance is not doubted any more");
        o.onDoubt();
      },
    });
    void this.#watchLoad();
  }

  /** Legs of this router that run on it. */
  get legs(): number {
    return this.#counts.legs;
  }

  get registered(): boolean {
    return this.#registered;
  }

  set registered(registered: boolean) {
    this.#registered = registered;
    this.#closeIfLeft();
  }

  /** By its own word and nobody else's. */
  get serves(): boolean {
    return this.#link.kind === "up" && this.#load?.state === State.SERVING;
  }

  /** Not heard for a second or so; it is not taken for silent yet, and its running streams go on. */
  get hesitant(): boolean {
    return this.channel.doubted;
  }

  /** Out for its failures. */
  get failing(): boolean {
    return this.breaker.open && this.#judge().condition === "failing";
  }

  /** Told by this router to take no more legs; holds until the instance itself says so. */
  set drained(drained: boolean) {
    this.#drained = drained;
    this.#o.onChange();
  }

  legStarted(tokens: number): void {
    this.#counts.legs += 1;
    this.#counts.legsTotal += 1n;
    this.#counts.placedTokens += tokens;
  }

  legEnded(verdict: Verdict): void {
    this.#counts.legs -= 1;
    const nowMs = this.#o.clock.nowMs();
    // Legs that fall with an instance that is out already say nothing new.
    if (this.#judge().condition === "serving" && this.breaker.judge(verdict, nowMs)) {
      this.#log.warn("instance is out until a canary comes through", {
        because: verdict === "wedged" ? "a leg stood still on it" : "leg after leg failed on it",
      });
    }
    this.#closeIfLeft();
    this.#o.onChange();
  }

  /** It computed a prompt. */
  prefilled(tokens: number, ms: number): void {
    if (tokens <= 0 || ms <= 0) return;
    const { tokensPerMs } = this.#counts;
    const rate = tokens / ms;
    this.#counts.tokensPerMs = tokensPerMs === 0 ? rate : tokensPerMs + RATE_WEIGHT * (rate - tokensPerMs);
  }

  /**
   * Called every now and then: takes it for silent when its heartbeat stays away.
   *
   * @param pausedMs For so long of it nothing could be heard here.
   */
  checkHeartbeat(nowMs: number, pausedMs = 0): void {
    this.#heardAtMs += pausedMs;
    if (nowMs - this.#heardAtMs <= SILENCE_MS) return;
    this.#heardAtMs = nowMs;
    if (this.#link.kind === "up") this.#down("silent", `Nothing was heard of it for ${SILENCE_MS / 1000} s.`);
    // A fresh call finds out soonest whether it is back; the old one may hang on a dead connection.
    this.#watch.abort();
  }

  /**
   * It as it is now. The counts of legs go on.
   *
   * @param lastResort It gets legs in spite of a doubt.
   */
  member(lastResort = false): Member {
    const { condition, reason } = this.#judge(lastResort);
    const counts = this.#counts;
    const times = this.#times;
    const { breaker } = this;
    const { clock } = this.#o;
    return {
      info: this.#infoNow(),
      load: this.#load,
      get loadAtMs() {
        return times.loadAtMs;
      },
      condition,
      eligible: condition === "serving",
      reason,
      get legs() {
        return counts.legs;
      },
      get legsTotal() {
        return counts.legsTotal;
      },
      get legsAtLoad() {
        return counts.legsAtLoad;
      },
      get placedTokens() {
        return counts.placedTokens;
      },
      get tokensPerMs() {
        return counts.tokensPerMs;
      },
      get suspicion() {
        return breaker.suspicion(clock.nowMs());
      },
      channel: this.channel,
      control: this.control,
    };
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.abort();
    this.#wake?.();
    await Promise.all([this.channel.close(), this.control[Symbol.asyncDispose]()]);
  }

  #judge(lastResort = false): { condition: Condition; reason: string } {
    if (!this.#registered) return { condition: "left", reason: "It is not registered any more." };
    if (this.#drained) return { condition: "draining", reason: "It was drained here." };
    const { doubt } = this;
    if (doubt?.kind === "maintenance") return { condition: "draining", reason: doubt.reason };
    if (this.#link.kind === "down") return this.#link;
    const reason = this.#load?.reason ?? "";
    switch (this.#load?.state) {
      case State.SERVING:
        if (this.breaker.open)
          return { condition: "failing", reason: "Legs failed on it; it is out until a canary comes through." };
        if (this.hesitant && !lastResort)
          return { condition: "doubted", reason: "It has not been heard for a second." };
        if (doubt === undefined) return { condition: "serving", reason: "" };
        return lastResort
          ? { condition: "serving", reason: `${doubt.reason} It says that it serves, and no other does.` }
          : { condition: "doubted", reason: doubt.reason };
      case State.DRAINING:
        return { condition: "draining", reason: reason || "It drains." };
      case State.STOPPED:
        return { condition: "stopped", reason: reason || "It has stopped." };
      default:
        return { condition: "starting", reason: reason || "It starts." };
    }
  }

  #down(condition: Condition, reason: string): void {
    if (this.#closed) return;
    const known = this.#link;
    if (known.kind === "down" && known.condition === condition && known.reason === reason) return;
    this.#link = { kind: "down", condition, reason };
    this.#log.warn("instance is out", { condition, reason });
    this.#o.onChange();
  }

  #heard(load: Load): void {
    // What comes back, from a restart or a cut, may be sound again: a canary tells soonest.
    const back = this.#link.kind === "down" || this.#load?.state !== State.SERVING;
    if (back && load.state === State.SERVING) this.breaker.probeNow(this.#o.clock.nowMs());
    const nothingNew = this.#link.kind === "up" && this.legs === 0 && isSameIdle(this.#load, load);
    this.#load = load;
    this.#times.loadAtMs = this.#heardAtMs = this.#o.clock.nowMs();
    this.#counts.legsAtLoad = this.legs;
    this.#counts.placedTokens = 0;
    // From here on its own word holds, and whoever undrains it need not know of this router.
    if (load.state === State.DRAINING) this.#drained = false;
    if (this.#link.kind === "down") this.#log.info("instance is heard", { state: State[load.state] });
    this.#link = { kind: "up" };
    // Hundreds of idle instances that beat their hearts shall not have everything looked at anew.
    if (!nothingNew) this.#o.onChange();
  }

  /** A registry may tell that its engine was started again later than the instance does. */
  #infoNow(): Info {
    const kvAddress = this.#load?.kvAddress ?? "";
    return kvAddress === "" || kvAddress === this.info.kvAddress ? this.info : { ...this.info, kvAddress };
  }

  async #watchLoad(): Promise<void> {
    const client = this.control.client(InstanceService);
    for (let attempt = 0; !this.#closed; attempt += 1) {
      this.#watch = new AbortController();
      try {
        for await (const { load } of client.watchLoad({}, { signal: this.#watch.signal })) {
          if (this.#closed) return;
          attempt = 0;
          if (load !== undefined) this.#heard(load);
        }
        this.#down("unreachable", "It stopped telling its load.");
      } catch (error) {
        if (this.#closed) return;
        // What was aborted here is silent already, and says more than "cancelled".
        if (!this.#watch.signal.aborted) this.#down("unreachable", "It can't be reached.");
        this.#log.debug("load watch ended", { error: asServiceError(error) });
      }
      await this.#pause(backoffMs(attempt, REDIAL));
    }
  }

  #pause(ms: number): Promise<void> {
    if (this.#closed) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = this.#o.clock.setTimer(ms, resolve);
      this.#wake = () => {
        timer.cancel();
        resolve();
      };
    });
  }

  #closeIfLeft(): void {
    if (!this.#registered && this.legs === 0) void this.close();
  }
}

/** Whether an instance without work says again what it said before. */
function isSameIdle(before: Load | undefined, now: Load): boolean {
  return before !== undefined && now.running === 0 && now.reserved === 0 && equals(LoadSchema, before, now);
}

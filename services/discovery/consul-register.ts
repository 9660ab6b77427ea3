// Keeps one service registered with the Consul agent, for as long as it lives: registers it, tells its state as it
// changes, and registers it again as soon as the agent has forgotten it.
//
// Two checks stand behind it. "health": the agent asks grpc.health.v1, and its answer says what is wrong. "state": what
// the process says of itself; told in milliseconds, where the agent's question comes once a second.
import type Consul from "consul";
import { setTimeout as sleep } from "node:timers/promises";
import { splitAddress } from "../common/address.ts";
import { anySignal, backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { HEALTH_WITH_REASON } from "../rpc/health.ts";
import { createBell } from "./bell.ts";
import type { ConsulClient } from "./consul-client.ts";
import { ConsulError } from "./consul-error.ts";
import { serviceName, type ServiceRecord } from "./consul-record.ts";
import type { ConsulCheckConfig } from "./consul-settings.ts";
import type { Registration, Standing } from "./registry.ts";

export interface ConsulRegisterOptions {
  readonly client: ConsulClient;
  readonly prefix: string;
  readonly checks: ConsulCheckConfig;
  readonly log: Log;
}

type Check = Parameters<Consul["agent"]["check"]["register"]>[0];

const RETRY = { minMs: 50, maxMs: 1_000 };
const CALL_MS = 2_000;
const CALL = { timeoutMs: CALL_MS };
/** One question to the agent whether it still knows us; it is answered as soon as anything changed, or the agent ends. */
const WATCH_MS = 60_000;
/** With a gRPC check the state needs no heartbeat; this one only survives a hung watch. */
const LONG_TTL_MS = 600_000;
const LEAVE_MS = 900;

export function keepRegistered(
  record: () => ServiceRecord,
  standing: () => Standing,
  o: ConsulRegisterOptions,
  stop: AbortSignal,
): Registration {
  const { client, log, checks } = o;
  const over = new AbortController();
  const ending = anySignal(over.signal, stop);
  const changed = createBell();
  const { id, role } = record();
  const name = serviceName(o.prefix, role);
  const ttlMs = checks["consul.check"] === "ttl" ? checks["consul.ttl_ms"] : LONG_TTL_MS;
  let swept = false;

  /** @param known It was in Consul before, and others count on it. */
  async function put(known: boolean): Promise<string> {
    const now = record();
    if (!swept) await sweepGhosts(now);
    swept = true;
    const { meta, tags } = now;
    const { host, port } = splitAddress(now.address);
    const service = { id, name, address: host, port, tags: [...tags], meta };
    const own = checksOf(now, known && standing().serving, checks, ttlMs);
    await client.ask((consul, call) => consul.agent.service.register({ ...service, checks: own, ...call }), CALL);
    return JSON.stringify(meta);
  }

  /**
   * An instance that died left its entry, and its check would pass again: it asks the address that we have now. Only
   * the agent's own list is looked at, since only there an address means the same host.
   */
  async function sweepGhosts(now: ServiceRecord): Promise<void> {
    const { host, port } = splitAddress(now.address);
    const filter = `Service == "${name}" and Address == "${host}" and Port == ${port} and ID != "${now.id}"`;
    const listed = await client.ask((consul, call) => consul.agent.service.list({ filter, ...call }), CALL);
    for (const ghost of Object.keys(listed.body)) {
      log.info("the entry of an instance that was here before is taken out of Consul", { serviceId: ghost });
      await client.ask((consul, call) => consul.agent.service.deregister({ id: ghost, ...call }), CALL);
    }
  }

  async function tellState(): Promise<void> {
    const { serving, text: note } = standing();
    const state = { id: stateCheckId(id), note };
    await client.ask(({ agent: { check } }, call) => check[serving ? "pass" : "fail"]({ ...state, ...call }), CALL);
  }

  /** Follows changes and beats the heart, until the agent fails or forgot us. */
  async function speak(told: string, signal: AbortSignal): Promise<void> {
    for (let meta = told; !signal.aborted; ) {
      const beat = new AbortController();
      // Asked before anything is told, so that no change falls between the two.
      const rung = changed.next(anySignal(signal, beat.signal));
      if (JSON.stringify(record().meta) !== meta) meta = await put(true);
      await tellState();
      const timer = setTimeout(() => beat.abort(), ttlMs / 3);
      await rung;
      clearTimeout(timer);
    }
  }

  /** Ends with an error when the agent is gone or doesn't know us. */
  async function listen(signal: AbortSignal): Promise<void> {
    for (let hash = ""; !signal.aborted; ) {
      const answer = await client.ownEntry(id, hash === "" ? {} : { hash, wait: `${WATCH_MS}ms` }, {
        timeoutMs: hash === "" ? CALL_MS : WATCH_MS * 1.0625 + CALL_MS,
        signal,
      });
      // Without a hash the agent can't make us wait; then this is a question each second.
      if (answer.hash === "") await sleep(1_000, undefined, { signal }).catch(() => {});
      hash = answer.hash;
    }
  }

  async function keep(): Promise<void> {
    let [known, failing] = [false, false];
    for (let attempt = 0; !ending.aborted; ) {
      const round = new AbortController();
      const signal = anySignal(round.signal, ending);
      try {
        const meta = await put(known);
        log.info(known ? "registered in Consul again" : "registered in Consul", {
          consul: client.address,
          service: name,
          serviceId: id,
        });
        known = true;
        failing = false;
        attempt = 0;
        await Promise.all([speak(meta, signal), listen(signal)]);
      } catch (error) {
        if (ending.aborted) return;
        if ((error as ConsulError).kind === "unknown") {
          log.warn("Consul has forgotten this process; registering again", { consul: client.address, service: name });
        } else {
          if (!failing) tellFailure(error as Error);
          failing = true;
        }
      } finally {
        round.abort();
      }
      await sleep(backoffMs(attempt++, RETRY), undefined, { signal: ending }).catch(() => {});
    }
  }

  function tellFailure(error: Error): void {
    const denied = error instanceof ConsulError && error.kind === "denied";
    log[denied ? "error" : "warn"](
      denied ? "Consul denies the registration; trying on" : "not registered in Consul; trying on",
      {
        consul: client.address,
        service: name,
        because: error.message,
        ...(denied && error.policy !== undefined ? { policy: error.policy } : {}),
      },
    );
  }

  async function leave(): Promise<void> {
    await kept;
    await client
      .ask((consul, call) => consul.agent.service.deregister({ id, ...call }), { timeoutMs: LEAVE_MS })
      .catch((error: Error) => {
        log.warn("could not be taken out of Consul, which will do it when the check has failed for long enough", {
          because: error.message,
        });
      });
  }

  const kept = keep().catch((error: unknown) => log.error("registration ended", { error }));
  let left: Promise<void> | undefined;
  const dispose = (): Promise<void> => {
    over.abort();
    stop.removeEventListener("abort", onStop);
    return (left ??= Promise.race([leave(), sleep(1_000, undefined, { ref: false })]).then(() => {}));
  };
  const onStop = (): void => void dispose();
  stop.addEventListener("abort", onStop);
  return { update: () => changed.ring(), [Symbol.asyncDispose]: dispose };
}

/**
 * @param passing What the checks say until they are told or asked. A new service fails them till then: Consul passes on
 *   what a check says at once only when its status changes, and an operator should see the words. One that Consul only
 *   forgot passes, or routers would see all of them fail for a moment.
 */
function checksOf(record: ServiceRecord, passing: boolean, checks: ConsulCheckConfig, ttlMs: number): Check[] {
  // Longer than a busy host needs: routers see a hung process by themselves, and sooner. The package's types want a
  // timeout of every check; a TTL has none.
  const common = { status: passing ? "passing" : "critical", timeout: "5s" };
  const deregistercriticalserviceafter = `${checks["consul.deregister_after_ms"]}ms`;
  const state = {
    checkid: stateCheckId(record.id),
    name: "state",
    notes: "What the process says of itself.",
    ttl: `${ttlMs}ms`,
    ...common,
    // A process that says that it drains lives: only silence takes it out.
    ...(checks["consul.check"] === "ttl" ? { deregistercriticalserviceafter } : {}),
  };
  const health = {
    checkid: `service:${record.id}:health`,
    name: "health",
    notes: "What grpc.health.v1 answers the Consul agent.",
    grpc: `${checks["consul.check_address"] ?? record.grpcAddress}/${HEALTH_WITH_REASON}`,
    interval: `${checks["consul.check_interval_ms"]}ms`,
    ...common,
    deregistercriticalserviceafter,
  };
  return checks["consul.check"] === "ttl" ? [state] : [health, state];
}

function stateCheckId(serviceId: string): string {
  return `service:${serviceId}:state`;
}

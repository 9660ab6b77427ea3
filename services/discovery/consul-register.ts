// Keeps one service registered with the Consul agent, for as long as it lives: registers it, reports its state as it
// changes, and registers it again as soon as the agent has forgotten it.
//
// The entry has two checks. "health": the agent asks grpc.health.v1, and its answer says what is wrong. "state": what
// the process reports of itself, within milliseconds, where the agent asks once a second; it has a time to live, so
// that the last words of a dead process do not stay.
import type Consul from "consul";
import { splitAddress } from "../common/address.ts";
import { type Clock, pause, settlesWithin, systemClock } from "../common/clock.ts";
import { anySignal, backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { HEALTH_WITH_REASON } from "../rpc/health.ts";
import { ConsulClient } from "./consul-client.ts";
import { asConsulError, consulFailureLog } from "./consul-error.ts";
import { provenMeta, serviceName, type ServiceRecord } from "./consul-record.ts";
import type { ConsulCheckConfig, ConsulConfig } from "./consul-settings.ts";
import type { Registration, SelfReport } from "./registry.ts";

export interface ConsulRegisterOptions {
  /** Shown as meta, by which watchers choose, and as a tag, by which DNS does. */
  readonly deployment: string;
  /** Join token, which the entry proves to know. Empty or left out: it proves nothing. */
  readonly token?: string | undefined;
  /** Whether this process serves gRPC over TLS. */
  readonly tls?: boolean;
  readonly log: Log;
  /** Default 5000. */
  readonly ttlMs?: number;
  readonly clock?: Clock;
}

type Check = Parameters<Consul["agent"]["check"]["register"]>[0];

const RETRY = { minMs: 50, maxMs: 1_000 };
const CALL_MS = 2_000;
const CALL = { timeoutMs: CALL_MS };
/** One question to the agent whether it still knows us; it is answered as soon as anything changed, or the agent ends. */
const WATCH_MS = 60_000;
const LEAVE_MS = 900;
const HEALTH_INTERVAL = "1s";
/** Longer than a busy host needs: a router sees a hung process by itself, and sooner. */
const HEALTH_TIMEOUT = "3s";
/** A state that is not renewed is critical after this long. */
const TTL_MS = 5_000;
/** How often the load in the state's text is renewed: agents with `check_update_interval = 0` pass on each new text. */
const LOAD_EVERY_MS = 15_000;

/**
 * @param record The service. Its id and role never change.
 * @throws ConfigError for settings that can't be used; that Consul is away is not an error
 */
export function registerInConsul(
  config: ConsulConfig & ConsulCheckConfig,
  record: () => ServiceRecord,
  report: () => SelfReport,
  o: ConsulRegisterOptions,
): Registration {
  const { deployment, log, ttlMs = TTL_MS, clock = systemClock } = o;
  const client = new ConsulClient(config);
  const failures = consulFailureLog(log, config.address, "will keep retrying to register");
  const { id, role } = record();
  const name = serviceName(config.servicePrefix, role);
  const over = new AbortController();
  /** Aborted when there is something to report. */
  let unreported = new AbortController();
  let shown = { load: "", text: "", atMs: -Infinity };

  /** @param known It was in Consul before, and others count on it. */
  async function put(known: boolean): Promise<string> {
    const now = record();
    if (!known) await sweepGhosts(now);
    const meta = provenMeta(id, { deployment, ...now.meta }, o.token);
    const tags = [deployment, ...now.tags];
    const { host, port } = splitAddress(now.address);
    const service = { id, name, address: host, port, tags, meta };
    const own = checksOf(now, known && report().serving, config, ttlMs, o.tls);
    await client.ask((consul, call) => consul.agent.service.register({ ...service, checks: own, ...call }), CALL);
    return JSON.stringify(now.meta);
  }

  /**
   * An instance that died left its entry, and its check would pass again: it polls the address that we have now. Only
   * the agent's own list is searched, because only there an address means the same host.
   */
  async function sweepGhosts(now: ServiceRecord): Promise<void> {
    const { host, port } = splitAddress(now.address);
    const filter = `Service == "${name}" and Address == "${host}" and Port == ${port} and ID != "${now.id}"`;
    const listed = await client.ask((consul, call) => consul.agent.service.list({ filter, ...call }), CALL);
    for (const ghost of Object.keys(listed.body)) {
      log.info("removing the Consul entry of an earlier instance at this address", { serviceId: ghost });
      await client.ask((consul, call) => consul.agent.service.deregister({ id: ghost, ...call }), CALL);
    }
  }

  /** The load changes with every leg, so its text carries the time of the reading. */
  function loadText(load: string): string {
    const nowMs = clock.nowMs();
    if (load !== shown.load && nowMs - shown.atMs >= LOAD_EVERY_MS)
      shown = { load, text: `; ${load} at ${new Date().toISOString().slice(11, 19)} UTC`, atMs: nowMs };
    return shown.text;
  }

  async function reportState(): Promise<void> {
    const { serving, text, load } = report();
    const state = { id: stateCheckId(id), note: serving && load !== undefined ? `${text}${loadText(load)}` : text };
    await client.ask(({ agent: { check } }, call) => check[serving ? "pass" : "fail"]({ ...state, ...call }), CALL);
  }

  /** Reports changes and renews the state, until the agent fails or has forgotten us. */
  async function tell(known: string, signal: AbortSignal): Promise<void> {
    signal.addEventListener("abort", () => unreported.abort(), { once: true });
    for (let meta = known; !signal.aborted; ) {
      // Made before anything is reported, so that no change falls between the two.
      unreported = new AbortController();
      if (JSON.stringify(record().meta) !== meta) meta = await put(true);
      await reportState();
      await pause(clock, ttlMs / 3, unreported.signal);
    }
  }

  /** Ends with an error when the agent is gone or doesn't know us. */
  async function listen(signal: AbortSignal): Promise<void> {
    for (let hash = ""; !signal.aborted; ) {
      const timeoutMs = hash === "" ? CALL_MS : WATCH_MS * 1.0625 + CALL_MS;
      hash = await client.ownEntry(id, hash === "" ? {} : { hash, wait: `${WATCH_MS}ms` }, { timeoutMs, signal });
      // Without a hash the agent can't make us wait; then this is a question each second.
      if (hash === "") await pause(clock, 1_000, signal);
    }
  }

  async function keep(): Promise<void> {
    let known = false;
    for (let attempt = 0; !over.signal.aborted; ) {
      const round = new AbortController();
      const signal = anySignal(round.signal, over.signal);
      try {
        const meta = await put(known);
        log.info(known ? "registered in Consul again" : "registered in Consul", {
          consul: config.address,
          service: name,
          serviceId: id,
        });
        if (!known) void warnIfOpen();
        known = true;
        failures.well();
        attempt = 0;
        await Promise.all([tell(meta, signal), listen(signal)]);
      } catch (error) {
        if (over.signal.aborted) return;
        failures.failed(asConsulError(error), { service: name });
      } finally {
        round.abort();
      }
      await pause(clock, backoffMs(attempt++, RETRY), over.signal);
    }
  }

  async function warnIfOpen(): Promise<void> {
    const isOpen = await client.isOpen({ ...CALL, signal: over.signal }).catch(() => false);
    if (isOpen)
      log.warn("Consul has no access control (ACL support disabled): any process that reaches it can add instances", {
        consul: config.address,
        cure: "turn on Consul's ACLs (docs/consul.md); a join token or tls.* keeps strangers' instances out meanwhile",
      });
  }

  async function leave(): Promise<void> {
    over.abort();
    await kept;
    try {
      const call = { timeoutMs: LEAVE_MS };
      await client.ask((consul, more) => consul.agent.service.deregister({ id, ...more }), call);
    } catch (error) {
      log.warn(
        "could not deregister from Consul; Consul will remove the entry once its check has failed for long enough",
        { because: (error as Error).message },
      );
    }
  }

  const kept = keep().catch((error: unknown) => log.error("registration ended", { error }));
  let left: Promise<void> | undefined;
  return {
    update: () => unreported.abort(),
    [Symbol.asyncDispose]: () => (left ??= settlesWithin(clock, leave(), 1_000).then(() => client.close())),
  };
}

/**
 * @param passing The checks' status until their first report or poll. A new service fails them until then: Consul
 *   publishes a check's output at once only when its status changes, and an operator should see that output. A service
 *   that Consul only forgot passes, or routers would see all of them fail for a moment.
 */
function checksOf(
  record: ServiceRecord,
  passing: boolean,
  checks: ConsulCheckConfig,
  ttlMs: number,
  tls = false,
): Check[] {
  // The package's types want a timeout of every check; a TTL makes nothing of it.
  const common = { status: passing ? "passing" : "critical", timeout: HEALTH_TIMEOUT };
  const deregistercriticalserviceafter = `${checks.deregisterAfterMs}ms`;
  const state = {
    checkid: stateCheckId(record.id),
    name: "state",
    notes: "What the process reports of itself.",
    ttl: `${ttlMs}ms`,
    ...common,
    // A process that reports a drain is alive: only silence takes it out.
    ...(checks.check === "ttl" ? { deregistercriticalserviceafter } : {}),
  };
  const health = {
    checkid: `service:${record.id}:health`,
    name: "health",
    notes: "What grpc.health.v1 answers the Consul agent.",
    grpc: `${checks.checkAddress ?? record.grpcAddress}/${HEALTH_WITH_REASON}`,
    // The agent doesn't know Tandem's authority, and is told nothing but whether the process serves.
    ...(tls ? { grpcusetls: true, tlsskipverify: true } : {}),
    interval: HEALTH_INTERVAL,
    ...common,
    deregistercriticalserviceafter,
  };
  return checks.check === "ttl" ? [state] : [health, state];
}

function stateCheckId(serviceId: string): string {
  return `service:${serviceId}:state`;
}

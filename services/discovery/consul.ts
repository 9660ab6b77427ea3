// The entry point to Consul: registers this process, lists instances, and watches settings that change while we run.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, systemClock } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { consulDirectory } from "./consul-directory.ts";
import { consulClient } from "./consul-client.ts";
import { consulFailureLog, type ConsulError } from "./consul-error.ts";
import { instanceRecord, type ServiceRecord } from "./consul-record.ts";
import { keepRegistered } from "./consul-register.ts";
import { consulOptions, type ConsulCheckConfig, type ConsulConfig } from "./consul-settings.ts";
import { watchConsul } from "./consul-watch.ts";
import type { Directory, Registrar, Registration, RegistryHealth, SelfReport, Watch } from "./registry.ts";

export { consulCheckSettings, consulSettings } from "./consul-settings.ts";
export { routerRecord } from "./consul-record.ts";

const SERVING: SelfReport = { serving: true, text: "serving" };

export interface ConsulRegistrar extends Registrar {
  /** Registers a service that is not an instance: the router. */
  registerService(record: () => ServiceRecord, stop: AbortSignal, standing: () => SelfReport): Registration;
  close(): void;
}

/** @throws ConfigError for settings that can't be used; that Consul is away is not an error */
export function consulRegistrar(
  config: ConsulConfig & ConsulCheckConfig,
  o: { readonly log: Log; readonly deployment: string; readonly ttlMs?: number; readonly clock?: Clock },
): ConsulRegistrar {
  const client = consulClient(consulOptions(config));
  const options = { ...o, client, prefix: config.servicePrefix, checks: config };
  return {
    register: async (self: () => Info, stop, standing = () => SERVING) =>
      keepRegistered(() => instanceRecord(self()), standing, options, stop),
    registerService: (record, stop, standing) => keepRegistered(record, standing, options, stop),
    close: () => client.close(),
  };
}

export interface ConsulWatcher extends Directory {
  readonly health: RegistryHealth;
  /** After each change of `health.up`. */
  onHealth(listener: () => void): void;
  /**
   * Settings in a folder of Consul's KV store, and every change of them. All keys of one answer belong together.
   *
   * @param folder Such as `tandem/config/default/`. @param onChange Gets texts by key, without the folder.
   */
  watchSettings(folder: string, onChange: (texts: ReadonlyMap<string, string>) => void): Watch;
  close(): void;
}

/** @throws ConfigError for settings that can't be used; that Consul is away is not an error */
export function consulWatcher(
  config: ConsulConfig,
  o: { readonly log: Log; readonly deployment: string; readonly forgetMs?: number; readonly clock?: Clock },
): ConsulWatcher {
  const { log, clock = systemClock } = o;
  const client = consulClient(consulOptions(config));
  const failing = new Map<string, ConsulError>();
  const heard = new Set<string>();
  const failures = consulFailureLog(log, client.address, "the router goes on with the instances it knows");
  const listeners: (() => void)[] = [];
  let downSinceUnixMs = Date.now();
  let up = false;

  /** Of any watch; all of them together are up or down. */
  function onHealth(watch: string, error: ConsulError | undefined): void {
    if (error === undefined) {
      failing.delete(watch);
      heard.add(watch);
    } else {
      failing.set(watch, error);
      failures.failed(error, { watch });
    }
    const now = failing.size === 0 && heard.has("prefill") && heard.has("decode");
    if (now) failures.well();
    if (now === up) return;
    up = now;
    if (!up) downSinceUnixMs = Date.now();
    else log.info("Consul answers", { consul: client.address, afterMs: Date.now() - downSinceUnixMs });
    for (const listener of listeners) listener();
  }

  const directory = consulDirectory({
    client,
    prefix: config.servicePrefix,
    deployment: o.deployment,
    log,
    clock,
    onHealth,
    ...(o.forgetMs === undefined ? {} : { forgetMs: o.forgetMs }),
  });
  return {
    watch: directory.watch,
    get health() {
      const error = [...failing.values()][0]?.message ?? (up ? "" : "It has not answered yet.");
      return { address: client.address, up, downSinceUnixMs: up ? 0 : downSinceUnixMs, error };
    },
    onHealth: (listener) => void listeners.push(listener),
    watchSettings(folder, onChange) {
      const stop = new AbortController();
      const watch = watchConsul({
        client,
        ask: (consul, call) => consul.kv.get({ key: folder, recurse: true, ...call }),
        policy: `key_prefix "${folder}" { policy = "read" }`,
        onChange: (items) => onChange(textsOf(items as KvItems, folder)),
        onHealth: (error) => onHealth("settings", error),
        stop: stop.signal,
        clock,
      });
      return {
        async [Symbol.asyncDispose]() {
          stop.abort();
          await watch;
        },
      };
    },
    close: () => client.close(),
  };
}

/** Undefined where the folder is empty. */
type KvItems = readonly { readonly Key: string; readonly Value: string | null }[] | undefined;

function textsOf(items: KvItems = [], folder: string): ReadonlyMap<string, string> {
  // The UI makes keys that end in a slash, for folders.
  const settings = items.filter(({ Key }) => !Key.endsWith("/"));
  return new Map(settings.map(({ Key, Value }) => [Key.slice(folder.length), (Value ?? "").trim()]));
}

// The entry point to Consul: registers this process, lists instances, and watches settings that change while we run.
import { type Clock, systemClock } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { ConsulClient } from "./consul-client.ts";
import { consulDirectory, INSTANCE_ROLES, type ConsulDirectory } from "./consul-directory.ts";
import { consulFailureLog, ConsulError } from "./consul-error.ts";
import { serviceName, type HealthEntry } from "./consul-record.ts";
import type { ConsulConfig } from "./consul-settings.ts";
import { watchConsul, type BlockingQuery } from "./consul-watch.ts";
import type { Directory, RegistryHealth, UnprovenEntry } from "./registry.ts";

export { instanceRecord, routerRecord } from "./consul-record.ts";
export { registerInConsul } from "./consul-register.ts";

const FORGET_MS = 30_000;

export interface ConsulWatcher extends Directory {
  readonly health: RegistryHealth;
  /** Entries that are ignored. */
  readonly unproven: readonly UnprovenEntry[];
  /** After each change of `health.up`. */
  onHealth(listener: () => void): void;
  /**
   * Settings in a folder of Consul's KV store, and every change of them. All keys of one answer belong together.
   *
   * @param folder Such as `tandem/config/default/`. @param onChange Gets texts by key, without the folder.
   */
  watchSettings(folder: string, onChange: (texts: ReadonlyMap<string, string>) => void): AsyncDisposable;
  close(): void;
}

/** @throws ConfigError for settings that can't be used; that Consul is away is not an error */
export function consulWatcher(
  config: ConsulConfig,
  o: {
    readonly log: Log;
    readonly deployment: string;
    /** Join token, which each entry must prove to know. Empty or left out: all entries are believed. */
    readonly token?: string | undefined;
    readonly forgetMs?: number;
    readonly clock?: Clock;
  },
): ConsulWatcher {
  const { log, forgetMs = FORGET_MS, clock = systemClock } = o;
  const { address, servicePrefix: prefix } = config;
  const client = new ConsulClient(config);
  const failing = new Map<string, ConsulError>();
  const heard = new Set<string>();
  const failures = consulFailureLog(log, address, "the router goes on with the instances it knows");
  const listeners: (() => void)[] = [];
  let downSinceUnixMs = Date.now();
  let up = false;
  let directory: ConsulDirectory | undefined;

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
    else log.info("Consul answers", { consul: address, afterMs: Date.now() - downSinceUnixMs });
    for (const listener of listeners) listener();
  }

  type Query<T> = Pick<BlockingQuery<T>, "ask" | "policy" | "onChange">;
  const follow = <T>(watch: string, query: Query<T>): AsyncDisposable =>
    watchConsul({ ...query, client, clock, onHealth: (error) => onHealth(watch, error) });

  return {
    get unproven() {
      return directory?.unproven ?? [];
    },
    get health() {
      const error = [...failing.values()][0]?.message ?? (up ? "" : "It has not answered yet.");
      return { address, up, downSinceUnixMs: up ? 0 : downSinceUnixMs, error };
    },
    onHealth: (listener) => void listeners.push(listener),
    watch(onChange) {
      const isDown = (role: string): boolean => failing.has(role);
      const own = (directory = consulDirectory(onChange, { token: o.token, log, clock, forgetMs, isDown }));
      const filter = `Service.Meta.deployment == "${o.deployment}"`;
      const watches = INSTANCE_ROLES.map((role) =>
        follow(role, {
          ask: (consul, call) => consul.health.service({ service: serviceName(prefix, role), filter, ...call }),
          policy: `service_prefix "${prefix}" { policy = "read" } and node_prefix "" { policy = "read" }`,
          onChange: (body, gap) => own.learn(role, listOf(body), gap),
        }),
      );
      onChange([]);
      return {
        async [Symbol.asyncDispose]() {
          own[Symbol.dispose]();
          await Promise.all(watches.map((watch) => watch[Symbol.asyncDispose]()));
        },
      };
    },
    watchSettings: (folder, onChange) =>
      follow("settings", {
        ask: (consul, call) => consul.kv.get({ key: folder, recurse: true, ...call }),
        policy: `key_prefix "${folder}" { policy = "read" }`,
        onChange: (items) => onChange(textsOf(items as KvItems, folder)),
      }),
    close: () => client.close(),
  };
}

/** Some versions of Consul write `null` for an empty list, which the package takes for nothing. */
function listOf(body: unknown): readonly HealthEntry[] {
  if (Array.isArray(body)) return body as HealthEntry[];
  if (body === undefined) return [];
  throw new ConsulError("refused", "Consul's answer is not a list: is this its HTTP port?");
}

/** Undefined where the folder is empty. */
type KvItems = readonly { readonly Key: string; readonly Value: string | null }[] | undefined;

function textsOf(items: KvItems = [], folder: string): ReadonlyMap<string, string> {
  // The UI makes keys that end in a slash, for folders.
  const settings = items.filter(({ Key }) => !Key.endsWith("/"));
  return new Map(settings.map(({ Key, Value }) => [Key.slice(folder.length), (Value ?? "").trim()]));
}

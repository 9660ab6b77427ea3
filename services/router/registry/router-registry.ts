// The source from which the router learns of instances (its own registry, Consul, or a list), and that source's health.
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { RegistryStatusSchema } from "#gen/tandem/router/v1/router_pb.js";
import { ConfigError } from "../../common/config.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../common/version.ts";
import type { RegistryHub } from "../../discovery/embedded.ts";
import type { Directory, Registration, RegistryHealth, SelfReport } from "../../discovery/registry.ts";
import type { RouterConfig } from "../config.ts";

export interface RouterRegistry {
  readonly kind: RouterConfig["registry"]["kind"];
  /** Undefined if the registry is part of this router, or a list. */
  readonly health: RegistryHealth | undefined;
  readonly directories: readonly Directory[];
  /** Registers this router, if the registry lists routers. */
  announce(
    self: { routerId: string; restAddress: string; grpcAddress: string },
    standing: () => SelfReport,
  ): Registration | undefined;
  /** @param onChange Gets the texts by key, and their origin. */
  watchSettings(onChange: (texts: ReadonlyMap<string, string>, source: string) => void): void;
  [Symbol.asyncDispose](): Promise<void>;
}

/** The registry's status as RouterService reports it. */
export function registryStatus(
  { kind, health }: RouterRegistry,
  settings: { readonly refusal: string },
): MessageInitShape<typeof RegistryStatusSchema> {
  if (health === undefined) return { kind, up: true };
  const { address, up, downSinceUnixMs, error } = health;
  return { kind, address, up, downSinceUnixMs: BigInt(downSinceUnixMs), error, settingsError: settings.refusal };
}

/** @throws ConfigError if Consul's settings can't be used. An unreachable Consul is not an error. */
export async function openRegistry(
  config: RouterConfig,
  hub: RegistryHub,
  o: { log: Log; metrics: Metrics },
): Promise<RouterRegistry> {
  const { kind } = config.registry;
  const up = o.metrics.gauge(
    "tandem_registry_up",
    "1 while the registry answers, 0 while the router uses what it last knew.",
    ["kind"],
  );
  if (kind !== "consul") {
    up.set({ kind }, 1);
    return {
      kind,
      health: undefined,
      directories: kind === "embedded" ? [hub] : [],
      announce: () => undefined,
      watchSettings: () => {},
      async [Symbol.asyncDispose]() {},
    };
  }
  for (const key of ["rest", "grpc"] as const) refuseAnyAddress(config, key);
  const { consulRegistrar, consulWatcher, routerRecord } = await import("../../discovery/consul.ts");
  const deployment = config.deployment.name;
  const watcher = consulWatcher(config.consul, { deployment, log: o.log });
  const registrar = consulRegistrar(config.consul, { deployment, log: o.log });
  up.set({ kind }, 0);
  watcher.onHealth(() => up.set({ kind }, watcher.health.up ? 1 : 0));
  o.metrics.gauge(
    "tandem_registry_stale_seconds",
    "Seconds since the registry last answered. 0 while it answers.",
    [],
    (gauge) => {
      const { downSinceUnixMs } = watcher.health;
      gauge.set(downSinceUnixMs === 0 ? 0 : (Date.now() - downSinceUnixMs) / 1000);
    },
  );
  const over = new AbortController();
  const startedUnixMs = Date.now();
  const open: { [Symbol.asyncDispose](): Promise<void> }[] = [];
  return {
    kind,
    get health() {
      return watcher.health;
    },
    directories: [watcher],
    announce(self, standing) {
      const record = routerRecord({
        routerId: self.routerId,
        restAddress: config.rest.advertise ?? self.restAddress,
        grpcAddress: config.grpc.advertise ?? self.grpcAddress,
        tandemVersion: TANDEM_VERSION,
        tandemCommit: TANDEM_COMMIT,
        startedUnixMs,
      });
      const registration = registrar.registerService(() => record, over.signal, standing);
      open.push(registration);
      return registration;
    },
    watchSettings(onChange) {
      const prefix = config.consul.kvPrefix.replace(/^\/+|\/+$/g, "");
      if (prefix === "") return;
      const folder = `${prefix}/${deployment}/`;
      open.push(watcher.watchSettings(folder, (texts) => onChange(texts, `consul ${folder}`)));
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(open.map((one) => one[Symbol.asyncDispose]()));
      over.abort();
      watcher.close();
      registrar.close();
    },
  };
}

/** A wildcard address can be listened on, but not dialed. */
function refuseAnyAddress(config: RouterConfig, key: "rest" | "grpc"): void {
  const address = config[key].advertise ?? config[key].listen;
  if (!/^(0\.0\.0\.0|\[::\]):/.test(address)) return;
  throw new ConfigError(
    `--registry.kind consul needs an address that others can dial, and ${address} is not one: give --${key}.advertise HOST:PORT.`,
  );
}

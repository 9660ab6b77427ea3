// The source from which the router learns of instances (its own registry, Consul, or a list), and that source's health.
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { RegistryStatusSchema } from "#gen/tandem/router/v1/router_pb.js";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import { requireDialable } from "../../discovery/consul-settings.ts";
import { registryHub } from "../../discovery/embedded.ts";
import type { Directory, Registration, SelfReport, UnprovenEntry } from "../../discovery/registry.ts";
import { staticRegistry } from "../../discovery/static.ts";
import type { Tls } from "../../rpc/tls.ts";
import type { RpcService } from "../../rpc/service.ts";
import type { RouterConfig } from "../config.ts";
import type { LiveSettings } from "./live-settings.ts";

export interface RouterRegistry extends AsyncDisposable {
  /** As RouterService reports it. A registry that is part of this router, or a list, is always up. */
  readonly status: MessageInitShape<typeof RegistryStatusSchema>;
  readonly directories: readonly Directory[];
  /** Entries that are ignored, because they don't prove that a member of the deployment wrote them. */
  readonly unproven: readonly UnprovenEntry[];
  /** Services that the router has to serve for it. */
  readonly services: readonly RpcService[];
  /** Registers this router, if the registry lists routers. */
  announce(self: { restAddress: string; grpcAddress: string }, standing: () => SelfReport): Registration | undefined;
  /** Applies the settings that the registry holds, if it holds any, and their changes. */
  watchSettings(settings: LiveSettings): void;
}

interface RegistryOptions {
  readonly routerId: string;
  readonly tls: Tls | undefined;
  readonly log: Log;
  readonly metrics: Metrics;
}

/** @throws ConfigError if Consul's settings can't be used. An unreachable Consul is not an error. */
export async function openRegistry(config: RouterConfig, o: RegistryOptions): Promise<RouterRegistry> {
  const { kind, instances } = config.registry;
  const up = o.metrics.gauge(
    "tandem_registry_up",
    "1 while the registry answers, 0 while the router uses what it last knew.",
    ["kind"],
  );
  const listed = staticRegistry(instances, { token: config.access.token, tls: o.tls, log: o.log });
  if (kind === "consul") {
    up.set({ kind }, 0);
    return openConsul(config, listed, (isUp) => up.set({ kind }, isUp ? 1 : 0), o);
  }
  up.set({ kind }, 1);
  const hub = kind === "embedded" ? [registryHub({ routerId: o.routerId })] : [];
  return {
    status: { kind, up: true },
    directories: [...hub, listed],
    unproven: [],
    services: hub.map(({ service }) => service),
    announce: () => undefined,
    watchSettings() {},
    async [Symbol.asyncDispose]() {},
  };
}

async function openConsul(
  config: RouterConfig,
  listed: Directory,
  onHealth: (isUp: boolean) => void,
  { routerId, tls, log, metrics }: RegistryOptions,
): Promise<RouterRegistry> {
  requireDialable("rest", config.rest);
  requireDialable("grpc", config.grpc);
  const { consulWatcher, registerInConsul, routerRecord } = await import("../../discovery/consul.ts");
  const deployment = config.deployment.name;
  const { token } = config.access;
  const watcher = consulWatcher(config.consul, { deployment, token, log });
  watcher.onHealth(() => onHealth(watcher.health.up));
  metrics.gauge(
    "tandem_registry_stale_seconds",
    "Seconds since the registry last answered. 0 while it answers.",
    [],
    (gauge) => {
      const { downSinceUnixMs } = watcher.health;
      gauge.set(downSinceUnixMs === 0 ? 0 : (Date.now() - downSinceUnixMs) / 1000);
    },
  );
  const startedUnixMs = Date.now();
  let settings: LiveSettings | undefined;
  let watch: AsyncDisposable | undefined;
  return {
    get status() {
      const { address, up, downSinceUnixMs, error } = watcher.health;
      const settingsError = settings?.refusal ?? "";
      return { kind: "consul", address, up, downSinceUnixMs: BigInt(downSinceUnixMs), error, settingsError };
    },
    directories: [watcher, listed],
    get unproven() {
      return watcher.unproven;
    },
    services: [],
    announce({ restAddress, grpcAddress }, standing) {
      const record = routerRecord({
        routerId,
        restAddress: config.rest.advertise ?? restAddress,
        grpcAddress: config.grpc.advertise ?? grpcAddress,
        startedUnixMs,
      });
      return registerInConsul(config.consul, () => record, standing, {
        deployment,
        token,
        tls: tls !== undefined,
        log,
      });
    },
    watchSettings(live) {
      settings = live;
      const prefix = config.consul.kvPrefix.replace(/^\/+|\/+$/g, "");
      if (prefix === "") return;
      const folder = `${prefix}/${deployment}/`;
      watch = watcher.watchSettings(folder, (texts) => live.apply(texts, `consul ${folder}`));
    },
    async [Symbol.asyncDispose]() {
      await watch?.[Symbol.asyncDispose]();
      watcher.close();
    },
  };
}

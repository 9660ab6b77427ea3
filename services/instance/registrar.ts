// Registers an instance, as configured.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Log } from "../common/log.ts";
import { requireDialable } from "../discovery/consul-settings.ts";
import { registerAtRouter } from "../discovery/embedded.ts";
import { together, type Registration, type SelfReport } from "../discovery/registry.ts";
import type { InstanceConfig } from "./config.ts";

/** Undefined if the instance doesn't register. @throws ConfigError for unusable Consul settings */
export async function registerInstance(
  config: InstanceConfig,
  self: () => Info,
  report: () => SelfReport,
  log: Log,
): Promise<Registration | undefined> {
  switch (config.registry.kind) {
    case "static":
      return undefined;
    case "embedded": {
      const addresses = [...new Set(config.registry.addresses)];
      return together(addresses.map((address) => registerAtRouter(self, { address, token: config.grpc.token, log })));
    }
    case "consul": {
      requireDialable("grpc", config.grpc);
      // Consul's code is loaded only if configured.
      const { instanceRecord, registerInConsul } = await import("../discovery/consul.ts");
      const deployment = config.deployment.name;
      return registerInConsul(config.consul, () => instanceRecord(self()), report, { deployment, log });
    }
  }
}

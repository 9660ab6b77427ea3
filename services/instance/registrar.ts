// Where an instance registers, as configured.
import { ConfigError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import { embeddedRegistry } from "../discovery/embedded.ts";
import { atEach, type Registrar } from "../discovery/registry.ts";
import type { InstanceConfig } from "./config.ts";

export interface InstanceRegistrar extends Registrar {
  close(): void;
}

/** Undefined if the instance doesn't register. @throws ConfigError for unusable Consul settings */
export async function openRegistrar(config: InstanceConfig, log: Log): Promise<InstanceRegistrar | undefined> {
  switch (config.registry.kind) {
    case "static":
      return undefined;
    case "embedded": {
      const addresses = [...new Set(config.registry.addresses)];
      if (addresses.length === 0) return undefined;
      return {
        ...atEach(addresses.map((address) => embeddedRegistry({ address, token: config.grpc.token, log }))),
        close() {},
      };
    }
    case "consul": {
      const address = config.grpc.advertise ?? config.grpc.listen;
      if (/^(0\.0\.0\.0|\[::\]):/.test(address)) {
        throw new ConfigError(
          `--registry.kind consul needs an address that others can dial, and ${address} is not one: give --grpc.advertise HOST:PORT.`,
        );
      }
      // Consul's code is loaded only if configured.
      const { consulRegistrar } = await import("../discovery/consul.ts");
      return consulRegistrar(config.consul, { deployment: config.deployment.name, log });
    }
  }
}

// The only list of connectors.
import type { Connector, ConnectorName, Traits } from "./connector.ts";
import { nixl } from "./nixl.ts";
import { p2pNccl, p2pZmq } from "./p2p.ts";

export const CONNECTORS: Readonly<Record<ConnectorName, Connector>> = {
  "p2p-zmq": p2pZmq,
  "p2p-nccl": p2pNccl,
  nixl,
};

export const CONNECTOR_NAMES = Object.keys(CONNECTORS) as ConnectorName[];

/** Undefined for an unknown connector. */
export function traitsOf(name: string): Traits | undefined {
  return Object.hasOwn(CONNECTORS, name) ? CONNECTORS[name as ConnectorName].traits : undefined;
}

// The only list of connectors.
import { ServiceError } from "../common/errors.ts";
import type { Connector, ConnectorName } from "./connector.ts";
import { nixl } from "./nixl.ts";
import { p2pNccl, p2pZmq } from "./p2p.ts";

export const CONNECTORS: Readonly<Record<ConnectorName, Connector>> = {
  "p2p-zmq": p2pZmq,
  "p2p-nccl": p2pNccl,
  nixl,
};

export const CONNECTOR_NAMES = Object.keys(CONNECTORS) as ConnectorName[];

/** @throws ServiceError `invalid_request` that names the known connectors. */
export function connectorOf(name: string): Connector {
  if (Object.hasOwn(CONNECTORS, name)) return CONNECTORS[name as ConnectorName];
  throw new ServiceError("invalid_request", `Unknown connector "${name}". There are: ${CONNECTOR_NAMES.join(", ")}.`);
}

/** How long the first KV transfer between two engines of this connector may take. 0 for an unknown connector. */
export function firstTransferMs(name: string): number {
  return Object.hasOwn(CONNECTORS, name) ? CONNECTORS[name as ConnectorName].traits.firstTransferMs : 0;
}

/** Whether engines of this connector also serve unpaired requests. False for an unknown connector. */
export function servesUnpaired(name: string): boolean {
  return Object.hasOwn(CONNECTORS, name) && CONNECTORS[name as ConnectorName].traits.servesUnpaired;
}

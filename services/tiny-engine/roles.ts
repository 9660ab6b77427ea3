// Which part of a request an engine computes, and how its KV moves. `none`: an engine that does both parts itself.
export const ROLES = ["none", "prefill", "decode"] as const;
export const CONNECTORS = ["none", "p2p-zmq", "nixl"] as const;

export type EngineRole = (typeof ROLES)[number];
export type ConnectorName = (typeof CONNECTORS)[number];

// Examines the engine each time one works: the doctor's part that needs no partner.
import { freemem, totalmem } from "node:os";
import type { LiveEngine } from "../engine/engine.ts";
import type { Finding } from "../engine/findings.ts";
import { checkVllm } from "../engine/vllm-checks.ts";
import { ranksOf } from "../engine/vllm-command.ts";
import type { Connector } from "../kv/connector.ts";
import type { InstanceRole } from "./config.ts";
import type { InstanceConfig } from "./config.ts";

/** Nothing for engines of Tandem's own: they refuse what doesn't fit by themselves. */
export function examineEngine(
  role: InstanceRole,
  config: InstanceConfig,
  connector: Connector,
  engine: LiveEngine,
): readonly Finding[] {
  // An attached engine doesn't report its kind; one that speaks p2p-zmq is one of ours.
  if (engine.facts.kind !== "vllm" || connector.traits.name === "p2p-zmq") return [];
  const launched = config.engine.attach === "";
  return checkVllm({
    role,
    connector: connector.traits.name,
    facts: engine.facts,
    launched,
    kvAddress: engine.kvAddress,
    ranks: launched ? ranksOf(config.engine.flags) : 1,
    p2pPoolGib: config.vllm.poolGib,
    freeMemoryBytes: freemem(),
    totalMemoryBytes: totalmem(),
    env: process.env,
  });
}

/** Why an engine with these findings is not used. Empty where it may be. */
export function startRefusalOf(findings: readonly Finding[]): string {
  const worst = findings.find(({ level }) => level === "error");
  return worst === undefined ? "" : `${worst.message} ${worst.cure}`.trim();
}

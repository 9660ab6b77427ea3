// The doctor's findings about an engine that need no partner, made each time an engine works.
import { freemem, totalmem } from "node:os";
import { FindingLevel, type Finding } from "#gen/tandem/instance/v1/instance_pb.js";
import { splitAddress } from "../common/address.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { ranksOf } from "../engine/vllm-command.ts";
import { vllmFindings } from "../engine/vllm-findings.ts";
import type { Connector } from "../kv/connector.ts";
import type { InstanceConfig, InstanceRole } from "./config.ts";

/** Nothing for engines of Tandem's own: they refuse what doesn't fit by themselves. */
export function engineFindings(
  role: InstanceRole,
  config: InstanceConfig,
  connector: Connector,
  engine: LiveEngine,
): readonly Finding[] {
  // An attached engine doesn't report its kind; one that speaks p2p-zmq is one of ours.
  if (engine.facts.kind !== "vllm" || connector.traits.name === "p2p-zmq") return [];
  const launched = config.engine.attach === "";
  return vllmFindings({
    role,
    connector: connector.traits.name,
    facts: engine.facts,
    launched,
    kvAddress: engine.kvAddress,
    kvHost: launched || engine.kvAddress !== "" ? splitAddress(engine.kvAddress || config.kv.listen).host : "",
    url: engine.http.origin,
    hasApiKey: config.engine.apiKey !== "",
    ranks: launched ? ranksOf(config.engine.flags) : 1,
    poolGib: config.vllm.poolGib,
    freeMemoryBytes: freemem(),
    totalMemoryBytes: totalmem(),
    env: process.env,
  });
}

/** Why an engine with these findings is not used. Empty where it may be. */
export function startRefusalOf(findings: readonly Finding[]): string {
  const worst = findings.find(({ level }) => level === FindingLevel.ERROR);
  return worst === undefined ? "" : `${worst.message} ${worst.cure}`;
}

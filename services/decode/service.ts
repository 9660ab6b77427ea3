// DecodeService: legs that are reserved before prefill is paid for, and streamed once their KV is there.
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { Deadlines } from "../common/deadlines.ts";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { defineService, type RawCall } from "../rpc/service.ts";
import type { DecodeConfig } from "./config.ts";
import { AnswerShapes } from "./answer-shape.ts";
import { DebtRecord } from "./debt-record.ts";
import { FirstTransfers } from "./first-transfers.ts";
import { createDebtLedger } from "./kv-debt.ts";
import { DecodeLeg, type LegShared } from "./leg.ts";
import { createSettle } from "./settle.ts";

/** @param recordFile For KV that an engine which isn't ours may hold unclaimed. */
export function decodeService(
  parts: InstanceParts,
  config: Pick<DecodeConfig, "settling" | "legs">,
  recordFile: string,
): RoleService {
  const { holdMs, settleTimeoutMs, debtLimitRatio } = config.settling;
  const { supervisor, connector, clock, log } = parts;
  const isKept = !supervisor.ours && connector.traits.abandoned === "drain";
  const record = isKept ? new DebtRecord({ file: recordFile, gauges: () => supervisor.gauges, clock, log }) : undefined;
  const debt = createDebtLedger(parts, debtLimitRatio, record);
  const legs: LegShared["legs"] = new Map();
  const settling = createSettle(parts, settleTimeoutMs, debt);
  const firstTransfers = new FirstTransfers();
  const shared: LegShared = {
    parts,
    settle: settling.settle,
    holdMs,
    stallMs: config.legs.stallMs,
    shapes: new AnswerShapes(log),
    deadlines: new Deadlines(clock),
    firstTransfers,
    legs,
    record,
  };
  const decode = (call: RawCall): void => void new DecodeLeg(call, shared);
  return {
    rpc: defineService(DecodeService, {}, { access: "token", raw: { decode } }),
    engineChanged(live) {
      debt.engineChanged();
      settling.engineChanged();
      for (const leg of legs.values()) leg.engineChanged(live);
    },
    engineWork: () => ({ firstTransfers: firstTransfers.waiting }),
    abortLegs: () => legs.forEach((leg) => leg.abort()),
  };
}

// DecodeService: legs that are reserved before prefill is paid for, and streamed once their KV is there.
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { defineService, type RawCall } from "../rpc/service.ts";
import type { DecodeConfig } from "./config.ts";
import { createDebtLedger } from "./kv-debt.ts";
import { DecodeLeg, type LegShared } from "./leg.ts";
import { createSettle } from "./settle.ts";

export function decodeService(parts: InstanceParts, limits: DecodeConfig["settling"]): RoleService {
  const { holdMs, settleTimeoutMs, debtLimitRatio } = limits;
  const debt = createDebtLedger(parts, debtLimitRatio);
  const legs: LegShared["legs"] = new Map();
  const settling = createSettle(parts, settleTimeoutMs, debt);
  const shared: LegShared = { parts, settle: settling.settle, holdMs, legs };
  const decode = (call: RawCall): void => void new DecodeLeg(call, shared);
  return {
    rpc: defineService(DecodeService, {}, { access: "token", raw: { decode } }),
    engineChanged(live) {
      debt.engineChanged();
      settling.engineChanged();
      for (const leg of legs.values()) leg.engineChanged(live);
    },
    abortLegs: () => legs.forEach((leg) => leg.abort()),
  };
}

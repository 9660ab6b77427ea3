// DecodeService: legs that are reserved before prefill is paid for, and streamed once their KV is there.
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { defineService } from "../rpc/service.ts";
import { DecodeLeg, type LegShared } from "./leg.ts";
import { createSettler } from "./settle.ts";

export interface DecodeLimits {
  readonly holdMs: number;
  readonly settleTimeoutMs: number;
}

export function decodeService(parts: InstanceParts, limits: DecodeLimits): RoleService {
  const settler = createSettler(parts, { askTimeoutMs: limits.settleTimeoutMs });
  const shared: LegShared = { parts, settler, holdMs: limits.holdMs, legs: new Map() };
  return {
    rpc: defineService(
      DecodeService,
      {},
      {
        access: "token",
        raw: {
          decode(call) {
            new DecodeLeg(call, shared);
          },
        },
      },
    ),
    engineChanged() {
      const live = parts.supervisor.live;
      for (const leg of [...shared.legs.values()]) leg.engineChanged(live);
    },
    abortLegs() {
      for (const leg of [...shared.legs.values()]) leg.abort();
    },
    settled: () => settler.idle(),
  };
}

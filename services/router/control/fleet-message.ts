// The view of the fleet as RouterService reports it.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type InstanceSchema, type ModelSchema, Standing } from "#gen/tandem/router/v1/router_pb.js";
import type { FleetView, ModelView, Reason, Seen } from "../pool/pool.ts";

const UINT32_MAX = 2 ** 32 - 1;

/** @param nowMs By the pool's clock. */
export function fleetMessage(
  view: FleetView,
  nowMs: number,
): { instances: MessageInitShape<typeof InstanceSchema>[]; models: MessageInitShape<typeof ModelSchema>[] } {
  return {
    instances: [...view.prefill, ...view.decode].map((seen) => instanceMessage(seen, nowMs)),
    models: [...view.models.values()].map(modelMessage),
  };
}

function instanceMessage({ instance, standing }: Seen, nowMs: number): MessageInitShape<typeof InstanceSchema> {
  const { info, load, loadAtMs, legs, legsTotal } = instance;
  return {
    info,
    ...(load === undefined ? {} : { load }),
    eligible: standing.kind === "serves",
    reason: standing.text,
    standing:
      standing.kind === "serves" ? Standing.SERVING : Standing[standing.reason.toUpperCase() as Uppercase<Reason>],
    legs,
    legsTotal,
    loadAgeMs: load === undefined ? 0 : Math.min(UINT32_MAX, Math.max(0, Math.round(nowMs - loadAtMs))),
  };
}

function modelMessage(model: ModelView): MessageInitShape<typeof ModelSchema> {
  const lack = model.lack(false);
  const serving = (seen: readonly Seen[]): number => seen.filter(({ standing }) => standing.kind === "serves").length;
  return {
    name: model.name,
    ready: lack === undefined,
    lack: lack ?? "",
    prefillServing: serving(model.prefill),
    prefillKnown: model.prefill.length,
    decodeServing: serving(model.decode),
    decodeKnown: model.decode.length,
    slots: model.slots,
    maxModelLen: model.maxModelLen,
  };
}
